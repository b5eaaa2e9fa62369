"""The report of a preparation: what each stage took and left of each source, with samples; JSON, and the same as a page."""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

from lmtiny import files
from lmtiny.data import report_page, stages
from lmtiny.refining import Tally, tally

JSON, PAGE = "report.json", "report.html"
MAX_SOURCES = 40  # told of one by one; the smallest are counted together
OTHERS = "(others)"
SPLIT_FIGURES = ("documents", "bytes", "tokens", "rows")
ORDER = (
    "read", "unicode", "gutenberg", "unwrap", "language", "gopher_repetition", "gopher_quality", "c4", "c4_paragraphs", "fineweb",
    "quality", "decontaminate", "deduplicate",
)  # fmt: skip


def collect(
    manifest: dict[str, Any], documents: list[pathlib.Path], refined: Tally | None,
    wanted: Mapping[str, float] | None = None, got: Mapping[str, float] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Returns the report: all of it JSON.

    `documents` are the parts that were split; `refined` has the counts before that, if there was anything to count;
    `wanted` is the share of what is trained on that a source was to have, `got` what it has; without them it has that of its size.
    """
    found = tally.load(stages.tally_path(path) for path in documents)
    flow = dict(refined.flow) if refined else {"read": found.flow["read"]}
    sources = manifest["sources"]
    rename = _grouped({source: count[1] for source, count in flow["read"].items()})
    order = [stage for stage in ORDER if stage in flow]
    steps: list[dict[str, Any]] = []
    before: dict[str, tuple[int, ...]] = dict.fromkeys(flow["read"], (0, 0))
    for stage in order:
        # What has no count at a stage was not given to it, unless all of it was dropped there or before.
        now = {source: tuple(flow[stage].get(source, _after(refined, stage, source, count))) for source, count in before.items()}
        steps.append({"stage": stage, "sources": _sum(now, rename)})
        before = now
    kept = {source: tuple(sum(of[split][place] for split in of) for place in (0, 1)) for source, of in sources.items()}
    steps.append({"stage": "not a copy of another, nor nearly of a held-out document", "sources": _sum(kept, rename)})
    tokens = {source: of["train"][2] for source, of in sources.items()}
    total = sum(tokens.values()) or 1
    return {
        "corpus": manifest["corpus"],
        "settings": manifest["depends_on"],
        "stages": steps,
        "dropped": {stage: _by_reason(of, rename) for stage, of in refined.dropped.items()} if refined else {},
        "changed": {stage: _sum({source: (count,) for source, count in of.items()}, rename) for stage, of in refined.changed.items()}
        if refined
        else {},
        "copies": {name: manifest[name] for name in ("duplicates", "near_duplicates")},
        "splits": {split: {name: of[name] for name in SPLIT_FIGURES} for split, of in manifest["splits"].items()},
        "mixture": {
            source: {"tokens": count, "by_size": (of_all := count / total), "wanted": (wanted or {}).get(source),
                     "got": (got or {}).get(source, of_all)}
            for source, (count,) in _sum({source: (count,) for source, count in tokens.items()}, rename).items()
        },
        "lengths": {source: list(counts) for source, counts in _sum(found.lengths, rename).items()},
        "scores": {source: list(counts) for source, counts in _sum(refined.scores if refined else {}, rename).items()},
        "samples": {"kept": _samples(found, rename), "dropped": _samples(refined, rename) if refined else []},
    }


def _after(refined: Tally | None, stage: str, source: str, before: tuple[int, ...]) -> tuple[int, ...]:
    """Returns the counts of a source that no document of which left the stage: none, if the stage dropped them, or as before."""
    dropped = bool(refined and source in refined.dropped.get(stage, {}))
    return (0,) * len(before) if dropped else before


def write(folder: pathlib.Path, report: dict[str, Any]) -> None:
    """Writes the report into `folder`."""
    files.write_aside(folder / JSON, json.dumps(report, indent=1, ensure_ascii=False) + "\n")
    files.write_aside(folder / PAGE, report_page.page(report))


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


def _samples(counted: Tally, rename: Mapping[str, str]) -> list[dict[str, Any]]:
    """Returns the samples of the sources that are told of one by one."""
    told = []
    for key, held in sorted(counted.samples.items()):
        source, stage, reason = key.rsplit("\t", 2)
        if rename[source] == source:
            texts = [{name: one[name] for name in ("id", "characters", "note", "text")} for one in held]
            told.append({"source": source, "stage": stage, "reason": reason, "texts": texts})
    return told


def _sum(counts: Mapping[str, Any], rename: Mapping[str, str]) -> dict[str, list[int]]:
    total: dict[str, list[int]] = {}
    for source, own in sorted(counts.items()):
        name = rename.get(source, OTHERS)
        total[name] = [one + more for one, more in zip(total.get(name, [0] * len(own)), own, strict=True)]
    return total
