"""A second stage of merges, across spaces: "superwords" such as " one of the" (SuperBPE, arXiv 2503.13423).

The first stage is plain BPE, whose merges stay within words. The second goes on merging over runs of words: words with
single spaces between them, or a comma and a space, and the endings of contractions ("it's"). Nothing in a run lets a
merge of the first stage reach over the end of a word, so encoding is still plain BPE by rank, over SUPERWORD_PATTERN.

A prompt that ends where a superword would go on is encoded otherwise than the same words in the middle of a text: a
model that has always seen " one of the" as one token has hardly seen " one of" before " the". See `warning_about`.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator

import numpy as np

from lmtiny import console
from lmtiny.errors import UserError
from lmtiny.tokenizer.counting import commonest
from lmtiny.tokenizer.merges import learn_merges
from lmtiny.tokenizer.split_counts import familiar
from lmtiny.tokenizer.tokenizer import Tokenizer
from lmtiny.tokenizer.vocabulary import MAX_TOKEN_BYTES, SUPERWORD_RUN

MAX_WORDS = 4  # first-stage tokens in a superword, at most
SAMPLE_BYTES = 128 << 20  # of text the second stage learns from, at most
_SECTION = 1 << 18  # characters of a text that are kept or left as a whole
_MAX_PIECES = 1_000_000
_BUCKETS = 1 << 24  # pairs are counted by hash: what shares a bucket is counted too high, which keeps more than need be
_PAIRS_KEPT = 8  # times the merges: no merge is learned of a pair of tokens that is rarer than so many others
_FIRST_CHARACTER = 0x10000  # stands for id 0; beyond the surrogates and all that sentencepiece has a meaning for
_MAX_FIRST = 1_000_000  # there are not many more characters to stand for ids
_SEPARATOR = ord("\n")  # a byte's id is its value, and no run contains it


def warning_about(tokenizer: Tokenizer) -> str:
    """Returns what a person should know who makes or uses this tokenizer, or ""."""
    if tokenizer.kind != "superword":
        return ""
    return (
        'tokens of this tokenizer reach across spaces, so a prompt that ends inside a phrase ("one of") is encoded otherwise than in'
        " running text, and a model may go on badly; end it with a full stop, a line's end or a chat turn (docs/tokenizers.md)"
    )


class Sample:
    """Keeps of the texts that pass through it at most SAMPLE_BYTES, from everywhere, chosen by hash: whatever their order."""

    def __init__(self, limit: int = SAMPLE_BYTES) -> None:
        self.limit, self.size, self.ceiling = limit, 0, 1 << 64
        self.kept: list[tuple[int, str]] = []  # (hash, text)

    def watch(self, texts: Iterable[str]) -> Iterator[str]:
        """Yields `texts` as they are."""
        for text in texts:
            for start in range(0, len(text), _SECTION):
                self._offer(text[start : start + _SECTION])
            yield text

    def _offer(self, text: str) -> None:
        content = text.encode()
        value = int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little")
        if value >= self.ceiling:
            return
        self.kept.append((value, text))
        self.size += len(content)
        while self.size > self.limit and len(self.kept) > 1:
            self.ceiling //= 2
            self.kept = [(value, text) for value, text in self.kept if value < self.ceiling] or self.kept[:1]
            self.size = sum(len(text.encode()) for _, text in self.kept)

    def texts(self) -> Iterator[str]:
        """Yields what was kept, and forgets it."""
        while self.kept:
            yield self.kept.pop()[1]


def add_superwords(first: Tokenizer, sample: Sample, vocab_size: int) -> Tokenizer:
    """Returns `first` (BPE) with merges across spaces learned from `sample`, up to `vocab_size` tokens, special ones included.

    Raises:
      UserError: `first` has more tokens than can be joined.
    """
    words = first.tokens[: first.bos_id]
    if len(words) > _MAX_FIRST:
        raise UserError(f"superwords can be added to at most {_MAX_FIRST:,} tokens, not {len(words):,}: lower tokenizer.vocab_size")
    num_merges = vocab_size - first.vocab_size
    counts = _counted(_encoded(first, sample), num_merges)
    alphabet = {symbol for piece in counts for symbol in piece}
    learned: dict[bytes, None] = {}  # in order
    if alphabet and num_merges:
        known = set(words)
        pieces = ((piece, counts[piece]) for piece in sorted(counts))
        for symbols in learn_merges(pieces, num_merges, len(alphabet), MAX_WORDS, 1 << 20):
            token = b"".join(words[ord(symbol) - _FIRST_CHARACTER] for symbol in symbols)
            if token not in known and len(token) <= MAX_TOKEN_BYTES:
                learned[token] = None
    return Tokenizer("superword", (*words, *list(learned)[:num_merges]))


def _encoded(first: Tokenizer, sample: Sample) -> list[np.ndarray]:
    """Returns the ids of the runs in each text of `sample`, which is used up."""
    found, done = [], 0
    with console.progress("joining words", sample.size, "bytes") as shown:
        for text in sample.texts():
            ids = _runs(first, text)
            found += [ids] if len(ids) > 1 else []
            done += len(text.encode())
            shown.update(done)
    return found


def _counted(encoded: list[np.ndarray], num_merges: int) -> Counter[str]:
    """Returns how often each piece occurs: first-stage tokens in a row, a character each, cut where two are rarely neighbours."""
    pairs = np.zeros(_BUCKETS, np.int32)
    for ids in encoded:
        buckets, occurrences = np.unique(_bucket(ids)[_inside(ids)], return_counts=True)
        pairs[buckets] += occurrences.astype(np.int32)
    there = np.sort(pairs[pairs > 0])[::-1]
    rare = max(2, int(there[_PAIRS_KEPT * num_merges])) if len(there) > _PAIRS_KEPT * num_merges else 2
    counts: Counter[str] = Counter()
    for ids in encoded:
        cuts = np.flatnonzero(_inside(ids) & (pairs[_bucket(ids)] < rare)) + 1
        symbols = np.insert(np.where(ids == _SEPARATOR, _SEPARATOR, ids + _FIRST_CHARACTER), cuts, _SEPARATOR).astype("<u4")
        counts.update(piece for piece in symbols.tobytes().decode("utf-32-le").split("\n") if len(piece) > 1)
        if len(counts) > _MAX_PIECES:
            counts = commonest(counts, _MAX_PIECES // 2)
    return counts


def _runs(first: Tokenizer, text: str) -> np.ndarray:
    """Returns int32 ids of the text's runs of words, a separator between two; what is no run of words is left out."""
    import regex  # here, not above: slow to import, and only needed by who learns

    runs = regex.compile(SUPERWORD_RUN).finditer(familiar(text))
    return np.array(first.encode("\n".join(text[run.start() : run.end()] for run in runs)), np.int32)


def _inside(ids: np.ndarray) -> np.ndarray:
    """Returns, for each token but the last, whether it and the next are in the same run."""
    return (ids[:-1] != _SEPARATOR) & (ids[1:] != _SEPARATOR)


def _bucket(ids: np.ndarray) -> np.ndarray:
    """Returns, for each token but the last, the bucket of the pair that it makes with the next."""
    wide = ids.astype(np.uint64)
    mixed = (wide[:-1] << np.uint64(32) | wide[1:]) * np.uint64(0x9E3779B97F4A7C15)
    return (mixed >> np.uint64(64 - 24)).astype(np.int64)
