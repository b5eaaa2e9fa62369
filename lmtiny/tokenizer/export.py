"""Our tokenizers as `tokenizer.json`, the file of Hugging Face's `tokenizers`, written without that library."""

import json

from lmtiny import json_data
from lmtiny.errors import UserError
from lmtiny.tokenizer.byte_merges import last_pair, printable_bytes
from lmtiny.tokenizer.foreign import Foreign
from lmtiny.tokenizer.tokenizer import Tokenizer
from lmtiny.tokenizer.vocabulary import PATTERNS, SPECIAL_TOKENS, problem_with


def tokenizer_json(tokenizer: Tokenizer) -> str:
    """Returns the tokenizer.json of a BPE or superword tokenizer; `tokenizers` gives the same ids with it.

    Of one that was read from a tokenizer.json, that file as it was.

    By its default `tokenizers` takes "<|bos|>" in a text for that token (`encode_special_tokens = True`
    there: for text), and it does not cut white space of more than 32,768 characters.

    Raises:
      UserError: the kind is another one.
    """
    refuse_to_export(tokenizer.kind)
    if tokenizer.foreign:
        return tokenizer.foreign.source.decode()
    printable = printable_bytes()
    shown = ["".join(map(printable.__getitem__, token)) for token in tokenizer.tokens[: tokenizer.bos_id]]
    ranks = {token: rank for rank, token in enumerate(tokenizer.tokens[: tokenizer.bos_id])}
    merges = [pair for token in tokenizer.tokens[256 : tokenizer.bos_id] if (pair := last_pair(token, ranks))]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    split = {"type": "Split", "pattern": {"Regex": PATTERNS[tokenizer.kind]}, "behavior": "Isolated", "invert": False}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    content = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": token, "content": name, **flags} for name, token in tokenizer.special.items()],
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, byte_level]},
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None, "end_of_word_suffix": None,
            "fuse_unk": False, "byte_fallback": False,
            "ignore_merges": True,  # a piece that is a token is that token, as in tiktoken
            "vocab": {word: rank for rank, word in enumerate(shown)},
            "merges": [[shown[ranks[left]], shown[ranks[right]]] for left, right in merges],
        },
    }  # fmt: skip
    return json.dumps(content, ensure_ascii=False, indent=1) + "\n"


def refuse_to_export(kind: str) -> None:
    """Raises UserError where a tokenizer of this kind cannot be written as tokenizer.json."""
    if kind not in (*PATTERNS, "huggingface"):
        can = f"lmtiny's own {' and '.join(PATTERNS)} can, and what was read from one"
        raise UserError(f"a {kind} tokenizer cannot be written as tokenizer.json; {can}")


def own_kind(foreign: Foreign) -> str:
    """Returns the kind of the tokenizer of ours that `tokenizer_json` wrote as `foreign`, or "" if it did not."""
    tokens = foreign.tokens[: -len(SPECIAL_TOKENS)]
    if foreign.kind != "huggingface" or len(tokens) < 256 or problem_with("bpe", tokens):
        return ""
    said = json_data.parsed(foreign.source, "the tokenizer.json")
    if [token["content"] for token in said.get("added_tokens") or []] != list(SPECIAL_TOKENS):
        return ""
    return next((kind for kind in PATTERNS if json.loads(tokenizer_json(Tokenizer(kind, tokens))) == said), "")
