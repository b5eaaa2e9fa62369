"""A small corpus with planted faults, refined in a second."""

import json
import pathlib
from collections.abc import Callable
from typing import Any

import pytest

from lmtiny import corpus, refining
from lmtiny.data import pool
from tests.refining.planted import config_for


@pytest.fixture
def make_corpus(tmp_path: pathlib.Path) -> Callable[..., pathlib.Path]:
    """Returns a function that writes {file name: texts} as .jsonl files into a folder."""

    def write(**texts: list[str]) -> pathlib.Path:
        folder = tmp_path / "texts"
        folder.mkdir(exist_ok=True)
        for name, one in texts.items():
            (folder / f"{name}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in one))
        return folder

    return write


@pytest.fixture
def refined(tmp_path: pathlib.Path) -> Callable[..., tuple[list[dict], refining.Tally]]:
    """Returns a function: folder of texts, knobs of `corpus` -> (the refined documents, the tally)."""

    def run(path: pathlib.Path, processes: int = 1, **knobs: Any) -> tuple[list[dict], refining.Tally]:
        config = config_for(path, **knobs)
        units, plan = corpus.units(config), refining.plan_of(config)
        with pool.workers(processes, 9, 0) as here:
            made = refining.refine(units, plan, tmp_path / "work", config.corpus, here)
        return [document for unit in made for document in unit.read()], refining.counts(units, plan, tmp_path / "work")

    return run
