"""A small corpus, and a config that prepares it in a fraction of a second."""

import hashlib
import pathlib
from collections.abc import Callable
from typing import Any

import ml_collections
import numpy as np
import pytest

from lmtiny.config import check, defaults, set_knob


def random_text(seed: int, words: int) -> str:
    """Returns so many words in sentences and paragraphs."""
    random = np.random.default_rng(seed)
    syllables = ["ka", "to", "mi", "ren", "sol", "ba", "du", "li"]
    found = ["".join(random.choice(syllables, random.integers(1, 5))) for _ in range(words)]
    return "".join(word + str(random.choice([" ", " ", " ", ", ", ". ", ".\n\n"])) for word in found)


@pytest.fixture(scope="session")
def corpus_folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Returns a folder of five files, 40 documents of very different lengths."""
    folder = tmp_path_factory.mktemp("corpus")
    for number in range(5):
        (folder / f"{number}.txt").write_text(random_text(number, 2500))
    return folder


@pytest.fixture
def config_of(tmp_path: pathlib.Path, corpus_folder: pathlib.Path) -> Callable[..., ml_collections.ConfigDict]:
    """Returns a function that makes a config for the small corpus: config_of("folder", **{"dotted.knob": value})."""

    def make(folder: str = "prepared", **knobs: Any) -> ml_collections.ConfigDict:
        config = defaults()
        values = {
            "corpus.kind": "files",
            "corpus.path": str(corpus_folder),
            "corpus.section_bytes": 2048,
            "corpus.validation_fraction": 0.1,
            "tokenizer.vocab_size": 300,
            "model.context_length": 32,
            "data.dir": str(tmp_path / folder) if folder else "",
            "data.rows_per_shard": 200,
            "data.num_processes": 1,
            **knobs,
        }
        for name, value in values.items():
            set_knob(config, name, value)
        check(config)
        return config

    return make


@pytest.fixture
def hashes() -> Callable[[pathlib.Path], dict[str, str]]:
    """Returns a function: folder -> {relative name: hash} of all files in it but the lock."""

    def of(folder: pathlib.Path) -> dict[str, str]:
        files = sorted(file for file in folder.rglob("*") if file.is_file() and file.name != ".lock")
        return {file.relative_to(folder).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}

    return of
