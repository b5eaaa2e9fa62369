"""Each write of a preparation fails in turn: one line with the system's words, nothing half-written, the same bytes afterwards."""

import builtins
import errno
import io
import os
import pathlib

import pytest

from lmtiny.data import prepare, shards, verify
from lmtiny.errors import UserError

ERRORS = (errno.ENOSPC, errno.EACCES, errno.EROFS, errno.EIO, errno.ENODEV)
REMOVALS = ("unlink", "rmdir")


class Disk:
    """Lets the `first` operation that writes below `folder`, and all after it, fail with `number`; counts them."""

    def __init__(self, patch: pytest.MonkeyPatch, folder: pathlib.Path, number: int, first: int) -> None:
        self.folder, self.number, self.first, self.count = str(folder), number, first, 0
        self.failed = False
        opening, writer = open, shards.array_record_module.ArrayRecordWriter
        disk = self

        def open_(file, mode="r", *rest, **more):
            if not set(mode) & set("wax+") or not disk.holds(file):
                return opening(file, mode, *rest, **more)
            disk.may("open", file)
            return File(opening(file, mode, *rest, **more))

        class File:
            def __init__(self, file) -> None:
                self.file = file

            def __getattr__(self, name):
                return getattr(self.file, name)

            def __enter__(self):
                return self

            def __exit__(self, *_) -> None:
                self.file.close()

            def write(self, data):
                try:
                    disk.may("write", None)
                except OSError:
                    self.file.write(data[: len(data) // 2])
                    raise
                return self.file.write(data)

        class Writer:
            def __init__(self, path, options) -> None:
                self.told("open")
                self.writer = writer(path, options)

            def told(self, what) -> None:
                try:
                    disk.may(what, None)
                except OSError as error:
                    raise RuntimeError(
                        f"UNKNOWN: {what} failed\n: {error.strerror} [{error.errno}]"
                    ) from None

            def write(self, data) -> None:
                self.told("write")
                self.writer.write(data)

            def close(self) -> None:
                self.told("close")
                self.writer.close()

        for module in (builtins, io):
            patch.setattr(module, "open", open_)
        patch.setattr(shards.array_record_module, "ArrayRecordWriter", Writer)
        for name in ("replace", "mkdir", "fsync", "unlink", "rmdir"):
            patch.setattr(os, name, self.watched(name, getattr(os, name)))

    def holds(self, path) -> bool:
        return isinstance(path, str | os.PathLike) and os.fspath(path).startswith(self.folder)

    def watched(self, name, original):
        def operation(path, *rest, **more):
            if name == "fsync" or self.holds(path):
                self.may(name, path)
            return original(path, *rest, **more)

        return operation

    def may(self, name, path) -> None:
        self.count += 1
        if self.count >= self.first and not (self.number == errno.ENOSPC and name in REMOVALS):
            self.failed = True
            raise OSError(self.number, os.strerror(self.number), path if self.holds(path) else None)


def every_write_fails(
    config_of, hashes, monkeypatch, capsys, tmp_path, every: int, all_errors: bool = False, **knobs
) -> None:
    """Prepares with a disk that fails from the first write on, or a later one, then without, and compares with an undisturbed one."""
    knobs = {
        "corpus.section_bytes": 2048,
        "model.context_length": 512,
        "corpus.validation_fraction": 0.5,
        **knobs,
    }
    knobs["corpus.path"] = str(tmp_path / "a.txt")
    paragraphs = (
        f"Paragraph {number} says that {number} times {number} is {number * number}. " * 7
        for number in range(40)
    )
    (tmp_path / "a.txt").write_text("\n\n".join(paragraphs))
    whole = hashes(prepare(config_of("whole", **knobs)).folder)
    first, more = 1, True
    while more:
        for number in ERRORS if all_errors else [ERRORS[first // every % len(ERRORS)]]:
            config = config_of(f"{first}-{number}", **knobs)
            folder, told = pathlib.Path(config.data.dir), ""
            capsys.readouterr()
            with monkeypatch.context() as patch:
                disk = Disk(patch, folder, number, first)
                try:
                    prepare(config)
                except UserError as error:
                    told = str(error)
            more = disk.count >= first
            warned = "".join(
                line for line in capsys.readouterr().err.splitlines(True) if "held out" not in line
            )
            assert told or verify(shards.read(folder)) is None, "what is finished is not lost"
            assert "\n" not in told and warned.count("\n") <= 1 and len(told) < 400
            assert (
                told.endswith("--config.data.dir names another folder")
                or not told
                or told.startswith("cannot write the tokenizer to")
            )
            assert os.strerror(number) in told + warned or not disk.failed
            assert hashes(prepare(config).folder) == whole, (first, number)
        first += every
    assert first > 60


def test_writes_may_fail(config_of, hashes, monkeypatch, capsys, tmp_path) -> None:
    every_write_fails(config_of, hashes, monkeypatch, capsys, tmp_path, 7)


@pytest.mark.exhaustive
def test_every_write_may_fail_in_every_way(config_of, hashes, monkeypatch, capsys, tmp_path) -> None:
    every_write_fails(
        config_of, hashes, monkeypatch, capsys, tmp_path, 1, all_errors=True, **{"tokenizer.kind": "byte"}
    )


@pytest.mark.exhaustive
def test_writes_of_refining_may_fail(config_of, hashes, monkeypatch, capsys, tmp_path) -> None:
    pytest.importorskip("datatrove", reason="needs the extra corpus: pip install 'lmtiny[corpus]'")
    knobs = {
        "corpus.cleaning": ("unicode",),
        "corpus.deduplicate": True,
        "corpus.near_duplicate": 2.0,
        "tokenizer.kind": "byte",
    }
    every_write_fails(config_of, hashes, monkeypatch, capsys, tmp_path, 5, **knobs)
