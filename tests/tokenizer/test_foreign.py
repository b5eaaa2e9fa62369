"""tiktoken encodings and sentencepiece models behind our interface: their ids, saved and loaded, hostile ones refused."""

import io
import itertools
import pathlib
import types
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmtiny.errors import UserError
from lmtiny.tokenizer import SPECIAL_TOKENS, Tokenizer, foreign, load

NAMES = ("r50k_base", "cl100k_base", "o200k_base")
TEXTS = (
    "", "Hello, world! It's 12345 o'clock\r\n\n\tx = [1,  2]  ",
    "모든 국민은 ㅋㅋㅋ", "<|endoftext|> e\u0301 \u1112\u1161 😀", "DON'T  stop\n",
)  # fmt: skip


@pytest.fixture(scope="module")
def ranks(test_data: pathlib.Path) -> pathlib.Path:
    return test_data / "tokenizers"


@pytest.mark.parametrize("name", NAMES)
def test_ids_are_those_of_tiktoken(ranks: pathlib.Path, test_data: pathlib.Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import tiktoken
    from tiktoken_ext import openai_public

    ours = load(ranks / f"{name}.tiktoken")
    merges = {token: rank for rank, token in enumerate(ours.tokens) if token}
    monkeypatch.setattr(openai_public, "load_tiktoken_bpe", lambda *_, **__: merges)
    theirs = tiktoken.Encoding(**getattr(openai_public, name)())
    assert ours.vocab_size == theirs.n_vocab + len(SPECIAL_TOKENS) and ours.bos_id == theirs.n_vocab
    real = [path.read_text(errors="replace")[:20_000] for path in sorted((test_data / "languages").glob("*.txt"))]
    for text in (*TEXTS, *real, (test_data / "calculus_made_easy.tex").read_text(errors="replace")[:100_000]):
        ids = ours.encode(text)
        assert ids == theirs.encode_ordinary(text)
        assert ours.decode(ids) == text
    assert ours.encode(b"caf\xe9") == [*ours.encode("caf"), merges[b"\xe9"]]
    assert [ids.tolist() for ids in ours.encode_batch(TEXTS, 2)] == [ours.encode(text) for text in TEXTS]


def test_an_encoding_is_saved_and_loaded(ranks: pathlib.Path, tmp_path: pathlib.Path) -> None:
    ours = load(ranks / "r50k_base.tiktoken")
    ours.save(tmp_path, {"why": "a test"})
    again = load(tmp_path)
    assert (again.hash, again.tokens, again.provenance, again.kind) == (ours.hash, ours.tokens, {"why": "a test"}, "tiktoken")
    assert again.encode(TEXTS[1]) == ours.encode(TEXTS[1])
    with pytest.raises(UserError, match="cannot be cut"):
        ours.cut(1000)
    damaged = tmp_path / "x.tiktoken"
    damaged.write_bytes((ranks / "r50k_base.tiktoken").read_bytes()[:-20])
    with pytest.raises(UserError, match=r"x\.tiktoken is none of tiktoken's"):
        load(damaged)


def test_a_name_is_fetched_and_its_hash_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    import tiktoken

    fetched = types.SimpleNamespace(_mergeable_ranks={bytes([value]): value for value in range(256)})
    monkeypatch.setattr(tiktoken, "get_encoding", lambda _: fetched)
    with pytest.raises(UserError, match="cl100k_base is none of"):
        load("cl100k_base")

    def offline(_: str) -> None:
        raise OSError("no\nnetwork")

    monkeypatch.setattr(tiktoken, "get_encoding", offline)
    with pytest.raises(UserError, match=r"cannot fetch cl100k_base \(OSError: no network\); without a network, name a file"):
        load("cl100k_base")
    with pytest.raises(UserError, match=r"^there is no 'cl100k_bas'; did you mean cl100k_base\?$"):
        load("cl100k_bas")


def trained(corpus: list[str], **options: Any) -> bytes:
    import sentencepiece

    model = io.BytesIO()
    lines = [line for text in corpus for line in text.splitlines() if line.strip()]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=model, vocab_size=900, hard_vocab_limit=False, minloglevel=2, **options
    )
    return model.getvalue()


