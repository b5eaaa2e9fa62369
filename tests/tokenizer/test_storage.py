"""A saved tokenizer comes back the same, and an altered or forged one is refused in one line."""

import base64
import hashlib
import json
import pathlib
import shutil
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lmtiny.errors import UserError
from lmtiny.tokenizer import KINDS, Tokenizer, learn, load
from lmtiny.tokenizer.storage import DESCRIPTION_FILE, TOKENS_FILE, _content, _sealed

BYTES = tuple(bytes([value]) for value in range(256))
PROVENANCE = {"corpus": "a small one", "bytes": 12345, "nested": {"list": [1, 2.5, None, "é"]}}


def refusal(folder: pathlib.Path) -> str:
    with pytest.raises(UserError) as caught:
        load(folder)
    message = str(caught.value)
    assert message and "\n" not in message and len(message) < 400
    return message


@pytest.mark.parametrize("kind", KINDS)
def test_what_was_saved_is_loaded(tokenizers: dict[str, Tokenizer], kind: str, corpus: list[str], tmp_path: pathlib.Path) -> None:
    folder = tmp_path / "deep" / "tokenizer"
    tokenizers[kind].save(folder, PROVENANCE)
    loaded = load(str(folder))
    assert (loaded.kind, loaded.vocab_size, loaded.hash, loaded.tokens) == (
        kind, tokenizers[kind].vocab_size, tokenizers[kind].hash, tokenizers[kind].tokens,
    )
    assert loaded.provenance == PROVENANCE
    assert [loaded.encode(text) for text in corpus] == [tokenizers[kind].encode(text) for text in corpus]
    assert sorted(path.name for path in folder.iterdir()) == [DESCRIPTION_FILE, TOKENS_FILE], "nothing left aside"


