"""Ids -> batches: packing into rows, shards on disk, and (in `lmtiny.data.loader`, which needs grain) the loader."""

from lmtiny.data.preparation import prepare, prepared_before, ready_tokenizer, refuse_another_tokenizer
from lmtiny.data.report import PAGE as REPORT
from lmtiny.data.rows import positions, segments, target_mask
from lmtiny.data.shards import Prepared, verify

__all__ = [
    "REPORT", "Prepared", "positions", "prepare", "prepared_before", "ready_tokenizer", "refuse_another_tokenizer", "segments",
    "target_mask", "verify",
]  # fmt: skip
