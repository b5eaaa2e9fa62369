"""Raw text -> clean documents: sources, cleaning, the split, and what must not be on both sides of it."""

import pathlib
import re

import ml_collections

from lmtiny.corpus import builtin, files
from lmtiny.corpus.documents import Document, Unit, content_hash, digest
from lmtiny.corpus.near_duplicates import Index
from lmtiny.corpus.split import Side, choose, in_two

__all__ = ["Document", "Index", "Side", "Unit", "choose", "content_hash", "digest", "in_two", "name", "units"]


def units(config: ml_collections.ConfigDict) -> list[Unit]:
    """Returns the units of work of the corpus that `config.corpus` describes, in a stable order; reads no document yet.

    Raises:
      UserError: nothing is found, or it cannot be read.
    """
    corpus = config.corpus
    if corpus.kind == "builtin":
        return builtin.units(corpus.installed_packages)
    return files.units(corpus.path, corpus.validation_path, files.Reading(corpus.text_key, corpus.section_bytes))


def name(config: ml_collections.ConfigDict) -> str:
    """Returns a word for the corpus, fit for a folder's name."""
    if config.corpus.kind == "builtin":
        return "builtin"
    first = config.corpus.path.split(",")[0].strip()
    path = pathlib.Path(re.sub(r"[*?\[].*", "", first))
    return re.sub(r"[^\w.-]+", "-", path.stem).strip("-.") or "files"
