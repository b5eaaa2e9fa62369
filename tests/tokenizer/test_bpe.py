"""Learned merges are the greedy ones, the same whoever cuts the documents, and are applied as byte-pair encoding is defined."""

import collections
import itertools
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence

import pytest
import regex
from hypothesis import given, settings
from hypothesis import strategies as st

from lmtiny.errors import UserError
from lmtiny.tokenizer import Tokenizer, learn

# Written out here a second time, so that a slip in the first is seen.
WORDS = r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?\p{L}+"
NUMBERS = r"\p{N}{1,2}"
OTHER = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
SPLIT = regex.compile(f"{WORDS}|{NUMBERS}|{OTHER}")


def pairs(symbols: Sequence[bytes]) -> Iterator[tuple[bytes, bytes]]:
    return itertools.pairwise(symbols)


def merged(symbols: list[bytes], pair: tuple[bytes, bytes]) -> list[bytes]:
    """Returns `symbols` with each `pair`, from the left, made one."""
    done: list[bytes] = []
    while symbols:
        size = 2 if tuple(symbols[:2]) == pair else 1
        done.append(b"".join(symbols[:size]))
        symbols = symbols[size:]
    return done


def naive_encode(tokens: Sequence[bytes], text: str) -> list[int]:
    """Byte-pair encoding as it is defined: in each piece, merge the pair of the lowest rank until none is left."""
    ranks = {token: rank for rank, token in enumerate(tokens) if token}
    ids: list[int] = []
    for piece in SPLIT.findall(text):
        symbols = [bytes([value]) for value in piece.encode()]
        while known := [(ranks[a + b], index) for index, (a, b) in enumerate(pairs(symbols)) if a + b in ranks]:
            _, index = min(known)
            symbols[index : index + 2] = [symbols[index] + symbols[index + 1]]
        ids += [ranks[symbol] for symbol in symbols]
    return ids


def test_ids_are_those_of_the_definition(bpe: Tokenizer, corpus: list[str]) -> None:
    for text in corpus:
        assert bpe.encode(text) == naive_encode(bpe.tokens, text)


# ASCII and some letters of old: Unicode versions disagree about characters assigned lately.
@given(text=st.text(st.characters(max_codepoint=0x24F, exclude_categories=["Cn", "Cs"])) | st.text("aeinst '\n01239.,é가"))
@settings(max_examples=300, deadline=None, database=None)
def test_ids_of_any_text_are_those_of_the_definition(bpe: Tokenizer, text: str) -> None:
    assert bpe.encode(text) == naive_encode(bpe.tokens, text)


def test_each_merge_is_of_the_most_frequent_pair(corpus: list[str]) -> None:
    text = corpus[0] + corpus[1][:8000]
    tokens = learn("bpe", [text], 500, 10**6).tokens[256:-9]
    assert len(tokens) == 500 - 265
    pieces = collections.Counter(SPLIT.findall(text))
    words = {piece: [bytes([value]) for value in piece.encode()] for piece in pieces}
    made: set[bytes] = set()
    for token in tokens:
        counts: collections.Counter[tuple[bytes, bytes]] = collections.Counter()
        for piece, symbols in words.items():
            for pair in pairs(symbols):
                counts[pair] += pieces[piece]
        fresh = {pair: count for pair, count in counts.items() if pair[0] + pair[1] not in made}
        best = max((pair for pair in fresh if pair[0] + pair[1] == token), key=fresh.__getitem__)
        assert fresh[best] == max(fresh.values()), token
        words = {piece: merged(symbols, best) for piece, symbols in words.items()}
        made.add(token)


def test_a_smaller_vocabulary_is_the_start_of_a_larger_one(bpe: Tokenizer, corpus: list[str]) -> None:
    for vocab_size in (265, 266, 300, 777):
        small = learn("bpe", corpus, vocab_size, 10**9)
        assert small.vocab_size == vocab_size
        assert small.tokens[:-9] == bpe.tokens[: vocab_size - 9]
        cut = bpe.cut(vocab_size)
        assert cut.hash == small.hash and cut.special == small.special and cut.encode(corpus[0]) == small.encode(corpus[0])
    for vocab_size in (264, bpe.vocab_size + 1):
        with pytest.raises(UserError, match=f"cannot be cut to {vocab_size}: tokenizer.cut must lie within 265 and {bpe.vocab_size}"):
            bpe.cut(vocab_size)
    with pytest.raises(UserError, match="a char tokenizer cannot be cut to 265 tokens: only of a bpe one"):
        learn("char", corpus, 300, 10**9).cut(265)


