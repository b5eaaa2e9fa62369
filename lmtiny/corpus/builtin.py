"""The builtin corpus: real English that is found on any machine that runs Python.

It is made of the language reference's topics (`pydoc_data`), and of the docstrings and the prose comments of the
standard library. Sources are read, never imported, and found through `sysconfig`; what cannot be read is left out.
"""

import ast
import functools
import inspect
import io
import os
import pathlib
import re
import sysconfig
import tokenize
import warnings
from collections.abc import Callable, Iterator

from lmtiny.corpus.documents import Document, Unit, cleaned, digest
from lmtiny.corpus.fingerprint import of_file
from lmtiny.errors import UserError

UNIT_BYTES = 1 << 20  # source files are grouped into units of about this size
MIN_CHARACTERS = 200  # a module with less to say is left out
SKIPPED = {  # tests, data tables, generated code and other people's packages
    "__pycache__", "site-packages", "dist-packages", "test", "tests", "idle_test", "idlelib", "encodings", "lib2to3", "turtledemo",
    "_bundled", "_vendor", "pydoc_data",
}  # fmt: skip


def units(installed_packages: bool) -> list[Unit]:
    """Returns the units of the builtin corpus, in a stable order.

    Raises:
      UserError: this Python comes without the sources of its standard library.
    """
    paths = sysconfig.get_paths()
    library = pathlib.Path(paths["stdlib"])
    found = []
    topics = _files(library / "pydoc_data", skip=frozenset())
    if topics:
        found.append(_unit("python-topics", library, topics, read_topics))
    found += _grouped("python-library", library, _files(library, skip=SKIPPED))
    if installed_packages:
        for folder in sorted({paths["purelib"], paths["platlib"]}):
            root = pathlib.Path(folder)
            found += _grouped("python-packages", root, _files(root, skip=SKIPPED))
    if not found:
        raise UserError(
            f"the builtin corpus is empty: no .py files under {library}; use --config.corpus.kind=files --config.corpus.path=YOUR_TEXT"
        )
    return found


def _files(root: pathlib.Path, skip: frozenset[str] | set[str]) -> list[pathlib.Path]:
    found = []
    for folder, folders, files in os.walk(root):
        folders[:] = [name for name in folders if name not in skip and not name.startswith(("config-", "."))]
        found += [pathlib.Path(folder, name) for name in files if name.endswith(".py")]
    return sorted(found, key=lambda file: file.relative_to(root).as_posix())


def _grouped(source: str, root: pathlib.Path, files: list[pathlib.Path]) -> list[Unit]:
    groups: list[list[pathlib.Path]] = []
    size = UNIT_BYTES
    for file in files:
        if size >= UNIT_BYTES:
            groups.append([])
            size = 0
        groups[-1].append(file)
        size += file.stat().st_size
    return [_unit(source, root, group, read_modules) for group in groups]


def _unit(source: str, root: pathlib.Path, files: list[pathlib.Path], read: Callable[..., Iterator[Document]]) -> Unit:
    names = [file.relative_to(root).as_posix() for file in files]
    fingerprint = digest(source, names, [of_file(file) for file in files])
    size = sum(file.stat().st_size for file in files)
    return Unit(f"{source}/{names[0]}", fingerprint, size, functools.partial(read, source, root, files))


def read_topics(source: str, root: pathlib.Path, files: list[pathlib.Path]) -> Iterator[Document]:
    """Yields one document a topic of the language reference.

    The topics are a dict of texts; whether it stands in one module (as up to now) or in several makes no difference.
    """
    for file in files:
        tree = _parsed(_decoded(file))
        for node in tree.body if tree else []:
            if not isinstance(node, ast.Assign | ast.AnnAssign) or not isinstance(node.value, ast.Dict):
                continue
            for key, value in zip(node.value.keys, node.value.values, strict=True):
                name, text = _text_of(key), _text_of(value)
                if name and text:
                    yield from cleaned([{"text": text, "source": source, "id": f"topics/{name}"}])


