"""Batches are a pure function of (seed, shards, step): whatever the hosts, wherever the run resumes."""

import itertools
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from lmtiny.data import prepare, target_mask
from lmtiny.data.loader import Rows, batches, validation_batches
from lmtiny.errors import UserError


@pytest.fixture
def config(config_of):
    return config_of()


@pytest.fixture
def prepared(config):
    return prepare(config)


def take(iterator, count: int) -> np.ndarray:
    found = np.stack(list(itertools.islice(iterator, count)))
    iterator.close()
    return found


def test_rows_by_number(prepared) -> None:
    rows = Rows(prepared, "train", 32)
    assert len(prepared.shards("train")) > 2
    assert len(rows) == prepared.num_rows("train")
    together = rows.batch(np.arange(len(rows)))
    assert together.dtype == np.int32 and together.shape == (len(rows), 33)
    assert (together[:, 0] == prepared.bos_id).all()
    assert together.min() >= 0 and together.max() < prepared.tokenizer.vocab_size
    scattered = [len(rows) - 1, 0, 250, 250, 3]
    np.testing.assert_array_equal(rows.batch(np.array(scattered)), together[scattered])
    np.testing.assert_array_equal(rows[250], together[250])


@pytest.mark.parametrize("hosts", [1, 2, 4])
def test_any_number_of_hosts_sees_the_same_batches(prepared, config, hosts: int) -> None:
    whole = take(batches(prepared, config, "train", 8), 6)
    share = 8 // hosts
    parts = [take(batches(prepared, config, "train", 8, row_start=host * share, row_count=share), 6) for host in range(hosts)]
    np.testing.assert_array_equal(np.concatenate(parts, axis=1), whole)


def test_resuming_at_a_step_is_going_on(prepared, config) -> None:
    whole = take(batches(prepared, config, "train", 8), 400)  # more than two epochs
    assert len(Rows(prepared, "train", 32)) < 1600
    for step in (1, 7, 399):
        np.testing.assert_array_equal(take(batches(prepared, config, "train", 8, start_step=step), 1)[0], whole[step])
    config.data.read_threads, config.data.prefetch = 5, 1
    np.testing.assert_array_equal(take(batches(prepared, config, "train", 8), 50), whole[:50])
    config.seed = 1
    assert (take(batches(prepared, config, "train", 8), 1)[0] != whole[0]).any()


def test_far_into_a_run_costs_nothing(prepared, config) -> None:
    assert take(batches(prepared, config, "train", 8, start_step=10**9), 1).shape == (1, 8, 33)


def test_an_epoch_covers_every_row_once_and_the_next_is_ordered_anew(prepared, config) -> None:
    rows = Rows(prepared, "train", 32)
    count = len(rows)
    everything = sorted(map(bytes, rows.batch(np.arange(count))))
    sequence = take(batches(prepared, config, "train", count), 3)  # one batch an epoch
    assert [sorted(map(bytes, epoch)) for epoch in sequence] == [everything] * 3
    assert (sequence[0] != sequence[1]).any() and (sequence[1] != sequence[2]).any()
    larger = take(batches(prepared, config, "train", 2 * count + 3), 1)[0]  # fewer rows than a batch
    np.testing.assert_array_equal(larger, np.concatenate([*sequence])[: 2 * count + 3])


def test_long_rows_are_several_short_ones(config_of) -> None:
    config = config_of(**{"data.row_length": 96})
    prepared = prepare(config)
    long, short = Rows(prepared, "train", 96), Rows(prepared, "train", 32)
    assert len(short) == 3 * len(long)
    for row in (0, len(long) - 1):
        whole = long[row]
        for part in range(3):
            np.testing.assert_array_equal(short[3 * row + part], whole[part * 32 : part * 32 + 33])
    assert take(batches(prepared, config, "train", 4), 1).shape == (1, 4, 33)
    with pytest.raises(UserError, match=r"rows of 96 tokens, not a multiple of model\.context_length = 64"):
        Rows(prepared, "train", 64)


@pytest.mark.parametrize("hosts", [1, 2])
def test_validation_gives_each_row_once_and_fills_up_with_nothing(prepared, config, hosts: int) -> None:
    rows = Rows(prepared, "validation", 32)
    size = 16
    assert len(rows) % size
    parts = [list(validation_batches(prepared, config, size, host * size // hosts, size // hosts)) for host in range(hosts)]
    found = np.concatenate([np.concatenate(same) for same in zip(*parts, strict=True)])
    assert len(found) == -(-len(rows) // size) * size
    np.testing.assert_array_equal(found[: len(rows)], rows.batch(np.arange(len(rows))))
    assert not target_mask(found[len(rows) :], prepared.bos_id).any()
    assert len(np.concatenate(list(validation_batches(prepared, config, 4, num_rows=6)))) == 8


def test_a_damaged_shard_stops_the_run_and_is_named(prepared, config) -> None:
    shard = prepared.shards("train")[1]
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    with pytest.raises(UserError, match=r"train-00001-of-\d+\.array_record is damaged .* --rebuild"):
        take(batches(prepared, config, "train", prepared.num_rows("train")), 1)


def test_a_wrong_share_is_refused(prepared, config) -> None:
    with pytest.raises(ValueError, match="rows 6 to 10 of a batch of 8"):
        take(batches(prepared, config, "train", 8, row_start=6, row_count=4), 1)


def test_closing_leaves_no_thread_and_an_open_one_does_not_hang_the_exit(prepared, config) -> None:
    before = threading.active_count()
    iterator = batches(prepared, config, "train", 8)
    next(iterator)
    iterator.close()
    deadline = time.monotonic() + 10  # they finish the batch they are at
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() <= before
    code = f"""
import json
from lmtiny.config import from_dict
from lmtiny.data import prepare
from lmtiny.data.loader import batches
config = from_dict({config.to_dict()!r}, "test")
iterator = batches(prepare(config), config, "train", 64)
next(iterator)
print("done")
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stdout.split()[-1:], ended.stderr) == (0, ["done"], "")