def test_a_folder_that_may_not_be_looked_into(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(path: pathlib.Path) -> bool:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(pathlib.Path, "is_file", denied)  # not by chmod: root may read all
    assert refusal(tmp_path) == f"{tmp_path} cannot be read (Permission denied); change its permissions, or name another tokenizer"


def test_the_hash_is_of_what_decides_the_ids_and_of_nothing_else(bpe: Tokenizer, tmp_path: pathlib.Path) -> None:
    bpe.save(tmp_path, {"made": "here"})
    assert load(tmp_path).hash == bpe.hash
    bpe.save(tmp_path, {"made": "elsewhere"})  # over the one that is there
    assert load(tmp_path).hash == bpe.hash and load(tmp_path).provenance == {"made": "elsewhere"}
    load(tmp_path).save(tmp_path / "copy")
    assert load(tmp_path / "copy").provenance == {"made": "elsewhere"}
    others = [bpe.cut(300), bpe.cut(301), Tokenizer("byte", BYTES), Tokenizer("bpe", BYTES), Tokenizer("char", BYTES)]
    swapped = [*bpe.tokens[:256], bpe.tokens[257], bpe.tokens[256], *bpe.tokens[258:-9]]
    assert len({bpe.hash, Tokenizer("bpe", swapped).hash, *(other.hash for other in others)}) == 7


def test_hashes_stay_what_they_were_when_format_1_was_made() -> None:
    # A change here means that every tokenizer saved before is refused: raise storage.FORMAT then.
    learned: dict[str, tuple[bytes, ...]] = {"bpe": (b"ab", b"abc"), "char": ("é".encode(),), "byte": ()}
    made = {kind: Tokenizer(kind, (*BYTES, *tokens)).hash[:16] for kind, tokens in learned.items()}
    assert made == {"bpe": "456452c3981a8424", "char": "27da3c47e9892bf3", "byte": "030bb2d585a3e51c"}


@given(data=st.data())
@settings(max_examples=150, deadline=None, database=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_flipped_cut_or_added_byte_is_refused(bpe: Tokenizer, tmp_path: pathlib.Path, data: st.DataObject) -> None:
    bpe.cut(290).save(tmp_path, PROVENANCE)
    path = tmp_path / data.draw(st.sampled_from([DESCRIPTION_FILE, TOKENS_FILE]))
    raw = bytearray(path.read_bytes())
    where = data.draw(st.integers(0, len(raw) - 1))
    how = data.draw(st.sampled_from(["flip", "cut", "add"]))
    if how == "flip":
        raw[where] ^= 1 << data.draw(st.integers(0, 7))
    elif how == "cut":
        del raw[where:]
    else:
        raw[where:where] = data.draw(st.sampled_from([b" ", b"\n", b"\0", b"x"]))
    path.write_bytes(raw)
    assert refusal(tmp_path).startswith(str(path)), "the file at fault is named"


def test_what_is_not_there_is_named(bpe: Tokenizer, tmp_path: pathlib.Path) -> None:
    said = refusal(tmp_path / "nowhere")
    assert said.startswith("there is no ") and "a tokenizer is lmtiny's folder, a tokenizer.json," in said and "cl100k_base" in said
    assert f"{DESCRIPTION_FILE} is missing" in refusal(tmp_path) and "a sentencepiece .model" in refusal(tmp_path)
    bpe.save(tmp_path / "run" / "tokenizer", {})
    assert refusal(tmp_path / "run").endswith(f"did you mean {tmp_path / 'run' / 'tokenizer'}?")
    assert refusal(tmp_path / "rum").endswith(f"did you mean {tmp_path / 'run'}?")
    bpe.save(tmp_path, {})
    (tmp_path / TOKENS_FILE).unlink()
    assert f"{TOKENS_FILE} is missing" in refusal(tmp_path)
    shutil.rmtree(tmp_path)
    tmp_path.write_text("a file, not a folder")
    assert "is no tokenizer; a tokenizer is lmtiny's folder" in refusal(tmp_path)
    with pytest.raises(UserError, match="cannot write"):
        bpe.save(tmp_path / "below", {})


# A forger can compute every checksum, so what the files say is checked as well.
def with_description(change: Callable[[dict[str, Any]], dict[str, Any]]) -> Callable[[pathlib.Path], object]:
    def forge(folder: pathlib.Path) -> object:
        path = folder / DESCRIPTION_FILE
        description = change(json.loads(path.read_bytes()))
        description.pop("checksum")
        return path.write_bytes(_sealed(description))

    return forge


def with_lines(kind: str, lines: bytes) -> Callable[[pathlib.Path], object]:
    def forge(folder: pathlib.Path) -> object:
        (folder / TOKENS_FILE).write_bytes(lines)
        digest = hashlib.sha256(lines).hexdigest()
        return with_description(lambda description: {**description, "kind": kind, "tokens_sha256": digest})(folder)

    return forge


def token_lines(*tokens: bytes) -> bytes:
    return b"".join(b"%s %d\n" % (base64.b64encode(token), rank) for rank, token in enumerate(tokens))


def with_tokens(kind: str, *tokens: bytes) -> Callable[[pathlib.Path], object]:
    return with_lines(kind, token_lines(*tokens))


def raw_description(content: bytes) -> Callable[[pathlib.Path], object]:
    return lambda folder: (folder / DESCRIPTION_FILE).write_bytes(content)


FORGED: dict[str, tuple[Callable[[pathlib.Path], object], str]] = {
    "format": (with_description(lambda d: {**d, "format": 2}), "has format 2; this lmtiny reads format 1"),
    "kind": (with_description(lambda d: {**d, "kind": "x" * 10**6}), "has kind 'xxx"),
    "kind of no type": (with_description(lambda d: {**d, "kind": ["bpe"]}), "has kind"),
    "pattern": (with_description(lambda d: {**d, "pattern": "(a+)+$"}), "another split"),
    "special": (with_description(lambda d: {**d, "special": {"<|bos|>": 0}}), "other special tokens"),
    "vocab_size": (with_description(lambda d: {**d, "vocab_size": 10**12}), "does not describe"),
    "hash": (with_description(lambda d: {**d, "hash": "0" * 64}), "does not describe"),
    "provenance": (with_description(lambda d: {**d, "provenance": []}), "does not describe"),
    "another key": (with_description(lambda d: {**d, "more": 1}), "does not describe"),
    "not json": (raw_description(b"\x80\x04pickle"), "is not JSON"),
    "nan": (raw_description(b'{"format": 1, "x": NaN}'), "is not JSON"),
    "deep": (raw_description(b"[" * 100_000), "is not JSON"),
    "a list": (raw_description(b"[1]"), "does not describe a tokenizer"),
    "empty": (raw_description(b""), "is not JSON"),
    "no tokens": (with_tokens("bpe"), "cut short"),
    "255 bytes": (with_tokens("bpe", *BYTES[:255]), "cut short"),
    "bytes in disorder": (with_tokens("bpe", *BYTES[::-1]), "not the 256 bytes"),
    "a token twice": (with_tokens("bpe", *BYTES, b"ab", b"ab"), "twice"),
    "a byte twice": (with_tokens("bpe", *BYTES, b"a"), "2 to 128 bytes"),
    "empty token": (with_tokens("bpe", *BYTES, b""), "2 to 128 bytes"),
    "giant token": (with_tokens("bpe", *BYTES, b"a" * 129), "2 to 128 bytes"),
    "gap": (with_lines("bpe", b"YQ== 1\n"), "expected a token in base64, a space and 0"),
    "not base64": (with_lines("bpe", b"A*A= 0\n"), "line 1: not base64"),
    "loose base64": (with_lines("bpe", b"AB== 0\n"), "line 1: expected"),
    "no last newline": (with_lines("bpe", token_lines(*BYTES, b"ab")[:-1]), "cut short"),
    "byte with merges": (with_tokens("byte", *BYTES, b"ab"), "no tokens but"),
    "char with words": (with_tokens("char", *BYTES, b"ab"), "not characters"),
    "char in disorder": (with_tokens("char", *BYTES, "한".encode(), "é".encode()), "ascending"),
    "char not utf-8": (with_tokens("char", *BYTES, b"\xff\xff"), "not characters"),
}


@pytest.mark.parametrize("name", FORGED)
def test_a_forged_tokenizer_is_refused(bpe: Tokenizer, tmp_path: pathlib.Path, name: str) -> None:
    bpe.cut(290).save(tmp_path, PROVENANCE)
    forge, message = FORGED[name]
    forge(tmp_path)
    assert message in refusal(tmp_path)


def test_tokens_of_another_tokenizer_are_refused(bpe: Tokenizer, tmp_path: pathlib.Path) -> None:
    bpe.cut(290).save(tmp_path / "a", {})
    bpe.cut(291).save(tmp_path / "b", {})
    shutil.copy(tmp_path / "b" / TOKENS_FILE, tmp_path / "a" / TOKENS_FILE)
    assert "was altered or damaged" in refusal(tmp_path / "a")
    assert _content("bpe", bpe.cut(290).tokens[:-9])["hash"] == bpe.cut(290).hash


@pytest.mark.parametrize(("kind", "tokens"), [("bpe", BYTES[:-1]), ("bpe", (*BYTES, b"a")), ("byte", (*BYTES, b"ab")), ("word", BYTES)])
def test_no_tokenizer_is_made_of_what_is_no_vocabulary(kind: str, tokens: tuple[bytes, ...]) -> None:
    with pytest.raises(ValueError, match="token|bytes|kind"):
        Tokenizer(kind, tokens)


def test_provenance_must_be_json(bpe: Tokenizer, tmp_path: pathlib.Path) -> None:
    for wrong in ({"x": object()}, {"x": float("nan")}):
        with pytest.raises((TypeError, ValueError)):
            bpe.save(tmp_path, wrong)
    assert not any(tmp_path.iterdir())


def test_importing_the_room_is_light() -> None:
    code = "import sys, lmtiny.tokenizer; print(sorted({'jax', 'tiktoken', 'sentencepiece', 'regex'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_a_learned_tokenizer_is_saved_as_it_was_learned(tmp_path: pathlib.Path) -> None:
    learned = learn("bpe", ["to be or not to be"], 280, 100)
    learned.save(tmp_path)
    assert load(tmp_path).tokens == learned.tokens and load(tmp_path).provenance == {}
    description = json.loads((tmp_path / DESCRIPTION_FILE).read_text())
    assert description["special"]["<|bos|>"] == learned.bos_id and description["hash"] == learned.hash
