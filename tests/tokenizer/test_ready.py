"""The tokenizers that are shipped can be read, say where they come from, and lose nothing."""

import pathlib

import pytest

from lmtiny.tokenizer import load

READY = sorted(path.parent for path in (pathlib.Path(__file__).parents[2] / "tokenizer_data").glob("*/lmtiny_tokenizer.json"))


@pytest.mark.parametrize("folder", READY, ids=lambda folder: folder.name)
def test_a_ready_tokenizer(folder):
    tokenizer = load(folder)
    assert folder.name.endswith(f"_{tokenizer.vocab_size}")
    assert {"corpus", "corpus_sha256", "settings", "python"} <= set(tokenizer.provenance)
    text = "Return the number of items in a container.\r\n\x00 한국어 🙂 שלום"
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert len(tokenizer.encode("Return the number of items in a container.")) <= 10
    assert tokenizer.decode(tokenizer.cut(1024).encode(text)) == text


def test_there_is_one():
    assert READY
