"""How datatrove's blocks see words and sentences: by one regular expression each, where datatrove would load spaCy.

spaCy's rules for English agree with these but for contractions and abbreviations; what that changes in the filters'
decisions was measured (docs/refining.md). Nothing is downloaded, and it is an order of magnitude faster.
"""

import dataclasses

import regex
from datatrove.utils.word_tokenizers import WordTokenizer

# Addresses, figures, abbreviations with stops, contractions (do n't, she 's), words, runs of one other character.
_WORDS = regex.compile(
    r"(?:https?://|www\.)\S+|\p{N}+(?:[.,:/]\p{N}+)+|(?:\b\p{L}\.){2,}|[\p{L}\p{M}\p{N}_]+?(?=n['’]t\b)|n['’]t\b"
    r"|['’](?:s|re|ve|ll|d|m)\b|[\p{L}\p{M}\p{N}_]+|([^\s\p{L}\p{M}\p{N}_])\1*"
)
_SENTENCE_END = regex.compile(r"(?:[.!?…]+[\"'”’)\]]*(?=\s)|[。！？]+|\n{2,})\s*")


@dataclasses.dataclass(frozen=True)
class Words(WordTokenizer):
    """Words as spaCy cuts English: contractions in two, figures and abbreviations whole, a mark by itself.

    Equal instances share datatrove's cache of the last texts.
    """

    language: str = "any"

    def word_tokenize(self, text: str) -> list[str]:
        return [found.group() for found in _WORDS.finditer(text)]

    def sent_tokenize(self, text: str) -> list[str]:
        return [text[begin:end].strip() for begin, end in self.span_tokenize(text)]

    def span_tokenize(self, text: str) -> list[tuple[int, int]]:
        spans, begin = [], 0
        for found in _SENTENCE_END.finditer(text):
            spans.append((begin, found.end()))
            begin = found.end()
        if text[begin:].strip():
            spans.append((begin, len(text)))
        return spans


@dataclasses.dataclass(frozen=True)
class BlankSeparated(Words):
    """Words as a reader counts them: what stands between blanks, marks and all."""

    language: str = "any, blank-separated"

    def word_tokenize(self, text: str) -> list[str]:
        return text.split()
