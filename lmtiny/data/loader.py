"""Rows on disk -> batches, in an order that is a pure function of (seed, shards, step).

The whole state of the data is one number, the step: batch k holds the rows k*B .. k*B + B-1 of an endless sequence
that shuffles each epoch anew, and each process takes its share of every batch. So a run resumes exactly, at once, and
on any number of hosts.
"""

import sys
from collections.abc import Generator

import grain
import ml_collections
import numpy as np
from array_record.python import array_record_module

from lmtiny.data import mixture
from lmtiny.data.shards import READ_OPTIONS, REBUILD, Prepared
from lmtiny.errors import UserError

BLOCK_TOKENS = 1 << 16  # of batches read in one call of a thread


class Rows:
    """The rows of a split by number: `rows[i]` is int32[T+1] for T = `context_length`.

    A stored row of m x T + 1 tokens is m rows, tokens [j*T, (j+1)*T]: neighbours share the token that is the target of
    one and the first input of the next.
    """

    def __init__(self, prepared: Prepared, split: str, context_length: int) -> None:
        """Raises UserError where stored rows do not divide into rows of `context_length`."""
        stored = prepared.row_length(split)
        if stored % context_length:
            knob = "model.context_length" if split == "train" else "evaluation.context_length, or else model.context_length,"
            raise UserError(f"{prepared.folder} holds rows of {stored} tokens, not a multiple of {knob} = {context_length}")
        self.context_length = context_length
        self.per_stored = stored // context_length
        self._dtype, self._width, self._folder = prepared.dtype, stored + 1, prepared.folder
        self._vocab_size = int(prepared.manifest["tokenizer"]["vocab_size"])
        self._files = prepared.shards(split)
        counts = [shard["rows"] for shard in prepared.manifest["splits"][split]["shards"]]
        self._first = np.cumsum([0, *counts])
        self._readers: dict[int, array_record_module.ArrayRecordReader] = {}

    def __len__(self) -> int:
        return int(self._first[-1]) * self.per_stored

    def __getitem__(self, index: int) -> np.ndarray:
        return self.batch(np.array([index]))[0]

    def batch(self, indices: np.ndarray) -> np.ndarray:
        """Returns int32[len(indices), T+1]; what lies in one shard is read together.

        Raises:
          UserError: a shard is damaged: array_record checks every block it reads.
        """
        stored = np.empty((len(indices), self._width), self._dtype)
        numbers, inner = np.divmod(indices, self.per_stored)
        shard_of = np.searchsorted(self._first, numbers, "right") - 1
        for shard in np.unique(shard_of).tolist():
            wanted = np.flatnonzero(shard_of == shard)
            stored[wanted] = self._read(shard, (numbers[wanted] - self._first[shard]).tolist())
        if self.per_stored == 1:
            return stored.astype(np.int32)
        columns = inner[:, None] * self.context_length + np.arange(self.context_length + 1)
        return np.take_along_axis(stored, columns, axis=1).astype(np.int32)

    def _read(self, shard: int, positions: list[int]) -> np.ndarray:
        try:
            if shard not in self._readers:  # two threads may both open it: one reader is then dropped
                self._readers[shard] = array_record_module.ArrayRecordReader(str(self._files[shard]), READ_OPTIONS)
            records = self._readers[shard].read(positions)
        except (RuntimeError, IndexError) as error:
            raise UserError(f"{self._files[shard]} is damaged ({' '.join(str(error).split())[:200]}); {REBUILD}") from error
        if any(len(record) != self._width * self._dtype.itemsize for record in records):
            raise UserError(f"{self._files[shard]} holds a record that is not a row of {self._width} tokens; {REBUILD}")
        rows = np.frombuffer(b"".join(records), self._dtype).reshape(len(positions), self._width)
        if rows.size and int(rows.max()) >= self._vocab_size:  # whose embedding is not there
            raise UserError(f"{self._files[shard]} holds a token that its tokenizer does not have; {REBUILD}")
        return rows


def batches(
    prepared: Prepared,
    config: ml_collections.ConfigDict,
    split: str,
    batch_size: int,
    start_step: int = 0,
    row_start: int = 0,
    row_count: int | None = None,
) -> Generator[np.ndarray]:
    """Yields int32[row_count, T+1] without end: of batch start_step, start_step + 1, ... the rows row_start onwards.

    The rows come shuffled, each epoch differently, from `config.seed`; every row comes once an epoch, and a batch may
    lie across two. Sources with weights have each an epoch of its own. Threads read ahead (`data.read_threads`,
    `data.prefetch`); they end when the iterator is closed.

    Raises:
      UserError: rows that do not fit the config, or a damaged shard.
    """
    count = batch_size - row_start if row_count is None else row_count
    if not 0 <= row_start <= row_start + count <= batch_size or start_step < 0:
        raise ValueError(f"rows {row_start} to {row_start + count} of a batch of {batch_size} from step {start_step}")
    rows = Rows(prepared, split, config.model.context_length)
    order = mixture.order(prepared.manifest["splits"][split].get("mixture", []), len(rows), rows.per_stored, config)

    # Small batches are read several at a time: a call costs as much as reading a dozen rows.
    at_once = max(1, BLOCK_TOKENS // max(1, count * rows.context_length))
    end = sys.maxsize // batch_size  # of an endless order, as far as grain counts

    def block(start: int) -> np.ndarray:
        steps = np.arange(start, min(start + at_once, end))
        places = steps[:, None] * batch_size + row_start + np.arange(count)
        return rows.batch(order(places.ravel())).reshape(len(steps), count, rows.context_length + 1)

    return _read_ahead(grain.MapDataset.range(start_step, end, at_once).map(block), config)


def _read_ahead(dataset: grain.MapDataset, config: ml_collections.ConfigDict) -> Generator[np.ndarray]:
    """Yields the batches of a dataset of blocks [batches, rows, T+1]."""
    options = grain.ReadOptions(num_threads=config.data.read_threads, prefetch_buffer_size=config.data.prefetch)
    iterator = iter(dataset.to_iter_dataset(options))
    try:
        for block in iterator:
            yield from block
    finally:
        iterator.close()


def validation_batches(
    prepared: Prepared,
    config: ml_collections.ConfigDict,
    batch_size: int,
    row_start: int = 0,
    row_count: int | None = None,
    num_rows: int | None = None,
) -> Generator[np.ndarray]:
    """Yields int32[row_count, T+1]: the first `num_rows` validation rows (None: all), each once, in stored order.

    The last batch is filled up with rows of `<|bos|>` alone, whose `target_mask` is False throughout.
    """
    count = batch_size - row_start if row_count is None else row_count
    rows = Rows(prepared, "validation", config.model.context_length)
    total = len(rows) if num_rows is None else min(num_rows, len(rows))

    def batch(step: int) -> np.ndarray:
        first = step * batch_size + row_start
        wanted = np.arange(first, min(first + count, total))
        filled = np.full((count, rows.context_length + 1), prepared.bos_id, np.int32)
        if len(wanted):
            filled[: len(wanted)] = rows.batch(wanted)
        return filled[None]

    return _read_ahead(grain.MapDataset.range(-(-total // batch_size)).map(batch), config)
