"""Ids -> text as they come, for a chat: a character is shown when its last byte is there."""

import codecs
from collections.abc import Iterable

from lmtiny.tokenizer.tokenizer import Tokenizer


class StreamDecoder:
    """Decodes one stream of ids; all it returned, `finish` included, is together `tokenizer.decode` of all ids."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def feed(self, ids: Iterable[int]) -> str:
        """Returns the text that `ids` complete, perhaps none; raises ValueError for an id outside the vocabulary."""
        return self._utf8.decode(self._tokenizer.decode_bytes(ids))

    def finish(self) -> str:
        """Returns U+FFFD if the stream ended within a character, else ""; the decoder is then ready for another stream."""
        return self._utf8.decode(b"", final=True)
