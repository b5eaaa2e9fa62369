"""`tokenizer.json`, the file of Hugging Face's `tokenizers`, read without that library.

Read is byte-level BPE as GPT-2, Llama 3, Qwen2.5, Tekken and SmolLM lay it out, and nothing else: any field
that would change ids and is not known here is refused. Text that holds an added token ("<|endoftext|>") is
ordinary text here, as everywhere in lmtiny.
"""

import unicodedata
from typing import Any, Literal

import numpy as np

from lmtiny import json_data
from lmtiny.errors import UserError
from lmtiny.tokenizer.byte_merges import Pair, last_pair, printable_bytes, ranks_of
from lmtiny.tokenizer.encoders import Encoder, merging_encoder
from lmtiny.tokenizer.foreign import (
    DIGITS_SPLIT,
    GPT2_SPLIT,
    GPT4_SPLIT,
    SPLITS,
    Foreign,
    byte_ids,
    refuse_if_no_vocabulary,
)
from lmtiny.tokenizer.vocabulary import BYTES, MAX_TOKENS, PATTERNS

_ENDINGS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_GPT2_WRITTEN = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


def _gpt4_written(number: str) -> str:
    return rf"{_ENDINGS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{number}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


# A split as a tokenizer.json writes it -> as it is run here: known expressions only, none of which can run away.
KNOWN_SPLITS = {
    _GPT2_WRITTEN: GPT2_SPLIT,
    _gpt4_written(r"\p{N}"): GPT4_SPLIT.replace("{1,3}", ""),  # Qwen2 and Qwen2.5
    _gpt4_written(r"\p{N}{1,3}"): GPT4_SPLIT,  # Llama 3, GPT-4
    **{pattern: pattern for pattern in (*SPLITS, *PATTERNS.values())},
}

_SHAPE = {
    "added_tokens": ([{"id": object, "content": str}], type(None)),
    "normalizer": ({"type": str}, type(None)),
    "pre_tokenizer": ({"type": str}, type(None)),
    "model": {"vocab": dict, "merges": [(str, [str])]},
}
# What changes ids -> its values that do not. The first files of GPT-2 do not say their type.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "type": (None, "BPE"), "dropout": (None, 0), "continuing_subword_prefix": (None, ""),
    "end_of_word_suffix": (None, ""), "byte_fallback": (None, False), "ignore_merges": (None, False, True),
}  # fmt: skip
_MAX_WORK = 1 << 29  # sum of the squared lengths of merged tokens, in bytes: that of GPT-4o is 2^24
_TO_BYTE = {char: value for value, char in printable_bytes().items()}


def parsed(source: bytes, where: str) -> Foreign:
    """Returns the tokenizer that the tokenizer.json `source` describes; raises UserError if it is damaged or of another make."""
    content = _content(source, where)
    split, normal_form = _split(content["pre_tokenizer"], where), _normal_form(content["normalizer"], where)
    _refuse_other_models(content["model"], where, list(_NEUTRAL))
    added = _added(content["added_tokens"] or [], where)
    ids, merges = _model(content["model"], added, where)
    tokens = [b""] * (1 + max(*ids.values(), *added.values(), 0))
    for token, number in ids.items():
        tokens[number] = token
    refuse_if_no_vocabulary(tokens, where)
    encode_normal = _encoder(ids, merges, content["model"].get("ignore_merges"), split, where)

    def encode(text: str) -> np.ndarray:
        return encode_normal(unicodedata.normalize(normal_form, text) if normal_form else text)

    loses = f"characters that are not in {normal_form}" if normal_form else ""
    return Foreign("huggingface", source, tokens, encode, byte_ids(ids), loses)


def _content(source: bytes, where: str) -> dict[str, Any]:
    """Returns the JSON object, which has the shape of byte-level BPE, and null for what it does not say."""
    try:
        text = source.decode()
    except UnicodeDecodeError:
        raise UserError(f"{where} is not UTF-8: {_NONE}") from None
    try:
        said = json_data.parsed(text, where)
    except UserError as error:
        raise UserError(f"{error}; {_NONE}") from None
    _check(said, {"model": dict}, where)
    _refuse_other_models(said["model"], where, ["type"])  # whose shape is another
    content = {**dict.fromkeys(_SHAPE), **said}
    _check(content, _SHAPE, where)
    return content


