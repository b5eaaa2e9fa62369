"""Packing loses nothing, invents nothing, and wastes little; rows say what they hold."""

import itertools
import time

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lmtiny.data import packing, positions, segments, target_mask

BOS = 9


@settings(deadline=None)
@given(st.lists(st.lists(st.integers(0, 70), max_size=12), max_size=4), st.integers(2, 16), st.data())
def test_every_token_is_in_exactly_one_chunk_in_order(lengths: list[list[int]], row_length: int, data: st.DataObject) -> None:
    arrays = [np.array(part, np.int64) for part in lengths]
    chosen = [np.array(data.draw(st.lists(st.booleans(), min_size=len(part), max_size=len(part))), bool) for part in lengths]
    chunks = packing.cut(arrays, chosen, row_length)
    spans = [(part, start, start + size) for part, start, size in zip(chunks.part, chunks.start, chunks.length, strict=True)]
    expected = []
    for number, (part, wanted) in enumerate(zip(lengths, chosen, strict=True)):
        at = 0
        for length, take in zip(part, wanted, strict=True):
            expected += [(number, at + begin, at + min(begin + row_length, length)) for begin in range(0, length, row_length) if take]
            at += length
    assert spans == expected
    assert all(0 < stop - start <= row_length for _, start, stop in spans)


@settings(deadline=None)
@given(st.integers(2, 40).flatmap(lambda capacity: st.tuples(st.just(capacity), st.lists(st.integers(2, capacity), max_size=200))))
def test_rows_hold_every_chunk_once_and_none_overflows(case: tuple[int, list[int]]) -> None:
    capacity, sizes = case
    lengths = np.array(sizes, np.int64)
    plan = packing.pack(lengths, capacity)
    assert sorted(plan.order.tolist()) == list(range(len(sizes)))
    loads = [int(lengths[plan.order[plan.first[row] : plan.first[row + 1]]].sum()) for row in range(len(plan))]
    assert all(0 < load <= capacity for load in loads)
    # Two rows that are at most half full would have been one.
    assert sum(load <= capacity / 2 for load in loads) <= 1


def best_fit_by_search(lengths: list[int], capacity: int) -> list[int]:
    """Returns how full the rows are, by the plainest best-fit-decreasing."""
    rows: list[int] = []
    for length in sorted(lengths, reverse=True):
        fitting = [row for row, load in enumerate(rows) if load + length <= capacity]
        if fitting:
            rows[max(fitting, key=lambda row: rows[row])] += length
        else:
            rows.append(length)
    return sorted(rows)


@settings(deadline=None)
@given(st.lists(st.integers(2, 30), max_size=60))
def test_it_is_best_fit_decreasing(sizes: list[int]) -> None:
    rows = packing.best_fit_decreasing(np.array(sizes, np.int64), 30)
    assert sorted(np.bincount(rows, weights=sizes).astype(int).tolist()) == best_fit_by_search(sizes, 30)


def test_windows_bound_the_work_and_change_little(monkeypatch: pytest.MonkeyPatch) -> None:
    lengths = np.random.default_rng(0).integers(2, 65, 5000)
    whole = packing.pack(lengths, 65)
    monkeypatch.setattr(packing, "WINDOW", 1000)
    plan = packing.pack(lengths, 65)
    assert sorted(plan.order.tolist()) == list(range(5000))
    assert len(whole) <= len(plan) < 1.02 * len(whole)


def test_it_is_fast_and_wastes_next_to_nothing() -> None:
    lengths = np.minimum(np.random.default_rng(0).lognormal(5.5, 1.2, 60_000).astype(np.int64) + 2, 2049)
    began = time.process_time()
    plan = packing.pack(lengths, 2049)
    assert time.process_time() - began < 2  # 0.05 s on the machine this was written on
    assert 1 - lengths.sum() / (2049 * len(plan)) < 0.001


