"""What is done to one unit of the corpus at a time, by whichever process: read, screen, encode. No result but files.

Each function leaves its part last of all, under its name: what is there is whole and need not be done again.
"""

import collections
import functools
import hashlib
import json
import pathlib
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from lmtiny import corpus, files, tokenizer
from lmtiny.corpus import Document, Side, Unit
from lmtiny.refining import Tally
from lmtiny.refining.parts import documents_of

FACTS = np.dtype([("hash", "<u8"), ("bytes", "<i8")])  # of a document: hash of its content, its length as UTF-8
BATCH_CHARACTERS = 1 << 20  # encoded at once
SPLIT = "split"  # the stage that drops what is on neither side
DROPPED = {Side.DUPLICATE: "exact copy", Side.NEAR_DUPLICATE: "nearly a held-out document"}


def facts_path(documents: pathlib.Path) -> pathlib.Path:
    """Returns where the FACTS beside a part of documents are."""
    return documents.with_suffix(".facts.npy")


def tally_path(documents: pathlib.Path) -> pathlib.Path:
    """Returns where the tally beside a part of documents, or of tokens, is."""
    return documents.with_suffix(".tally.json")


def read(unit: Unit, path: pathlib.Path) -> None:
    """Writes the unit's documents to `path`, and their FACTS."""
    write_documents(unit.read(), path)


def write_documents(documents: Iterable[Document], path: pathlib.Path) -> None:
    """Writes the documents that have text, a JSON line each, their FACTS, and a tally of all for the report."""
    facts, tally = [], Tally()
    with files.opened(path) as file:
        for document in documents:
            if tally.read(document["source"], document["id"], document["text"]):
                facts.append((corpus.content_hash(document["text"]), len(document["text"].encode())))
                file.write(json.dumps(document, ensure_ascii=False).encode() + b"\n")
        files.write_array(facts_path(path), np.array(facts, FACTS))
        files.write_aside(tally_path(path), tally.to_json())


def of_side(path: pathlib.Path, sides: np.ndarray, wanted: Side) -> Iterator[Document]:
    """Yields the documents of a part that are on the `wanted` side."""
    if (sides == wanted).any():
        for document, side in zip(documents_of(path), sides, strict=True):
            if side == wanted:
                yield document


def corpus_hash(facts: list[np.ndarray]) -> str:
    """Returns the SHA-256 (hex) of the hashes of all documents, in their order."""
    return hashlib.sha256(np.concatenate([one["hash"] for one in facts]).tobytes()).hexdigest()


def screen(documents: pathlib.Path, sides: np.ndarray, index: pathlib.Path, threshold: float, path: pathlib.Path) -> None:
    """Writes the `sides` with each training document marked that is as similar as `threshold` to one of the index."""
    sides = sides.copy()
    known = _index(index)
    for number, document in enumerate(documents_of(documents)):
        if sides[number] == Side.TRAIN and known.similarity(document["text"]) >= threshold:
            sides[number] = Side.NEAR_DUPLICATE
    files.write_array(path, sides)


@functools.lru_cache(1)
def _index(folder: pathlib.Path) -> corpus.Index:
    return corpus.Index.load(folder)


@functools.lru_cache(1)
def _tokenizer(folder: pathlib.Path) -> tokenizer.Tokenizer:
    return tokenizer.load(folder)


def encode(documents: pathlib.Path, sides_path: pathlib.Path, tokenizer_folder: pathlib.Path, path: pathlib.Path) -> None:
    """Writes the ids of the documents that stay, joined without separators; beside them their lengths and counts.

    Files: `path` (.npy, ids in the smallest dtype), `.lengths.npy` (int64, tokens of each document of the unit, 0 for
    those dropped), `.counts.json` (source -> side -> [documents, bytes, tokens]), `.tally.json` (of those dropped, and of those that stay).
    """
    known = _tokenizer(tokenizer_folder)
    sides = np.load(sides_path)
    lengths = np.zeros(len(sides), np.int64)
    counts: dict[str, Any] = collections.defaultdict(lambda: {"train": [0, 0, 0], "validation": [0, 0, 0]})
    ids, tally = [], Tally()
    for batch in _batches(documents, sides, tally):
        encoded = known.encode_batch([document["text"] for _, document in batch])
        for (number, document), own in zip(batch, encoded, strict=True):
            lengths[number] = len(own)
            count = counts[document["source"]]["train" if sides[number] == Side.TRAIN else "validation"]
            for place, amount in enumerate((1, len(document["text"].encode()), len(own))):
                count[place] += amount
        ids.append(np.concatenate(encoded).astype(token_dtype(known.vocab_size)))
    files.write_array(lengths_path(path), lengths)
    files.write_aside(counts_path(path), json.dumps(counts))
    files.write_aside(tally_path(path), tally.to_json())
    files.write_array(path, np.concatenate([np.empty(0, token_dtype(known.vocab_size)), *ids]))


def lengths_path(tokens: pathlib.Path) -> pathlib.Path:
    """Returns where the lengths beside a part of tokens are."""
    return tokens.with_suffix(".lengths.npy")


def counts_path(tokens: pathlib.Path) -> pathlib.Path:
    """Returns where the counts beside a part of tokens are."""
    return tokens.with_suffix(".counts.json")


def token_dtype(vocab_size: int) -> np.dtype:
    """Returns the dtype of stored ids, little-endian."""
    return np.dtype("<u2" if vocab_size <= 65536 else "<u4")


def _batches(documents: pathlib.Path, sides: np.ndarray, tally: Tally) -> Iterator[list[tuple[int, Document]]]:
    """Yields (number, document) of those that stay, many at a time; counts these and the others."""
    batch, size = [], 0
    for number, document in enumerate(documents_of(documents)):
        if sides[number] in DROPPED:
            tally.drop(SPLIT, document["source"], DROPPED[sides[number]], document["id"], document["text"])
        else:
            tally.keep(document["source"], document["id"], document["text"])
            batch.append((number, document))
            size += len(document["text"])
            if size >= BATCH_CHARACTERS:
                yield batch
                batch, size = [], 0
    if batch:
        yield batch