_NONE = "it is no tokenizer.json of byte-level BPE, or damaged"


def _check(value: Any, shape: Any, where: str) -> None:
    try:
        json_data.check(value, shape, where)
    except UserError as error:
        raise UserError(f"{error}; {_NONE}") from None


def _refuse_other_models(model: dict[str, Any], where: str, names: list[str]) -> None:
    for name in names:
        _check(model.get(name), (str, float, bool, type(None)), f"{where}: model.{name}")
        if model.get(name) not in _NEUTRAL[name]:
            raise UserError(
                f"{where}: model.{name} = {str(model[name])[:40]!r} is not what byte-level BPE has"
            )


def _added(added_tokens: list[dict[str, Any]], where: str) -> dict[str, int]:
    """Returns text -> id of the added tokens, which no text becomes here."""
    for token in added_tokens:
        content = token["content"]
        # Their library finds those that are not special in any text. A mark ("<tool_call>") is not to be
        # found here, but this is no mark.
        if token.get("special") is not True and all(char.isalnum() or char.isspace() for char in content):
            raise UserError(
                f"{where}: its added token {content[:40]!r} is ordinary text: lmtiny cannot encode as it does"
            )
    return {token["content"]: _id(token["id"], where) for token in added_tokens}


def _model(model: dict[str, Any], added: dict[str, int], where: str) -> tuple[dict[bytes, int], list[Pair]]:
    """Returns (token -> id, merges in order)."""
    ids = {
        _bytes(word, where): _id(number, where)
        for word, number in model["vocab"].items()
        if word not in added
    }
    if len(set(ids.values())) < len(ids) or not all(ids) or set(ids.values()) & set(added.values()):
        raise UserError(f"{where}: an id is there twice, or a token is empty")
    if missing := [one for one in BYTES if one not in ids]:
        raise UserError(f"{where} has no token for the byte 0x{missing[0].hex()}; {_NONE}")
    merges = []
    for pair in model["merges"]:
        words = pair.split(" ") if isinstance(pair, str) else pair
        if len(words) != 2:
            raise UserError(f"{where}: a merge is of {len(words)} tokens, not of two; {_NONE}")
        left, right = (_bytes(word, where) for word in words)
        if left + right not in ids:
            raise UserError(
                f"{where}: its merges make {(left + right)[:40]!r}, which is not in its vocabulary"
            )
        merges.append((left, right))
    return ids, merges


def _bytes(word: str, where: str) -> bytes:
    try:
        return bytes(map(_TO_BYTE.__getitem__, word))
    except KeyError:
        raise UserError(
            f"{where}: its token {word[:40]!r} is not written in the characters of GPT-2's bytes; {_NONE}"
        ) from None


def _id(number: Any, where: str) -> int:
    """Returns `number` if it can be an id: a file that names id 10^15 must not cost its memory."""
    if type(number) is not int or not 0 <= number < MAX_TOKENS:
        shown = (
            f"{str(number)[:20]!r}" if isinstance(number, int | float | str) else "a list, an object or null"
        )
        raise UserError(f"{where}: {shown} is no id; {_NONE}")
    return number


def _encoder(
    ids: dict[bytes, int], merges: list[Pair], ignore_merges: bool | None, split: str, where: str
) -> Encoder:
    """Returns text -> ids, by `merges` within what `split` cuts.

    With `ignore_merges` a piece that is a token is that token.
    """
    if sum(len(token) ** 2 for token in ids) > _MAX_WORK:
        raise UserError(f"{where} has too many long tokens; {_NONE}")
    try:
        ranks = ranks_of(merges)
    except ValueError as error:
        raise UserError(
            f"{where}: its merges are not in the order of byte-pair encoding ({error}); {_NONE}"
        ) from None
    whole = (
        [token for token in ids if token not in ranks] if ignore_merges else []
    )  # these are pieces, and never parts of one
    # With a rank behind all others, such a token would come about of two others only if it is encoded as two
    # itself.
    of_two = [token for token in whole if last_pair(token, ranks)]
    if short := [token for token in of_two if len(token) == 2]:
        raise UserError(
            f"{where}: ignore_merges, and its token {short[0]!r} of two bytes has no merge:"
            " lmtiny cannot encode as it does"
        )
    for token in whole:
        if token not in of_two:
            ranks[token] = len(ranks)
    return _with_pieces(of_two, ids, ranks, split)


