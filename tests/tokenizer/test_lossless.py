"""Every kind of tokenizer gives back the bytes of any text, and no text becomes a special token."""

import os
import pathlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmtiny.tokenizer import KINDS, SPECIAL_TOKENS, StreamDecoder, Tokenizer, learn
from lmtiny.tokenizer.encoders import BLOCK, blocks
from lmtiny.tokenizer.text import stretches, to_bytes

quick = settings(max_examples=150, deadline=None, database=None)

# Text as Hypothesis likes it, mixed with what tokenizers trip over.
PIECES = ("<|", "|>", "\r\n", "\n\n", "\0", "  ", "'ll", " the", "123", "\ud800", "\udc80", "\udcff", "가", "😀")
awkward = st.sampled_from([*SPECIAL_TOKENS, *PIECES])
any_text = st.lists(st.text(st.characters(exclude_categories=())) | awkward).map("".join)
any_bytes = st.lists(st.binary() | any_text.map(to_bytes)).map(b"".join)

NAMED: dict[str, str | bytes] = {
    "empty": "",
    "crlf": "a\r\nb\r\r\n\n",
    "nul": "\0a\0\0",
    "emoji": "👨‍👩‍👧 and 👍🏽",
    "right to left": "يولد جميع الناس \u202e אבג",
    "korean": "모든 국민은 ㅋㅋㅋ 한글",
    "decomposed": "e\u0301 vs \u00e9, \u1112\u1161\u11ab",
    "byte order mark": "\ufeffx",
    "not utf-8": b"\xff\xfe caf\xe9 \xc3\x28 \xed\xa0\x80 \xf4\x90\x80\x80 ok",
    "half a character": "한".encode()[:2],
    "undecodable file": b"caf\xe9 \x80\xbf".decode("utf-8", "surrogateescape"),
    "lone surrogates": "a\ud800b\udfff\udcffc",
    "specials": "".join(SPECIAL_TOKENS),
    "noncharacters": "a\U0010ffff\U0010fffe\U0010ffff\U0010fffe the\ufffe",
    "many letters": "aq" * 100_000,
    "white space": "x" + " " * 1_000_000 + "x",
    "white space of other kinds": " \t\u3000\u2009" * 100_000 + "x",
    "newlines": "\n" * 400_000 + "x",
}


@pytest.mark.parametrize("kind", KINDS)
@given(text=any_text | any_bytes)
@quick
def test_any_text_and_any_bytes_come_back(tokenizers: dict[str, Tokenizer], kind: str, text: str | bytes) -> None:
    check(tokenizers[kind], text)


@pytest.mark.parametrize("name", NAMED)
@pytest.mark.parametrize("kind", KINDS)
def test_what_breaks_other_tokenizers_comes_back(tokenizers: dict[str, Tokenizer], kind: str, name: str) -> None:
    check(tokenizers[kind], NAMED[name])


def check(tokenizer: Tokenizer, text: str | bytes) -> None:
    ids = tokenizer.encode(text)
    assert tokenizer.decode_bytes(ids) == to_bytes(text)
    assert tokenizer.token_bytes[ids].sum() == len(to_bytes(text))
    assert all(0 <= token < tokenizer.bos_id for token in ids), "text became a special token"
    assert tokenizer.encode(to_bytes(text)) == ids, "str and its bytes are encoded alike"
    assert tokenizer.decode(ids) == to_bytes(text).decode("utf-8", "replace")


@given(text=any_text)
@quick
def test_bytes_of_a_str_are_those_of_the_file_it_came_from(text: str) -> None:
    assert to_bytes(text.encode("utf-8", "replace")) == text.encode("utf-8", "replace")
    raw = to_bytes(text)
    assert to_bytes(raw.decode("utf-8", "surrogateescape")) == raw
    assert b"".join(map(to_bytes, stretches(text))) == raw


def test_lone_surrogates_are_the_byte_they_escape_or_three() -> None:
    assert to_bytes(b"caf\xe9".decode("utf-8", "surrogateescape")) == b"caf\xe9"
    assert to_bytes("a\udce9\ud800\udbff한") == b"a\xe9\xed\xa0\x80\xed\xaf\xbf" + "한".encode()


