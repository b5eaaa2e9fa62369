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
from typing import Any

import numpy as np
from array_record.python import array_record_module

from lmtiny import files, tokenizer
from lmtiny.data import packing
from lmtiny.errors import UserError

FORMAT = 1
MANIFEST = "manifest.json"
TOKENIZER = "tokenizer"
SPLITS = ("train", "validation")
WRITE_OPTIONS = "group_size:1,uncompressed"
READ_OPTIONS = "readahead_buffer_size:0,max_parallelism:0"  # for random access
NOT_WRITABLE = (
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.ENOENT,
)  # fmt: skip
BLOCK_ROWS = 1024  # put together at once
REBUILD = "python -m lmtiny.prepare with the same flags and --rebuild makes it anew"


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A finished folder of token shards: its manifest's values, its tokenizer, its files."""

    folder: pathlib.Path
    manifest: dict[str, Any]

    @functools.cached_property
    def tokenizer(self) -> tokenizer.Tokenizer:
        """The tokenizer whose ids the rows hold; raises UserError where it is not the manifest's."""
        found = tokenizer.load(self.folder / TOKENIZER)
        if found.hash != self.manifest["tokenizer"]["hash"]:
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
            number = next((one for one in NOT_WRITABLE if os.strerror(one) in str(error)), None)
            if number is None:
                raise
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


def read(folder: pathlib.Path) -> Prepared:
    """Returns the finished preparation in `folder`, after a quick look: the manifest's hash, each shard's size.

    Raises:
      UserError: no manifest, a damaged one, one of another format; a shard is missing or has another size.
    """
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise UserError(f"{folder} holds no prepared data ({MANIFEST} is missing)") from None
    except (ValueError, OSError) as error:
        raise UserError(f"{path} cannot be read ({error}); {REBUILD}") from None
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        found = manifest.get("format") if isinstance(manifest, dict) else manifest
        raise UserError(f"{path} has format {found!r:.40}, this program reads format {FORMAT}; {REBUILD}")
    if manifest.pop("sha256", "") != _own_hash(manifest):
        raise UserError(f"{path} was altered or damaged: its content does not match its hash; {REBUILD}")
    prepared = Prepared(folder, manifest)
    for split in SPLITS:
        for shard in manifest["splits"][split]["shards"]:
            file = folder / shard["name"]
            size = file.stat().st_size if file.is_file() else None
            if size != shard["bytes"]:
                state = "is missing" if size is None else f"has {size} bytes instead of {shard['bytes']}"
                raise UserError(f"{file} {state}; {REBUILD}")
    return prepared


def verify(prepared: Prepared) -> None:
    """Reads every shard and compares its SHA-256 with the manifest's (about 1.5 GB/s), and loads the tokenizer.

    Raises:
      UserError: the first shard that was altered, or a tokenizer that is not the one.
    """
    assert prepared.tokenizer
    for split in SPLITS:
        for shard in prepared.manifest["splits"][split]["shards"]:
            file = prepared.folder / shard["name"]
            if not file.is_file() or _sha256(file) != shard["sha256"]:
                raise UserError(f"{file} was altered or damaged: its SHA-256 is not the manifest's; {REBUILD}")
