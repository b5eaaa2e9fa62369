"""The two sides of the split: both filled, stable, and nothing on both."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmtiny import corpus
from lmtiny.corpus import Side, near_duplicates
from lmtiny.errors import UserError


def hashes(*texts: str) -> np.ndarray:
    return np.array([corpus.content_hash(text) for text in texts], np.uint64)


def test_the_share_and_the_stability() -> None:
    many = hashes(*map(str, range(10_000)))
    [sides] = corpus.choose([many], [False], 0.05)
    assert (sides == Side.VALIDATION).sum() == 500
    more = np.concatenate(corpus.choose([many[:5000], hashes(*"abcdefgh"), many[5000:]], [False] * 3, 0.05))
    same = np.delete(more, np.arange(5000, 5008)) == sides
    assert (~same).sum() <= 2  # a document does not change sides because others joined


@settings(deadline=None)
@given(st.lists(st.lists(st.integers(0, 30).map(str), max_size=6), min_size=1, max_size=5), st.floats(0.0001, 0.5))
def test_both_sides_have_text_and_share_none(units: list[list[str]], fraction: float) -> None:
    distinct = {text for unit in units for text in unit}
    if len(distinct) < 2:
        with pytest.raises(UserError):
            corpus.choose([hashes(*unit) for unit in units], [False] * len(units), fraction)
        return
    chosen = corpus.choose([hashes(*unit) for unit in units], [False] * len(units), fraction)
    pairs = [(text, side) for unit, sides in zip(units, chosen, strict=True) for text, side in zip(unit, sides.tolist(), strict=True)]
    kept = [text for text, side in pairs if side != Side.DUPLICATE]
    assert sorted(kept) == sorted(distinct)
    assert {Side.TRAIN, Side.VALIDATION} <= {side for _, side in pairs}


def test_held_out_files_win_over_copies_in_training() -> None:
    sides = corpus.choose([hashes("a", "b", "c"), hashes("b", "d", "d")], [False, True], 0.5)
    assert [side.tolist() for side in sides] == [[0, 2, 0], [1, 1, 2]]
    with pytest.raises(UserError, match="nothing is left to train on"):
        corpus.choose([hashes("b"), hashes("b", "d")], [False, True], 0.5)
    with pytest.raises(UserError, match="holds out have no text"):
        corpus.choose([hashes("b", "c"), hashes()], [False, True], 0.5)
    with pytest.raises(UserError, match="no text"):
        corpus.choose([hashes()], [False], 0.5)


@pytest.mark.parametrize("text", ["One.\n\nTwo.\n\nThree.", "one line and no more", "ab", "日本"])
def test_a_single_document_is_cut_in_two(text: str) -> None:
    train, validation = corpus.in_two(text, 0.05)
    assert train and validation
    assert text.startswith(train) and text.endswith(validation)
    assert text.replace(train, "", 1).strip() == validation.strip()


def test_one_character_cannot_be_cut() -> None:
    with pytest.raises(UserError, match="too short"):
        corpus.in_two("x", 0.05)


def words(seed: int, count: int = 300) -> list[str]:
    return [f"w{number}" for number in np.random.default_rng(seed).integers(0, 50, count)]


def jaccard(one: list[str], other: list[str]) -> float:
    first, second = ({tuple(text[i : i + 5]) for i in range(max(1, len(text) - 4))} for text in (one, other))
    return len(first & second) / len(first | second)


def test_similarity_is_the_exact_jaccard_of_word_five_grams() -> None:
    held_out = [words(1), words(2), words(1)[:150] + words(3), ["too", "short"]]
    index = corpus.Index.of(" ".join(text) for text in held_out)
    for text in (words(1), words(1)[:200], words(2)[50:] + words(4), words(5), ["too", "short"], ["too", "long"], words(1) + words(2)):
        expected = max(jaccard(text, other) for other in held_out)
        assert index.similarity(" ".join(text)) == pytest.approx(expected)
        assert index.similarity("  ".join(text).upper() + "!") == pytest.approx(expected)  # neither case nor punctuation


def test_an_empty_index_and_empty_texts() -> None:
    assert corpus.Index.of([]).similarity("anything at all") == 0
    assert corpus.Index.of(["a b c d e f"]).similarity("...") == 0
    assert corpus.Index.of(["..."]).similarity("a b c d e f") == 0


def test_texts_without_a_letter_or_digit_are_like_nothing() -> None:
    index = corpus.Index.of(["* * *", "---", "a b c d e f", "\u2603 \u2603"])
    assert [index.similarity(text) for text in ("* * *", "---", "...", "", "\u2603 \u2603")] == [0] * 5
    assert index.similarity("a, b; c. d e f") == 1
    assert len(near_duplicates.shingles("?!")) == 0


def test_scripts_without_spaces_are_compared_by_character() -> None:
    text = "人人生而自由,在尊严和权利上一律平等。他们赋有理性和良心,并应以兄弟关系的精神相对待。"
    index = corpus.Index.of([text])
    assert 0.5 < index.similarity(text.replace("兄弟", "姐妹")) < 1
    assert corpus.Index.of(["สวัสดีชาวโลกที่สวยงาม"]).similarity("สวัสดีชาวโลกที่") > 0.5


def test_equal_words_have_equal_hashes_wherever_they_stand() -> None:
    found = near_duplicates._word_hashes("the cat. xx the, cat 日本 日 \U0001f600\U0001f601 q").tolist()
    assert len(found) == 10
    assert found[0] == found[3] and found[1] == found[4] and found[5] == found[7]
    assert len(set(found)) == 7


@settings(deadline=None)
@given(st.text(alphabet="abΣ .\n日本คำ\U0001f600\ud800", max_size=80), st.integers(1, 9))
def test_words_do_not_depend_on_the_blocks_they_are_hashed_in(text: str, block: int) -> None:
    whole = near_duplicates._word_hashes(text).tolist()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(near_duplicates, "BLOCK", block)
        patch.setattr(near_duplicates, "_powers", near_duplicates._powers.__wrapped__)
        assert near_duplicates._word_hashes(text).tolist() == whole


def test_a_long_text_is_compared_in_a_few_times_its_memory() -> None:
    text = " ".join(words(1, 1 << 20))
    near_duplicates.shingles(text[: near_duplicates.BLOCK])  # what is kept
    tracemalloc.start()
    try:
        near_duplicates.shingles(text)
        assert tracemalloc.get_traced_memory()[1] < 10 * len(text)
    finally:
        tracemalloc.stop()


def test_a_saved_index_is_the_same(tmp_path) -> None:
    index = corpus.Index.of([" ".join(words(1)), " ".join(words(2))])
    index.save(tmp_path / "i")
    text = " ".join(words(1)[100:])
    assert corpus.Index.load(tmp_path / "i").similarity(text) == index.similarity(text) > 0
