"""Tokenizers of others behind our interface: their file -> tokens and an encoder.

Their ids stay theirs; what they treat as special tokens never comes out of `encode`, and lmtiny's own come behind all of
theirs. A file is data from a stranger. Above all, a regular expression in it is never run (a hostile one can take
forever): it is looked up among those known here, and refused if it is none of them.
"""

import base64
import binascii
import dataclasses
import hashlib
import os
import pathlib
from collections.abc import Sequence

import numpy as np

from lmtiny.errors import UserError
from lmtiny.tokenizer.encoders import Encoder, merging_encoder
from lmtiny.tokenizer.vocabulary import BYTES, MAX_TOKENS

FILES = {"tiktoken": "ranks.tiktoken", "huggingface": "tokenizer.json", "sentencepiece": "spiece.model"}  # kind -> its file in our folder
MAX_FILE_BYTES = 256 << 20
MAX_FOREIGN_TOKEN_BYTES = 1024

GPT2_SPLIT = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
GPT4_SPLIT = r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
_LOWER, _UPPER = r"\p{Ll}\p{Lm}\p{Lo}\p{M}", r"\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}"
_ENDING = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
GPT4O_SPLIT = (
    rf"[^\r\n\p{{L}}\p{{N}}]?[{_UPPER}]*[{_LOWER}]+{_ENDING}|[^\r\n\p{{L}}\p{{N}}]?[{_UPPER}]+[{_LOWER}]*{_ENDING}"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

# SmolLM and StarCoder cut at each digit first: what is before a digit is split as if the text ended there.
DIGITS_SPLIT = GPT2_SPLIT.replace(r" ?\p{N}+", r"\p{N}").replace(r"(?!\S)", r"(?![^\s\p{N}])")
_TEKKEN_SPLIT = GPT4O_SPLIT.replace(_ENDING, "").replace("{1,3}", "")  # Mistral's
SPLITS = (GPT2_SPLIT, DIGITS_SPLIT, GPT4_SPLIT, GPT4O_SPLIT, _TEKKEN_SPLIT)


@dataclasses.dataclass(frozen=True)
class Foreign:
    """What a file of another tokenizer says.

    kind: of FILES; source: the file's bytes; tokens: the bytes of each id, b"" for special and unused ones; encode: valid
    text -> ids; byte_ids: int64[256], the id of each byte, or that of "unknown"; loses: what a text does not come back
    with, in words, or "".
    """

    kind: str
    source: bytes
    tokens: Sequence[bytes]
    encode: Encoder
    byte_ids: np.ndarray
    loses: str = ""


@dataclasses.dataclass(frozen=True)
class _Encoding:
    """One of tiktoken's: the SHA-256 of its file, its split, and how many ids it has with its special tokens."""

    sha256: str
    split: str
    num_ids: int


_TIKTOKEN = {
    "r50k_base": _Encoding("306cd27f03c1a714eca7108e03d66b7dc042abe8c258b44c199a7ed9838dd930", GPT2_SPLIT, 50257),
    "p50k_base": _Encoding("94b5ca7dff4d00767bc256fdd1b27e5b17361d7b8a5f968547f9f23eb70d2069", GPT2_SPLIT, 50281),
    "cl100k_base": _Encoding("223921b76ee99bde995b7ff738513eef100fb51d18c93597a113bcffe865b2a7", GPT4_SPLIT, 100277),
    "o200k_base": _Encoding("446a9538cb6c348e3516120d7c08b09f57c36495e2acfffe59a5bf8b0cfb1a2d", GPT4O_SPLIT, 200019),
}
NAMES = tuple(_TIKTOKEN)


def kind_of(path: str | os.PathLike[str]) -> str:
    """Returns the kind of the tokenizer that `path` names (a file, a folder with a tokenizer.json, or a tiktoken name), or ""."""
    place = pathlib.Path(path)
    if place.is_dir():
        return "huggingface" if (place / FILES["huggingface"]).is_file() else ""
    if not place.is_file():
        return "tiktoken" if str(path) in _TIKTOKEN else ""
    return {".tiktoken": "tiktoken", ".json": "huggingface", ".model": "sentencepiece"}.get(place.suffix, "")


def read(path: str | os.PathLike[str], kind: str) -> Foreign:
    """Returns the tokenizer of `kind` at `path`, as `kind_of` found it.

    Raises:
      UserError: it cannot be read or fetched, is damaged, or does something that is not known here.
    """
    place = pathlib.Path(path)
    if kind == "tiktoken" and not place.is_file():
        return parsed(kind, _fetched(str(path)), str(path))
    if place.is_dir():
        place = place / FILES[kind]
    return parsed(kind, file_bytes(place), str(place))


def file_bytes(path: pathlib.Path, limit: int = MAX_FILE_BYTES) -> bytes:
    """Returns what the file holds; raises UserError if it cannot be read or has more than `limit` bytes."""
    try:
        with open(path, "rb") as file:
            content = file.read(limit + 1)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    if len(content) > limit:
        raise UserError(f"{path} is too large for a tokenizer: more than {limit} bytes")
    return content


def parsed(kind: str, source: bytes, where: str) -> Foreign:
    """Returns the tokenizer of `kind` that `source`, the content of the file `where`, holds; raises UserError as `read` does."""
    if kind == "tiktoken":
        return _tiktoken(source, where)
    if kind == "huggingface":
        from lmtiny.tokenizer import huggingface

        return huggingface.parsed(source, where)
    from lmtiny.tokenizer import sentencepiece_model

    return sentencepiece_model.parsed(source, where)


def _fetched(name: str) -> bytes:
    """Returns the file of tiktoken's encoding `name`, from its cache or the network; tiktoken checks its hash, and so do we."""
    import tiktoken

    try:
        ranks = tiktoken.get_encoding(name)._mergeable_ranks
    except Exception as error:  # whatever its HTTP library raises
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        if len(reason) > 80:  # requests' goes on for hundreds of characters, with the address somewhere inside
            reason = type(error).__name__
        raise UserError(f"tiktoken cannot fetch {name} ({reason}); without a network, name a file {name}.tiktoken") from None
    in_order = sorted(ranks, key=lambda token: ranks[token])
    return b"".join(b"%s %d\n" % (base64.b64encode(token), ranks[token]) for token in in_order)


def _tiktoken(source: bytes, where: str) -> Foreign:
    digest = hashlib.sha256(source).hexdigest()
    encoding = next((one for one in _TIKTOKEN.values() if one.sha256 == digest), None)
    if encoding is None:
        raise UserError(f"{where} is none of tiktoken's {', '.join(_TIKTOKEN)}, or damaged: how others split a text is not in such a file")
    tokens = [b""] * encoding.num_ids
    try:
        for line in source.splitlines():
            word, _, rank = line.partition(b" ")
            tokens[int(rank)] = base64.b64decode(word, validate=True)
    except (binascii.Error, ValueError, IndexError):
        raise UserError(f"{where} is damaged") from None
    ranks = {token: rank for rank, token in enumerate(tokens) if token}
    return Foreign("tiktoken", source, tokens, merging_encoder(ranks, encoding.split), byte_ids(ranks))


def byte_ids(ids: dict[bytes, int]) -> np.ndarray:
    """Returns int64[256], the id of each byte; raises KeyError where one has none."""
    return np.array([ids[one] for one in BYTES])


def refuse_if_no_vocabulary(tokens: Sequence[bytes], where: str) -> None:
    """Raises UserError for more or longer tokens than any tokenizer has."""
    if len(tokens) > MAX_TOKENS or max(map(len, tokens), default=0) > MAX_FOREIGN_TOKEN_BYTES:
        raise UserError(f"{where}: more than {MAX_TOKENS} tokens, or one of more than {MAX_FOREIGN_TOKEN_BYTES} bytes, is no tokenizer")
