"""Raw text -> clean documents: sources, cleaning, the split, and what must not be on both sides of it."""

import re

import ml_collections

from lmtiny.corpus import builtin, files, sources
from lmtiny.corpus.documents import Document, Unit, check, content_hash, digest
from lmtiny.corpus.near_duplicates import Index
from lmtiny.corpus.split import Side, choose, in_two

__all__ = ["Document", "Index", "Side", "Unit", "check", "choose", "content_hash", "digest", "in_two", "name", "units"]


def units(config: ml_collections.ConfigDict) -> list[Unit]:
    """Returns the units of work of the corpus that `config.corpus` describes, in a stable order; reads no document yet.

    Sources that lie elsewhere are downloaded first.

    Raises:
      UserError: nothing is found, or it cannot be read.
    """
    corpus = config.corpus
    if corpus.kind == "builtin":
        return builtin.units(corpus.installed_packages)
    if corpus.kind == "sources":
        return sources.units(corpus)
    return files.units(corpus.path, corpus.validation_path, files.Reading(corpus.text_key, corpus.section_bytes))


def name(config: ml_collections.ConfigDict) -> str:
    """Returns a word for the corpus, fit for a folder's name."""
    if config.corpus.kind == "sources":
        return "-".join(re.sub(r"[^\w.-]+", "-", sources.name(source)) for source in config.corpus.sources)[:60].strip("-.") or "sources"
    return "builtin" if config.corpus.kind == "builtin" else sources.files_name(config.corpus.path)