@pytest.fixture(scope="module")
def models(corpus: list[str]) -> dict[str, bytes]:
    plain = {"normalization_rule_name": "identity", "remove_extra_whitespaces": False, "byte_fallback": True, "model_type": "bpe"}
    lossless = trained(corpus, add_dummy_prefix=False, **plain)
    return {"lossless": lossless, "like Llama 2": trained(corpus, **plain), "as by default": trained(corpus)}


@pytest.fixture(scope="module")
def warned() -> list[str]:
    return []


@pytest.fixture(scope="module")
def loaded(models: dict[str, bytes], warned: list[str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tokenizer]:
    folder = tmp_path_factory.mktemp("models")
    found = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lmtiny.tokenizer.tokenizer.warn", warned.append)
        for number, (name, content) in enumerate(models.items()):
            (folder / f"{number}.model").write_bytes(content)
            found[name] = load(folder / f"{number}.model")
    return found


def test_what_a_model_loses_is_said(loaded: dict[str, Tokenizer], warned: list[str]) -> None:
    assert loaded["lossless"].loses == ""
    assert loaded["like Llama 2"].loses == "a space more in front"
    default = loaded["as by default"].loses
    assert "spaces in a row" in default and "does not know" in default and "same character" in default
    assert len(warned) == 2 and "does not come back" in warned[0]


@given(text=st.text() | st.sampled_from(TEXTS))
@settings(max_examples=60, deadline=None, database=None)
def test_ids_of_a_model_are_those_of_its_library(loaded: dict[str, Tokenizer], models: dict[str, bytes], text: str) -> None:
    import sentencepiece

    for name, content in models.items():
        processor = sentencepiece.SentencePieceProcessor(model_proto=content)
        ids = loaded[name].encode(text)
        assert ids == processor.encode(text)
        assert all(0 <= token < loaded[name].bos_id for token in ids)
    assert loaded["lossless"].decode(loaded["lossless"].encode(text)) == text
    expected = "" if not text else " " + text
    assert loaded["like Llama 2"].decode(loaded["like Llama 2"].encode(text)) == expected


def test_bytes_that_are_not_utf8_come_back_where_the_model_has_bytes(loaded: dict[str, Tokenizer]) -> None:
    raw = b"caf\xe9 \xff\xfe"
    assert loaded["lossless"].decode_bytes(loaded["lossless"].encode(raw)) == raw
    assert isinstance(loaded["as by default"].encode(raw), list)


def test_a_model_is_saved_and_loaded(loaded: dict[str, Tokenizer], tmp_path: pathlib.Path, corpus: list[str]) -> None:
    ours = loaded["lossless"]
    ours.save(tmp_path)
    again = load(tmp_path)
    assert (again.hash, again.tokens, again.kind) == (ours.hash, ours.tokens, "sentencepiece")
    assert again.encode(corpus[0]) == ours.encode(corpus[0])
    assert len({one.hash for one in loaded.values()}) == 3
    path = tmp_path / foreign.FILES["sentencepiece"]
    path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(UserError, match="altered or damaged"):
        load(tmp_path)


def test_what_is_no_model_is_refused(models: dict[str, bytes], tmp_path: pathlib.Path) -> None:
    rng = np.random.default_rng(0)
    path = tmp_path / "x.model"
    content = models["lossless"]
    for wrong in (b"", b"\x80\x04pickle", content[: len(content) // 2], rng.bytes(5000)):
        path.write_bytes(wrong)
        with pytest.raises(UserError, match=r"x\.model is no sentencepiece model"):
            load(path)
    with pytest.raises(UserError, match=r"y\.model'; did you mean .*x\.model\?"):
        load(tmp_path / "y.model")


def test_known_splits_take_time_linear_in_the_text() -> None:
    from lmtiny.tokenizer.huggingface import KNOWN_SPLITS

    ranks = {bytes([value]): value for value in range(256)}
    hard = ("a" * 100_000, " " * 30_000 + "x", "'" * 100_000, "\n \n" * 9000, "a, " * 30_000, "A'S" * 30_000)
    for split, text in itertools.product(sorted(set(KNOWN_SPLITS.values())), hard):
        assert len(foreign.merging_encoder(ranks, split)(text)) == len(text)
