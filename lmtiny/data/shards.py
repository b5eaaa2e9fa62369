"""Shards of rows on disk and the manifest that vouches for them.

A shard is an array_record file (`group_size:1`, uncompressed) whose records are rows of T+1 tokens, raw little-endian
uint16 or uint32. `manifest.json` is written last: a folder that has one is complete.
"""

import dataclasses
import errno
import functools
import hashlib
import json
import os
import pathlib
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from array_record.python import array_record_module

from lmtiny import console, files, json_data, tokenizer
from lmtiny.data import packing, pool
from lmtiny.errors import UserError

FORMAT = 1
MANIFEST = "manifest.json"
TOKENIZER = "tokenizer"
SPLITS = ("train", "validation")
WRITE_OPTIONS = "group_size:1,uncompressed"
READ_OPTIONS = "readahead_buffer_size:0,max_parallelism:0"  # for random access
BLOCK_ROWS = 1024  # put together at once
REBUILD = "python -m lmtiny.prepare with the same flags and --rebuild makes it anew"
NAME = re.compile(r"(train|validation)-[0-9]{5,}-of-[0-9]{5,}\.array_record")
DTYPES = ("<u2", "<u4")
_SPLIT = {
    "documents": int, "bytes": int, "tokens": int, "rows": int, "padding_share": float, "crop_share": float,
    "shards": [{"name": str, "rows": int, "bytes": int, "sha256": str}],
}  # fmt: skip
_SHAPE = {
    "corpus": str,
    "tokenizer": {"kind": str, "vocab_size": int, "hash": str, "bos_id": int},
    "row_length": int,
    "dtype": str,
    "splits": dict.fromkeys(SPLITS, _SPLIT),
    "depends_on": {str: object},
}


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A finished folder of token shards: its manifest's values, its tokenizer, its files."""

    folder: pathlib.Path
    manifest: dict[str, Any]

    @functools.cached_property
    def tokenizer(self) -> tokenizer.Tokenizer:
        """The tokenizer whose ids the rows hold; raises UserError where it is not the manifest's."""
        found = tokenizer.load(self.folder / TOKENIZER)
        said = self.manifest["tokenizer"]
        if (found.hash, found.vocab_size, found.bos_id) != (said["hash"], said["vocab_size"], said["bos_id"]):
            raise UserError(f"{self.folder / TOKENIZER} is not the tokenizer these shards were made with; {REBUILD}")
        return found

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of the training rows: the same digest gives the same batches."""
        return hashlib.sha256("".join(shard["sha256"] for shard in self.manifest["splits"]["train"]["shards"]).encode()).hexdigest()

    def row_length(self, split: str) -> int:
        """Returns T of "train" or "validation", whose stored rows have T+1 tokens."""
        return int(self.manifest["splits"][split].get("row_length", self.manifest["row_length"]))

    @property
    def bos_id(self) -> int:
        return int(self.manifest["tokenizer"]["bos_id"])

    @property
    def dtype(self) -> np.dtype:
        """Of the stored tokens."""
        return np.dtype(self.manifest["dtype"])

    def num_rows(self, split: str) -> int:
        """Returns the number of stored rows of "train" or "validation"."""
        return int(self.manifest["splits"][split]["rows"])

    def shards(self, split: str) -> list[pathlib.Path]:
        """Returns the shard files of a split, in their order."""
        return [self.folder / shard["name"] for shard in self.manifest["splits"][split]["shards"]]


def write(
    path: pathlib.Path, chunks: packing.Chunks, plan: packing.Rows, rows: np.ndarray, tokens: list[np.ndarray], bos_id: int, width: int
) -> None:
    """Writes a shard of the given `rows` of the plan, in this order, each of `width` tokens, filled up with `bos_id`.

    Raises:
      OSError: the disk is full, or takes no more for another reason.
    """
    with files.written(path) as aside:
        try:
            _write_rows(aside, chunks, plan, rows, tokens, bos_id, width)
        except RuntimeError as error:  # array_record has the system's words, and not their number
            number = next((one for one in errno.errorcode if os.strerror(one) in str(error)), errno.EIO)
            raise OSError(number, os.strerror(number)) from error
        if not aside.exists() or array_record_module.ArrayRecordReader(str(aside), READ_OPTIONS).num_records() != len(rows):
            raise UserError(f"{path.name} could not be written whole; is the disk full?")
        with open(aside, "rb") as file:
            os.fsync(file.fileno())


def _write_rows(
    path: pathlib.Path, chunks: packing.Chunks, plan: packing.Rows, rows: np.ndarray, tokens: list[np.ndarray], bos_id: int, width: int
) -> None:
    dtype, writer = tokens[0].dtype, array_record_module.ArrayRecordWriter(str(path), WRITE_OPTIONS)
    for start in range(0, len(rows), BLOCK_ROWS):
        some = rows[start : start + BLOCK_ROWS]
        block = np.full((len(some), width), bos_id, dtype)
        for line, number in zip(block, some.tolist(), strict=True):
            at = 0
            for chunk in plan.order[plan.first[number] : plan.first[number + 1]].tolist():
                begin, length = int(chunks.start[chunk]), int(chunks.length[chunk])
                line[at + 1 : at + 1 + length] = tokens[chunks.part[chunk]][begin : begin + length]
                at += 1 + length
        for line in block:
            writer.write(line.tobytes())
    writer.close()


def described(path: pathlib.Path, rows: int) -> dict[str, Any]:
    """Returns what the manifest says of a shard."""
    return {"name": path.name, "rows": rows, "bytes": path.stat().st_size, "sha256": _sha256(path)}


def _sha256(path: pathlib.Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_manifest(folder: pathlib.Path, manifest: dict[str, Any]) -> None:
    """Writes `manifest.json`, with the hash of its own content at the end."""
    with files.opened(folder / MANIFEST) as file:
        file.write(json.dumps({**manifest, "sha256": _own_hash(manifest)}, indent=1, ensure_ascii=False).encode() + b"\n")


def _own_hash(manifest: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def is_prepared(folder: pathlib.Path) -> bool:
    """Returns whether `folder` has a manifest that lmtiny wrote, whole: a mark it need not have."""
    try:
        return bool(_read_manifest(folder))
    except UserError:
        return False


def read(folder: pathlib.Path) -> Prepared:
    """Returns the finished preparation in `folder`, after a quick look: the manifest, each shard's size.

    Raises:
      UserError: no manifest, a damaged one, one of another format; a shard is missing or has another size.
    """
    prepared = Prepared(folder, _read_manifest(folder))
    for file, shard in _shards(prepared):
        try:
            size = file.stat().st_size if file.is_file() else None
        except OSError as error:
            raise UserError(f"{file} cannot be read ({error.strerror})") from None
        if size != shard["bytes"]:
            wanted = json_data.short(shard["bytes"])
            state = "is missing" if size is None else f"has {size} bytes instead of {wanted}"
            raise UserError(f"{file} {state}; {REBUILD}")
    return prepared


def _read_manifest(folder: pathlib.Path) -> dict[str, Any]:
    """Returns the manifest in `folder` without its hash, whose values fit together; raises UserError."""
    path = folder / MANIFEST
    try:
        if not path.is_file():
            raise UserError(f"{folder} holds no prepared data ({MANIFEST} is missing)")
        manifest = json_data.read(path)
        if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
            found = manifest.get("format") if isinstance(manifest, dict) else manifest
            raise UserError(f"{path} has format {json_data.short(found)}, this program reads format {FORMAT}")
        if manifest.pop("sha256", "") != _own_hash(manifest):
            raise UserError(f"{path} was altered or damaged: its content does not match its hash")
        json_data.check(manifest, _SHAPE, str(path))
        for problem in _problems(manifest):
            raise UserError(f"{path}: {problem}")
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); {REBUILD}") from None
    except RecursionError:
        raise UserError(f"{path} is nested too deep; {REBUILD}") from None
    except UserError as error:
        raise UserError(f"{error}; {REBUILD}") from None
    return dict(manifest)


def _problems(manifest: dict[str, Any]) -> Iterator[str]:
    """Yields what cannot be in a manifest that lmtiny wrote, whoever computed its hash."""
    if manifest["dtype"] not in DTYPES:
        yield f"'dtype' is {json_data.short(manifest['dtype'])}, not one of {', '.join(DTYPES)}"
    if not 0 <= manifest["tokenizer"]["bos_id"] < manifest["tokenizer"]["vocab_size"] < 2**32:
        yield "'tokenizer' has no room for its bos_id"
    itemsize = 4 if manifest["dtype"] == "<u4" else 2
    for split, of in manifest["splits"].items():
        where = f"'splits': {json_data.short(split)}"
        row_length = of.get("row_length", manifest["row_length"])
        if split not in SPLITS:
            yield f"{where} is none of {', '.join(SPLITS)}"
        elif type(row_length) is not int or row_length < 1:
            yield f"{where} has rows of {json_data.short(row_length)} tokens"
        elif (
            not all(0 <= of[name] < 2**63 for name in ("documents", "bytes", "tokens"))
            or not 1 <= of["rows"] < 2**63
        ):
            yield f"{where} has a count that cannot be"
        elif not all(0 <= of[name] <= 1 for name in ("padding_share", "crop_share")):
            yield f"{where} has a share that is not between 0 and 1"
        elif any(
            not NAME.fullmatch(shard["name"]) or not shard["name"].startswith(f"{split}-")
            for shard in of["shards"]
        ):
            yield f"{where} has a shard whose name is not that of one"
        elif len({shard["name"] for shard in of["shards"]}) < len(of["shards"]):
            yield f"{where} has a shard twice"
        # A shard is not compressed, and its size is compared with that of the file.
        elif not all(
            0 < shard["rows"] * (row_length + 1) * itemsize <= shard["bytes"] for shard in of["shards"]
        ):
            yield f"{where} has a shard too small for its rows"
        elif sum(shard["rows"] for shard in of["shards"]) != of["rows"]:
            yield f"{where} has another number of rows than its shards"
        elif "mixture" in of and not _is_mixture(of["mixture"], of["rows"]):
            yield f"{where} has a mixture that is not one of its rows"


def _is_mixture(mixture: Any, rows: int) -> bool:
    try:
        json_data.check(mixture, [{"source": str, "rows": int}], "")
    except UserError:
        return False
    names = {one["source"] for one in mixture}
    return (
        len(names) == len(mixture)
        and all(one["rows"] > 0 for one in mixture)
        and sum(one["rows"] for one in mixture) == rows
    )


def _shards(prepared: Prepared) -> Iterator[tuple[pathlib.Path, dict[str, Any]]]:
    """Yields (file, what the manifest says of it) of all shards."""
    for split in SPLITS:
        yield from zip(prepared.shards(split), prepared.manifest["splits"][split]["shards"], strict=True)


def verify(prepared: Prepared) -> None:
    """Reads every shard, one a core at a time, compares its SHA-256 with the manifest's; reads the tokenizer.

    Raises:
      UserError: the first shard that was altered or cannot be read, or a tokenizer that is not the one.
    """
    assert prepared.tokenizer
    shards = list(_shards(prepared))
    executor = ThreadPoolExecutor(min(len(shards), pool.cores()))  # hashlib lets other threads work
    try:
        total = sum(shard["bytes"] for _, shard in shards)
        with console.progress("checking the shards", total, "bytes") as shown:
            hashes = executor.map(_sha256, (file for file, _ in shards))
            for (file, shard), found in zip(shards, hashes, strict=True):
                if found != shard["sha256"]:
                    raise UserError(
                        f"{file} was altered or damaged: its SHA-256 is not the manifest's; {REBUILD}"
                    )
                shown.update(shown.done + shard["bytes"])
    except OSError as error:
        raise UserError(
            f"{error.filename or prepared.folder} cannot be read ({error.strerror or error}); {REBUILD}"
        ) from None
    finally:
        executor.shutdown(cancel_futures=True)
