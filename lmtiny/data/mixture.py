"""Sources mixed by weight: what share each has of the batches, and of the text that a tokenizer is learned from.

Rows are packed source by source, so that a weight only says which rows a batch takes: no text is stored twice or left out.
"""

import sys
from collections.abc import Callable
from typing import Any

import ml_collections
import numpy as np

from lmtiny import console
from lmtiny.corpus import sources
from lmtiny.data import shuffle
from lmtiny.errors import UserError

COUNTED = 4096  # rows
WORN_OUT = 16  # times read: about there the returns of reading it again vanish (Muennighoff et al. 2023, arXiv 2305.16264)


def shares(config: ml_collections.ConfigDict) -> dict[str, float]:
    """Returns source -> its share of the tokens, which sum to 1; {} without weights, where sources go by their sizes."""
    weights = {sources.name(source): source["weight"] for source in config.corpus.sources if source["weight"]}
    return {name: weight / sum(weights.values()) for name, weight in weights.items()}


def refuse_unless_filled(mixture: list[dict[str, Any]]) -> None:
    """Raises UserError where a source of the manifest's "mixture" has no rows to give its share from."""
    if empty := [one["source"] for one in mixture if not one["rows"]]:
        raise UserError(f"corpus.sources: {empty[0]} has a weight, but no text to train on; leave it out, or look at what dropped it")


def order(
    mixture: list[dict[str, Any]], num_rows: int, per_stored: int, config: ml_collections.ConfigDict
) -> Callable[[np.ndarray], np.ndarray]:
    """Returns a function: int64[n] places in the endless order that training reads -> int64[n] numbers of the rows there.

    Of sources that are mixed by weight each is shuffled by itself, each time anew, and read as often as its share asks for.
    `mixture`: of the manifest; `per_stored`: rows of a batch that a stored row makes.
    """
    if not mixture:
        return lambda places: shuffle.rows_at(places, num_rows, config.seed)
    if {one["source"] for one in mixture} != set(shares(config)):
        raise UserError(
            f"the rows are of other sources than have a weight now: {', '.join(shares(config)) or 'none'}"
        )
    import grain  # here, not above: who prepares does not read

    wanted, counts = shares(config), [one["rows"] * per_stored for one in mixture]
    firsts = np.cumsum([0, *counts])
    each = [grain.MapDataset.range(sys.maxsize).map(lambda place, number=number: (number, place)) for number in range(len(mixture))]
    mixed = grain.MapDataset.mix(each, [wanted[one["source"]] for one in mixture])

    def rows_at(places: np.ndarray) -> np.ndarray:
        source_and_place = np.array([mixed[place] for place in places.tolist()], np.int64).reshape(-1, 2)
        rows = np.empty_like(places)
        for number, count in enumerate(counts):
            own = source_and_place[:, 0] == number
            rows[own] = firsts[number] + shuffle.rows_at(source_and_place[own, 1], count, (config.seed + number) % 2**32)
        return rows

    return rows_at


def got(manifest: dict[str, Any], config: ml_collections.ConfigDict) -> dict[str, float]:
    """Returns source -> its share of the first COUNTED rows that training reads; {} where sources are not mixed by weight."""
    train = manifest["splits"]["train"]
    mixture = train.get("mixture", [])
    if not mixture:
        return {}
    rows = order(mixture, train["rows"], 1, config)(np.arange(COUNTED))
    counts = np.bincount(np.searchsorted(np.cumsum([one["rows"] for one in mixture]), rows, "right"), minlength=len(mixture))
    return {one["source"]: int(count) / COUNTED for one, count in zip(mixture, counts, strict=True)}


def times_read(manifest: dict[str, Any], config: ml_collections.ConfigDict) -> dict[str, float]:
    """Returns source -> how often a run of the config reads through it."""
    rows_read = config.train.num_steps * config.train.batch_size * config.model.context_length / manifest["row_length"]
    wanted = shares(config)
    return {one["source"]: rows_read * wanted[one["source"]] / one["rows"] for one in manifest["splits"]["train"]["mixture"]}


def warn_if_worn_out(what: str, times: float, remedy: str) -> None:
    """Warns where a run reads `what` more than WORN_OUT times, and says what to do."""
    if times > WORN_OUT:
        console.warn(f"a run of this config reads {what} {times:,.0f} times, and so learns it by heart; {remedy}")


def described(manifest: dict[str, Any], config: ml_collections.ConfigDict) -> list[tuple[str, ...]]:
    """Returns a row of texts for each source: its name, share wanted, share by size, how often a run of the config reads it."""
    wanted, train, times = shares(config), manifest["splits"]["train"], times_read(manifest, config)
    return [
        (source, f"{wanted[source]:.1%}", f"{rows / train['rows']:.1%}", f"{times[source]:.2f}")
        for source, rows in ((one["source"], one["rows"]) for one in train["mixture"])
    ]
