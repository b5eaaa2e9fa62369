"""Text <-> ids: byte-level BPE, characters or bytes, behind one class; learned here, saved as plain text."""

from lmtiny.tokenizer.export import refuse_to_export, tokenizer_json
from lmtiny.tokenizer.learning import learn
from lmtiny.tokenizer.streaming import StreamDecoder
from lmtiny.tokenizer.superwords import warning_about
from lmtiny.tokenizer.tokenizer import Tokenizer, load
from lmtiny.tokenizer.vocabulary import KINDS, SPECIAL_TOKENS, SPLIT_PATTERN

__all__ = [
    "KINDS", "SPECIAL_TOKENS", "SPLIT_PATTERN", "StreamDecoder", "Tokenizer", "learn", "load", "refuse_to_export", "tokenizer_json",
    "warning_about",
]  # fmt: skip
