"""`tokenizer.json`, the file of Hugging Face's `tokenizers`, read without that library.

Read is byte-level BPE as GPT-2, Llama 3 and Qwen2.5 lay it out, and nothing else: any field that would change ids and is
not known here is refused. Text that holds an added token ("<|endoftext|>") is ordinary text here, as everywhere in lmtiny.
"""

import json
import unicodedata
from typing import Any, Literal

import numpy as np

from lmtiny.errors import UserError
from lmtiny.tokenizer.byte_merges import last_pair, printable_bytes
from lmtiny.tokenizer.encoders import merging_encoder
from lmtiny.tokenizer.foreign import GPT2_SPLIT, GPT4_SPLIT, GPT4O_SPLIT, Foreign, byte_ids, refuse_if_no_vocabulary
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
    **{pattern: pattern for pattern in (GPT2_SPLIT, GPT4_SPLIT, GPT4O_SPLIT, *PATTERNS.values())},
}


def parsed(source: bytes, where: str) -> Foreign:
    """Returns the tokenizer that the tokenizer.json `source` describes; raises UserError if it is damaged or of another make."""
    try:
        content = json.loads(source)
        split, normal_form = _split(content["pre_tokenizer"], where), _normal_form(content.get("normalizer"), where)
        added = {token["content"]: _id(token["id"]) for token in content.get("added_tokens") or []}
        ids, merges = _model(content["model"], added, where)
        tokens = [b""] * (1 + max(*ids.values(), *added.values(), 0))
        for token, number in ids.items():
            tokens[number] = token
        refuse_if_no_vocabulary(tokens, where)
        ranks = _ranks(merges, where)
        table = np.array([ids[token] for token in ranks])  # ranks are in their order
        singles = byte_ids(ids)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        detail = f"{type(error).__name__}: {' '.join(str(error).split())[:80]}"
        raise UserError(f"{where} is no tokenizer.json of byte-level BPE, or damaged ({detail})") from None
    if content["model"].get("ignore_merges") and len(ranks) < len(ids):
        raise UserError(f"{where}: has tokens that no merge makes, and ignore_merges: lmtiny cannot encode as it does")
    encode_ranks = merging_encoder(ranks, split)

    def encode(text: str) -> np.ndarray:
        return table[encode_ranks(unicodedata.normalize(normal_form, text) if normal_form else text)]

    return Foreign("huggingface", source, tokens, encode, singles, f"characters that are not in {normal_form}" if normal_form else "")


def _model(model: Any, added: dict[str, int], where: str) -> tuple[dict[bytes, int], list[tuple[bytes, bytes]]]:
    """Returns (token -> id, merges in order) of byte-level BPE that does nothing else."""
    for name, neutral in _NEUTRAL.items():
        if model.get(name) not in neutral:
            raise UserError(f"{where}: model.{name} = {str(model.get(name))[:40]!r} is not what byte-level BPE has")
    to_byte = {char: value for value, char in printable_bytes().items()}
    ids = {bytes(map(to_byte.__getitem__, word)): _id(number) for word, number in model["vocab"].items() if word not in added}
    if len(set(ids.values())) < len(ids) or not all(ids) or set(ids.values()) & set(added.values()):
        raise UserError(f"{where}: an id is there twice, or a token is empty")
    merges = []
    for pair in model["merges"]:
        left, right = pair.split(" ") if isinstance(pair, str) else pair
        merges.append((bytes(map(to_byte.__getitem__, left)), bytes(map(to_byte.__getitem__, right))))
        if b"".join(merges[-1]) not in ids:
            raise UserError(f"{where}: its merges make {b''.join(merges[-1])[:40]!r}, which is not in its vocabulary")
    return ids, merges


_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "type": ("BPE",), "dropout": (None, 0), "unk_token": (None,), "continuing_subword_prefix": (None, ""),
    "end_of_word_suffix": (None, ""), "byte_fallback": (None, False), "ignore_merges": (None, False, True),
}  # fmt: skip


def _id(number: Any) -> int:
    """Returns `number` if it can be an id; raises ValueError: a file that names id 10^15 must not cost its memory."""
    if type(number) is not int or not 0 <= number < MAX_TOKENS:
        raise ValueError(f"{str(number)[:20]} is no id")
    return number


def _ranks(merges: list[tuple[bytes, bytes]], where: str) -> dict[bytes, int]:
    """Returns the 256 bytes and the merged tokens with the ranks by which merging is the same as by the list of pairs.

    Raises:
      UserError: there are none (`byte_merges` says when).
    """
    places: dict[bytes, dict[tuple[bytes, bytes], int]] = {}
    for place, (left, right) in enumerate(merges):
        places.setdefault(left + right, {})[left, right] = place
    ranks = {token: rank for rank, token in enumerate((*BYTES, *places))}
    before = -1
    for token, pairs in places.items():
        last = last_pair(token, ranks)
        place = pairs.get(last, -1) if last else -1
        if place <= before:
            problem = f"its merges are not in the order of byte-pair encoding (at {token[:40]!r})"
            raise UserError(f"{where}: {problem}: lmtiny cannot encode as it does")
        before = place
    return ranks


def _split(pre_tokenizer: Any, where: str) -> str:
    """Returns the expression that text is split by, one of KNOWN_SPLITS."""
    parts = pre_tokenizer["pretokenizers"] if pre_tokenizer["type"] == "Sequence" else [pre_tokenizer]
    byte_level = parts[-1]
    if byte_level["type"] != "ByteLevel" or byte_level.get("add_prefix_space") or len(parts) > 2:
        raise UserError(f"{where}: its pre_tokenizer is not a split and ByteLevel without a prefix space")
    if len(parts) == 1:
        if not byte_level.get("use_regex", True):
            raise UserError(f"{where}: its pre_tokenizer does not split text")
        return GPT2_SPLIT
    split = parts[0]
    written = split["pattern"].get("Regex")
    if split["type"] != "Split" or split["behavior"] != "Isolated" or split.get("invert") or byte_level.get("use_regex", True):
        raise UserError(f"{where}: its pre_tokenizer splits in a way that lmtiny does not know")
    if written not in KNOWN_SPLITS:
        problem = "it splits text by a regular expression that lmtiny does not know, and a stranger's is not run"
        raise UserError(f"{where}: {problem}: {str(written)[:60]!r}")
    return KNOWN_SPLITS[written]


def _normal_form(normalizer: Any, where: str) -> Literal["", "NFC"]:
    if normalizer is None:
        return ""
    if normalizer != {"type": "NFC"}:
        raise UserError(f"{where}: its normalizer is {str(normalizer)[:40]}; lmtiny knows NFC and none")
    return "NFC"