def _with_pieces(pieces: list[bytes], ids: dict[bytes, int], ranks: dict[bytes, int], split: str) -> Encoder:
    """Returns text -> ids, by rank; each of `pieces`, by rank two tokens, is one where it is a whole piece."""
    table, by_rank = np.array([ids[token] for token in ranks]), merging_encoder(ranks, split)
    if not pieces:
        return lambda text: table[by_rank(text)]
    # With no token of two bytes nothing ever merges, so what is found beside single bytes is a piece.
    found_as = {token: number for number, token in enumerate((*BYTES, *pieces))}
    find, found_ids = merging_encoder(found_as, split), np.array([ids[token] for token in found_as])
    lengths, found_lengths = (np.array([len(token) for token in known]) for known in (ranks, found_as))

    def encode(text: str) -> np.ndarray:
        merged, found = by_rank(text), find(text)
        numbers, places = table[merged], np.flatnonzero(found >= len(BYTES))
        second = np.searchsorted(np.cumsum(lengths[merged]), np.cumsum(found_lengths[found])[places])
        numbers[second] = found_ids[found[places]]
        return np.delete(numbers, second - 1)

    return encode


def _split(pre_tokenizer: dict[str, Any] | None, where: str) -> str:
    """Returns the expression that text is split by, one of KNOWN_SPLITS."""
    if pre_tokenizer is None:
        problem = "its pre_tokenizer is null, as in files made from sentencepiece (Llama 2, Gemma)"
        raise UserError(f"{where}: {problem}: name the .model of that tokenizer instead")
    parts = [pre_tokenizer]
    if pre_tokenizer["type"] == "Sequence":
        _check(pre_tokenizer, {"pretokenizers": [{"type": str}]}, f"{where}: pre_tokenizer")
        parts = pre_tokenizer["pretokenizers"]
    byte_level = parts[-1] if parts else {"type": ""}
    if byte_level["type"] != "ByteLevel" or byte_level.get("add_prefix_space") or len(parts) > 2:
        kinds = ", ".join(part["type"][:20] for part in parts)
        raise UserError(
            f"{where}: its pre_tokenizer ({kinds[:60]!r}) is not a split and ByteLevel without a prefix space"
        )
    with_expression = byte_level.get("use_regex", True)
    if len(parts) == 1:
        if not with_expression:
            raise UserError(f"{where}: its pre_tokenizer does not split text")
        return GPT2_SPLIT
    split = parts[0]
    if split["type"] == "Digits" and split.get("individual_digits") is True and with_expression:
        return DIGITS_SPLIT
    if (
        split["type"] != "Split"
        or split.get("behavior") != "Isolated"
        or split.get("invert")
        or with_expression
    ):
        raise UserError(
            f"{where}: its pre_tokenizer splits in a way that lmtiny does not know ({split['type'][:20]!r})"
        )
    _check(split, {"pattern": {"Regex": str}}, f"{where}: pre_tokenizer")
    written = split["pattern"]["Regex"]
    if written not in KNOWN_SPLITS:
        problem = (
            "it splits text by a regular expression that lmtiny does not know, and a stranger's is not run"
        )
        raise UserError(f"{where}: {problem}: {written[:60]!r}")
    return KNOWN_SPLITS[written]


def _normal_form(normalizer: dict[str, Any] | None, where: str) -> Literal["", "NFC"]:
    if normalizer is None:
        return ""
    if normalizer != {"type": "NFC"}:
        raise UserError(
            f"{where}: its normalizer is {normalizer['type'][:40]!r}; lmtiny knows NFC alone, and none"
        )
    return "NFC"
