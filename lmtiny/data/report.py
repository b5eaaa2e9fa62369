"""The report of a preparation: what each stage took and left of each source, with samples; JSON, and the same as a page."""

import contextlib
import json
import pathlib
from collections.abc import Mapping
from typing import Any

from lmtiny import files, json_data
from lmtiny.data import report_page, stages
from lmtiny.errors import UserError
from lmtiny.refining import STAGES, Tally, tally

JSON, PAGE = "report.json", "report.html"
MAX_SOURCES = 40  # told of one by one; the smallest are counted together
OTHERS = "(others)"
SPLIT_FIGURES = ("documents", "bytes", "tokens", "rows")
ORDER = (tally.READ, *STAGES, stages.SPLIT)
_COUNTS = {str: [int]}
_SAMPLES = [
    {
        "source": str,
        "stage": str,
        "reason": str,
        "texts": [{"id": str, "characters": int, "note": str, "text": str}],
    }
]
_SHAPE = {
    "corpus": str,
    "settings": {str: object},
    "stages": [{"stage": str, "sources": _COUNTS}],
    "dropped": {str: {str: _COUNTS}},
    "changed": {str: _COUNTS},
    "evaluation": _COUNTS,
    "splits": {"train": {str: int}, "validation": {str: int}},
    "mixture": {str: {"tokens": int, "by_size": float, "wanted": (float, type(None)), "got": float}},
    "lengths": _COUNTS,
    "scores": _COUNTS,
    "samples": {"kept": _SAMPLES, "dropped": _SAMPLES},
}
# What is said of stages whose names do not say it.
SAID = {tally.READ: tally.NO_TEXT, "decontaminate": "contaminated", "deduplicate": "near-duplicates of each other"}


def collect(
    manifest: dict[str, Any], documents: list[pathlib.Path], tokens: list[pathlib.Path], refined: Tally | None,
    wanted: Mapping[str, float], got: Mapping[str, float],
) -> dict[str, Any]:  # fmt: skip
    """Returns the report: all of it JSON.

    `documents` are the parts that were split, `tokens` those of them that stayed; `refined` has the counts before that, if
    there was anything to count; `wanted` and `got` are as `_mixture` has them.
    """
    found, split = counted(documents), counted(tokens)
    refined = refined or Tally()
    flow = refined.flow or found.flow
    dropped = found.dropped | refined.dropped | split.dropped
    nothing = dict.fromkeys([*flow[tally.READ], *dropped.get(tally.READ, {})], (0, 0))  # a source may have no text at all
    rename = _grouped({source: of[1] for source, of in {**nothing, **flow[tally.READ]}.items()})
    steps: list[dict[str, Any]] = [
        {"stage": stage, "sources": _sum({**nothing, **flow.get(stage, {})}, rename)}
        for stage in ORDER
        if stage in flow or stage in refined.dropped
    ]
    if blank := _by_reason(dropped.get(tally.READ, {}), rename):  # so that what is dropped is taken from what was read
        steps[0]["stage"] = "has text"
        without = {source: sum(documents for documents, _ in reasons.values()) for source, reasons in blank.items()}
        records = {source: [of[0] + without.get(source, 0), of[1]] for source, of in steps[0]["sources"].items()}
        steps.insert(0, {"stage": tally.READ, "sources": records})
    sources = manifest["sources"]
    kept = {source: tuple(sum(of[side][place] for side in of) for place in (0, 1)) for source, of in sources.items()}
    steps.append({"stage": "not a copy of another, nor nearly of a held-out document", "sources": _sum({**nothing, **kept}, rename)})
    return {
        "corpus": manifest["corpus"],
        "settings": manifest["depends_on"],
        "stages": steps,
        "dropped": {stage: _by_reason(dropped[stage], rename) for stage in ORDER if stage in dropped},
        "changed": {stage: _sum(refined.changed[stage], rename) for stage in ORDER if stage in refined.changed},
        "evaluation": refined.evaluation,
        "copies": {name: manifest[name] for name in ("duplicates", "near_duplicates")},
        "splits": {split: {name: of[name] for name in SPLIT_FIGURES} for split, of in manifest["splits"].items()},
        "mixture": _mixture(_sum({source: of["train"][2:] for source, of in sources.items()}, rename), wanted, got),
        "lengths": _sum(split.lengths, rename),
        "scores": _sum(refined.scores, rename),
        "samples": {"kept": _samples([split], rename), "dropped": _samples([found, refined, split], rename, dropped=True)},
    }