def test_the_same_pieces_give_the_same_tokenizer_however_they_are_cut_into_documents(bpe: Tokenizer, corpus: list[str]) -> None:
    pieces = [piece for text in corpus for piece in SPLIT.findall(text)]
    assert learn("bpe", pieces[::-1], bpe.vocab_size, 10**9).hash == bpe.hash
    assert learn("bpe", iter([text.encode() for text in corpus]), bpe.vocab_size, 10**9).hash == bpe.hash


def test_another_process_learns_the_same() -> None:
    code = (
        "from lmtiny.tokenizer import learn; text = 'no one notes one note in the theatre, 100 times; ' + learn.__doc__;"
        "print(learn('bpe', [text], 600, 10**6).hash)"
    )
    hashes = {
        subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True, check=True).stdout
        for seed in ("1", "2")
    }
    assert len(hashes) == 1


def test_numbers_are_split_into_at_most_two_digits() -> None:
    tokenizer = learn("bpe", ["2024 2024 20242024 １２３ ١٢٣٤ x2024"] * 9, 600, 10**6)
    assert [tokenizer.decode([token]) for token in tokenizer.encode("20242")] == ["20", "24", "2"]
    texts = [token.decode("utf-8", "replace") for token in tokenizer.tokens]
    numbers = [text for text in texts if any(map(str.isdigit, text))]
    assert len(numbers) > 14 and max(map(len, numbers)) == 2


def test_words_take_their_space_and_merges_stay_within_a_piece(bpe: Tokenizer) -> None:
    assert b" the" in bpe.tokens and b" argument" in bpe.tokens
    for token in bpe.tokens:
        text = token.decode("utf-8", "replace")
        assert "\ufffd" in text or len(SPLIT.findall(text)) <= 1, text


@pytest.mark.parametrize(
    ("text", "tokens"),
    [("abc abc", {b"ab", b"abc", b" abc"}), ("aaaa", {b"aa", b"aaaa"}), ("a b", {b" b"}), ("x", set()), ("1234", {b"12", b"34"})],
)
def test_a_text_with_little_to_merge_gives_a_smaller_vocabulary(text: str, tokens: set[bytes]) -> None:
    learned = learn("bpe", [text], 5000, 10**6)
    assert set(learned.tokens[256:-9]) == tokens
    assert learned.vocab_size == 265 + len(tokens) and learned.bos_id == 256 + len(tokens)
    assert len(learned.encode(text)) == len(SPLIT.findall(text))


def test_no_more_than_the_sample_is_read_and_progress_is_told(corpus: list[str]) -> None:
    told: list[int] = []

    def texts() -> Iterator[str]:
        yield corpus[1]
        yield "한국어 " * 1000
        pytest.fail("read on beyond the sample")

    limit = len(corpus[1].encode()) + 31
    sampled = learn("bpe", texts(), 5000, limit, told.append)
    assert told == [limit]
    assert sampled.hash == learn("bpe", [corpus[1], "한국어 " * 3], 5000, 10**9).hash
    learn("bpe", ["z" * 700_000] * 4, 265, 10**9, told.append)
    assert told[1:] == [1_400_000, 2_800_000, 2_800_000]


def test_what_is_not_utf8_or_is_no_word_is_left_out_of_the_sample() -> None:
    plain = learn("bpe", ["some words, some more words"], 300, 10**6)
    assert learn("bpe", [b"\xff\xfesome words, some more words\xe9", "q" * 5000, "q" * 100_000], 300, 10**6).hash == plain.hash


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("wordpiece", ["x"], 300, 10), "'wordpiece' is not one of bpe, superword, char, byte"),
        (("bpe", ["x"], 264, 10), "at least 265 tokens"),
        (("bpe", ["", ""], 300, 10), "no text"),
        (("char", [], 300, 10), "no text"),
    ],
)
def test_what_cannot_be_learned_is_refused(arguments: tuple[str, list[str], int, int], message: str) -> None:
    with pytest.raises(UserError, match=message):
        learn(*arguments)
    with pytest.raises(TypeError, match="several texts"):
        learn("bpe", "one text", 300, 10)


def test_learning_says_nothing_on_the_terminal(capfd: pytest.CaptureFixture[str], corpus: list[str]) -> None:
    learn("bpe", corpus, 300, 10**9)
    assert capfd.readouterr() == ("", "")
