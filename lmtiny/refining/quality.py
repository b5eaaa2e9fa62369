"""A quality score: how like the texts that are liked a document is, by a linear model over hashed words and word pairs.

Logistic regression on hashed features of documents, as in Brown et al., "Language Models are Few-Shot Learners", 2020,
appendix A, and its way to sample by the score: a document stays with probability (2 - score)^-9. Word pairs beside
words: Li et al., "DataComp-LM", 2024, section 4.4. Only a document's counts of words enter, so their order counts for
no more than a pair.
"""

import hashlib
import itertools
import pathlib

import numpy as np
import regex

from lmtiny import console
from lmtiny import files as ground_files
from lmtiny.corpus import files
from lmtiny.errors import UserError
from lmtiny.knobs import TEXT_KEY

FEATURES = 1 << 18
WORDS = 2000  # of a document that are looked at, those it begins with; also the length of the texts that are learned from
PENALTY = 1e-4  # times half the squared weights, beside the mean loss of both sides
ITERATIONS = 200
FEW = 20  # texts of a side: of fewer, what is learned is their subjects
UNEVEN = 4  # times as long as the other side's, by the median: what is learned may be the length
_WORD = regex.compile(r"[\p{L}\p{M}]+|\p{N}+|[^\s\p{L}\p{M}\p{N}]|\n+")
_MODELS: dict[pathlib.Path, np.ndarray] = {}


def learn(good: str, bad: str, path: pathlib.Path) -> None:
    """Writes to `path` (.npy) the model that tells the texts of `good` from those of `bad`: FEATURES weights and the bias.

    Both sides weigh the same, however many texts they have.

    Raises:
      UserError: a side has no text.
    """
    from scipy import sparse  # here, since it takes half a second that preparing without a score need not wait
    from scipy.optimize import minimize

    rows, labels, lengths_of = [], [], {}
    for knob, value, label in (("quality_good", good, 1.0), ("quality_bad", bad, -1.0)):
        units = files.units(value, "", files.Reading(TEXT_KEY, 16384))
        texts = [document["text"] for unit in units for document in unit.read() if document["text"]]
        if not texts:
            raise UserError(f"corpus.{knob} = {value!r} has no text")
        if len(texts) < FEW:
            console.warn(f"corpus.{knob} = {value!r} has {console.counted(len(texts), 'text')}: the score is a guess below {FEW}")
        lengths_of[knob] = int(np.median([len(text) for text in texts]))
        rows += [features(text) for text in texts]
        labels += [label] * len(texts)
    if max(lengths_of.values()) > UNEVEN * min(lengths_of.values()):
        good_length, bad_length = (f"{lengths_of[knob]:,}" for knob in ("quality_good", "quality_bad"))
        console.warn(f"half the texts of corpus.quality_good have up to {good_length} characters, of corpus.quality_bad {bad_length}: "
                     "the score may tell lengths; give both texts as long as the documents")  # fmt: skip
    lengths = np.array([len(row[0]) for row in rows])
    matrix = sparse.csr_array(
        (np.concatenate([row[1] for row in rows]), np.concatenate([row[0] for row in rows]), np.concatenate([[0], np.cumsum(lengths)])),
        shape=(len(rows), FEATURES),
    )
    sides = np.array(labels)
    weights = np.where(sides > 0, 0.5 / (sides > 0).sum(), 0.5 / (sides < 0).sum())

    def loss(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        margins = sides * (matrix @ parameters[:-1] + parameters[-1])
        slopes = -sides * weights * np.exp(-np.logaddexp(0, margins))
        gradient = np.append(matrix.T @ slopes + PENALTY * parameters[:-1], slopes.sum())
        return float((weights * np.logaddexp(0, -margins)).sum() + 0.5 * PENALTY * (parameters[:-1] ** 2).sum()), gradient

    found = minimize(loss, np.zeros(FEATURES + 1), jac=True, method="L-BFGS-B", options={"maxiter": ITERATIONS})
    ground_files.write_array(path, found.x.astype("<f4"))


def features(text: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns the places of the text's words and word pairs in the vector of FEATURES, and their weights, of length 1 together."""
    words = [found.group().lower() for _, found in zip(range(WORDS), _WORD.finditer(text), strict=False)]
    grams = words + [f"{first} {second}" for first, second in itertools.pairwise(words)]
    hashes = [int.from_bytes(hashlib.blake2b(gram.encode(), digest_size=4).digest(), "little") % FEATURES for gram in grams]
    places, counts = np.unique(np.array(hashes, np.int64), return_counts=True)
    values = np.log1p(counts)
    return places, values / (np.sqrt((values**2).sum()) or 1.0)


def score(text: str, path: pathlib.Path) -> float:
    """Returns the probability, 0 to 1, that the model at `path` gives to the text being one of the liked."""
    if path not in _MODELS:
        _MODELS[path] = np.load(path)
    model = _MODELS[path]
    places, values = features(text)
    return float(1 / (1 + np.exp(-(model[places].astype(np.float64) @ values + model[-1]))))


def stays(text: str, quality: float, exponent: float) -> bool:
    """Returns whether a document of this score is taken into the sample: by a hash of its text, so always the same.

    It is another hash than the one that chooses the validation side.
    """
    drawn = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8, person=b"quality").digest(), "little") / 2**64
    return drawn < (2 - quality) ** -exponent
