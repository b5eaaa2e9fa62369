"""The last steps of a preparation: tokens -> packed, shuffled rows -> shards -> the manifest that makes them count."""

import collections
import pathlib
from typing import Any

import ml_collections
import numpy as np

from lmtiny import console, files, json_data, ownership
from lmtiny.corpus import Side
from lmtiny.data import mixture, packing, shards, stages
from lmtiny.errors import UserError
from lmtiny.tokenizer import Tokenizer, storage

SHUFFLE_SEED = 0  # of the order rows are stored in; the order of training has the run's own seed
MAX_SOURCES = 1000  # named in the manifest one by one


def write_split(
    split: str, row_length: int, config: ml_collections.ConfigDict, known: Tokenizer, facts: list[np.ndarray], sides: list[pathlib.Path],
    tokens: list[pathlib.Path], sources: list[str], key: str,
) -> dict[str, Any]:  # fmt: skip
    """Packs a side into shards beside `tokens`, under names with the `key`; returns what the manifest says of it.

    Each of the `sources` has training rows, and shards, of its own, one source after the other.
    """
    side = Side.TRAIN if split == "train" else Side.VALIDATION
    chosen = [np.load(path) == side for path in sides]
    lengths = [np.load(stages.lengths_path(path)) for path in tokens]
    ids = [np.load(path, mmap_mode="r") for path in tokens]
    packed = _packed(lengths, chosen, sources if side == Side.TRAIN else [""] * len(sources), row_length)
    num_rows = sum(len(plan) for _, plan in packed.values())
    if not num_rows:
        raise UserError(f"the {split} side has no tokens; give more text")
    mixed = [{"source": name, "rows": len(plan)} for name, (_, plan) in packed.items() if name]
    mixture.refuse_unless_filled(mixed)
    jobs = [(name, rows) for name, (_, plan) in packed.items() for rows in _shuffled(len(plan), config.data.rows_per_shard)]
    described: list[dict[str, Any]] = []
    with console.progress(f"writing {split} rows", num_rows, "rows") as shown:
        for number, (name, rows) in enumerate(jobs):
            path = tokens[0].parent / f"{split}-{number:05d}-of-{len(jobs):05d}-{key}.array_record"
            if not path.exists():
                shards.write(path, *packed[name], rows, ids, known.bos_id, row_length + 1)
            described.append({**shards.described(path, len(rows)), "name": path.name.replace(f"-{key}", "")})
            shown.update(sum(one["rows"] for one in described))
    of_documents = sum(int(one[kept].sum()) for one, kept in zip(lengths, chosen, strict=True))
    in_rows, num_chunks = (sum(int(count(chunks.length)) for chunks, _ in packed.values()) for count in (np.sum, len))
    stored = num_rows * (row_length + 1)
    return {
        "documents": sum(int(kept.sum()) for kept in chosen),
        "bytes": sum(int(one["bytes"][kept].sum()) for one, kept in zip(facts, chosen, strict=True)),
        "tokens": of_documents,
        "rows": num_rows,
        "chunks": num_chunks,
        "padding_share": (stored - in_rows - num_chunks) / stored,
        "crop_share": (of_documents - in_rows) / of_documents,
        "shards": described,
        **({"mixture": mixed} if mixed else {}),
    }


def _packed(
    lengths: list[np.ndarray], chosen: list[np.ndarray], sources: list[str], row_length: int
) -> dict[str, tuple[packing.Chunks, packing.Rows]]:
    """Returns source -> (the chunks of its chosen documents, the rows that hold them)."""
    found = {}
    for name in dict.fromkeys(sources):
        own = [kept & (source == name) for kept, source in zip(chosen, sources, strict=True)]
        chunks = packing.cut(lengths, own, row_length)
        found[name] = packing.filled(chunks, packing.pack(chunks.length + 1, row_length + 1), row_length + 1)
    return found


def _shuffled(num_rows: int, per_shard: int) -> list[np.ndarray]:
    """Returns the rows of each shard."""
    order = np.random.default_rng(SHUFFLE_SEED).permutation(num_rows)
    return [order[start : start + per_shard] for start in range(0, num_rows, per_shard)]


def sources(tokens: list[pathlib.Path]) -> dict[str, Any]:
    """Returns source -> side -> [documents, bytes, tokens]; beyond a thousand sources the rest is counted together."""
    total: dict[str, Any] = collections.defaultdict(lambda: {split: [0, 0, 0] for split in shards.SPLITS})
    for path in tokens:
        counted = json_data.read(stages.counts_path(path), {str: {split: [int] for split in shards.SPLITS}})
        for source, counts in counted.items():
            name = source if source in total or len(total) < MAX_SOURCES else "(others)"
            for split in shards.SPLITS:
                total[name][split] = [own + more for own, more in zip(total[name][split], counts[split], strict=True)]
    return dict(total)


def publish(folder: pathlib.Path, work: pathlib.Path, tokenizer_folder: pathlib.Path, key: str, manifest: dict[str, Any]) -> None:
    """Moves tokenizer and shards from `work` to their places in the marked `folder`, the manifest last."""
    place = folder / shards.TOKENIZER
    place.mkdir(exist_ok=True)
    files.sweep(place)
    # Those of a tokenizer of another kind have other names.
    ownership.remove_files(folder, (f"{place.name}/{name}" for name in storage.FILES))
    for file in tokenizer_folder.iterdir():
        files.write_aside(place / file.name, file.read_bytes())
    for split in shards.SPLITS:
        for shard in manifest["splits"][split]["shards"]:
            name = pathlib.Path(shard["name"])
            (work / f"{name.stem}-{key}{name.suffix}").replace(folder / name)
    shards.write_manifest(folder, manifest)


def say(manifest: dict[str, Any]) -> None:
    """Prints what was prepared: documents, tokens, bytes a token, rows, padding and crop share, for each side."""
    rows = []
    for split in shards.SPLITS:
        of = manifest["splits"][split]
        shares = (f"{100 * of[name]:.3f} %" for name in ("padding_share", "crop_share"))
        rows.append((split, f"{of['documents']:,}", f"{of['tokens']:,}", f"{of['bytes'] / of['tokens']:.2f}", f"{of['rows']:,}", *shares))
    console.say(console.table(("side", "documents", "tokens", "bytes/token", "rows", "padding", "cropped"), rows))


def say_mixture(manifest: dict[str, Any], config: ml_collections.ConfigDict) -> None:
    """Prints the shares of sources that are mixed by weight, and how often a run of the config reads each; warns of too often."""
    if "mixture" not in manifest["splits"]["train"]:
        return
    console.say(console.table(("source", "share", "by size", "times read"), mixture.described(manifest, config)))
    for source, times in mixture.times_read(manifest, config).items():
        mixture.warn_if_worn_out(source, times, "lower its weight or train.num_steps, or give it more text")
