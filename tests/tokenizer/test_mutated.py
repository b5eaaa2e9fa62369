"""A stranger's tokenizer, mutated at random: one line that refuses it, or one that gives every text back."""

import io
import json
import pathlib
import random
import time
import unicodedata
from collections.abc import Callable
from typing import Any

import pytest

from lmtiny.errors import UserError
from lmtiny.tokenizer import Tokenizer, load, tokenizer_json
from lmtiny.tokenizer.storage import DESCRIPTION_FILE, TOKENS_FILE, _sealed

TEXTS = (
    "", "The king's 12 gardens\r\n\n  x", "모든 국민은 ㅋㅋ", "<|bos|><|endoftext|>", "a\0b \u2581", "abcd" * 200,
    b"caf\xe9\xff",
)  # fmt: skip
SECONDS = 10  # at most, to be refused or to be read and to encode those
COUNTS = [50, pytest.param(500, marks=pytest.mark.exhaustive)]

DEEP: Any = "end"
for _ in range(900):  # json writes no deeper one
    DEEP = [DEEP]
VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 10**15, 10**400, 1e308, "", "(a+)+$", "../../x", "\0", "\ud800", "가", "a b",
    "a b c", "ab", [], [None], {}, {"type": "BPE"}, {"type": []}, DEEP, "x" * 10_000, [["a"]],
    {"a": 10**15}, "NFC", "BPE", "Sequence",
)  # fmt: skip


def changed_bytes(content: bytes, rng: random.Random) -> bytes:
    """Returns `content` with bits turned, bytes put in, taken out or overwritten, or without its end."""
    mutated = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 8))):
        place = rng.randrange(len(mutated) + 1)
        kind = rng.randrange(5)
        if kind == 0 and place < len(mutated):
            mutated[place] ^= 1 << rng.randrange(8)
        elif kind == 1:
            mutated[place : place + 1] = bytes([rng.choice((0, 0x7F, 0x80, 0xFF, ord("["), ord('"')))])
        elif kind == 2:
            del mutated[place : place + rng.randrange(1, 40)]
        elif kind == 3:
            mutated[place:place] = rng.randbytes(rng.randrange(1, 8))
        elif rng.random() < 0.2:
            del mutated[place:]
    return bytes(mutated)


def changed_value(content: Any, rng: random.Random) -> Any:
    """Returns the JSON value with something in it left out, doubled, or of another type, often near its top."""
    content = json.loads(json.dumps(content))
    for _ in range(rng.choice((1, 1, 2))):
        holder = content
        while True:
            keys = list(holder) if isinstance(holder, dict) else list(range(len(holder)))
            key = rng.choice(keys)
            inner = holder[key]
            if not isinstance(inner, dict | list) or not inner or rng.random() < 0.2:
                break
            holder = inner
        kind = rng.randrange(5)
        if kind == 0:
            del holder[key]
        elif kind == 1 and isinstance(holder, dict):
            holder[rng.choice(("type", "x" * 2000, "\0", "ab"))] = inner
        elif kind == 2 and isinstance(holder, list):
            holder.insert(key, inner)
        else:
            holder[key] = rng.choice(VALUES)
        if not content:
            break
    return content


def as_json(content: Any) -> bytes:
    return json.dumps(content).encode()


Change = Callable[[pathlib.Path, random.Random], None]


def of_json(bpe: Tokenizer) -> Change:
    known = json.loads(tokenizer_json(bpe))
    other = json.loads(json.dumps(known))
    other["normalizer"], other["model"]["ignore_merges"] = {"type": "NFC"}, False
    other["added_tokens"] = other["added_tokens"][:3]

    def write(folder: pathlib.Path, rng: random.Random) -> None:
        content = rng.choice((known, other))
        by_value = as_json(changed_value(content, rng))
        source = by_value if rng.random() < 0.7 else changed_bytes(as_json(content), rng)
        (folder / "tokenizer.json").write_bytes(source)

    return write


