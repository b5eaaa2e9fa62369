"""`python -m lmtiny.prepare` over folders full of other people's files, under every name that lmtiny uses: all are there afterwards."""

import json
import pathlib
import sys

import pytest

from lmtiny import ownership, prepare
from lmtiny.data import shards
from lmtiny.errors import UserError

CONFIG = pathlib.Path(__file__).parents[2] / "configs" / "tiny.py"
NAMES = [
    "parts/thesis.txt", "parts/report.json", "tokenizer/mine.txt", "tokenizer/tokens.tiktoken", "report.html", "report.json",
    "train-00000-of-00001.array_record", "validation-00000-of-00001.array_record", "x.aside-y", "y.aside-1-0123abcd",
    "z.aside-1-0123abcd/a", "manifest.json", "compare.txt", "compare.md", "compare.png", ".lock", ".lmtiny",
]  # fmt: skip


@pytest.fixture
def command(tmp_path, monkeypatch):
    """Returns a function that runs the command over a small text; "" or the line of its error."""
    monkeypatch.chdir(tmp_path)
    texts = tmp_path / "texts.jsonl"
    texts.write_text(
        "".join(
            json.dumps({"text": f"Text {number}, of {number * number} words."}) + "\n" for number in range(40)
        )
    )
    small = {
        "corpus.kind": "files",
        "corpus.path": texts,
        "tokenizer.kind": "byte",
        "model.context_length": 32,
    }

    def run(*flags: str) -> str:
        knobs = [f"--config.{name}={value}" for name, value in small.items()]
        monkeypatch.setattr(sys, "argv", ["prepare", "--config", str(CONFIG), *knobs, *flags])
        try:
            prepare.main()
        except UserError as error:
            assert "\n" not in str(error)
            return str(error)
        return ""

    return run


def contents(folder: pathlib.Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


def plant(folder: pathlib.Path, names=NAMES) -> dict[str, bytes]:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"mine: {name}")
    return contents(folder)


@pytest.mark.parametrize("name", [*NAMES, ""])
def test_a_folder_of_a_strangers_is_refused_and_stays_as_it_is(command, tmp_path, name):
    mine = plant(tmp_path / "mine", [name] if name else NAMES)
    for flags in ([], ["--rebuild"], ["--verify"]):
        told = command("--config.data.dir=mine", *flags)
        assert contents(tmp_path / "mine").items() >= mine.items()
        if name != ".lock":  # a lock alone is what a killed process leaves
            assert (
                told.startswith("data.dir: mine holds files that lmtiny did not write (")
                and "--rebuild" not in told
            )
            assert contents(tmp_path / "mine") == mine


@pytest.mark.parametrize("manifest", [{"format": 1}, {"format": 1, "sha256": "0" * 64}, [], {"splits": {}}])
def test_a_manifest_of_a_strangers_is_no_mark(command, tmp_path, manifest):
    mine = plant(tmp_path / "mine", ["report.html"])
    (tmp_path / "mine" / "manifest.json").write_text(json.dumps(manifest))
    for flags in ([], ["--rebuild"]):
        assert "that lmtiny did not write" in command("--config.data.dir=mine", *flags)
    assert contents(tmp_path / "mine").items() >= mine.items()


def test_what_lies_beside_ones_own_preparation_stays_through_a_rebuild(command, tmp_path):
    assert command("--config.data.dir=mine") == ""
    ours = contents(tmp_path / "mine")
    mine = {
        name: f"mine: {name}".encode()
        for name in NAMES
        if name not in ours and not name.startswith(("parts", "y.", "z."))
    }
    mine |= dict.fromkeys(
        ("train-of-thoughts-of-mine.array_record", "tokenizer/deep/a", "thesis.txt", "report.pdf"), b"mine"
    )
    for name, content in mine.items():
        (tmp_path / "mine" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "mine" / name).write_bytes(content)
    for flags in ([], ["--rebuild"], ["--config.data.rows_per_shard=5", "--rebuild"], ["--rebuild"]):
        assert command("--config.data.dir=mine", *flags) == ""
        assert contents(tmp_path / "mine").items() >= mine.items()
    assert contents(tmp_path / "mine") == ours | mine


def test_a_folder_of_parts_without_a_mark_is_neither_used_nor_removed(command, tmp_path):
    assert command("--config.data.dir=mine") == ""
    parts = plant(tmp_path / "mine" / "parts", ["thesis.txt"])
    before = contents(tmp_path / "mine")
    assert command("--config.data.dir=mine") == ""  # what is finished is used
    for flags in (
        ["--rebuild"],
        ["--config.data.rows_per_shard=5"],
        ["--config.data.rows_per_shard=5", "--rebuild"],
    ):
        assert command("--config.data.dir=mine", *flags) != ""
    assert contents(tmp_path / "mine") == before and contents(tmp_path / "mine" / "parts") == parts


