"""Units of a corpus -> units of refined documents that lie on disk, restartable at every task of every stage."""

import functools
import importlib.util
import pathlib
from collections.abc import Callable
from typing import Any

import ml_collections

from lmtiny import console
from lmtiny.corpus import Unit, digest
from lmtiny.errors import UserError
from lmtiny.refining import decontamination, language, parts, quality, tally
from lmtiny.refining.settings import Plan

LIBRARIES = ("datatrove", "ftfy", "py3langid", "tokenizers", "xxhash")  # of the extra `corpus`


def refine(units: list[Unit], plan: Plan, folder: pathlib.Path, corpus: ml_collections.ConfigDict, run: Callable[..., None]) -> list[Unit]:
    """Returns the units, refined as the plan says; all that is made lies in a folder below `folder`, named after what it depends on.

    Documents are cleaned, filtered, scored and decontaminated one by one, then deduplicated over all units. The result
    is the same whatever executor (`corpus.executor`) does it, in however many processes, stopped however often.
    `run` runs jobs on this machine (data.pool).

    Raises:
      UserError: what `check` refuses, a text that the plan names cannot be read, or no document is left.
    """
    check(plan)
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


def check(plan: Plan) -> None:
    """Raises UserError where the plan cannot be carried out, whatever the documents: a library is missing, a language is not known."""
    if plan.nothing():
        return
    if missing := [name for name in LIBRARIES if importlib.util.find_spec(name) is None]:
        raise UserError(f"cleaning, filters and deduplication need {', '.join(missing)}: pip install 'lmtiny[corpus]'")
    for name in sorted({settings.language for settings in plan.every() if settings.language}):
        language.check(name)


def folder_of(units: list[Unit], plan: Plan, folder: pathlib.Path) -> pathlib.Path:
    """Returns the folder below `folder` in which `refine` works: another one for other units or another plan."""
    return folder / f"refined-{digest(plan.depends_on(), [(unit.fingerprint, unit.held_out) for unit in units])[:16]}"


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
        reasons = tally.load(parts.tallies(place / "documents", place / "kept")).reasons()
        most = ", ".join(f"{reason} {number:,}" for reason, number in reasons.most_common(3))
        raise UserError(f"no training document is left; dropped for: {most}; take fewer corpus.filters, or those for this kind of text")
    return refined


def _datatrove() -> tuple[Any, Any, Any]:
    """Returns the modules that stand on datatrove, which is imported only here."""
    from lmtiny.refining import executors, stages, words

    return stages, executors, words