@pytest.mark.parametrize("kind", KINDS)
@given(text=st.text() | st.binary(), sizes=st.lists(st.integers(0, 3), min_size=1))
@quick
def test_a_stream_decodes_to_the_same_text_and_never_shows_half_a_character(
    tokenizers: dict[str, Tokenizer], kind: str, text: str | bytes, sizes: list[int]
) -> None:
    ids = tokenizers[kind].encode(text)
    stream, shown, start = StreamDecoder(tokenizers[kind]), [], 0
    for size in [*sizes, *[1] * len(ids)]:
        shown.append(stream.feed(ids[start : start + size]))
        start += size
    shown.append(stream.finish())
    assert "".join(shown) == tokenizers[kind].decode(ids)
    if isinstance(text, str):
        assert "\ufffd" in text or not any("\ufffd" in part for part in shown)


def test_a_stream_shows_a_character_with_its_last_byte_and_can_start_again(tokenizers: dict[str, Tokenizer]) -> None:
    stream = StreamDecoder(tokenizers["byte"])
    assert [stream.feed([byte]) for byte in "é😀".encode()] == ["", "é", "", "", "", "😀"]
    assert (stream.feed([0xF0]), stream.finish(), stream.finish(), stream.feed([0x61])) == ("", "\ufffd", "", "a")


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_is_its_texts_encoded_one_by_one_in_order(tokenizers: dict[str, Tokenizer], kind: str, corpus: list[str]) -> None:
    texts: list[str | bytes] = [*corpus, "", *(line for text in corpus for line in text.splitlines()), b"\xff"]
    one_by_one = [tokenizers[kind].encode(text) for text in texts]
    for num_threads in (1, 4):
        batch = tokenizers[kind].encode_batch(iter(texts), num_threads)
        assert [ids.tolist() for ids in batch] == one_by_one
        assert {ids.dtype for ids in batch} == {np.dtype(np.int32)}


@pytest.mark.parametrize("kind", KINDS)
def test_special_tokens_are_the_last_ids_and_stand_for_no_bytes(tokenizers: dict[str, Tokenizer], kind: str) -> None:
    tokenizer = tokenizers[kind]
    assert list(tokenizer.special) == list(SPECIAL_TOKENS)
    assert list(tokenizer.special.values()) == list(range(tokenizer.vocab_size - 9, tokenizer.vocab_size))
    assert tokenizer.bos_id == tokenizer.special["<|bos|>"] == tokenizer.vocab_size - 9
    assert tokenizer.token_bytes.shape == (tokenizer.vocab_size,) and tokenizer.token_bytes.dtype == np.int32
    assert tokenizer.token_bytes.tolist() == [len(token) for token in tokenizer.tokens]
    assert not tokenizer.token_bytes[-9:].any() and tokenizer.token_bytes[:-9].all()
    assert tokenizer.decode_bytes([*tokenizer.special.values(), 104, 105]) == b"hi"
    assert [tokenizer.decode_bytes([value]) for value in range(256)] == [bytes([value]) for value in range(256)]


@pytest.mark.parametrize("wrong", [[-1], [0, 10**6], [1.5], [[1, 2]], [2**70], np.zeros((1, 2), int)])
def test_ids_that_are_none_are_refused(bpe: Tokenizer, wrong: list[int]) -> None:
    with pytest.raises(ValueError, match="ids? "):
        bpe.decode_bytes(wrong)


def test_long_white_space_is_cut_and_other_text_is_not() -> None:
    words = "word " * BLOCK
    assert list(blocks(words)) == [words]
    text = words + " " * 5 * BLOCK + words
    cut = list(blocks(text))
    assert "".join(cut) == text and len(cut) >= 6
    assert list(blocks(" " * BLOCK + "x")) == [" " * BLOCK, "x"]
    longest = max(len(run) for part in cut for run in part.replace("word", "\0").split("\0"))
    assert longest < 2 * BLOCK


def test_real_text_comes_back() -> None:
    if not (folder := os.environ.get("LMTINY_TEST_DATA")):
        pytest.skip("LMTINY_TEST_DATA is not set: the folder of the real texts")
    texts = [path.read_bytes()[:300_000] for path in sorted(pathlib.Path(folder).rglob("*.txt"))]
    assert texts, f"no .txt in {folder}"
    tokenizer = learn("bpe", texts, 4096, 2_000_000)
    assert [tokenizer.decode_bytes(ids) for ids in tokenizer.encode_batch(texts, 2)] == texts
