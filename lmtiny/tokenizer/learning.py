"""Learns a tokenizer from texts, within memory that grows with the different pieces of text, not with the text.

BPE: the texts are split by SPLIT_PATTERN, equal pieces are counted, and merges are learned from the counts, over bytes as
in GPT-2.  The same counts give the same merges, and a smaller vocabulary is the start of a larger one.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator

from lmtiny.errors import UserError
from lmtiny.tokenizer.byte_merges import printable_bytes
from lmtiny.tokenizer.counting import piece_counts
from lmtiny.tokenizer.merges import learn_merges
from lmtiny.tokenizer.superwords import Sample, add_superwords
from lmtiny.tokenizer.text import stretches, to_bytes
from lmtiny.tokenizer.tokenizer import Tokenizer
from lmtiny.tokenizer.vocabulary import BYTES, KINDS, MAX_TOKEN_BYTES, PATTERNS, SMALLEST

# A piece (mostly a word) beyond this teaches nothing about language, and sentencepiece counts positions in 16 bits.
_MAX_PIECE_BYTES = 4096
_REPORT_BYTES = 1 << 20


def learn(
    kind: str,
    texts: Iterable[str | bytes],
    vocab_size: int,
    sample_bytes: int,
    progress: Callable[[int], None] | None = None,
    word_share: float = 0.5,
) -> Tokenizer:
    """Returns a tokenizer learned from the first `sample_bytes` bytes of `texts`.

    Args:
      kind: "bpe"; "superword": BPE, then merges across spaces; "char": a token for each character of the texts; "byte":
        nothing is learned, nor are the texts read.
      texts: read once.  What is not UTF-8 in them is left out; no token spans two of them.
      vocab_size: bpe, superword: tokens at most, special tokens included; fewer where the text has no more to merge.
        char and byte take what they need.
      sample_bytes: of UTF-8, at most.
      progress: called with the bytes read so far, about once a megabyte and at the end.
      word_share: superword: share of `vocab_size` that is plain BPE.

    Raises:
      UserError: an unknown kind, no room for the 256 bytes and the special tokens, or no text.
    """
    if kind not in KINDS:
        raise UserError(f"tokenizer kind {kind!r} is not one of {', '.join(KINDS)}")
    if isinstance(texts, str | bytes):
        raise TypeError("texts must be several texts, not one")
    if kind == "byte":
        return Tokenizer("byte", BYTES)
    if kind in PATTERNS and vocab_size < SMALLEST:
        raise UserError(f"a BPE vocabulary needs at least {SMALLEST} tokens (256 bytes and the special ones), not {vocab_size}")
    sample = _sample(texts, sample_bytes, progress or (lambda _: None))
    if kind == "char":
        return _learn_char(sample)
    if kind == "bpe":
        return _learn_bpe(sample, vocab_size)
    kept = Sample()
    first = _learn_bpe(kept.watch(sample), max(SMALLEST, int(word_share * vocab_size)))
    return add_superwords(first, kept, vocab_size)


def _sample(texts: Iterable[str | bytes], limit: int, progress: Callable[[int], None]) -> Iterator[str]:
    """Yields the valid UTF-8 in the first `limit` bytes of `texts`."""
    read = reported = 0
    for text in texts:
        content = to_bytes(text)[: limit - read]
        read += len(content)
        yield from (stretch for stretch in stretches(content) if isinstance(stretch, str))
        if read >= limit:
            break
        if read - reported >= _REPORT_BYTES:
            progress(read)
            reported = read
    progress(read)
    if not read:
        raise UserError("there is no text to learn a tokenizer from")


def _learn_char(sample: Iterable[str]) -> Tokenizer:
    alphabet: set[str] = set()
    for text in sample:
        alphabet.update(text)
    # A character of ASCII is one byte, so it has its id already.
    return Tokenizer("char", (*BYTES, *(char.encode() for char in sorted(alphabet) if char > "\x7f")))


def _learn_bpe(sample: Iterable[str], vocab_size: int) -> Tokenizer:
    counts = piece_counts(sample)
    tokenizer = Tokenizer("bpe", (*BYTES, *_merges(counts, vocab_size - SMALLEST)))
    return _without_idle_merges(tokenizer, counts)


def _merges(counts: Counter[str], num_merges: int) -> list[bytes]:
    """Returns at most `num_merges` merged tokens, in the order they were learned, from piece -> count."""
    # In sorted order, so that how the text was cut into documents cannot matter.
    pieces = sorted(piece for piece in counts if len(piece.encode()) <= _MAX_PIECE_BYTES)
    if not num_merges or all(len(piece.encode()) == 1 for piece in pieces):
        return []
    printable = printable_bytes()
    merged = learn_merges(
        ((piece.encode().decode("latin-1").translate(printable), counts[piece]) for piece in pieces),
        num_merges, len(BYTES), MAX_TOKEN_BYTES, 2 * _MAX_PIECE_BYTES,  # a printable character has up to two bytes
    )  # fmt: skip
    to_byte = {char: value for value, char in printable.items()}
    # It may give more merges than asked, as the bytes that no piece has do not take the places set aside for them.
    return [bytes(to_byte[char] for char in piece) for piece in merged][:num_merges]


def _without_idle_merges(tokenizer: Tokenizer, pieces: Iterable[str]) -> Tokenizer:
    """Returns `tokenizer` without the merges that sentencepiece makes up once every piece has become a single token.

    Those have count zero and come last; the last merge that was of use is in the last token that still occurs.
    """
    largest = 255
    for piece in pieces:
        ids = tokenizer.encode(piece)
        if len(ids) > 1 and len(piece.encode()) <= MAX_TOKEN_BYTES:
            return tokenizer
        largest = max(largest, *ids)
    return tokenizer.cut(largest + 1 + SMALLEST - len(BYTES))
