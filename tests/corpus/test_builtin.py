"""The builtin corpus: stable, text only, read without importing, and robust against what an installation may lack."""

import ast
import io
import pathlib
import sys
import sysconfig
import time
import tokenize
import unicodedata

import pytest

from lmtiny import corpus
from lmtiny.config import defaults
from lmtiny.corpus import builtin
from lmtiny.errors import UserError


@pytest.fixture(scope="module")
def documents() -> list[corpus.Document]:
    return [document for unit in corpus.units(defaults()) for document in unit.read()]


def test_two_readings_give_the_same_and_import_nothing(documents: list[corpus.Document]) -> None:
    modules = set(sys.modules)
    began = time.process_time()
    units = corpus.units(defaults())
    again = [document for unit in units for document in unit.read()]
    assert again == documents
    assert [unit.fingerprint for unit in units] == [unit.fingerprint for unit in corpus.units(defaults())]
    assert set(sys.modules) == modules
    assert time.process_time() - began < 20  # 2 s on the machine this was written on


def test_it_is_a_good_deal_of_text_and_nothing_else(documents: list[corpus.Document]) -> None:
    text = "\n".join(document["text"] for document in documents)
    assert 1_500_000 < len(text.encode()) < 6_000_000
    assert not [character for character in set(text) if unicodedata.category(character) == "Cc" and character not in "\n\t"]
    assert sum(character.isalpha() or character.isspace() for character in text) > 0.85 * len(text)
    assert all(document["text"].strip() for document in documents)
    assert len({document["id"] for document in documents}) == len(documents)
    assert {document["source"] for document in documents} == {"python-topics", "python-library"}
    library = sysconfig.get_paths()["stdlib"]
    assert not any(library in document["id"] + document["source"] for document in documents)


def test_docstrings_and_prose_comments_come_in_the_order_of_the_file(tmp_path: pathlib.Path) -> None:
    code = '''"""The module says what it is for, in one line."""
# This comment goes on over two lines, and it is
# joined into one paragraph of prose for the reader.
import os  # a remark behind code is left out, however long it may well be

# value = compute(other) + 1
# if value: return None
TEXT = """
# This line looks like a comment but stands inside of a string, which is no comment.
"""
#-----------------------------------

class C:
    """A class with a docstring of its own.

    >>> C()
    """
    def f(self):
        """Return the answer to everything."""
        # Nobody has ever found out why this is so, but the tests insist on it every single day.
        return 42
'''
    (tmp_path / "m.py").write_text(code)
    [document] = builtin.read_modules("s", tmp_path, [tmp_path / "m.py"])
    assert document["text"].split("\n\n") == [
        "The module says what it is for, in one line.",
        "This comment goes on over two lines, and it is joined into one paragraph of prose for the reader.",
        "A class with a docstring of its own.",
        "Return the answer to everything.",
        "Nobody has ever found out why this is so, but the tests insist on it every single day.",
    ]
    assert document["id"] == "m"


@pytest.mark.parametrize("name", ["argparse.py", "inspect.py", "tokenize.py", "re/_parser.py", "textwrap.py"])
def test_the_fast_lexer_finds_the_comments_that_tokenize_finds(name: str) -> None:
    code = pathlib.Path(sysconfig.get_paths()["stdlib"], name).read_text(encoding="utf-8")
    slow = [token.string for token in tokenize.generate_tokens(io.StringIO(code).readline) if token.type == tokenize.COMMENT]
    fast = [match.group() for match in builtin._STRING_OR_COMMENT.finditer(code) if match.group()[0] == "#"]
    assert fast == slow


@pytest.mark.parametrize("form", ["topics = {!r}\n", "from typing import Final\ntopics: Final = {!r}\n"])
def test_topics_are_found_in_either_form(tmp_path: pathlib.Path, form: str) -> None:
    (tmp_path / "a.py").write_text(form.format({"if": "The if statement is used for conditional execution.  \n"}))
    (tmp_path / "b.py").write_text("other = {1: 2, 'x': 3, **{}}\n")
    found = list(builtin.read_topics("s", tmp_path, sorted(tmp_path.iterdir())))
    assert found == [{"text": "The if statement is used for conditional execution.", "source": "s", "id": "topics/if"}]


def test_modules_that_cannot_be_read_are_left_out(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good = '"""' + "Some plain words about what this module does. " * 10 + '"""\n'
    (tmp_path / "good.py").write_text(good)
    (tmp_path / "latin.py").write_bytes(b"# -*- coding: latin-1 -*-\n" + good.replace("plain", "na\xefve").encode("latin-1"))
    (tmp_path / "wrong.py").write_bytes(b'"""\xff\xfe"""')
    (tmp_path / "coding.py").write_bytes(b"# coding: no-such-thing\n")
    (tmp_path / "syntax.py").write_text("def (:\n")
    (tmp_path / "null.py").write_bytes(b"x = 1\0\n")
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "t.py").write_text(good)
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {"stdlib": str(tmp_path), "purelib": str(tmp_path), "platlib": str(tmp_path)})
    units = builtin.units(installed_packages=False)
    (tmp_path / "gone.py").write_text("x")
    found = [document for unit in units for document in unit.read()]
    assert [document["id"] for document in found] == ["good", "latin"]
    assert "naïve" in found[1]["text"]


def test_a_python_without_sources_is_told_of(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {"stdlib": str(tmp_path), "purelib": str(tmp_path), "platlib": str(tmp_path)})
    with pytest.raises(UserError, match="corpus.kind=files"):
        builtin.units(installed_packages=False)


def test_installed_packages_add_to_it() -> None:
    config = defaults()
    config.corpus.installed_packages = True
    names = {unit.name.split("/")[0] for unit in corpus.units(config)}
    assert names == {"python-topics", "python-library", "python-packages"}


def test_no_source_is_imported() -> None:
    """`corpus` names no module that would run what it reads."""
    tree = ast.parse(pathlib.Path(builtin.__file__).read_text(encoding="utf-8"))
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    assert not names & {"importlib", "runpy", "pydoc", "pydoc_data", "pkgutil"}
