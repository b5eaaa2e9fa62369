"""Sources mixed by weight: what share each has of the batches, and of the text that a tokenizer is learned from.

Rows are packed source by source, so that a weight only says which rows a batch takes: no text is stored twice or left out.
"""

from typing import Any

import ml_collections

from lmtiny.corpus import sources
from lmtiny.errors import UserError


def shares(config: ml_collections.ConfigDict) -> dict[str, float]:
    """Returns source -> its share of the tokens, which sum to 1; {} without weights, where sources go by their sizes."""
    weights = {sources.name(source): source["weight"] for source in config.corpus.sources if source["weight"]}
    return {name: weight / sum(weights.values()) for name, weight in weights.items()}


def refuse_unless_filled(mixture: list[dict[str, Any]]) -> None:
    """Raises UserError where a source of the manifest's "mixture" has no rows to give its share from."""
    if empty := [one["source"] for one in mixture if not one["rows"]]:
        raise UserError(f"corpus.sources: {empty[0]} has a weight, but no text to train on; leave it out, or look at what dropped it")


def described(mixture: list[dict[str, Any]], config: ml_collections.ConfigDict) -> list[tuple[str, ...]]:
    """Returns a row of texts for each source: its name, share wanted, share by size, how often a run of the config reads it."""
    wanted, total = shares(config), sum(one["rows"] for one in mixture)
    tokens = config.train.num_steps * config.train.batch_size * config.model.context_length
    return [
        (one["source"], f"{wanted[one['source']]:.1%}", f"{one['rows'] / total:.1%}",
         f"{tokens * wanted[one['source']] / (one['rows'] * one['row_length']):.2f}")
        for one in mixture
    ]  # fmt: skip
