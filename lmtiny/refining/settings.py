"""What is done to the documents of each source: the `corpus` knobs, which a source may have otherwise."""

import dataclasses
import pathlib
from typing import Any

import ml_collections

from lmtiny.corpus import paths
from lmtiny.corpus.fingerprint import of_file
from lmtiny.corpus.sources import name
from lmtiny.errors import UserError
from lmtiny.knobs import REFINING
from lmtiny.refining import decontamination

# What may be done to a document, in the order in which it is done: repaired text is matched better, boilerplate should not be
# unwrapped, and of the filters the cheap and the sharp come first.
STAGES = (
    "unicode", "gutenberg", "unwrap", "language", "gopher_repetition", "gopher_quality", "c4", "c4_paragraphs", "fineweb", "quality",
    "decontaminate", "deduplicate",
)  # fmt: skip
VERSION = 1  # of the rules in this room: raise it when the same settings give other documents
NAMES = tuple(knob.name for knob in REFINING)


@dataclasses.dataclass(frozen=True)
class Settings:
    """The knobs of `corpus` that may differ from source to source, under their names there."""

    cleaning: tuple[str, ...]
    filters: tuple[str, ...]
    language: str
    language_threshold: float
    quality: str
    quality_threshold: float
    quality_exponent: float
    deduplicate: bool
    decontaminate: str

    def stages(self) -> set[str]:
        """Returns which of STAGES documents go through."""
        switched = {"language": self.language, "quality": self.quality != "none"}
        switched |= {"decontaminate": self.decontaminate, "deduplicate": self.deduplicate}
        return {*self.cleaning, *self.filters, *(stage for stage, on in switched.items() if on)}

    def nothing(self) -> bool:
        """Returns whether documents pass as they are."""
        return not self.stages()


@dataclasses.dataclass(frozen=True)
class Plan:
    """`of(source)` are the Settings of a source; the rest holds for all of them."""

    default: Settings
    sources: dict[str, Settings]
    quality_good: str
    quality_bad: str
    minhash_words: int
    minhash_buckets: int
    minhash_hashes: int
    decontaminate_words: int

    def of(self, source: str) -> Settings:
        return self.sources.get(source, self.default)

    def every(self) -> list[Settings]:
        return [self.default, *self.sources.values()]

    def nothing(self) -> bool:
        """Returns whether all documents of all sources pass as they are."""
        return all(settings.nothing() for settings in self.every())

    def scores_quality(self) -> bool:
        return any(settings.quality != "none" for settings in self.every())

    def quality_files(self, knob: str) -> list[pathlib.Path]:
        """Returns the files that `quality_good` or `quality_bad` names."""
        return paths.listed(getattr(self, knob), f"corpus.{knob}", paths.EXTENSIONS)[0]

    def deduplicates(self) -> bool:
        return any(settings.deduplicate for settings in self.every())

    def stages(self) -> list[str]:
        """Returns which of STAGES the documents of any source go through, in their order."""
        return [stage for stage in STAGES if any(stage in settings.stages() for settings in self.every())]

    def evaluation_sets(self) -> list[str]:
        return sorted({settings.decontaminate for settings in self.every() if settings.decontaminate})

    def depends_on(self) -> dict[str, Any]:
        """Returns all that decides the refined documents, beside the documents themselves, by name; nothing if they pass as they are.

        Raises:
          UserError: a file that it names is not there, or cannot be read.
        """
        if self.nothing():
            return {}
        named: dict[str, Any] = {"refining": VERSION}
        named |= {f"corpus.{name}": value for name, value in _plain(self.default).items()}
        if self.sources:
            named["settings of sources"] = {source: _plain(own) for source, own in sorted(self.sources.items())}
        if self.scores_quality():
            for knob in ("quality_good", "quality_bad"):
                named[f"text of corpus.{knob}"] = _prints(self.quality_files(knob))
        if self.deduplicates():
            named |= {f"corpus.{name}": getattr(self, name) for name in ("minhash_words", "minhash_buckets", "minhash_hashes")}
        if sets := self.evaluation_sets():
            named["corpus.decontaminate_words"] = self.decontaminate_words
            named["evaluation sets"] = [one for path in sets for one in _prints(decontamination.find(path))]
        return named


def _prints(found: list[pathlib.Path]) -> list[str]:
    try:
        return [of_file(file) for file in found]
    except OSError as error:
        raise UserError(f"{error.filename}: cannot be read ({error.strerror}); change its permissions, or take it away") from None


def plan_of(config: ml_collections.ConfigDict) -> Plan:
    """Returns the plan that the config's `corpus` section describes, with what its sources set of their own.

    Raises:
      UserError: the quality score lacks its texts, the same ones are liked and disliked, or an executor has nothing to do.
    """
    default = _settings(config.corpus)
    own = {name(source): {field: source[field] for field in NAMES if source[field] is not None} for source in config.corpus.sources}
    sources = {source: dataclasses.replace(default, **values) for source, values in own.items() if values}
    shared = {field.name: config.corpus[field.name] for field in dataclasses.fields(Plan) if field.name not in ("default", "sources")}
    plan = Plan(default, sources, **shared)
    if plan.nothing() and config.corpus.executor != "local":
        what = "set corpus.cleaning, corpus.filters or another knob of docs/refining.md, or leave it out"
        raise UserError(f"corpus.executor = {config.corpus.executor!r} does nothing while no document is refined; {what}")
    for knob in ("quality_good", "quality_bad"):
        if plan.scores_quality() and not config.corpus[knob]:
            raise UserError(f"corpus.quality needs corpus.{knob}: texts to learn from what is liked and what is not")
    if plan.scores_quality() and (both := {*plan.quality_files("quality_good")} & {*plan.quality_files("quality_bad")}):
        raise UserError(f"corpus.quality_good and corpus.quality_bad both name {min(both)}: nothing can be learned from that")
    return plan


def _settings(corpus: ml_collections.ConfigDict) -> Settings:
    return Settings(**{field: corpus[field] for field in NAMES})


def _plain(settings: Settings) -> dict[str, Any]:
    """Returns the settings as JSON gives them back; where the evaluation sets lie does not matter, only what they say."""
    values = dataclasses.asdict(settings) | {"decontaminate": bool(settings.decontaminate)}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}
