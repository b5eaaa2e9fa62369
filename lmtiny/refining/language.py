"""Which language a document is written in, by a naive Bayes model over byte n-grams that lies in the package itself.

py3langid, after Lui and Baldwin, "langid.py: An Off-the-shelf Language Identification Tool", ACL 2012. The published
pipelines use fastText's lid.176, which datatrove downloads; what differs was measured (docs/refining.md).
"""

import functools
from typing import Any

from lmtiny.errors import UserError

PIECE = 1000  # characters: of a longer document its first, its middle and its last piece are looked at


def identify(text: str) -> tuple[str, float]:
    """Returns the likeliest language (ISO 639-1) and its probability."""
    middle = len(text) // 2
    seen = text if len(text) <= 3 * PIECE else " ".join((text[:PIECE], text[middle : middle + PIECE], text[-PIECE:]))
    language, probability = _identifier().classify(seen)
    return language, float(probability)


def check(where: str, language: str) -> None:
    """Raises UserError, which calls the knob `where`, unless the model knows the language."""
    known = sorted(set(_identifier().labels))
    if language not in known:
        meant = f"did you mean {language[:2].lower()!r}?" if language[:2].lower() in known else f"there are {', '.join(known)}"
        raise UserError(f"{where} = {language!r} is not known; {meant}")


@functools.cache
def _identifier() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
