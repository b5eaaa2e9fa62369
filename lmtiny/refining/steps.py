"""Blocks of ours between datatrove's: read units or parts, do to each source what is its own, count, write."""

import itertools
import json
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias

from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.filters.base_filter import BaseFilter

from lmtiny import files
from lmtiny.corpus import Unit
from lmtiny.corpus.documents import clean
from lmtiny.refining import language, parts, quality
from lmtiny.refining.settings import Settings
from lmtiny.refining.tally import Tally

Documents: TypeAlias = Iterator[Document]
UNNAMED = {"deduplicate": "near-duplicate of another"}  # why a block drops that gives no reason


class ReadUnits(PipelineStep):
    """Yields the documents of the task's unit: `units` has one for each task that is to run."""

    name, type = "units", "READER"

    def __init__(self, units: dict[int, Unit], tally: Tally) -> None:
        super().__init__()
        self.units, self.tally = units, tally

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> Documents:
        for document in self.units[rank].read():
            if self.tally.read(document["source"], document["id"], document["text"]):
                yield Document(document["text"], document["id"], metadata={"source": document["source"]})


class ReadPart(PipelineStep):
    """Yields the documents of the part on disk that an earlier stage wrote; with `wanted(source, task)`, the others without text."""

    name, type = "part", "READER"

    def __init__(self, folder: pathlib.Path, wanted: Callable[[str, int], bool] | None = None) -> None:
        super().__init__()
        self.folder, self.wanted = folder, wanted

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> Documents:
        for document in parts.documents_of(parts.documents_path(self.folder, rank)):
            text = document["text"] if self.wanted is None or self.wanted(document["source"], rank) else ""
            yield Document(text, document["id"], metadata={"source": document["source"]})


class BySource(PipelineStep):
    """Passes the documents of each source through blocks of its own: `blocks_of(source, task)` gives (stage, block) pairs.

    Where there is no block, they are only counted, so that every stage has counts of every source.
    """

    name, type = "by source", "ROUTER"

    def __init__(self, blocks_of: Callable[[str, int], Sequence[tuple[str, PipelineStep | None]]], tally: Tally) -> None:
        super().__init__()
        self.blocks_of, self.tally = blocks_of, tally

    def run(self, data: Documents, rank: int = 0, world_size: int = 1) -> Documents:
        made: dict[str, list[PipelineStep]] = {}
        for source, documents in itertools.groupby(data, key=lambda document: str(document.metadata["source"])):
            if source not in made:
                pairs = self.blocks_of(source, rank)
                made[source] = [Counted(stage, self.tally, own) for stage, own in pairs]
            for block in made[source]:
                documents = block.run(documents, rank, world_size)
            yield from documents


class Counted(PipelineStep):
    """Counts the documents that leave the block, and those that it alters; without a block, those that leave the one before."""

    name, type = "counted", "STATS"

    def __init__(self, stage: str, tally: Tally, block: PipelineStep | None = None) -> None:
        super().__init__()
        self.stage, self.tally, self.block = stage, tally, block
        self.before = ""

    def run(self, data: Documents, rank: int = 0, world_size: int = 1) -> Documents:
        for document in self.block.run(self._noted(data), rank, world_size) if self.block else data:
            source = document.metadata["source"]
            if self.block and document.text != self.before:
                self.tally.change(self.stage, source, self.before, document.text)
            self.tally.passed(self.stage, source, len(document.text.encode()))
            yield document

    def _noted(self, data: Documents) -> Documents:
        """Yields the documents; the text of the last is kept, since a block takes one, yields or drops it, and takes the next."""
        for document in data:
            self.before = document.text
            yield document


class Clean(PipelineStep):
    """Gives each text to `change`, and drops those of which nothing is left."""

    type = "CLEANING"

    def __init__(self, stage: str, change: Callable[[str], str], tally: Tally) -> None:
        self.name = stage
        super().__init__()
        self.stage, self.change, self.tally = stage, change, tally

    def run(self, data: Documents, rank: int = 0, world_size: int = 1) -> Documents:
        for document in data:
            text = clean(self.change(document.text))
            if text:
                document.text = text
                yield document
            else:
                self.tally.drop(self.stage, document.metadata["source"], "nothing left", document.id, document.text)


class Dropped:
    """Stands where datatrove's filters take a writer of what they exclude: counts it by reason and keeps samples."""

    def __init__(self, stage: str, tally: Tally) -> None:
        self.stage, self.tally = stage, tally

    def __enter__(self) -> "Dropped":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def write(self, document: Document, rank: int = 0) -> None:
        reason = str(document.metadata.pop("filter_reason", UNNAMED.get(self.stage, self.stage)))
        note = "; ".join(f"{name} {value}" for name, value in sorted(document.metadata.items()) if name != "source")
        self.tally.drop(self.stage, document.metadata["source"], reason, document.id, document.text, note)


class LanguageFilter(BaseFilter):
    """Drops what is not in the settings' language; datatrove's filter of that name downloads its model."""

    name = "language"

    def __init__(self, settings: Settings, dropped: Dropped) -> None:
        super().__init__(dropped)
        self.language, self.threshold = settings.language, settings.language_threshold

    def filter(self, doc: Document) -> bool | tuple[bool, str]:
        found, probability = language.identify(doc.text)
        if found == self.language and probability >= self.threshold:
            return True
        doc.metadata["language"], doc.metadata["probability"] = found, f"{probability:.2f}"
        return False, f"language {found}" if found != self.language else "language uncertain"


class QualityFilter(BaseFilter):
    """Drops by the quality score: what lies below the threshold, or what the sample leaves out."""

    name = "quality"

    def __init__(self, settings: Settings, model: pathlib.Path, dropped: Dropped, tally: Tally) -> None:
        super().__init__(dropped)
        self.settings, self.model, self.tally = settings, model, tally

    def filter(self, doc: Document) -> bool | tuple[bool, str]:
        score = quality.score(doc.text, self.model)
        self.tally.score(doc.metadata["source"], score)
        if self.settings.quality == "filter":
            stays, reason = score >= self.settings.quality_threshold, "low quality"
        else:
            stays, reason = quality.stays(doc.text, score, self.settings.quality_exponent), "not sampled"
        doc.metadata["score"] = f"{score:.3f}"
        return stays or (False, reason)


class Write(PipelineStep):
    """Writes what arrives as the task's part, and beside it the tally of all that happened on the way."""

    name, type = "part", "WRITER"

    def __init__(self, folder: pathlib.Path, tally: Tally) -> None:
        super().__init__()
        self.folder, self.tally = folder, tally

    def run(self, data: Documents, rank: int = 0, world_size: int = 1) -> Documents:
        self.folder.mkdir(parents=True, exist_ok=True)
        with files.opened(parts.documents_path(self.folder, rank)) as file:
            for document in data:
                kept = {"text": document.text, "source": document.metadata["source"], "id": document.id}
                file.write(json.dumps(kept, ensure_ascii=False).encode() + b"\n")
        files.write_aside(parts.tally_path(self.folder, rank), self.tally.to_json())
        yield from ()
