"""The evaluation sets whose words in a row no training document may share, as the index that datatrove's filter reads.

n-gram overlap with n = 13: Brown et al., "Language Models are Few-Shot Learners", 2020, appendix C. datatrove's own
indexer needs lighteval and its downloads; only the index is made here, with datatrove's normalisation and hashes.
"""

import csv
import io
import os
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from lmtiny import console, files
from lmtiny.corpus import json_lines, paths
from lmtiny.corpus.compressed import ENDINGS, MOST_BYTES, whole
from lmtiny.corpus.decoding import NO_TEXT, decoded, opened_text
from lmtiny.corpus.documents import clean
from lmtiny.errors import UserError
from lmtiny.refining.tally import Tally

EXTENSIONS = tuple(f"{kind}{compressed}" for kind in (*paths.TEXTS, ".jsonl", ".csv") for compressed in ("", *ENDINGS))
MIN_DISTINCT = 4  # words of an n-gram: "0 0 0 0" is a table, in whatever text


def find(path: str) -> list[pathlib.Path]:
    """Returns the files of evaluation sets that `path` names, sorted.

    Raises:
      UserError: there are none, or one of a kind that is not read: a model must not be tested on a set that was left out silently.
    """
    try:
        found, others = paths.listed(path, "corpus.decontaminate", EXTENSIONS)
    except UserError as error:
        raise UserError(f"{error}; --config.corpus.decontaminate= goes without") from None
    if others:
        raise paths.refusal(others[0], "corpus.decontaminate", EXTENSIONS)
    return found


def build(path: str, num_words: int, tokenizer: Any, folder: pathlib.Path) -> None:
    """Writes the hashes of all n-grams of the evaluation sets that `path` names, a file each; `folder` is whole when it is there.

    Items of fewer words than `num_words` leave no n-gram: what is shorter than that cannot be told from common speech.
    How many those are is counted, file by file, in a tally beside the folder; sets of which nothing can be found are warned of.
    """
    from datatrove.pipeline.decont.n_grams import NGramsDecontConfig
    from datatrove.utils.hashing import create_hash_func
    from datatrove.utils.text import ngrams, simplify_text

    config = NGramsDecontConfig(n_grams=num_words)
    hashed = create_hash_func(config.hash_config)
    tally = Tally()
    with files.written(folder) as aside:
        aside.mkdir(parents=True)
        evaluation_sets = find(path)
        root = os.path.commonpath([file.parent for file in evaluation_sets])
        for number, file in enumerate(evaluation_sets):
            found, name = set(), file.relative_to(root).as_posix()
            count = tally.evaluation.setdefault(name, [0, 0])
            for item in items(file):
                words = tokenizer.word_tokenize(simplify_text(item, config.norm_config))
                grams = [gram for gram in ngrams(words, num_words) if len(set(gram)) >= min(MIN_DISTINCT, num_words)]
                found |= {hashed(" ".join(gram)) for gram in grams}
                count[:] = count[0] + 1, count[1] + (not grams)
            flat = name.replace("%", "%25").replace("/", "%2F")  # by this name datatrove tells what it has met
            (aside / f"{flat if len(flat.encode()) < 200 else number}.index.hashes").write_bytes(np.array(sorted(found), "<u8").tobytes())
        files.write_aside(folder.with_suffix(".tally.json"), tally.to_json())
    if nothing := [name for name, (read, short) in tally.evaluation.items() if read == short]:
        what = f"no item of {num_words} words in a row (corpus.decontaminate_words), and so nothing to be found"
        console.warn(f"corpus.decontaminate: {', '.join(nothing)}: {what}")


def items(file: pathlib.Path) -> Iterator[str]:
    """Yields the texts of an evaluation set: of each line of a .jsonl, of each row of a .csv, of any other the whole.

    They are cleaned as documents are. Blank ones are left out. What is not UTF-8 is warned of.
    """
    for item in _items(file):
        if text := clean(item):
            yield text


def _items(file: pathlib.Path) -> Iterator[str]:
    if paths.kind(file) == "jsonl":
        for _, value in json_lines.values(file):
            yield " ".join(_texts(value))
        return
    with opened_text(file) as stream:
        content = decoded(whole(stream, file), str(file), NO_TEXT)
    if not paths.extension(file, EXTENSIONS).startswith(".csv"):
        yield content
        return
    csv.field_size_limit(MOST_BYTES)  # of all readers of this process; 131,072 characters otherwise
    rows = csv.reader(io.StringIO(content.lstrip("\ufeff"), newline=""))
    try:
        yield from (" ".join(row) for row in rows)
    except csv.Error as error:
        raise UserError(f"{file}:{rows.line_num}: not CSV ({error}); mend it, or take it away") from None


def _texts(value: Any) -> Iterator[str]:
    """Yields the texts in a JSON value, in their order."""
    waiting = [value]
    while waiting:
        value = waiting.pop()
        if isinstance(value, str):
            yield value
        elif isinstance(value, list | dict):
            waiting += reversed(list(value.values()) if isinstance(value, dict) else value)