def _mixture(tokens: Mapping[str, list[int]], wanted: Mapping[str, float], got: Mapping[str, float]) -> dict[str, dict[str, Any]]:
    """Returns what the report says of the shares of each source.

    `wanted` is the share of what is trained on that a source was to have, `got` what it has; without them it has that of its size.
    """
    total = sum(count for (count,) in tokens.values()) or 1
    return {
        source: {"tokens": count, "by_size": count / total, "wanted": wanted.get(source), "got": got.get(source, count / total)}
        for source, (count,) in tokens.items()
    }


def renew(folder: pathlib.Path, wanted: Mapping[str, float], got: Mapping[str, float]) -> None:
    """Writes the report in `folder` anew if it tells of other weights than these, under which a finished preparation is used again.

    Where it cannot be read or written, it stays as it is: shards that others have made can be trained on all the same.
    """
    # Beside what a shape tells: lists of another length, numbers that no float holds, settings nested deep.
    with contextlib.suppress(OSError, UserError, ValueError, LookupError, ArithmeticError, RecursionError):
        report = json_data.read(folder / JSON, _SHAPE)
        mixture = _mixture({source: [of["tokens"]] for source, of in report["mixture"].items()}, wanted, got)
        if report["mixture"] != mixture:
            _write(folder, {**report, "mixture": mixture})


def counted(parts: list[pathlib.Path]) -> Tally:
    """Returns what was counted as these parts, of documents or of tokens, were written."""
    return tally.load(stages.tally_path(path) for path in parts)


def before_split(counts: Tally) -> list[tuple[str, int, int]]:
    """Returns (what, documents, bytes) of what each stage before the split dropped, and of what it took out of documents that stayed."""
    rows = []
    for stage in ORDER:
        if stage in counts.dropped:
            rows.append((f"dropped: {SAID.get(stage, stage)}", *counts.dropped_by(stage)))
        if taken_out := counts.taken_out_by(stage):
            rows.append((f"taken out of what stays: {stage}", 0, taken_out))
    return rows


def save(work: pathlib.Path, report: dict[str, Any]) -> None:
    """Writes the report among the parts, from where `publish` takes it."""
    files.write_aside(work / JSON, _as_json(report))


def publish(folder: pathlib.Path, work: pathlib.Path) -> None:
    """Writes the report that lies among the parts, if any, into `folder`, with its page."""
    if (work / JSON).is_file():
        _write(folder, json_data.read(work / JSON, _SHAPE))


def _write(folder: pathlib.Path, report: dict[str, Any]) -> None:
    page = report_page.page(report)  # first: of another's report it may not be possible
    files.write_aside(folder / JSON, _as_json(report))
    files.write_aside(folder / PAGE, page)


def _as_json(report: dict[str, Any]) -> str:
    return json.dumps(report, indent=1, ensure_ascii=False) + "\n"


def _grouped(sizes: Mapping[str, int]) -> dict[str, str]:
    """Returns source -> the name it is told under: its own, or that of the others where there are too many."""
    largest = sorted(sizes, key=lambda source: (-sizes[source], source))[:MAX_SOURCES]
    return {source: source if source in largest else OTHERS for source in sizes}


def _by_reason(sources: Mapping[str, Mapping[str, list[int]]], rename: Mapping[str, str]) -> dict[str, dict[str, list[int]]]:
    total: dict[str, dict[str, list[int]]] = {}
    for source, reasons in sorted(sources.items()):
        mine = total.setdefault(rename[source], {})
        for reason, counts in reasons.items():
            mine[reason] = [one + more for one, more in zip(mine.get(reason, [0, 0]), counts, strict=True)]
    return total


def _samples(counts: list[Tally], rename: Mapping[str, str], dropped: bool = False) -> list[dict[str, Any]]:
    """Returns the samples of the sources that are told of one by one: of what was kept, or of what was `dropped`."""
    told = []
    for key, held in (item for one in counts for item in one.samples.items()):
        source, stage, reason = key.rsplit("\t", 2)
        if rename[source] == source and dropped == (stage != tally.KEPT):
            texts = [{name: one[name] for name in ("id", "characters", "note", "text")} for one in held]
            told.append({"source": source, "stage": stage, "reason": reason, "texts": texts})
    place = {stage: number for number, stage in enumerate(ORDER)}
    return sorted(told, key=lambda one: (one["source"], place.get(one["stage"], -1), one["reason"]))


def _sum(counts: Mapping[str, Any], rename: Mapping[str, str]) -> dict[str, list[int]]:
    total: dict[str, list[int]] = {}
    for source, own in sorted(counts.items()):
        name = rename.get(source, OTHERS)
        total[name] = [one + more for one, more in zip(total.get(name, [0] * len(own)), own, strict=True)]
    return total
