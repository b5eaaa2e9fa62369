"""The one class that every other room meets: text -> ids and back."""

import functools
import os
import pathlib
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from lmtiny.console import warn
from lmtiny.errors import UserError
from lmtiny.tokenizer import foreign as foreign_lib
from lmtiny.tokenizer import storage
from lmtiny.tokenizer.encoders import encoder
from lmtiny.tokenizer.foreign import Foreign
from lmtiny.tokenizer.text import stretches
from lmtiny.tokenizer.vocabulary import SMALLEST, SPECIAL_TOKENS, problem_with

_JOB_CHARACTERS = 1 << 18  # a thread's at a time


class Tokenizer:
    """Text <-> ids.  Ids 0..255 are the bytes, then the learned tokens, then the special tokens: the last nine ids.

    Of a foreign tokenizer all ids are as there, then come the special tokens.

    Attributes:
      kind: "bpe", "superword", "char" or "byte"; or "tiktoken", "huggingface", "sentencepiece" for foreign ones.
      loses: what a foreign tokenizer does not give back of a text, in words; "" where nothing.
      tokens: the bytes each id stands for, `vocab_size` of them; b"" for a special token.
      vocab_size: number of ids.
      special: name of a special token -> its id.  These ids never come out of `encode`: no text can inject one.
      bos_id: the id of "<|bos|>", which starts a document; `encode` does not add it.
      token_bytes: int32[vocab_size], bytes each id stands for; 0 for a special token.
      provenance: where a loaded tokenizer says it came from (corpus, command); {} for one just learned.
    """

    def __init__(
        self, kind: str, tokens: Sequence[bytes], provenance: dict[str, Any] | None = None, foreign: Foreign | None = None
    ) -> None:
        """`tokens`: all but the special ones, in the order of their ids.  Raises ValueError if they are no vocabulary of `kind`."""
        if not foreign and (problem := problem_with(kind, tokens)):
            raise ValueError(problem)
        self.kind, self.foreign = kind, foreign
        self.loses = foreign.loses if foreign else ""
        self.provenance: dict[str, Any] = dict(provenance or {})
        self.special = {name: len(tokens) + index for index, name in enumerate(SPECIAL_TOKENS)}
        self.bos_id = self.special["<|bos|>"]
        self.tokens = (*tokens, *(b"" for _ in SPECIAL_TOKENS))
        self.vocab_size = len(self.tokens)
        self.token_bytes = np.fromiter(map(len, self.tokens), np.int32, self.vocab_size)
        self.token_bytes.flags.writeable = False
        self._encode_valid = foreign.encode if foreign else encoder(kind, tokens)
        self._byte_ids = foreign.byte_ids if foreign else np.arange(256)

    def __repr__(self) -> str:
        return f"Tokenizer({self.kind}, {self.vocab_size} tokens, {self.hash[:12]})"

    @functools.cached_property
    def hash(self) -> str:
        """SHA-256 (hex) of all that decides which ids a text becomes; the same wherever and whenever it was learned."""
        return storage.foreign_hash(self.foreign) if self.foreign else storage.content_hash(self.kind, self._ordinary)

    @property
    def _ordinary(self) -> tuple[bytes, ...]:
        return self.tokens[: -len(SPECIAL_TOKENS)]

    def encode(self, text: str | bytes) -> list[int]:
        """Returns the ids of `text`, all of it ordinary: "<|bos|>" in it is seven characters, not a token.

        `decode_bytes` gives back its bytes exactly, be they UTF-8 or not (see `text.to_bytes` for lone surrogates); but
        for what a foreign tokenizer `loses`.
        """
        return self._encoded(text).tolist()

    def _encoded(self, text: str | bytes) -> np.ndarray:
        # A byte that is not part of valid UTF-8 is its own token; no merge was learned from such bytes.
        parts = [
            self._byte_ids[np.frombuffer(stretch, np.uint8)] if isinstance(stretch, bytes) else self._encode_valid(stretch)
            for stretch in stretches(text)
        ]
        return (parts[0] if len(parts) == 1 else np.concatenate([np.empty(0, np.int32), *parts])).astype(np.int32, copy=False)

    def encode_batch(self, texts: Iterable[str | bytes], num_threads: int = 1) -> list[np.ndarray]:
        """Returns int32[tokens of that text] for each of `texts`, in their order; threads help where merges are made."""
        if num_threads <= 1:
            return [self._encoded(text) for text in texts]
        listed = list(texts)
        found: list[np.ndarray] = [np.empty(0, np.int32)] * len(listed)
        jobs: list[range] = []
        first = size = 0
        for number, text in enumerate(listed):
            size += len(text)
            if size >= _JOB_CHARACTERS or number + 1 == len(listed):
                jobs.append(range(first, number + 1))
                first, size = number + 1, 0

        def encode(job: range) -> None:
            for number in job:
                found[number] = self._encoded(listed[number])

        # Largest first: a large one that starts last keeps the other threads waiting.
        jobs.sort(key=lambda job: -sum(len(listed[number]) for number in job))
        with ThreadPoolExecutor(num_threads) as threads:
            for _ in threads.map(encode, jobs):
                pass
        return found

    def decode_bytes(self, ids: Iterable[int] | np.ndarray) -> bytes:
        """Returns the bytes that `ids` stand for; a special token stands for none.

        Raises:
          ValueError: an id outside 0..vocab_size-1 (a head padded to more rows can produce one).
        """
        array = np.asarray(ids if hasattr(ids, "__array__") else list(ids))
        if array.size == 0:
            return b""
        if array.ndim != 1 or array.dtype.kind not in "iu":
            raise ValueError(f"ids must be whole numbers in one row, not {array.dtype}{list(array.shape)}")
        if array.min() < 0 or array.max() >= self.vocab_size:
            wrong = array.min() if array.min() < 0 else array.max()
            raise ValueError(f"id {wrong} is outside the vocabulary of {self.vocab_size} tokens")
        return b"".join(map(self.tokens.__getitem__, array.tolist()))

    def decode(self, ids: Iterable[int] | np.ndarray) -> str:
        """Returns `decode_bytes(ids)` as text, with U+FFFD where it is not UTF-8 (half a character, say)."""
        return self.decode_bytes(ids).decode("utf-8", "replace")

    def cut(self, vocab_size: int) -> "Tokenizer":
        """Returns the BPE tokenizer of the first `vocab_size` - 265 merges: the one that learning that size would give.

        Raises:
          UserError: this one is smaller, is not BPE, or `vocab_size` has no room for bytes and special tokens.
        """
        if self.kind != "bpe":
            why = "only of a bpe one are the first tokens what learning fewer would give"
            raise UserError(f"a {self.kind} tokenizer cannot be cut to {vocab_size} tokens: {why}; leave tokenizer.cut out")
        if not SMALLEST <= vocab_size <= self.vocab_size:
            within = f"tokenizer.cut must lie within {SMALLEST} and {self.vocab_size}"
            raise UserError(f"a bpe tokenizer of {self.vocab_size} tokens cannot be cut to {vocab_size}: {within}")
        return Tokenizer(self.kind, self.tokens[: vocab_size - len(SPECIAL_TOKENS)], self.provenance)

    def save(self, folder: str | os.PathLike[str], provenance: dict[str, Any] | None = None) -> None:
        """Writes the tokenizer into `folder` for `load`; `provenance` (JSON) says where it came from; None: what this one says.

        Raises:
          UserError: the folder cannot be written.
        """
        says = self.provenance if provenance is None else provenance
        if self.foreign:
            storage.write_foreign(folder, self.foreign, says)
        else:
            storage.write(folder, self.kind, self._ordinary, says)


def load(path: str | os.PathLike[str]) -> Tokenizer:
    """Returns the tokenizer saved in the folder `path`, or a foreign one: a file (.json, .model, .tiktoken) or a tiktoken name.

    One of ours that was exported comes back as what it was, not as a foreign one with our special tokens twice.

    Raises:
      UserError: it is not there, is of another format, was altered, or is no tokenizer.
    """
    try:
        ours, kind = pathlib.Path(path, storage.DESCRIPTION_FILE).is_file(), foreign_lib.kind_of(path)
    except PermissionError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); change its permissions, or name another tokenizer") from None
    if ours or not kind:
        return Tokenizer(*storage.read(path))
    found, provenance = foreign_lib.read(path, kind), {"file": pathlib.Path(path).name}
    from lmtiny.tokenizer.export import own_kind  # here, not above: it stands on this file

    if own := own_kind(found):
        return Tokenizer(own, found.tokens[: -len(SPECIAL_TOKENS)], provenance)
    if found.loses:
        warn(f"{path}: a text does not come back from its ids with {found.loses}")
    return Tokenizer(kind, found.tokens, provenance, found)
