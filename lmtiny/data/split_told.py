"""What became of the documents, told before they are encoded: a table of the sides and of what was dropped, and warnings."""

import pathlib

import ml_collections
import numpy as np

from lmtiny import console
from lmtiny.corpus import Side
from lmtiny.data import report
from lmtiny.errors import NothingLeft
from lmtiny.refining import Tally, tally

FEW_BYTES = 4000  # of validation text, about 1,000 tokens: over less, a loss is much of it chance
MUCH = 3  # times the share of validation text that was asked for


def say(facts: list[np.ndarray], sides: list[pathlib.Path], counts: Tally) -> None:
    """Tells documents and bytes by side, and of all that was dropped; raises NothingLeft if nothing is left to train on.

    `counts` has what was read, and what was dropped or altered before the split.
    """
    all_sides, sizes = _of_documents(facts, sides)
    rows = [
        (what, int((all_sides == side).sum()), int(sizes[all_sides == side].sum()))
        for side, what in zip(Side, ("train", "validation", "dropped: exact copies", "dropped: near-duplicates of validation"), strict=True)
        if side in (Side.TRAIN, Side.VALIDATION) or (all_sides == side).any()
    ]
    if before := report.before_split(counts):
        passed = [sum(column) for column in zip(*counts.flow[tally.READ].values(), counts.dropped_by(tally.READ), strict=True)]
        rows = [("read", *passed), *rows[:2], *before, *rows[2:]]  # the rows below `read` add up to it
    shown = [(what, f"{documents:,}" if documents else "-", f"{num_bytes:,}") for what, documents, num_bytes in rows]
    console.say(console.table(("side", "documents", "bytes"), shown))
    if not (all_sides == Side.TRAIN).any():
        raise NothingLeft(
            "nothing is left to train on: every training document is a near-duplicate of a held-out one;"
            " raise --config.corpus.near_duplicate (above 1: never) or give more varied text"
        )


def warn(facts: list[np.ndarray], sides: list[pathlib.Path], by_hash: bool, config: ml_collections.ConfigDict) -> None:
    """Warns of a validation side that is next to nothing, or far more than was asked for, before the work that it would spoil.

    `by_hash`: documents were chosen by corpus.validation_fraction, none was named; of a few long ones that is any share of the text.
    """
    all_sides, sizes = _of_documents(facts, sides)
    held_out, wanted = sizes[all_sides == Side.VALIDATION], config.corpus.validation_fraction
    num_bytes = int(held_out.sum())
    share = num_bytes / max(1, num_bytes + int(sizes[all_sides == Side.TRAIN].sum()))
    named = "a source's validation" if config.corpus.kind == "sources" else "corpus.validation_path"
    if num_bytes < FEW_BYTES:
        amount = f"{console.counted(num_bytes, 'byte')} in {console.counted(len(held_out), 'document')}"
        remedy = f"hold out {FEW_BYTES:,} or more with {named} or a larger corpus.validation_fraction"
        console.warn(f"only {amount} held out for validation: a loss over so little text says next to nothing; {remedy}")
    elif by_hash and share > MUCH * wanted:
        console.warn(
            f"{share:.0%} of the text is held out for validation, and corpus.validation_fraction is {wanted:g}: its documents are long and"
            f" few; name what to hold out with {named}"
        )


def _of_documents(facts: list[np.ndarray], sides: list[pathlib.Path]) -> tuple[np.ndarray, np.ndarray]:
    """Returns (the Side, the bytes) of each document."""
    return np.concatenate([np.load(path) for path in sides]), np.concatenate([one["bytes"] for one in facts])
