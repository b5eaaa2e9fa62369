"""Hard-wrapped prose becomes one line a paragraph; verse, tables, lists, code and TeX stay as they are.

The rule, paragraph by paragraph (a paragraph is what stands between blank lines), so that nothing depends on the rest
of the text and unwrapping twice is unwrapping once. A paragraph was wrapped by a program if a longer line was never
possible: at every break but one in eight the next word would not have fitted into the paragraph's longest line. It is
joined then, unless something says that its lines mean something.
"""

import itertools
import re

SHORTEST, LONGEST = 50, 100  # characters of the longest line of a paragraph that was hard-wrapped
SLACK = 4  # characters by which a line may fall short, for marks such as _italics_ that were added or taken away later
LOOSE = 8  # one break in so many may be looser than that
VERSE_WIDTH = 62  # characters: two capitalised lines are a couplet up to this width, two sentences beyond

_BLANKS = re.compile(r"(\n[ \t]*(?:\n[ \t]*)+)")
_TEX = re.compile(r"\\[a-zA-Z]+|\$\$")
TEX_CHARACTERS = 2000  # a text with a TeX command in each so many is TeX as a whole
# Tabs and gaps of a table, its rules and leaders, code, quoting, a list.
_MEANT = re.compile(
    r"\t|\S {3,}\S|[|\\{}]|^[-=_*.+ ]{4,}$|\.{5}| = |=>|==|\);$|^\s*(?:[-*+•]\s|[>#%]|//|\(?(?:\d+|[a-zA-HJ-Z]|[ivxlIVXL]{2,})[.)]\s)"
)
_CAPITAL = re.compile(r"[\"'“‘_(\[]*[A-Z0-9]")
_DASH = re.compile(r"(?:\w-|--|—)$")
_FIRST_WORD = re.compile(r"\S+?(?:--|—)|\S+-(?=\w)|\S+")


def unwrap(text: str) -> str:
    """Returns the text with the lines of wrapped paragraphs joined; nothing but newlines is changed, into a space or nothing."""
    if len(_TEX.findall(text)) * TEX_CHARACTERS > len(text):
        return text
    pieces = _BLANKS.split(text)  # paragraphs at even places, what separates them at odd ones
    for place in range(0, len(pieces), 2):
        if "\n" in pieces[place]:
            pieces[place] = _unwrapped(pieces[place])
    return "".join(pieces)


def _unwrapped(paragraph: str) -> str:
    lines = [line.rstrip(" \t") for line in paragraph.split("\n")]
    return _joined(lines) if _was_wrapped(lines) else paragraph


def _was_wrapped(lines: list[str]) -> bool:
    width = max(map(len, lines))
    if not SHORTEST <= width <= LONGEST:
        return False
    if any(line.startswith(("  ", "\t")) for line in lines[1:]) or any(map(_MEANT.search, lines)):
        return False
    if min(map(len, lines[:-1])) < width / 2:  # a heading, or the speaker's name in a play
        return False
    if all(map(_CAPITAL.match, lines[1:])) and (len(lines) > 2 or width < VERSE_WIDTH):
        return False
    loose = 0
    for line, following in itertools.pairwise(lines):
        word = _FIRST_WORD.match(following)
        needed = len(line) + (0 if _DASH.search(line) else 1) + len(word.group() if word else "")
        loose += needed <= width - SLACK
    return loose * LOOSE <= len(lines) - 1


def _joined(lines: list[str]) -> str:
    """Returns the lines as one; a compound word or a dash at a line's end takes no space behind it."""
    text = lines[0]
    for line in lines[1:]:
        text += line.lstrip(" ") if _DASH.search(text[-2:]) else " " + line.lstrip(" ")
    return text
