"""The tokenizer of a preparation: a ready one, or learned from its training documents, in the shares of the mixture."""

import itertools
import pathlib
import platform
from collections.abc import Iterator
from typing import TypeAlias

import ml_collections
import numpy as np

from lmtiny import console, corpus, files, tokenizer
from lmtiny.corpus import Side
from lmtiny.data import mixture, stages

Config: TypeAlias = ml_collections.ConfigDict
Paths: TypeAlias = list[pathlib.Path]  # a file for each unit of the corpus
Facts: TypeAlias = list[np.ndarray]  # for each unit, stages.FACTS of its documents


def tokenizer_for(
    config: Config, given: tokenizer.Tokenizer | None, documents: Paths, facts: Facts, sides: Paths, mixed: list[str], path: pathlib.Path
) -> None:
    """Writes the folder `path` of the tokenizer, unless it is there: the given one, or learned from training documents only.

    `documents`, `facts`, `sides`, and the source that it is `mixed` under ("": it is not), of each unit of the corpus.
    """
    if path.exists():
        return
    with files.written(path) as aside:
        if given:
            given.save(aside)
            return
        if config.tokenizer.kind == "byte":
            tokenizer.learn("byte", [], config.tokenizer.vocab_size, 0).save(aside, {"corpus": ""})
            return
        limit = config.tokenizer.sample_bytes
        training = [np.load(side) == Side.TRAIN for side in sides]
        total = min(limit, sum(int(one["bytes"][kept].sum()) for one, kept in zip(facts, training, strict=True)))
        wanted = mixture.shares(config) or {"": 1.0}
        with console.progress("learning the tokenizer", total, "bytes") as shown:
            own = {name: [kept & (source == name) for kept, source in zip(training, mixed, strict=True)] for name in wanted}
            texts = itertools.chain.from_iterable(
                _sample(documents, facts, own[name], round(share * total)) for name, share in wanted.items()
            )
            learned = tokenizer.learn(
                config.tokenizer.kind, texts, config.tokenizer.vocab_size, limit,
                lambda read: shown.update(min(read, total)),  # of each source up to a document more is read
                config.tokenizer.word_share,
            )  # fmt: skip
        learned.save(
            aside,
            {
                "corpus": f"{corpus.name(config)}, training documents",
                "corpus_sha256": stages.corpus_hash(facts),
                "bytes": total,
                **({"shares": wanted} if "" not in wanted else {}),
                "settings": config.tokenizer.to_dict(),
                "python": platform.python_version(),
            },
        )


def _sample(documents: Paths, facts: Facts, training: list[np.ndarray], limit: int) -> Iterator[str]:
    """Yields `limit` bytes, or up to a document more, of the texts marked in `training`.

    Of more text it is a sample from everywhere in it; less is read again and again.
    """
    # By the low bits of the hashes: it is the smallest hashes that the split took away.
    low_bits = [one["hash"] & np.uint64(0xFFFFFFFF) for one in facts]
    everywhere = np.concatenate(training)
    bits, sizes = np.concatenate(low_bits)[everywhere], np.concatenate([one["bytes"] for one in facts])[everywhere]
    if not len(bits):
        return
    times, limit = divmod(limit, int(sizes.sum()))
    for _ in range(times):
        for path, kept in zip(documents, training, strict=True):
            yield from (document["text"] for document in stages.of_side(path, np.where(kept, Side.TRAIN, Side.DUPLICATE), Side.TRAIN))
    if not limit:
        return
    order = np.argsort(bits, kind="stable")
    last = min(int(np.searchsorted(np.cumsum(sizes[order]), limit)), len(order) - 1)
    for path, own, kept in zip(documents, low_bits, training, strict=True):
        wanted = np.where(kept & (own <= bits[order[last]]), Side.TRAIN, Side.DUPLICATE)
        yield from (document["text"] for document in stages.of_side(path, wanted, Side.TRAIN))
