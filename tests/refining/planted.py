"""Made-up English, and the config of a small corpus."""

import pathlib
import random
from typing import Any

import ml_collections

from lmtiny.config import check, defaults, set_knob

WORDS = (pathlib.Path(__file__).parents[2] / "LICENSE").read_text().replace('"', "").split()


def prose(seed: int, sentences: int) -> str:
    """Returns so many sentences of made-up English, in paragraphs."""
    choose = random.Random(seed)
    made = [" ".join(choose.choice(WORDS).strip(".,;:()").lower() for _ in range(14)).capitalize() + "." for _ in range(sentences)]
    return "\n\n".join(" ".join(made[start : start + 6]) for start in range(0, len(made), 6))


def config_for(path: pathlib.Path, **knobs: Any) -> ml_collections.ConfigDict:
    config = defaults()
    what = {"kind": "sources"} if "sources" in knobs else {"kind": "files", "path": str(path)}
    for name, value in {**what, **knobs}.items():
        set_knob(config, f"corpus.{name}", value)
    check(config)
    return config
