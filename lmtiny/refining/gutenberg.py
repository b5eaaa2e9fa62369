"""Project Gutenberg's own words around a book: the header before the start marker, the footer and licence behind the end."""

import re

# As Project Gutenberg writes them: "*** START OF THE PROJECT GUTENBERG EBOOK 11 ***", "*END*THE SMALL PRINT!" in old files.
_START = re.compile(
    r"^[ \t]*\*\*\* ?START OF (?:THE|THIS) PROJECT GUTENBERG E(?:BOOK|TEXT)[^*]*\*\*\*[^\n]*\n"
    r"|^[ \t]*\*END ?\*? ?THE SMALL PRINT[^\n]*\n",
    re.M | re.I,
)
_END = re.compile(
    r"^[ \t]*(?:\*\*\* ?END OF (?:THE|THIS) PROJECT GUTENBERG E(?:BOOK|TEXT)"
    r"|End of (?:the )?Project Gutenberg(?:'s|’s)? |\*\*\* ?START: FULL LICENSE \*\*\*"
    r"|THE FULL PROJECT GUTENBERG LICENSE)",
    re.M | re.I,
)
_CREDIT = re.compile(r"\A\s*(?:Produced by|E-?text prepared by|This e-?text was produced)\b[^\n]*(?:\n[^\n]+)*\n\s*", re.I)
_LICENCE = re.compile(r"Project Gutenberg(?:-tm|™| Literary Archive Foundation| License| electronic work)", re.I)
LICENCE_SHARE = 0.3  # of the paragraphs: a piece of a cut book that is licence and nothing else


def strip(text: str) -> str:
    """Returns the book alone: what lies behind the last start marker and before the first end marker that follows it.

    A text without markers is returned as it is; so is, apart from its own end, the middle of a book that was cut into
    pieces. A piece that is nothing but licence becomes "". Stripping twice is stripping once.
    """
    if "gutenberg" not in text.lower() and "small print" not in text.lower():
        return text
    *_, start = [0, *(found.end() for found in _START.finditer(text))]
    end = _END.search(text, start)
    body = text[start : end.start() if end else len(text)]
    if start:
        body = _CREDIT.sub("", body)
    paragraphs = [paragraph for paragraph in body.split("\n\n") if paragraph.strip()]
    mentions = sum(bool(_LICENCE.search(paragraph)) for paragraph in paragraphs)
    if mentions > LICENCE_SHARE * max(1, len(paragraphs)):
        return ""
    return body if start or end else text
