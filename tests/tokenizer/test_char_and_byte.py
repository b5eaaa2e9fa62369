"""Characters and bytes as tokens."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmtiny.tokenizer import SPECIAL_TOKENS, Tokenizer, learn


def test_char_gives_one_id_a_known_character_in_sorted_order() -> None:
    tokenizer = learn("char", ["naïve ", b"\xff\xed\xa0", "한글 é"], 266, 10**6)
    alphabet = sorted("ïé한글")
    assert tokenizer.tokens[:256] == tuple(bytes([value]) for value in range(256))
    assert tokenizer.tokens[256:] == (*(char.encode() for char in alphabet), *[b""] * len(SPECIAL_TOKENS))
    assert tokenizer.encode("é한z") == [256 + alphabet.index("é"), 256 + alphabet.index("한"), ord("z")]
    assert tokenizer.vocab_size == 256 + len(alphabet) + 9


@given(text=st.text("aé한글ï😀語\udce9"))
@settings(max_examples=200, deadline=None, database=None)
def test_char_falls_back_to_bytes_for_characters_unseen(text: str) -> None:
    tokenizer = Tokenizer("char", (*(bytes([value]) for value in range(256)), "é".encode(), "한".encode()))
    expected: list[int] = []
    for char in text:
        expected += [256 + "é한".index(char)] if char in "é한" else list(char.encode("utf-8", "surrogateescape"))
    assert tokenizer.encode(text) == expected


def test_char_does_not_depend_on_documents_or_their_order() -> None:
    assert learn("char", ["añb", "한"], 300, 100).hash == learn("char", ["한ab", "ñ", "ñ"], 300, 100).hash
    assert learn("char", ["añb한"], 300, 4).tokens[256:-9] == ("ñ".encode(),)


def test_byte_is_the_bytes_and_reads_no_text() -> None:
    def texts() -> list[str]:
        pytest.fail("read")

    tokenizer = learn("byte", (text for _ in range(1) for text in texts()), 4096, 10**6)
    assert tokenizer.vocab_size == 265
    assert tokenizer.encode("é<|bos|>") == list("é<|bos|>".encode())