@pytest.mark.parametrize("name", ["parts", "tokenizer"])
def test_nothing_is_written_or_removed_through_a_link(command, tmp_path, name):
    assert command("--config.data.dir=mine") == ""
    elsewhere = plant(tmp_path / "elsewhere", ["a.txt", "tokens.tiktoken"])
    ownership.claim(tmp_path / "elsewhere", "what is not finished of prepared data", "", lambda: True)
    for path in (tmp_path / "mine" / name).glob("*"):
        path.unlink()
    if (tmp_path / "mine" / name).exists():
        (tmp_path / "mine" / name).rmdir()
    (tmp_path / "mine" / name).symlink_to(tmp_path / "elsewhere")
    assert "is a link; take it away" in command("--config.data.dir=mine", "--rebuild")
    assert contents(tmp_path / "elsewhere").items() >= elsewhere.items()


def test_what_an_older_lmtiny_prepared_is_used_rebuilt_and_marked(command, tmp_path):
    assert command("--config.data.dir=mine") == ""
    (tmp_path / "mine" / ownership.MARK).unlink()
    unmarked = contents(tmp_path / "mine")
    assert command("--config.data.dir=mine") == "" and contents(tmp_path / "mine") == unmarked
    assert "something else" in command("--config.data.dir=mine", "--config.data.rows_per_shard=5")
    assert command("--config.data.dir=mine", "--rebuild") == ""
    assert (
        ownership.purpose(tmp_path / "mine") == "prepared data"
        and contents(tmp_path / "mine").items() >= unmarked.items()
    )
    (tmp_path / "mine" / ownership.MARK).unlink()
    with open(tmp_path / "mine" / shards.MANIFEST, "a") as file:  # altered by hand
        file.write(" {}")
    damaged = contents(tmp_path / "mine")
    assert (
        "that lmtiny did not write" in command("--config.data.dir=mine", "--rebuild")
        and contents(tmp_path / "mine") == damaged
    )


def test_a_preparation_that_fails_takes_nothing_away(command, tmp_path):
    (tmp_path / "empty.jsonl").write_text('{"text": "a"}\n')
    empty = f"--config.corpus.path={tmp_path / 'empty.jsonl'}"
    assert command("--config.data.dir=new", empty) != "" and not (tmp_path / "new").exists()
    (tmp_path / "new").mkdir()
    assert command("--config.data.dir=new", empty) != "" and (tmp_path / "new").is_dir()


def test_a_comparison_and_an_export_overwrite_only_what_lmtiny_wrote(command, tmp_path):
    assert command("--config.data.dir=prepared/own") == ""
    ready = ["--config.tokenizer.kind=bpe", "--config.tokenizer.vocab_size=300"]
    peer = [
        "--compare-with",
        str(tmp_path / "prepared" / "own" / "tokenizer"),
        "--config.data.dir=prepared/bpe",
    ]
    mine = plant(tmp_path / "mine")
    for name in ("compare.txt", ".lmtiny"):
        plant(tmp_path / name, [name])
    assert (
        command(*ready, *peer, "--compare", "new") == "" and command(*ready, *peer, "--compare", "new") == ""
    )
    (tmp_path / "new" / ownership.MARK).unlink()
    assert command(*ready, *peer, "--compare", "new") == ""  # an older one's
    for folder in ("mine", "compare.txt", ".lmtiny"):
        assert "that lmtiny did not write" in command(*ready, *peer, "--compare", folder)
    assert "holds prepared data, not a comparison" in command(*ready, *peer, "--compare", "prepared/own")
    theirs = tmp_path / "tokenizer.json"
    export = [*ready, "--config.data.dir=prepared/bpe", "--export"]
    assert command(*export, "out.json") == "" and command(*export, "out.json") == ""
    theirs.write_text(
        (tmp_path / "out.json").read_text().replace('"version": "1.0"', '"version": "1.0",\n "mine": 1')
    )
    (tmp_path / "link.json").symlink_to(theirs)
    before = theirs.read_bytes()
    for path in ("tokenizer.json", "link.json", "mine/manifest.json"):
        assert "is there, and is no tokenizer.json of lmtiny's" in command(*export, path)
    assert contents(tmp_path / "mine") == mine and theirs.read_bytes() == before


@pytest.mark.parametrize(
    "flags",
    [["--config.data.dir=gs://b/x"], ["--config.tokenizer.path=s3://b/x"], ["--export", "gs://b/x.json"], ["--compare", "gs://b/x"],
     ["--compare", "--samples", "gs://b"], ["--compare", "--ranks", "s3://b"], ["--compare", "--compare-with", "hf://b/x.json"],
     ["--config.corpus.kind=sources", "--config.corpus.path=", '--config.corpus.sources=[{"path": "builtin"}]',
      "--config.corpus.download_dir=gs://b"]],
)  # fmt: skip
def test_an_address_where_a_folder_belongs_is_refused_at_once(command, tmp_path, flags):
    before = contents(tmp_path)
    told = command(*flags)
    assert "is an address; only folders and files of this machine" in told and contents(tmp_path) == before
    assert not list(tmp_path.glob("*:*"))
