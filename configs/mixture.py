"""Books, Wikipedia, web pages and documentation in one corpus: cleaned, filtered, deduplicated, decontaminated, mixed by weight.

Command:     python -m lmtiny.train --config configs/mixture.py
Texts:       texts/books/*.txt, texts/wiki*.txt (an article a line), texts/web*.jsonl; evaluation sets, which are not learned:
             texts/benchmarks/*.jsonl and texts/benchmarks/*/*.csv
             (there are none: --config.corpus.decontaminate= goes without)
Needs:       pip install -e '.[corpus]'
Hardware:    2 CPU cores (AMD EPYC, AVX-512), float32
Fits:        from v5e-1 on: 0.15 of 15.75 GiB a chip, says the TPU compiler
Tokens:      1.31 million: 640 steps of 8 rows x 256
Time:        2 min 12 s from the start of the command to its end, 41 s to the first step: 40 MB of text are read and refined before
Expected:    1.95 bits per byte on the held-out book (22 books, 30 Wikipedia articles, 300 C4 pages)
Parameters:  6.39 M (blocks 0.88 M; tables: n-grams 3.15 M, embedding, followers and head 0.79 M each)

The model is that of configs/tiny.py.  Each kind has the filters that suit it (docs/refining.md: the rules for web pages would delete
the others), and the weights lean to books, on which it is judged: the last book by name is held out.
"""

import pathlib

import ml_collections

from lmtiny.config import load

SOURCES = (
    {"name": "books", "path": "texts/books/*.txt", "weight": 0.90, "cleaning": ["unicode", "gutenberg"]},
    {"name": "wiki", "path": "texts/wiki*.txt", "weight": 0.05, "cut": "lines", "filters": ["gopher_repetition"]},
    {
        "name": "web", "path": "texts/web*.jsonl", "weight": 0.03, "language": "en",
        "filters": ["gopher_repetition", "gopher_quality", "c4"],
    },
    {"name": "documentation", "path": "builtin", "weight": 0.02},
)  # fmt: skip


def get_config() -> ml_collections.ConfigDict:
    config = load(str(pathlib.Path(__file__).with_name("tiny.py")))
    config.name = ""  # after this file, not after that one
    books, *others = SOURCES
    held_out = max(pathlib.Path("texts/books").glob("*.txt"), default=pathlib.Path()).name
    config.corpus.update(
        {
            "kind": "sources", "sources": ({**books, "validation": held_out}, *others), "cleaning": ("unicode",),
            "deduplicate": True, "decontaminate": "texts/benchmarks/*.jsonl,texts/benchmarks/*/*.csv",
        }
    )  # fmt: skip
    return config
