"""What came out of each stage, by source: counts, reasons, lengths, and a few texts to be looked at."""

import collections
import hashlib
import heapq
import json
import pathlib
from collections.abc import Iterable
from typing import Any

from lmtiny import json_data
from lmtiny.errors import UserError

SAMPLES = 3  # texts kept for each source, stage and reason: those of the smallest hashes, whoever counts
SAMPLE_CHARACTERS = 1200  # of each
LENGTH_BINS = 32  # of documents by length: bin b holds those of 2^b bytes up to 2^(b+1)
SCORE_BINS = 20  # of the quality score, 0 to 1
READ, KEPT = "read", "kept"
NO_TEXT = "no text"  # why reading drops a record
FORMAT = 3  # of a tally in a file: raise it when it is another, so that an unfinished preparation counts anew

_COUNTS = {str: [int]}
_SHAPE = {
    "flow": {str: _COUNTS}, "dropped": {str: {str: _COUNTS}}, "changed": {str: _COUNTS},
    "lengths": _COUNTS, "scores": _COUNTS, "evaluation": _COUNTS,
    "samples": {str: [{"order": str, "id": str, "text": str, "characters": int, "note": str}]},
}  # fmt: skip


class Tally:
    """Counts of one task, or the sum of many; all that it holds is JSON."""

    def __init__(self) -> None:
        self.flow: dict[str, dict[str, list[int]]] = {}  # stage -> source -> [documents, bytes] that left it
        self.dropped: dict[str, dict[str, dict[str, list[int]]]] = {}  # stage -> source -> reason -> [documents, bytes]
        self.changed: dict[str, dict[str, list[int]]] = {}  # stage -> source -> [documents altered, bytes that this took out of them]
        self.lengths: dict[str, list[int]] = {}  # source -> documents by length, those that stayed
        self.scores: dict[str, list[int]] = {}  # source -> documents by quality score
        self.evaluation: dict[str, list[int]] = {}  # evaluation set -> items [read, too short to be found]
        self.samples: dict[str, list[dict[str, Any]]] = {}  # "source\tstage\treason" -> texts, smallest hash first

    def passed(self, stage: str, source: str, num_bytes: int) -> None:
        """Counts a document that leaves `stage`."""
        _add(self.flow.setdefault(stage, {}).setdefault(source, [0, 0]), (1, num_bytes))

    def read(self, source: str, identity: str, text: str) -> bool:
        """Counts a record that is read, as dropped where it has no text; returns whether it has any."""
        if text:
            self.passed(READ, source, len(text.encode()))
        else:
            self.drop(READ, source, NO_TEXT, identity, text)
        return bool(text)

    def drop(self, stage: str, source: str, reason: str, identity: str, text: str, note: str = "") -> None:
        """Counts a document that `stage` drops, and keeps it as a sample if its turn comes."""
        reasons = self.dropped.setdefault(stage, {}).setdefault(source, {})
        _add(reasons.setdefault(reason, [0, 0]), (1, len(text.encode())))
        self._sample(f"{source}\t{stage}\t{reason}", identity, text, note)

    def change(self, stage: str, source: str, before: str, after: str) -> None:
        """Counts a document that `stage` alters and lets stay."""
        taken_out = len(before.encode()) - len(after.encode())
        _add(self.changed.setdefault(stage, {}).setdefault(source, [0, 0]), (1, taken_out))

    def score(self, source: str, score: float) -> None:
        """Counts a document's quality score, 0 to 1."""
        self.scores.setdefault(source, [0] * SCORE_BINS)[min(SCORE_BINS - 1, int(score * SCORE_BINS))] += 1

    def keep(self, source: str, identity: str, text: str) -> None:
        """Counts a document that stays to the end."""
        bin_ = min(LENGTH_BINS - 1, max(0, len(text.encode()).bit_length() - 1))
        self.lengths.setdefault(source, [0] * LENGTH_BINS)[bin_] += 1
        self._sample(f"{source}\t{KEPT}\t", identity, text, "")

    def reasons(self) -> collections.Counter[str]:
        """Returns reason -> documents dropped for it, over all stages and sources."""
        found: collections.Counter[str] = collections.Counter()
        for sources in self.dropped.values():
            for reasons in sources.values():
                found.update({reason: counts[0] for reason, counts in reasons.items()})
        return found

    def dropped_by(self, stage: str) -> tuple[int, int]:
        """Returns documents and bytes that the stage dropped, over all sources and reasons."""
        counts = [count for reasons in self.dropped.get(stage, {}).values() for count in reasons.values()]
        return sum(documents for documents, _ in counts), sum(num_bytes for _, num_bytes in counts)

    def taken_out_by(self, stage: str) -> int:
        """Returns the bytes that the stage took out of documents that stayed; below 0 where it made them longer."""
        return sum(num_bytes for _, num_bytes in self.changed.get(stage, {}).values())

    def _sample(self, key: str, identity: str, text: str, note: str) -> None:
        order = hashlib.blake2b(text[:SAMPLE_CHARACTERS].encode(), digest_size=8).hexdigest()
        held = self.samples.setdefault(key, [])
        if len(held) < SAMPLES or order < held[-1]["order"]:
            one = {"order": order, "id": identity, "text": text[:SAMPLE_CHARACTERS], "characters": len(text), "note": note}
            self.samples[key] = _smallest([*held, one])

    def to_json(self) -> bytes:
        return json.dumps(vars(self), ensure_ascii=False, sort_keys=True).encode()


def load(paths: Iterable[pathlib.Path]) -> Tally:
    """Returns the sum of the tallies in the files; raises UserError where one is damaged."""
    total = Tally()
    for path in paths:
        try:
            _add_tally(total, json_data.read(path, _SHAPE))
        except ValueError:  # lists of another length
            raise UserError(f"{path} is damaged: its counts do not add up; remove {path.parent}") from None
    return total


def _add_tally(total: Tally, one: dict[str, Any]) -> None:
    for stage, sources in one["flow"].items():
        for source, counts in sources.items():
            _add(total.flow.setdefault(stage, {}).setdefault(source, [0, 0]), counts)
    for stage, sources in one["dropped"].items():
        for source, reasons in sources.items():
            for reason, counts in reasons.items():
                mine = total.dropped.setdefault(stage, {}).setdefault(source, {})
                _add(mine.setdefault(reason, [0, 0]), counts)
    for stage, sources in one["changed"].items():
        for source, counts in sources.items():
            _add(total.changed.setdefault(stage, {}).setdefault(source, [0, 0]), counts)
    for name in ("lengths", "scores", "evaluation"):
        for source, counts in one[name].items():
            _add(vars(total)[name].setdefault(source, [0] * len(counts)), counts)
    for key, held in one["samples"].items():
        total.samples[key] = _smallest([*total.samples.get(key, []), *held])


def _smallest(held: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return heapq.nsmallest(SAMPLES, held, key=lambda one: (one["order"], one["id"]))


def _add(mine: list[int], more: Iterable[int]) -> None:
    mine[:] = [own + other for own, other in zip(mine, more, strict=True)]