@settings(deadline=None)
@example([[4, 4, 4, 16]], 8)  # what has space must not be cut, and what may be cut has none
@example([[13, 5, 13, 5, 13, 5]], 8)  # rows of either kind have space
@given(st.lists(st.lists(st.integers(0, 90), max_size=20), min_size=1, max_size=3), st.integers(1, 16))
def test_filled_rows_hold_every_token_once_and_cut_no_short_document(lengths: list[list[int]], row_length: int) -> None:
    arrays = [np.array(part, np.int64) for part in lengths]
    chunks = packing.cut(arrays, [np.ones(len(part), bool) for part in lengths], row_length)
    before = packing.pack(chunks.length + 1, row_length + 1)
    found, plan = packing.filled(chunks, before, row_length + 1)
    tokens = [np.zeros(int(part.sum()), int) for part in arrays]
    for part, start, length in zip(found.part, found.start, found.length, strict=True):
        tokens[part][start : start + length] += 1
    assert all((part == 1).all() for part in tokens)
    assert sorted(plan.order.tolist()) == list(range(len(found.length)))
    loads = [int((found.length[plan.order[begin:end]] + 1).sum()) for begin, end in itertools.pairwise(plan.first)]
    assert all(2 <= load <= row_length + 1 for load in loads)
    assert len(plan) <= len(before) and (len(plan) < len(before) or found is chunks)
    whole = {(part, start, length) for part, start, length in zip(found.part, found.start, found.length, strict=True)}
    for number, part in enumerate(arrays):
        starts = np.cumsum(part) - part
        assert all((number, start, length) in whole for start, length in zip(starts, part, strict=True) if 0 < length <= row_length)


@settings(deadline=None)
@given(st.integers(1, 16), st.lists(st.integers(1, 80), min_size=1, max_size=60))
def test_long_documents_leave_less_than_a_row(row_length: int, longer_by: list[int]) -> None:
    lengths = [row_length + more for more in longer_by]
    chunks = packing.cut([np.array(lengths)], [np.ones(len(lengths), bool)], row_length)
    before = packing.pack(chunks.length + 1, row_length + 1)
    had_space = int((np.add.reduceat(chunks.length[before.order] + 1, before.first[:-1]) <= row_length).sum())
    found, plan = packing.filled(chunks, before, row_length + 1)
    assert len(plan) * (row_length + 1) - int((found.length + 1).sum()) < row_length + 1 + max(had_space, 1)


def test_a_few_long_documents_fill_their_rows() -> None:
    """The ends of 400 documents, of any length up to a row, by best fit leave more than a tenth of a percent."""
    lengths = [np.random.default_rng(0).integers(14_000, 18_000, 400)]
    chunks = packing.cut(lengths, [np.ones(400, bool)], 2048)
    before = packing.pack(chunks.length + 1, 2049)
    found, plan = packing.filled(chunks, before, 2049)
    assert 1 - (chunks.length + 1).sum() / (2049 * len(before)) > 0.001
    least = -(-int((chunks.length + 1).sum()) // 2049)
    assert least <= len(plan) <= least + 1
    assert len(found.length) - len(chunks.length) < 0.05 * len(chunks.length)


def test_a_chunk_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="a chunk of 11 tokens does not fit a row of 10"):
        packing.pack(np.array([3, 11]), 10)


ROW = [BOS, 1, 2, BOS, 3, BOS, BOS, BOS]


@pytest.mark.parametrize("kind", ["numpy", "jax"])
def test_a_row_tells_its_segments_positions_and_mask(kind: str) -> None:
    tokens = np.array([ROW, [5, 6, 7, BOS, 1, 2, 3, BOS]], np.int32)
    if kind == "jax":
        jax = pytest.importorskip("jax")
        array = jax.numpy.asarray(tokens)
        found = [jax.jit(function, static_argnums=1)(array, BOS) for function in (segments, positions, target_mask)]
        assert all(isinstance(one, jax.Array) for one in found)
    else:
        found = [function(tokens, BOS) for function in (segments, positions, target_mask)]
    assert found[0].tolist() == [[1, 1, 1, 2, 2, 3, 4, 5], [0, 0, 0, 1, 1, 1, 1, 2]]
    assert found[1].tolist() == [[0, 1, 2, 0, 1, 0, 0, 0], [0, 1, 2, 0, 1, 2, 3, 0]]
    assert found[2].tolist() == [[True, True, True, True, True, False, False], [True] * 7]
    assert found[0].dtype == found[1].dtype == np.int32


@settings(deadline=None)
@given(st.lists(st.sampled_from([BOS, 1]), min_size=1, max_size=70))
def test_positions_count_from_the_last_bos(row: list[int]) -> None:
    expected, at = [], -1
    for token in row:
        at = 0 if token == BOS else at + 1
        expected.append(at)
    assert positions(np.array(row), BOS).tolist() == expected
