"""The evaluation sets whose words in a row no training document may share, as the index that datatrove's filter reads.

n-gram overlap with n = 13: Brown et al., "Language Models are Few-Shot Learners", 2020, appendix C. datatrove's own
indexer needs lighteval and its downloads; only the index is made here, with datatrove's normalisation and hashes.
"""

import csv
import io
import json
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from lmtiny import files as ground_files
from lmtiny.corpus import files
from lmtiny.errors import UserError

EXTENSIONS = (".txt", ".jsonl", ".csv")
MIN_DISTINCT = 4  # words of an n-gram: "0 0 0 0" is a table, in whatever text


def find(path: str) -> list[pathlib.Path]:
    """Returns the files of evaluation sets that `path` names, sorted; raises UserError if there are none."""
    return files.find(path, "corpus.decontaminate", EXTENSIONS)


def build(path: str, num_words: int, tokenizer: Any, folder: pathlib.Path) -> None:
    """Writes the hashes of all n-grams of the evaluation sets that `path` names, a file each; `folder` is whole when it is there.

    Items of fewer words than `num_words` leave no n-gram: what is shorter than that cannot be told from common speech.
    """
    from datatrove.pipeline.decont.n_grams import NGramsDecontConfig
    from datatrove.utils.hashing import create_hash_func
    from datatrove.utils.text import ngrams, simplify_text

    config = NGramsDecontConfig(n_grams=num_words)
    hashed = create_hash_func(config.hash_config)
    with ground_files.written(folder) as aside:
        aside.mkdir(parents=True)
        for number, file in enumerate(find(path)):
            found = set()
            for item in items(file):
                words = tokenizer.word_tokenize(simplify_text(item, config.norm_config))
                found |= {hashed(" ".join(gram)) for gram in ngrams(words, num_words) if len(set(gram)) >= min(MIN_DISTINCT, num_words)}
            np.array(sorted(found), "<u8").tofile(aside / f"{file.stem}-{number}.index.hashes")


def items(file: pathlib.Path) -> Iterator[str]:
    """Yields the texts of an evaluation set: a .txt as a whole, the texts of each line of a .jsonl, of each row of a .csv."""
    content = file.read_text(encoding="utf-8", errors="replace")
    if file.suffix == ".txt":
        yield content
    elif file.suffix == ".csv":
        yield from (" ".join(row) for row in csv.reader(io.StringIO(content)))
    else:
        for number, line in enumerate(content.splitlines(), 1):
            if line.strip():
                try:
                    yield " ".join(_texts(json.loads(line)))
                except (json.JSONDecodeError, RecursionError) as error:
                    raise UserError(f"{file}:{number}: not JSON ({error}); corpus.decontaminate reads a JSON value a line") from None


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | dict):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _texts(inner)
