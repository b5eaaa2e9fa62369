"""The splits as they are given to the engine that encodes: the same pieces as those of the splits as they are published."""

import pytest
import regex
import tiktoken
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lmtiny.tokenizer import encoders
from lmtiny.tokenizer.engine import engine_split
from lmtiny.tokenizer.huggingface import KNOWN_SPLITS

SPLITS = sorted(set(KNOWN_SPLITS.values()))
BYTES = {bytes([value]): value for value in range(256)}
FOUND = [*"aZs'0\u00e9 \n\r\t.,/", " a", "'s", "  "]
# A token for each byte and each pair of these, so that where a piece ends shows in the ids.
TOKENS = dict.fromkeys([*BYTES, *((one + other).encode() for one in FOUND for other in FOUND)])
RANKS = {token: rank for rank, token in enumerate(TOKENS)}

texts = st.text("aZstvélR'’0²1 \n\r\t\u00a0\u2028.,/!가が") | st.text() | st.lists(st.sampled_from(FOUND)).map("".join)


@pytest.mark.parametrize("split", SPLITS)
@given(text=texts)
@example("a b's c'd e'lx f' g 'h, i,j" + " a" * 40 + "'s" * 40 + ", b's" * 20)
@example("\u0085\u0085a  \n \r\r/ ''s'S'll'L  ")
@settings(max_examples=300, deadline=None, database=None)
def test_the_engine_is_given_the_same_split(split: str, text: str) -> None:
    assert regex.findall(engine_split(split), text) == regex.findall(split, text)


@pytest.mark.parametrize("split", SPLITS)
def test_the_engine_itself_finds_the_same_pieces(split: str, corpus: list[str]) -> None:
    as_published = tiktoken.Encoding("published", pat_str=split, mergeable_ranks=RANKS, special_tokens={})
    ours = encoders.merging_encoder(RANKS, split)
    shuffled = ["".join(one + other for one, other in zip(FOUND[start:] + FOUND, FOUND * 2, strict=False)) for start in range(len(FOUND))]
    for text in [*corpus, *shuffled]:
        assert ours(text).tolist() == as_published.encode_ordinary(text)


@pytest.mark.parametrize("split", SPLITS)
def test_a_million_of_anything_in_a_row_is_encoded(split: str) -> None:
    encode = encoders.merging_encoder(BYTES, split)
    for text in ("a", "\u00e9", ".", "\n", " ", "9", "'", "a ", ", a", "'s", "\n "):
        many = text * (1_000_000 // len(text))
        assert len(encode(f"{many}'s, {many}'s")) == 2 * len(many.encode()) + 6
