"""tokenizer.json: ours written, others read, and in both ways the ids of Hugging Face's own library."""

import json
import pathlib
import unicodedata
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmtiny.errors import UserError
from lmtiny.tokenizer import Tokenizer, learn, load, tokenizer_json, warning_about
from lmtiny.tokenizer.byte_merges import last_pair, printable_bytes
from lmtiny.tokenizer.huggingface import KNOWN_SPLITS

QWEN_SPLIT = next(written for written in KNOWN_SPLITS if written.startswith("(?i:") and r"|\p{N}|" in written)
KINDS_OF_MERGES = ("bpe", "superword")
quick = settings(max_examples=150, deadline=None, database=None)
# Old characters: Unicode versions disagree about those assigned lately.
old_characters = st.characters(max_codepoint=0x24F, exclude_categories=["Cn", "Cs"])
any_text = st.text(old_characters) | st.text("ab 'sſKtre,.\n\r\t1２é가\u0301\u1112\u1161")


def qwen_like(bpe: Tokenizer) -> dict[str, Any]:
    """Returns a tokenizer.json laid out as Qwen2.5's: bytes in GPT-2's order, NFC, merges as "a b", added tokens behind."""
    content = json.loads(tokenizer_json(bpe))
    model = content["model"]
    order = [*printable_bytes().values(), *list(model["vocab"])[256:]]
    vocab = {word: number for number, word in enumerate(order)}
    merges = [" ".join(pair) for pair in model["merges"]]
    model |= {"vocab": vocab, "merges": merges, "ignore_merges": False, "continuing_subword_prefix": "", "end_of_word_suffix": ""}
    content["normalizer"] = {"type": "NFC"}
    content["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = QWEN_SPLIT
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    names = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
    content["added_tokens"] = [{"id": len(order) + place, "content": name, **flags} for place, name in enumerate(names)]
    return content


def written(content: Any, folder: pathlib.Path) -> pathlib.Path:
    path = folder / "tokenizer.json"
    path.write_text(json.dumps(content))
    return path


@pytest.fixture(scope="module")
def qwen(bpe: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lmtiny.tokenizer.tokenizer.warn", lambda _: None)
        return load(written(qwen_like(bpe), tmp_path_factory.mktemp("qwen")))


@pytest.fixture(scope="module")
def theirs(tokenizers: dict[str, Tokenizer], bpe: Tokenizer) -> dict[str, Callable[[str], list[int]]]:
    library = pytest.importorskip("tokenizers", reason="pip install 'lmtiny[peers]' compares with Hugging Face's library")
    texts = {kind: tokenizer_json(tokenizers[kind]) for kind in KINDS_OF_MERGES} | {"qwen": json.dumps(qwen_like(bpe))}
    made = {kind: library.Tokenizer.from_str(text) for kind, text in texts.items()}
    for one in made.values():
        one.encode_special_tokens = True  # as ordinary text: Hypothesis finds "<|bos|>" in our sources, and tries it
    return {kind: lambda text, one=one: one.encode(text, add_special_tokens=False).ids for kind, one in made.items()}


@pytest.mark.parametrize("kind", KINDS_OF_MERGES)
@given(text=any_text)
@quick
def test_ids_are_those_of_their_library(tokenizers: dict[str, Tokenizer], theirs: Any, kind: str, text: str) -> None:
    assert tokenizers[kind].encode(text) == theirs[kind](text)


@given(text=any_text)
@quick
def test_ids_of_a_file_read_are_those_of_their_library(qwen: Tokenizer, theirs: Any, text: str) -> None:
    assert qwen.encode(text) == theirs["qwen"](text)
    assert qwen.decode(qwen.encode(text)) == unicodedata.normalize("NFC", text)


def test_ids_of_real_text_are_those_of_their_library(test_data: pathlib.Path) -> None:
    library = pytest.importorskip("tokenizers", reason="pip install 'lmtiny[peers]' compares with Hugging Face's library")
    paths = [path for path in sorted(test_data.rglob("*")) if path.suffix in (".txt", ".tex", ".jsonl")]
    texts = [path.read_text(errors="replace")[:30_000] for path in paths]
    assert len(texts) > 40
    for kind in KINDS_OF_MERGES:
        ours = learn(kind, texts, 2048, 500_000)
        other = library.Tokenizer.from_str(tokenizer_json(ours))
        expected = other.encode_batch_fast(texts, add_special_tokens=False)
        assert [ids.tolist() for ids in ours.encode_batch(texts)] == [one.ids for one in expected]


@pytest.mark.parametrize("kind", KINDS_OF_MERGES)
def test_ours_written_and_read_again_is_ours(
    tokenizers: dict[str, Tokenizer], kind: str, corpus: list[str], tmp_path: pathlib.Path
) -> None:
    content = json.loads(tokenizer_json(tokenizers[kind]))
    again = load(written(content, tmp_path))
    assert (again.kind, again.hash, again.vocab_size) == (kind, tokenizers[kind].hash, tokenizers[kind].vocab_size)
    assert again.special == tokenizers[kind].special, "not a second time behind those of the file"
    assert bool(warning_about(again)) == (kind == "superword")
    for text in (*corpus, b"caf\xe9 \xff", "<|bos|>"):
        assert again.encode(text) == tokenizers[kind].encode(text)
    assert content["model"]["ignore_merges"] and {one["content"]: one["id"] for one in content["added_tokens"]} == tokenizers[kind].special


def test_ours_with_another_addition_is_a_strangers(bpe: Tokenizer, corpus: list[str], tmp_path: pathlib.Path) -> None:
    content = json.loads(tokenizer_json(bpe))
    content["added_tokens"].append({**content["added_tokens"][0], "id": bpe.vocab_size, "content": "<|more|>"})
    again = load(written(content, tmp_path))
    assert (again.kind, again.vocab_size) == ("huggingface", bpe.vocab_size + 10)
    assert again.encode(corpus[0]) == bpe.encode(corpus[0])


def test_what_is_read_is_saved_and_loaded_as_it_was(qwen: Tokenizer, tmp_path: pathlib.Path, corpus: list[str]) -> None:
    qwen.save(tmp_path)
    again = load(tmp_path)
    assert (again.hash, again.tokens, again.kind, again.bos_id) == (qwen.hash, qwen.tokens, "huggingface", qwen.vocab_size - 9)
    assert [again.encode(text) for text in corpus] == [qwen.encode(text) for text in corpus]
    assert again.token_bytes[-12:].sum() == 0, "their three special tokens and our nine stand for no bytes"
    path = tmp_path / "tokenizer.json"
    path.write_bytes(path.read_bytes().replace(b"NFC", b"NFD"))
    with pytest.raises(UserError, match="altered or damaged"):
        load(tmp_path)


def of_letters(merges: list[str], **model: Any) -> dict[str, Any]:
    """Returns a tokenizer.json laid out as GPT-2's: the bytes, then what `merges` make."""
    vocab = {char: value for value, char in printable_bytes().items()}
    for pair in merges:
        vocab.setdefault(pair.replace(" ", ""), len(vocab))
    pre_tokenizer = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    return {"version": "1.0", "added_tokens": [], "normalizer": None, "pre_tokenizer": pre_tokenizer,
        "model": {"type": "BPE", "unk_token": None, "vocab": vocab, "merges": merges, **model}}  # fmt: skip


def test_a_token_that_no_merges_reach_is_a_whole_piece_or_nothing(tmp_path: pathlib.Path) -> None:
    content = of_letters(["b c", "a b", "c d", "ab cd"], ignore_merges=True)
    reads = load(written(content, tmp_path))
    assert [reads.encode(text) for text in ("abcd", "xabcd", "abcdx", "abcd.abcd")] == [
        [259], [120, 97, 256, 100], [97, 256, 100, 120], [259, 46, 259],
    ]  # fmt: skip
    assert tokenizer_json(reads) == (tmp_path / "tokenizer.json").read_text()
    content["model"]["ignore_merges"] = False
    assert load(written(content, tmp_path)).encode("abcd") == [97, 256, 100]
    # By rank it would come about of two tokens, "ab" and "c"; no merge says so.
    content = of_letters(["a b"], ignore_merges=True)
    content["model"]["vocab"]["abc"] = 257
    reads = load(written(content, tmp_path))
    assert [reads.encode(text) for text in ("abc", "xabc", "abc abc.abc")] == [
        [257], [120, 256, 99], [257, 32, 256, 99, 46, 257],
    ]  # fmt: skip
    content["model"]["vocab"]["yz"] = 258
    with pytest.raises(UserError, match=r"ignore_merges, and its token b'yz' of two bytes has no merge"):
        load(written(content, tmp_path))


def test_a_model_of_no_type_is_the_bpe_that_it_looks_like(tmp_path: pathlib.Path) -> None:
    content = of_letters(["a b"])
    del content["model"]["type"]
    assert load(written(content, tmp_path)).encode("abcd") == [256, 99, 100]


def changed(**changes: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda content: {**content, **changes}


def in_model(**changes: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda content: {**content, "model": {**content["model"], **changes}}


def with_split(**changes: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda content: {**content, "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
        {**content["pre_tokenizer"]["pretokenizers"][0], **changes}, content["pre_tokenizer"]["pretokenizers"][1]]}}  # fmt: skip


def merges_reversed(content: dict[str, Any]) -> Any:
    return in_model(merges=content["model"]["merges"][::-1])(content)


HOSTILE: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "an expression that never ends": (with_split(pattern={"Regex": "(a+)+$"}), "regular expression that lmtiny does not know"),
    "an expression of no type": (with_split(pattern={"Regex": ["x"]}), "damaged"),
    "another split": (with_split(behavior="Removed"), "in a way that lmtiny does not know"),
    "no split": (changed(pre_tokenizer={"type": "Whitespace"}), "pre_tokenizer"),
    "another model": (in_model(type="WordPiece"), "model.type"),
    "dropout": (in_model(dropout=0.1), "model.dropout"),
    "byte fallback": (in_model(byte_fallback=True), "model.byte_fallback"),
    "another normalizer": (changed(normalizer={"type": "Replace", "pattern": {"Regex": "(a+)+$"}, "content": ""}), "normalizer"),
    "an id that would fill the memory": (in_model(vocab={"a": 10**15}), "is no id"),
    "an id below zero": (in_model(vocab={"a": -1}), "is no id"),
    "an id that is no number": (in_model(vocab={"a": "0"}), "is no id"),
    "a null split, as Llama 2's": (changed(pre_tokenizer=None), "its pre_tokenizer is null"),
    "splits of no type": (changed(pre_tokenizer={"type": "Sequence", "pretokenizers": [None]}), "damaged"),
    "no splits": (changed(pre_tokenizer={"type": "Sequence", "pretokenizers": []}), "is not a split and"),
    "a merge of three": (in_model(merges=["a b c"]), "a merge is of 3 tokens"),
    "a character that is no byte": (in_model(vocab={"가": 0}), "not written in the characters of GPT-2's"),
    "an id that is a list": (in_model(vocab={"a": [[1]]}), "is no id"),
    "a normalizer that is a word": (changed(normalizer="NFC"), "damaged"),
    "no bytes": (in_model(vocab={}, merges=[]), "damaged"),
    "merges in disorder": (merges_reversed, "not in the order of byte-pair encoding"),
    "a merge of what is no token": (in_model(merges=["q z"]), "not in its vocabulary"),
    "a list": (lambda _: [1], "damaged"),
    "nothing": (lambda _: {}, "damaged"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_is_refused_in_one_line(bpe: Tokenizer, tmp_path: pathlib.Path, name: str) -> None:
    change, message = HOSTILE[name]
    with pytest.raises(UserError) as caught:
        load(written(change(qwen_like(bpe)), tmp_path))
    assert message in str(caught.value) and "\n" not in str(caught.value) and len(str(caught.value)) < 400
    assert "tokenizer.json" in str(caught.value)


def test_a_file_cut_short_or_deep_is_refused(bpe: Tokenizer, tmp_path: pathlib.Path) -> None:
    path = written(qwen_like(bpe), tmp_path)
    for content in (path.read_bytes()[:-100], b"", b"[" * 100_000, b"\x80\x04"):
        path.write_bytes(content)
        with pytest.raises(UserError, match="damaged"):
            load(path)
        with pytest.raises(UserError, match="damaged"):
            load(tmp_path)  # the folder of a Hugging Face model


def test_only_merges_can_be_written(tokenizers: dict[str, Tokenizer]) -> None:
    for kind in ("char", "byte"):
        with pytest.raises(UserError, match="own bpe and superword can"):
            tokenizer_json(tokenizers[kind])


def test_the_pair_merged_last() -> None:
    ranks = {token: rank for rank, token in enumerate([b"a", b"b", b"c", b"d", b"bc", b"ab", b"abc", b"abcd"])}
    assert last_pair(b"abc", ranks) == (b"a", b"bc"), "bc comes before ab"
    assert last_pair(b"abcd", ranks) == (b"abc", b"d")
    assert last_pair(b"cab", ranks) == (b"c", b"ab") and last_pair(b"cabd", ranks) is None
