"""Learns a tokenizer from texts, within memory that grows with the different pieces of text, not with the text.

BPE: the texts are split by SPLIT_PATTERN, equal pieces are counted, and sentencepiece learns merges from the counts
(Sennrich et al. 2016, arXiv 1508.07909; over bytes as in GPT-2).  The same counts give the same merges.
"""

import io
import operator
from collections import Counter
from collections.abc import Callable, Iterable, Iterator

from lmtiny.errors import UserError
from lmtiny.tokenizer.text import stretches, to_bytes
from lmtiny.tokenizer.tokenizer import Tokenizer
from lmtiny.tokenizer.vocabulary import BYTES, KINDS, MAX_TOKEN_BYTES, SMALLEST, SPLIT_PATTERN

# A piece (mostly a word) beyond this teaches nothing about language, and sentencepiece counts positions in 16 bits.
_MAX_PIECE_BYTES = 4096
_REPORT_BYTES = 1 << 20


def learn(
    kind: str, texts: Iterable[str | bytes], vocab_size: int, sample_bytes: int, progress: Callable[[int], None] | None = None
) -> Tokenizer:
    """Returns a tokenizer learned from the first `sample_bytes` bytes of `texts`.

    Args:
      kind: "bpe"; "char": a token for each character of the texts; "byte": nothing is learned, nor are the texts read.
      texts: read once.  What is not UTF-8 in them is left out; no token spans two of them.
      vocab_size: bpe: tokens at most, special tokens included; fewer where the text has no more to merge.
        char and byte take what they need.
      sample_bytes: of UTF-8, at most.
      progress: called with the bytes read so far, about once a megabyte and at the end.

    Raises:
      UserError: an unknown kind, no room for the 256 bytes and the special tokens, or no text.
    """
    if kind not in KINDS:
        raise UserError(f"tokenizer kind {kind!r} is not one of {', '.join(KINDS)}")
    if isinstance(texts, str | bytes):
        raise TypeError("texts must be several texts, not one")
    if kind == "byte":
        return Tokenizer("byte", BYTES)
    if kind == "bpe" and vocab_size < SMALLEST:
        raise UserError(f"a BPE vocabulary needs at least {SMALLEST} tokens (256 bytes and the special ones), not {vocab_size}")
    sample = _sample(texts, sample_bytes, progress or (lambda _: None))
    return _learn_char(sample) if kind == "char" else _learn_bpe(sample, vocab_size)


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
    import regex  # here, not above: slow to import, and only needed by who learns

    split = regex.compile(SPLIT_PATTERN)
    whole_match = operator.itemgetter(0)
    counts: Counter[str] = Counter()
    for text in sample:
        counts.update(map(whole_match, split.finditer(text)))  # not findall: a list of all pieces of a book is 12 books
    byte_counts = {content: count for piece, count in counts.items() if len(content := piece.encode()) <= _MAX_PIECE_BYTES}
    tokenizer = Tokenizer("bpe", (*BYTES, *_merges(byte_counts, vocab_size - SMALLEST)))
    return _without_idle_merges(tokenizer, counts)


def _printable() -> dict[int, str]:
    """Returns GPT-2's printable character for each byte: itself where Latin-1 shows it, else the next from U+0100 on."""
    shown = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [value for value in range(256) if value not in shown]
    return {**{value: chr(value) for value in shown}, **{value: chr(256 + index) for index, value in enumerate(hidden)}}


def _merges(counts: dict[bytes, int], num_merges: int) -> list[bytes]:
    """Returns at most `num_merges` merged tokens, in the order they were learned, from piece -> count."""
    if not num_merges or all(len(piece) == 1 for piece in counts):
        return []
    import sentencepiece

    to_printable = _printable()
    to_byte = {char: value for value, char in to_printable.items()}
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        # In sorted order, so that how the text was cut into documents cannot matter.
        sentence_iterator=(f"{piece.decode('latin-1').translate(to_printable)}\t{count}" for piece, count in sorted(counts.items())),
        model_writer=model,
        model_type="bpe",
        input_format="tsv",
        vocab_size=num_merges + len(BYTES) + 1,  # the one is <unk>, which cannot be left out; bytes need none
        hard_vocab_limit=False,
        character_coverage=1.0,
        normalization_rule_name="identity",
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        split_by_unicode_script=False,
        split_by_number=False,
        split_by_whitespace=False,
        split_digits=False,
        allow_whitespace_only_pieces=True,
        max_sentence_length=2 * _MAX_PIECE_BYTES,  # a printable character has up to two bytes
        max_sentencepiece_length=MAX_TOKEN_BYTES,
        unk_id=0,
        unk_piece="\u2047",  # not among the printable characters, so no piece of text can be equal to it
        bos_id=-1,
        eos_id=-1,
        pad_id=-1,
        num_threads=1,
        minloglevel=2,
    )
    learned = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    pieces = sorted(range(1, learned.vocab_size()), key=lambda index: -learned.get_score(index))
    merged = [learned.id_to_piece(index) for index in pieces]
    # It may give more merges than asked, as the bytes that no piece has do not take the places set aside for them.
    return [bytes(to_byte[char] for char in piece) for piece in merged if len(piece) > 1][:num_merges]


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
