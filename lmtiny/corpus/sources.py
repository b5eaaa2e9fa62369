"""The sources that a config lists, each read in its own way: files, URLs, the Hugging Face Hub, TFDS, the builtin corpus.

Whatever the way, the documents of a source carry its name: as `source`, and in front of their ids.
"""

import functools
import pathlib
import re
from collections.abc import Callable, Iterator
from typing import Any

import ml_collections

from lmtiny.corpus import builtin, files, hugging_face, paths, tfds, urls
from lmtiny.corpus.documents import Document, Unit, digest
from lmtiny.errors import UserError
from lmtiny.files import refuse_url
from lmtiny.knobs import SOURCE

# What says nothing about the other kinds, and is refused there rather than ignored.
KEYS_OF_KIND = {
    "builtin": set[str](),
    "files": {"text_key", "cut", "validation"},
    "url": {"text_key", "cut", "validation"},
    "hf": {"text_key", "subset", "revision", "shards"},
    "tfds": {"text_key", "subset", "validation", "data_dir"},
}


def units(corpus: ml_collections.ConfigDict) -> list[Unit]:
    """Returns the units of all of `corpus.sources`, in their order; downloads what is not here yet.

    Raises:
      UserError: of the first source that cannot be used; names it.
    """
    refuse_url(corpus.download_dir, "corpus.download_dir")
    found: list[Unit] = []
    names = [name(source) for source in corpus.sources]
    for number, source in enumerate(corpus.sources):
        where = f"corpus.sources[{number}] ({names[number]})"
        if names.index(names[number]) < number:
            raise UserError(f"{where}: an earlier source has the same name; give each its own")
        try:
            own = _units(source, corpus)
        except UserError as error:
            raise UserError(f"{where}: {error}") from None
        if not own:
            raise UserError(f"{where}: there is nothing in it")
        found += [_labelled(names[number], unit) for unit in own]
    return found


def name(source: dict[str, Any]) -> str:
    """Returns the name of a source: the one it was given, or one made of its path."""
    if source["name"]:
        return str(source["name"])
    if kind_of(source["path"]) in ("hf", "tfds"):
        return re.sub(r"[^\w.-]+", "-", source["path"].partition(":")[2]).strip("-.") or "source"
    return files_name(source["path"])


def files_name(path: str) -> str:
    """Returns a word for the files that a path, a glob or a list of them names."""
    first = path.split(",")[0].strip()
    return re.sub(r"[^\w.-]+", "-", pathlib.Path(re.sub(r"[*?\[].*", "", first)).stem).strip("-.") or "files"


def kind_of(path: str) -> str:
    """Returns which way a path is read, a key of KEYS_OF_KIND."""
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", path):
        return "url"
    prefix = path.partition(":")[0]
    return prefix if prefix in ("hf", "tfds") and ":" in path else "builtin" if path == "builtin" else "files"


def _units(source: dict[str, Any], corpus: ml_collections.ConfigDict) -> list[Unit]:
    path, kind = source["path"], kind_of(source["path"])
    for key in SOURCE:
        everywhere = not any(key.name in keys for keys in KEYS_OF_KIND.values())
        if not everywhere and key.name not in KEYS_OF_KIND[kind] and source[key.name] != key.default:
            others = ", ".join(other for other, keys in KEYS_OF_KIND.items() if key.name in keys)
            raise UserError(f"{key.name} says nothing about {path!r}, a source of the kind {kind}; it is for {others}")
    if kind == "builtin":
        return builtin.units(corpus.installed_packages)
    if kind == "tfds":
        dataset = path.partition(":")[2]
        return tfds.units(dataset, source["subset"] or "train", source["validation"], source["text_key"], source["data_dir"])
    reading = files.Reading(source["text_key"], corpus.section_bytes, source["cut"], "path", "validation", "text_key")
    if kind == "files":
        return files.units(path, source["validation"], reading)
    folder = pathlib.Path(corpus.download_dir).absolute()
    if kind == "hf":
        dataset = path.partition(":")[2]
        root, copies, held_out = hugging_face.shards(dataset, source["subset"], source["revision"], source["shards"], folder)
    else:
        root, copies = urls.copies(path, folder)
        held_out = paths.held_out_of(copies, source["validation"], reading.validation_knob) if source["validation"] else set()
    return files.units_of(copies, held_out, root, reading)


def _labelled(source: str, unit: Unit) -> Unit:
    read = functools.partial(_read_labelled, source, unit.read)
    missing = unit.missing and f"source {source}: {unit.missing}"
    return Unit(f"{source}/{unit.name}", digest(source, unit.fingerprint), unit.num_bytes, read, unit.held_out, source, missing)


def _read_labelled(source: str, read: Callable[[], Iterator[Document]]) -> Iterator[Document]:
    try:
        for document in read():
            yield {"text": document["text"], "source": source, "id": f"{source}/{document['id']}"}
    except UserError as error:
        raise UserError(f"source {source}: {error}") from None
