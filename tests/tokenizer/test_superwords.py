"""Merges across spaces: lossless, at most four words, plain BPE over a split that cuts nowhere else; learned from a bounded sample."""

import itertools
import random

import pytest
import regex
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lmtiny.tokenizer import SPLIT_PATTERN, Tokenizer, learn, superwords
from lmtiny.tokenizer.vocabulary import SUPERWORD_PATTERN

PHRASES = ("one of the most", "it's not that", "as well as", "in the end, they", "of the", "don't know what it is", "The cat, the dog")
quick = settings(max_examples=200, deadline=None, database=None)
# Old letters only: Unicode versions disagree about characters assigned lately.
wordy = st.text("abt'sſK ,.\n \t1é가-") | st.text(st.characters(max_codepoint=0x24F, exclude_categories=["Cn", "Cs"]))


def phrases(count: int = 4000) -> str:
    rng = random.Random(0)
    return ". ".join(" ".join(rng.choices(PHRASES, k=3)) for _ in range(count))


@pytest.fixture(scope="module")
def learned() -> Tokenizer:
    return learn("superword", [phrases()], 400, 10**9, word_share=0.75)


def test_phrases_become_tokens_of_at_most_four_words(learned: Tokenizer) -> None:
    texts = [token.decode() for token in learned.tokens[256:-9]]
    assert " of the" in texts and " as well as" in texts and max(map(str.count, texts, itertools.repeat(" "))) >= 3
    first = [text for text in texts if len(regex.findall(SPLIT_PATTERN, text)) == 1]
    assert texts[: 300 - 265] == first[: 300 - 265] and len(first) < len(texts), "merges within words come first"
    for text in texts:
        pieces = regex.findall(SPLIT_PATTERN, text)
        assert len(pieces) <= 4 and text.count(" ") <= 4


def test_a_phrase_takes_fewer_tokens_than_its_words(learned: Tokenizer) -> None:
    plain = learn("bpe", [phrases()], 400, 10**9)
    assert 1.5 * len(learned.encode(phrases(50))) < len(plain.encode(phrases(50)))


@pytest.mark.parametrize(
    ("text", "runs"),
    [
        ("it's the end, my friend.", ["it's the end, my friend", "."]),
        ("O'Dowd, of 12 men", ["O", "'D", "owd, of", " ", "12", " men"]),  # no contraction
        ("one,two  three\nfour", ["one", ",two", " ", " three", "\n", "four"]),
        ("5, the end", ["5", ",", " the end"]),
    ],
)
def test_a_run_is_words_with_single_spaces_commas_and_contractions(text: str, runs: list[str]) -> None:
    assert regex.findall(SUPERWORD_PATTERN, text) == runs


@given(text=wordy)
@example("it'sab'rex y")
@example("a, b ,c, d's")
@quick
def test_the_split_cuts_only_where_the_split_of_words_cuts(text: str) -> None:
    pieces, longer = regex.findall(SPLIT_PATTERN, text), regex.findall(SUPERWORD_PATTERN, text)
    assert "".join(longer) == text
    assert set(itertools.accumulate(map(len, longer))) <= set(itertools.accumulate(map(len, pieces)))
    assert [piece for run in longer for piece in regex.findall(SPLIT_PATTERN, run)] == pieces, "a run by itself is split alike"


@given(text=wordy | st.lists(st.sampled_from((*PHRASES, "'s", ", ", " ", "x"))).map("".join))
@quick
def test_ids_are_those_of_merging_by_rank(learned: Tokenizer, text: str) -> None:
    ranks = {token: rank for rank, token in enumerate(learned.tokens) if token}
    expected: list[int] = []
    for run in regex.findall(SUPERWORD_PATTERN, text):
        symbols = [bytes([value]) for value in run.encode()]
        while known := [(ranks[a + b], place) for place, (a, b) in enumerate(itertools.pairwise(symbols)) if a + b in ranks]:
            _, place = min(known)
            symbols[place : place + 2] = [symbols[place] + symbols[place + 1]]
        expected += [ranks[symbol] for symbol in symbols]
    assert learned.encode(text) == expected and learned.decode(expected) == text


def test_a_text_that_is_one_long_run_is_no_harder_than_others(learned: Tokenizer) -> None:
    text = "one of the most " * 50_000
    assert learned.decode(learned.encode(text)) == text


def test_the_sample_is_bounded_from_everywhere_and_in_no_order() -> None:
    texts = [f"{number} " + "x" * 500 for number in range(400)]
    kept = [superwords.Sample(20_000) for _ in range(2)]
    assert list(kept[0].watch(texts)) == texts
    list(kept[1].watch(texts[::-1]))
    first, second = (sorted(one.texts()) for one in kept)
    assert first == second and 5_000 < sum(map(len, first)) <= 20_000
    places = [texts.index(text) for text in first]
    assert min(places) < 100 and max(places) > 300
    everything = superwords.Sample()
    long = "word " * 200_000
    assert list(everything.watch([long])) == [long] and len("".join(everything.texts())) == len(long)


def test_the_same_text_gives_the_same_tokenizer_in_any_order() -> None:
    lines = phrases(500).split(". ")
    assert learn("superword", lines, 380, 10**9).hash == learn("superword", lines[::-1], 380, 10**9).hash
    assert learn("superword", ["x y"], 380, 10**9).vocab_size <= 268, "nothing to join"


def test_whoever_uses_one_is_told_about_prompts(learned: Tokenizer, bpe: Tokenizer) -> None:
    assert "prompt that ends inside a phrase" in superwords.warning_about(learned)
    assert superwords.warning_about(bpe) == ""
