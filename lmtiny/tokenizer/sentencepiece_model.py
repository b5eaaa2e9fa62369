"""A sentencepiece `.model` behind our interface, run by the sentencepiece library itself.

Such a model may change a text before it is encoded: what it loses is found by trying, and said.
"""

from typing import Any

import numpy as np

from lmtiny.errors import UserError
from lmtiny.tokenizer.encoders import Encoder
from lmtiny.tokenizer.foreign import Foreign, refuse_if_no_vocabulary
from lmtiny.tokenizer.vocabulary import BYTES

_SPACE = "\u2581"  # what sentencepiece writes for a space
_UNKNOWN = "characters it does not know"
# What is lost, in words, and texts that show it. A space before the text is no loss that matters: it is told apart.
_PROBES = {
    "spaces in a row, at the ends, or other white space": ("a  b", "a ", "a\tb\n\nc"),
    _UNKNOWN: ("\u16a0\U00010400", "\x01"),
    "other forms of the same character": ("\ufb01", "e\u0301", "\uff21"),
}


def parsed(source: bytes, where: str) -> Foreign:
    """Returns the tokenizer of a .model's bytes; raises UserError if they are none.

    The bytes of an id are those of its piece; in most models the first piece of a text begins with a space that the text
    has not.
    """
    import sentencepiece

    model = sentencepiece.SentencePieceProcessor()
    try:
        if not source or not model.LoadFromSerializedProto(source):
            raise ValueError("empty")
        size = model.vocab_size()
        tokens = [_bytes(model, number) for number in range(size)]
    except (RuntimeError, ValueError, OverflowError) as error:
        raise UserError(f"{where} is no sentencepiece model, or damaged ({' '.join(str(error).split())[:80]})") from None
    refuse_if_no_vocabulary(tokens, where)

    def encode(text: str) -> np.ndarray:
        return np.array(model.encode(text), np.int64)

    singles = {tokens[number]: number for number in range(size) if model.is_byte(number)}
    byte_ids = np.array([singles.get(bytes([value]), max(0, model.unk_id())) for value in range(256)])
    lost = [what for what, probes in _PROBES.items() if any(not _comes_back(probe, encode, tokens) for probe in probes)]
    if len(singles) < len(BYTES) and _UNKNOWN not in lost:  # whichever these are
        lost.append(_UNKNOWN)
    if encode("a").size and b"".join(tokens[number] for number in encode("a")) == b" a":
        lost.append("a space more in front")
    return Foreign("sentencepiece", source, tokens, encode, byte_ids, "; ".join(lost))


def _bytes(model: Any, number: int) -> bytes:
    """Returns the bytes that an id stands for; b"" for control symbols and "unknown"."""
    piece = model.id_to_piece(number)
    if model.is_byte(number):
        return bytes([int(piece[3:5], 16)])  # "<0x0A>"
    if model.is_control(number) or model.is_unknown(number) or model.is_unused(number):
        return b""
    return piece.replace(_SPACE, " ").encode("utf-8", "replace")


def _comes_back(text: str, encode: Encoder, tokens: list[bytes]) -> bool:
    found = b"".join(tokens[number] for number in encode(text))
    return found in (text.encode(), b" " + text.encode())
