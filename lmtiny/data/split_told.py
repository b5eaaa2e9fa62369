"""What became of the documents, told before they are encoded: a table of the sides and of what was dropped, and a warning."""

import pathlib

import ml_collections
import numpy as np

from lmtiny import console
from lmtiny.corpus import Side
from lmtiny.data import report
from lmtiny.errors import NothingLeft
from lmtiny.refining import Tally, tally

MUCH = 3  # times the share that was asked for
FEW_BYTES = 4000  # of validation text, about 1,000 tokens: over less, a loss is much of it chance


def say(facts: list[np.ndarray], sides: list[pathlib.Path], counts: Tally) -> None:
    """Tells documents and bytes by side, and of all that was dropped; raises NothingLeft if nothing is left to train on.

    `counts` has what was read, and what was dropped or altered before the split.
    """
    all_sides, sizes = np.concatenate([np.load(path) for path in sides]), np.concatenate([one["bytes"] for one in facts])
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


def warn_of_little(facts: list[np.ndarray], sides: list[pathlib.Path], config: ml_collections.ConfigDict) -> None:
    """Warns of a validation side that is next to nothing, before the work that it would spoil."""
    held_out = [one["bytes"][np.load(path) == Side.VALIDATION] for one, path in zip(facts, sides, strict=True)]
    if (num_bytes := sum(int(sizes.sum()) for sizes in held_out)) < FEW_BYTES:
        amount = f"{console.counted(num_bytes, 'byte')} in {console.counted(sum(map(len, held_out)), 'document')}"
        remedy = f"hold out {FEW_BYTES:,} or more with {_named(config)} or a larger corpus.validation_fraction"
        console.warn(f"only {amount} held out for validation: a loss over so little text says next to nothing; {remedy}")


def _named(config: ml_collections.ConfigDict) -> str:
    return "a source's validation" if config.corpus.kind == "sources" else "corpus.validation_path"


def warn_of_much(facts: list[np.ndarray], sides: list[pathlib.Path], config: ml_collections.ConfigDict) -> None:
    """Warns where documents chosen by hash are a far larger share of the text than was asked for, as one of a few long ones is."""
    wanted = config.corpus.validation_fraction
    of_side = {
        side: sum(int(one["bytes"][np.load(path) == side].sum()) for one, path in zip(facts, sides, strict=True))
        for side in (Side.TRAIN, Side.VALIDATION)
    }
    share = of_side[Side.VALIDATION] / max(1, sum(of_side.values()))
    if share > MUCH * wanted and of_side[Side.VALIDATION] >= FEW_BYTES:  # of less there is a warning already
        console.warn(
            f"{share:.0%} of the text is held out for validation, and corpus.validation_fraction is {wanted:g}: its documents are long and"
            f" few; name what to hold out with {_named(config)}"
        )