def read_modules(source: str, root: pathlib.Path, files: list[pathlib.Path]) -> Iterator[Document]:
    """Yields one document a module: its docstrings and prose comments, in the order of the file, a blank line between."""
    for file in files:
        code = _decoded(file)
        tree = _parsed(code)
        if tree is None:
            continue
        pieces = sorted([*_docstrings(tree), *_comments(code)])
        text = "\n\n".join(piece for _, piece in pieces)
        if len(text) >= MIN_CHARACTERS:
            yield from cleaned([{"text": text, "source": source, "id": file.relative_to(root).with_suffix("").as_posix()}])


def _decoded(file: pathlib.Path) -> str:
    """Returns the source in the encoding it declares, or "" where it cannot be read: one module less is no harm."""
    try:
        data = file.read_bytes()
        encoding, _ = tokenize.detect_encoding(io.BytesIO(data).readline)
        return data.decode(encoding).replace("\r\n", "\n")
    except (OSError, SyntaxError, UnicodeDecodeError, LookupError):
        return ""


def _parsed(code: str) -> ast.Module | None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in other people's strings
            return ast.parse(code)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def _text_of(node: ast.AST | None) -> str:
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""


def _docstrings(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Yields (line, text) of every docstring, without its doctests."""
    waiting: list[ast.AST] = [tree]
    while waiting:
        node = waiting.pop()
        for field in ("body", "orelse", "finalbody", "handlers"):  # statements only: expressions hold no docstring
            waiting += [child for child in getattr(node, field, []) if hasattr(child, "body")]
        if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) or not node.body:
            continue
        first = node.body[0]
        if isinstance(first, ast.Expr) and (docstring := _text_of(first.value)):
            paragraphs = inspect.cleandoc(docstring).split("\n\n")
            text = "\n\n".join(paragraph for paragraph in paragraphs if not paragraph.lstrip().startswith(">>>"))
            if len(text.split()) >= 3:
                yield first.lineno, text


# Strings and comments, as Python's lexer delimits them: 20 times faster than `tokenize`, and the tests compare the two.
_STRING_OR_COMMENT = re.compile(
    r"'''(?:[^\\]|\\.)*?'''|\"\"\"(?:[^\\]|\\.)*?\"\"\"|'(?:[^'\\\n]|\\.)*'|\"(?:[^\"\\\n]|\\.)*\"|#[^\n]*", re.S
)


def _comments(code: str) -> Iterator[tuple[int, str]]:
    """Yields (line, text) of each paragraph of consecutive comment lines that reads like prose."""
    line, seen, paragraph, at, column = 1, 0, list[str](), 0, -1
    previous = -2
    for match in _STRING_OR_COMMENT.finditer(code):
        if code[match.start()] != "#":
            continue
        line += code.count("\n", seen, match.start())
        seen = match.start()
        indent = code[code.rfind("\n", 0, seen) + 1 : seen]
        if indent.strip(" \t"):  # behind code: a remark on that line, rarely a sentence
            continue
        words = match.group().lstrip("#").strip()
        joins = line == previous + 1 and len(indent) == column and words.strip("-=~*#_+ ")
        if not joins and paragraph:
            yield from _prose(at, paragraph)
            paragraph = []
        if words.strip("-=~*#_+ "):
            at = at if paragraph else line
            paragraph.append(words)
        previous, column = line, len(indent)
    if paragraph:
        yield from _prose(at, paragraph)


_CODE_LIKE = re.compile(
    r"^(?:import|from|def|class|return|if|elif|for|while|try|with|print|assert|raise|del|self\.)\b.*[:()=\]]$"
    r"|^[\w.\[\]'\"]+ *(?:[-+*/|&]?=|\().*|[{};]$|^>>>|^\$ |^!|^-\*-",
    re.M,
)
_NOT_PROSE = re.compile(r"copyright|licen[cs]ed?\b|noqa|pylint|mypy|pragma|coding[:=]|type: ?ignore|fmt: ?o", re.I)


def _prose(line: int, lines: list[str]) -> Iterator[tuple[int, str]]:
    text = " ".join(lines)
    if len(text) < 40 or len(text.split()) < 7 or not re.search(r"[a-z] [a-z]", text):
        return
    plain = sum(character.isalpha() or character in " ,.'" for character in text)
    if plain >= 0.88 * len(text) and not _NOT_PROSE.search(text) and not any(map(_CODE_LIKE.search, lines)):
        yield line, re.sub(r"[ \t]+", " ", text)