def of_ours(tokenizers: dict[str, Tokenizer]) -> Change:
    def write(folder: pathlib.Path, rng: random.Random) -> None:
        tokenizers[rng.choice(sorted(tokenizers))].save(folder, {"corpus": "a small one"})
        description, tokens = folder / DESCRIPTION_FILE, folder / TOKENS_FILE
        if rng.random() < 0.3:
            tokens.write_bytes(changed_bytes(tokens.read_bytes(), rng))
        said = json.loads(description.read_bytes())
        if rng.random() < 0.7:
            said = changed_value(said, rng)
        if isinstance(said, dict) and rng.random() < 0.7:  # a stranger can seal it too
            said.pop("checksum", None)
            description.write_bytes(_sealed(said))
        else:
            description.write_bytes(changed_bytes(as_json(said), rng))

    return write


def of_models(corpus: list[str]) -> Change:
    import sentencepiece

    lines = [line for text in corpus for line in text.splitlines() if line.strip()]
    models = []
    for options in ({"vocab_size": 700, "model_type": "bpe", "byte_fallback": True}, {"vocab_size": 500}):
        model = io.BytesIO()
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines), model_writer=model, hard_vocab_limit=False, minloglevel=2,
            **options,
        )  # fmt: skip
        models.append(model.getvalue())

    def write(folder: pathlib.Path, rng: random.Random) -> None:
        (folder / "x.model").write_bytes(changed_bytes(rng.choice(models), rng))

    return write


def of_ranks(bpe: Tokenizer) -> Change:
    def write(folder: pathlib.Path, rng: random.Random) -> None:
        bpe.save(folder)
        content = (folder / TOKENS_FILE).read_bytes()
        for path in folder.iterdir():
            path.unlink()
        (folder / "x.tiktoken").write_bytes(changed_bytes(content, rng))

    return write


def refuse_or_use(path: pathlib.Path) -> bool:
    """Returns whether the tokenizer at `path` was read; its texts come back, but for what it loses."""
    started = time.perf_counter()
    try:
        known = load(path)
    except UserError as error:
        assert "\n" not in str(error) and len(str(error)) < 600, error
        str(error).encode()  # as it is printed: no lone surrogates
        return False
    finally:
        assert time.perf_counter() - started < SECONDS
    for text in TEXTS:
        ids = known.encode(text)
        assert all(0 <= number < known.bos_id for number in ids), "no special token comes of a text"
        found = known.decode_bytes(ids)
        expected = text if isinstance(text, bytes) else text.encode()
        assert found == expected or known.loses
        if "NFC" in known.loses and isinstance(text, str):
            assert found.decode() == unicodedata.normalize("NFC", text)
    assert time.perf_counter() - started < SECONDS
    return True


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("kind", ["tokenizer.json", "ours", "sentencepiece", "tiktoken"])
def test_a_mutated_tokenizer_is_refused_in_one_line_or_gives_texts_back(
    kind: str, count: int, bpe: Tokenizer, tokenizers: dict[str, Tokenizer], corpus: list[str],
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr("lmtiny.tokenizer.tokenizer.warn", lambda _: None)
    made: dict[str, Callable[[], Change]] = {
        "tokenizer.json": lambda: of_json(bpe), "ours": lambda: of_ours(tokenizers),
        "sentencepiece": lambda: of_models(corpus), "tiktoken": lambda: of_ranks(bpe),
    }  # fmt: skip
    write, rng, read = made[kind](), random.Random(count), 0
    for number in range(count):
        folder = tmp_path / str(number)
        folder.mkdir()
        write(folder, rng)
        before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
        only = [path for path in folder.iterdir() if path.suffix in (".model", ".tiktoken")]
        read += refuse_or_use(only[0] if only else folder)
        assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
        for path in folder.iterdir():
            path.unlink()
    if kind in ("tokenizer.json", "sentencepiece"):
        assert 0 < read < count, "some are read, some refused: both ways are tried"
