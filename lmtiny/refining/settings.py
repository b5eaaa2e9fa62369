"""What is done to the documents of each source: the `corpus` knobs, which a source may have otherwise."""

import dataclasses
from typing import Any

import ml_collections

from lmtiny.corpus import files
from lmtiny.corpus.fingerprint import of_file
from lmtiny.corpus.sources import name
from lmtiny.errors import UserError
from lmtiny.knobs import REFINING
from lmtiny.refining import decontamination

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

    def nothing(self) -> bool:
        """Returns whether documents pass as they are."""
        return not (self.cleaning or self.filters or self.language or self.deduplicate or self.decontaminate) and self.quality == "none"


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

    def deduplicates(self) -> bool:
        return any(settings.deduplicate for settings in self.every())

    def evaluation_sets(self) -> list[str]:
        return sorted({settings.decontaminate for settings in self.every() if settings.decontaminate})

    def depends_on(self) -> dict[str, Any]:
        """Returns all that decides the refined documents, beside the documents themselves, by name; nothing if they pass as they are.

        Raises:
          UserError: a file that it names is not there.
        """
        if self.nothing():
            return {}
        named: dict[str, Any] = {"refining": VERSION}
        named |= {f"corpus.{name}": value for name, value in _plain(self.default).items()}
        if self.sources:
            named["settings of sources"] = {source: _plain(own) for source, own in sorted(self.sources.items())}
        if self.scores_quality():
            for knob in ("quality_good", "quality_bad"):
                named[f"text of corpus.{knob}"] = [of_file(file) for file in files.find(getattr(self, knob), f"corpus.{knob}")]
        if self.deduplicates():
            named |= {f"corpus.{name}": getattr(self, name) for name in ("minhash_words", "minhash_buckets", "minhash_hashes")}
        if sets := self.evaluation_sets():
            named["corpus.decontaminate_words"] = self.decontaminate_words
            named["evaluation sets"] = [of_file(file) for path in sets for file in decontamination.find(path)]
        return named


def plan_of(config: ml_collections.ConfigDict) -> Plan:
    """Returns the plan that the config's `corpus` section describes, with what its sources set of their own.

    Raises:
      UserError: the quality score lacks its texts.
    """
    default = _settings(config.corpus)
    own = {name(source): {field: source[field] for field in NAMES if source[field] is not None} for source in config.corpus.sources}
    sources = {source: dataclasses.replace(default, **values) for source, values in own.items() if values}
    shared = {field.name: config.corpus[field.name] for field in dataclasses.fields(Plan) if field.name not in ("default", "sources")}
    plan = Plan(default, sources, **shared)
    for knob in ("quality_good", "quality_bad"):
        if plan.scores_quality() and not config.corpus[knob]:
            raise UserError(f"corpus.quality needs corpus.{knob}: texts to learn from what is liked and what is not")
    return plan


def _settings(corpus: ml_collections.ConfigDict) -> Settings:
    return Settings(**{field: corpus[field] for field in NAMES})


def _plain(settings: Settings) -> dict[str, Any]:
    """Returns the settings as JSON gives them back; where the evaluation sets lie does not matter, only what they say."""
    values = dataclasses.asdict(settings) | {"decontaminate": bool(settings.decontaminate)}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}
