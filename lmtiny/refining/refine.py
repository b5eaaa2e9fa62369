"""Units of a corpus -> units of refined documents that lie on disk, restartable at every task of every stage."""

import collections
import functools
import importlib.util
import pathlib
from collections.abc import Callable
from typing import Any

import ml_collections

from lmtiny import console
from lmtiny.corpus import Unit, digest, paths
from lmtiny.corpus.compressed import missing
from lmtiny.errors import NothingLeft, UserError
from lmtiny.refining import decontamination, language, parts, quality, tally
from lmtiny.refining.settings import Plan

# What to do about a knob that dropped most of the documents; a filter is told of as corpus.filters, a cleaning step as corpus.cleaning.
REMEDIES = {
    "text_key": "give records with text, or name another field of them with text_key",
    "corpus.cleaning": "take fewer steps of corpus.cleaning, or those for this kind of text",
    "corpus.language": "set corpus.language to the language of the text, or leave it empty, or lower corpus.language_threshold",
    "corpus.filters": "take fewer corpus.filters, or those for this kind of text",
    "corpus.quality_threshold": "lower corpus.quality_threshold, or set corpus.quality=none",
    "corpus.quality_exponent": "lower corpus.quality_exponent, or set corpus.quality=none",
    "corpus.decontaminate": "take the training text out of what corpus.decontaminate names, or leave it empty",
    "corpus.deduplicate": "set corpus.deduplicate=false, or give more varied text",
}
LIBRARIES = ("datatrove", "ftfy", "py3langid", "tokenizers", "xxhash")  # of the extra `corpus`


def refine(units: list[Unit], plan: Plan, folder: pathlib.Path, corpus: ml_collections.ConfigDict, run: Callable[..., None]) -> list[Unit]:
    """Returns the units, refined as the plan says; all that is made lies in a folder below `folder`, named after what it depends on.

    Documents are cleaned, filtered, scored and decontaminated one by one, then deduplicated over all units. The result
    is the same whatever executor (`corpus.executor`) does it, in however many processes, stopped however often.
    `run` runs jobs on this machine (data.pool).

    Raises:
      UserError: what `check` refuses, a text that the plan names cannot be read, or no document is left.
    """
    check(plan, corpus.executor)
    stages, executors, words = _datatrove()
    place = folder_of(units, plan, folder).absolute()
    place.mkdir(parents=True, exist_ok=True)
    for path in plan.evaluation_sets():
        if not (index := stages.evaluation_index(place, path)).exists():
            decontamination.build(path, plan.decontaminate_words, words.Words(), index)
    if plan.scores_quality() and not (model := stages.quality_model(place)).exists():
        console.say("learning the quality score")
        quality.learn(plan.quality_good, plan.quality_bad, model)
    todo = [stages.passed_through(units, plan, place)]
    if plan.deduplicates():
        todo += stages.deduplicated(units, plan, place)
    executors.execute(todo, place, corpus, run)
    return _refined(units, plan, place)


def check(plan: Plan, executor: str) -> None:
    """Raises UserError where the plan cannot be carried out, whatever the documents: a library is missing, a language is not known."""
    if plan.nothing():
        return
    if executor == "ray" and importlib.util.find_spec("ray") is None:
        raise UserError("corpus.executor = 'ray' needs ray: pip install 'lmtiny[ray]'")
    if missing := [name for name in LIBRARIES if importlib.util.find_spec(name) is None]:
        raise UserError(f"cleaning, filters and deduplication need {', '.join(missing)}: pip install 'lmtiny[corpus]'")
    for knob, path in [("quality_good", plan.quality_good), ("quality_bad", plan.quality_bad)] if plan.scores_quality() else []:
        _check_libraries(knob, paths.find(path, f"corpus.{knob}"))
    for path in plan.evaluation_sets():
        _check_libraries("decontaminate", decontamination.find(path))
    for source, settings in [("", plan.default), *plan.sources.items()]:
        if settings.language:
            language.check(f"the language of the source {source}" if source else "corpus.language", settings.language)


def _check_libraries(knob: str, files: list[pathlib.Path]) -> None:
    for file in files:
        if line := missing(file):
            raise UserError(f"corpus.{knob}: {line}")


def folder_of(units: list[Unit], plan: Plan, folder: pathlib.Path) -> pathlib.Path:
    """Returns the folder below `folder` in which `refine` works: another one for other units or another plan."""
    return folder / f"refined-{digest(tally.FORMAT, plan.depends_on(), [(unit.fingerprint, unit.held_out) for unit in units])[:16]}"


def counts(units: list[Unit], plan: Plan, folder: pathlib.Path) -> tally.Tally:
    """Returns what `refine` has counted."""
    place = folder_of(units, plan, folder)
    return tally.load(parts.tallies(place, place / "documents", place / "kept"))


def _refined(units: list[Unit], plan: Plan, place: pathlib.Path) -> list[Unit]:
    made = place / ("kept" if plan.deduplicates() else "documents")
    refined = []
    for rank, unit in enumerate(units):
        path = parts.documents_path(made, rank)
        read = functools.partial(parts.documents_of, path)
        refined.append(Unit(unit.name, digest(place.name, rank, unit.fingerprint), path.stat().st_size, read, unit.held_out, unit.source))
    if not any(unit.num_bytes for unit in refined if not unit.held_out):
        raise NothingLeft(_nothing_left(tally.load(parts.tallies(place / "documents", place / "kept"))))
    return refined


def _nothing_left(counted: tally.Tally) -> str:
    """Returns the line that says why no training document is left, and what to do about the knob that dropped the most."""
    if not (reasons := counted.reasons()):
        return "no training document is left: none that was read has text; give more text"
    most = ", ".join(f"{reason} {number:,}" for reason, number in reasons.most_common(3))
    knobs: collections.Counter[str] = collections.Counter()
    for stage, sources in counted.dropped.items():
        for own in sources.values():
            knobs.update({_knob(stage, reason): number for reason, (number, _) in own.items()})
    return f"no training document is left; dropped for: {most}; {REMEDIES[knobs.most_common(1)[0][0]]}"


def _knob(stage: str, reason: str) -> str:
    """Returns the knob of REMEDIES that let `stage` drop for `reason`."""
    if stage == "quality":
        return "corpus.quality_exponent" if reason == "not sampled" else "corpus.quality_threshold"
    if stage in ("language", "decontaminate", "deduplicate"):
        return f"corpus.{stage}"
    if stage == tally.READ:
        return "text_key"
    return "corpus.cleaning" if stage in ("unicode", "gutenberg", "unwrap") else "corpus.filters"


def _datatrove() -> tuple[Any, Any, Any]:
    """Returns the modules that stand on datatrove, which is imported only here."""
    from lmtiny.refining import executors, stages, words

    return stages, executors, words
