"""The stages of refining, each a datatrove pipeline of so many tasks: one pass over the documents, then MinHash's four."""

import contextlib
import dataclasses
import functools
import io
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.decont import NGramsDecontFilter
from datatrove.pipeline.decont.n_grams import NGramsDecontConfig
from datatrove.pipeline.dedup.minhash import (
    MinhashConfig,
    MinhashDedupBuckets,
    MinhashDedupCluster,
    MinhashDedupFilter,
    MinhashDedupSignature,
)
from datatrove.pipeline.filters import (
    C4ParagraphFilter,
    C4QualityFilter,
    FineWebQualityFilter,
    GopherQualityFilter,
    GopherRepetitionFilter,
)
from datatrove.pipeline.formatters import FTFYFormatter

from lmtiny.corpus import Unit, digest
from lmtiny.refining import gutenberg, unwrap
from lmtiny.refining.settings import Plan, Settings
from lmtiny.refining.steps import BySource, Clean, Counted, Dropped, LanguageFilter, QualityFilter, ReadPart, ReadUnits, Write
from lmtiny.refining.tally import Tally
from lmtiny.refining.words import BlankSeparated, Words

Pipeline: TypeAlias = list[PipelineStep | Callable[..., Any]]

CLEANING: dict[str, Callable[[], Callable[[str], str]]] = {
    "unicode": lambda: FTFYFormatter().format,
    "gutenberg": lambda: gutenberg.strip,
    "unwrap": lambda: unwrap.unwrap,
}
# Thresholds are datatrove's defaults, which are those published.
FILTERS: dict[str, Callable[[Any], PipelineStep]] = {
    "gopher_repetition": lambda dropped: GopherRepetitionFilter(exclusion_writer=dropped, language=Words()),
    # Gopher's words are blank-separated; with marks counted as words too, one in nine pieces of the books would have too few letters.
    "gopher_quality": lambda dropped: GopherQualityFilter(exclusion_writer=dropped, language=BlankSeparated()),
    "c4": lambda dropped: C4QualityFilter(exclusion_writer=dropped, language=Words()),
    "c4_paragraphs": lambda dropped: C4ParagraphFilter(exclusion_writer=dropped),
    "fineweb": lambda dropped: FineWebQualityFilter(exclusion_writer=dropped, language=Words()),
}


@dataclasses.dataclass(frozen=True)
class Stage:
    """`pipeline(ranks)` returns the blocks that can run the tasks `ranks` of `tasks`; `sizes` is the work in each, in bytes."""

    name: str
    tasks: int
    pipeline: Callable[[Sequence[int]], Pipeline]
    sizes: list[int]


def passed_through(units: list[Unit], plan: Plan, folder: pathlib.Path) -> Stage:
    """Returns the stage that cleans, filters and decontaminates each unit by itself, into `folder`/documents."""

    def pipeline(ranks: Sequence[int]) -> Pipeline:
        tally = Tally()
        own = functools.partial(_blocks_of, plan, folder, tally, held_out(units))
        return [ReadUnits({rank: units[rank] for rank in ranks}, tally), BySource(own, tally), Write(folder / "documents", tally)]

    return Stage("cleaning and filtering", len(units), pipeline, [unit.num_bytes for unit in units])


def held_out(units: list[Unit]) -> frozenset[int]:
    """Returns the tasks whose documents are cleaned and no more: they are what the model is measured with, chosen by a person."""
    return frozenset(rank for rank, unit in enumerate(units) if unit.held_out)


def _blocks_of(
    plan: Plan, folder: pathlib.Path, tally: Tally, only_cleaned: frozenset[int], source: str, rank: int
) -> list[tuple[str, PipelineStep | None]]:
    """Returns the stages of the plan, each with its block, or None where documents of this source and task pass as they are."""
    settings = plan.of(source)
    wanted = settings.stages() & set(CLEANING) if rank in only_cleaned else settings.stages()
    return [
        (stage, _block(stage, settings, plan, folder, tally) if stage in wanted else None)
        for stage in plan.stages()
        if stage != "deduplicate"
    ]


def _block(stage: str, settings: Settings, plan: Plan, folder: pathlib.Path, tally: Tally) -> PipelineStep:
    dropped: Any = Dropped(stage, tally)
    if stage in CLEANING:
        return Clean(stage, CLEANING[stage](), tally)
    if stage in FILTERS:
        return FILTERS[stage](dropped)
    if stage == "language":
        return LanguageFilter(settings, dropped)
    if stage == "quality":
        return QualityFilter(settings, quality_model(folder), dropped, tally)
    config, index = NGramsDecontConfig(n_grams=plan.decontaminate_words), evaluation_index(folder, settings.decontaminate)
    return NGramsDecontFilter(str(index), config, exclusion_writer=dropped, language=Words())


def quality_model(folder: pathlib.Path) -> pathlib.Path:
    """Returns where the model of the quality score is."""
    return folder / "quality.npy"


def evaluation_index(folder: pathlib.Path, path: str) -> pathlib.Path:
    """Returns where the index of the evaluation sets that `path` names is."""
    return folder / f"evaluation-{digest(path)[:16]}"


def deduplicated(units: list[Unit], plan: Plan, folder: pathlib.Path) -> list[Stage]:
    """Returns the four stages of MinHash deduplication of `folder`/documents into `folder`/kept.

    Broder, 1997; the parameters are FineWeb's: Penedo et al., "The FineWeb Datasets", 2024, section 3.4.
    """
    config = MinhashConfig(n_grams=plan.minhash_words, num_buckets=plan.minhash_buckets, hashes_per_bucket=plan.minhash_hashes)
    compared = functools.partial(_compared, plan, held_out(units))
    sizes = [unit.num_bytes for unit in units]
    signatures, pairs, removed = (str(folder / name) for name in ("signatures", "pairs", "removed"))

    def signing(ranks: Sequence[int]) -> Pipeline:
        return [ReadPart(folder / "documents", compared), MinhashDedupSignature(signatures, config, language=Words())]

    def pairing(ranks: Sequence[int]) -> Pipeline:
        return [MinhashDedupBuckets(signatures, pairs, config=config)]

    def clustering(ranks: Sequence[int]) -> Pipeline:
        return [functools.partial(_quietly, MinhashDedupCluster(pairs, removed, config=config))]

    def removing(ranks: Sequence[int]) -> Pipeline:
        tally = Tally()
        dropped: Any = Dropped("deduplicate", tally)
        counted = Counted("deduplicate", tally)
        block = MinhashDedupFilter(removed, exclusion_writer=dropped)
        return [ReadPart(folder / "documents"), block, counted, Write(folder / "kept", tally)]

    each_bucket = [sum(sizes) // config.num_buckets] * config.num_buckets
    return [
        Stage("signing documents", len(units), signing, sizes),
        Stage("pairing documents", config.num_buckets, pairing, each_bucket),
        Stage("clustering documents", 1, clustering, [sum(sizes)]),
        Stage("removing near-duplicates", len(units), removing, sizes),
    ]


def _compared(plan: Plan, only_cleaned: frozenset[int], source: str, rank: int) -> bool:
    return rank not in only_cleaned and plan.of(source).deduplicate


def _quietly(block: PipelineStep, data: Any, rank: int, world_size: int) -> None:
    with contextlib.redirect_stderr(io.StringIO()):  # it draws a bar of its own
        block.run(data, rank, world_size)
