"""Counting pieces: the same as the split of the whole text, by numbers and in blocks, and bounded."""

import random
from collections import Counter

import pytest
import regex
from hypothesis import given, settings
from hypothesis import strategies as st

from lmtiny.tokenizer import SPLIT_PATTERN, counting, learn, split_counts
from lmtiny.tokenizer.encoders import merging_encoder
from lmtiny.tokenizer.vocabulary import BYTES

# Of each kind of character some, and those that the split has rules for; a zero is counted in its own way.
few = st.text("aZ'slvERE 09.,\n\r\t\x0b\x1c\u00a0\u2028\u3000’“…²é가ſ\U00010400", max_size=60)
any_text = st.text() | st.text(st.characters(max_codepoint=0x7F)) | st.text("a' \0")

words = ["word", "it's", "1850", "end.", "“So,”", "\n", "\n\n", " ", "a\u00a0b", "\u00a0"]
# With a space before them 8, 9, 15, 16, 17 and more bytes.
long_words = ["seventh", "language", "responsibility", "characteristics", "responsibilities", "uncharacteristically"]
prose = st.lists(st.sampled_from(words + long_words), max_size=30).map(" ".join)
contractions = st.lists(st.sampled_from(["'ll", "'VE", "'re", "'s", "'ſ", "'x", "l", "a", " ", ".", "\n", "1", "'"])).map("".join)


@given(text=few | any_text | prose | contractions)
@settings(max_examples=500, deadline=None, database=None)
def test_pieces_are_those_of_the_split(text: str) -> None:
    found = regex.finditer(SPLIT_PATTERN, split_counts.familiar(text))
    expected = Counter(text[piece.start() : piece.end()] for piece in found)
    assert counting.piece_counts([text]) == expected
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(counting, "_BLOCK", 3)
        assert "".join(counting.split_blocks(text)) == text
        assert counting.piece_counts([text]) == expected
        assert counting.piece_counts([text, "And so on. ", text]) == expected + expected + Counter(["And", " so", " on", ".", " "])


# Of these, U+088F was made a letter in 2025 and U+11DE0 a digit: an older Unicode calls them signs.
LATELY = [0x088F, 0x11DE0]
EVERY_CHARACTER = [code for code in range(0x110000) if not 0xD800 <= code < 0xE000]


@pytest.mark.parametrize(
    "codes", [LATELY, EVERY_CHARACTER[::61], pytest.param(EVERY_CHARACTER, marks=pytest.mark.exhaustive)]
)
@pytest.mark.parametrize("behind", ["", "\0"])  # which is counted in another way
def test_learning_splits_as_encoding_does_whatever_is_a_letter_where(codes: list[int], behind: str) -> None:
    for start in range(0, len(codes), 20_000):
        some = map(chr, codes[start : start + 20_000])
        text = " .".join(f"a{char}b 1{char} {char}{char}" for char in some) + behind
        learned = counting.piece_counts([text])
        # A piece that is a token is encoded as that token: where encoding cuts as learning does, counts
        # agree.
        tokens = dict.fromkeys([*BYTES, *(piece.encode() for piece in learned)])
        ranks = {token: rank for rank, token in enumerate(tokens)}
        encoded = Counter(merging_encoder(ranks, SPLIT_PATTERN)(text).tolist())
        assert encoded == {ranks[piece.encode()]: count for piece, count in learned.items()}


def test_superwords_are_learned_of_what_encoding_calls_letters() -> None:
    for char in map(chr, LATELY):
        text = f"{char}x {char}y {char}z. " * 50
        learned = learn("superword", [text], 300, 10**9, word_share=0.9)
        used = {learned.tokens[number] for number in learned.encode(text)}
        assert len(learned.tokens) > 265 and {token for token in learned.tokens if b" " in token[1:]} <= used


def test_a_long_text_is_cut_into_many_blocks(corpus: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counting, "_BLOCK", 1_024)
    blocks = list(counting.split_blocks(corpus[1]))
    assert "".join(blocks) == corpus[1] and len(blocks) > 1 and max(map(len, blocks)) < 2 * 1_024


def test_of_too_many_pieces_the_rarest_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = random.Random(0)
    rare = ["".join(rng.choices("abcdefghij", k=8)) for _ in range(5000)]
    text = " ".join(f"{word} the theatre" for word in rare)
    monkeypatch.setattr(counting, "MAX_PIECES", 1000)
    counts = counting.piece_counts([text[start : start + 1000] for start in range(0, len(text), 1000)])
    assert len(counts) <= 1000 and counts[" theatre"] > 4500
    assert {b" the", b" theatre"} <= set(learn("bpe", [text], 300, 10**9).tokens)


def test_the_commonest_stay() -> None:
    counts = Counter({"a": 5, "b": 1, "c": 1, "d": 2})
    assert counting.commonest(counts, 4) == counts
    assert counting.commonest(counts, 3) == counting.commonest(counts, 2) == {"a": 5, "d": 2}
    assert counting.commonest(counts, 0) == {}
