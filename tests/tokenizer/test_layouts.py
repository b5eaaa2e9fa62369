"""tokenizer.json as laid out in the wild: the ids of Hugging Face's own library, or one line that names the field."""

import json
import pathlib
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmtiny.errors import UserError
from lmtiny.tokenizer import Tokenizer, load, tokenizer_json
from lmtiny.tokenizer.byte_merges import printable_bytes

tokenizers = pytest.importorskip(
    "tokenizers", reason="pip install 'lmtiny[peers]' compares with Hugging Face's library"
)
decoders, models, normalizers, trainers = (
    tokenizers.decoders,
    tokenizers.models,
    tokenizers.normalizers,
    tokenizers.trainers,
)
pre = tokenizers.pre_tokenizers

# Old characters: Unicode versions disagree about those assigned lately.
old_characters = st.characters(max_codepoint=0x24F, exclude_categories=["Cn", "Cs"])
texts = st.text(old_characters) | st.text("ab '’sſKtreAÉ,./\n\r\t 12²１é가") | st.text("abcdx ")

ENDINGS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
GPT4 = ENDINGS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|NUMBERS| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LOWER, UPPER = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]", r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"
TEKKEN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}*{LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{UPPER}+{LOWER}*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def split(*expressions: str) -> Any:
    parts = [pre.Split(tokenizers.Regex(one), "isolated") for one in expressions]
    return pre.Sequence([*parts, pre.ByteLevel(add_prefix_space=False, use_regex=False)])


BYTE_LEVEL = {
    "GPT-2": (None, pre.ByteLevel(add_prefix_space=False), False),
    "Llama 3": (None, split(GPT4.replace("NUMBERS", r"\p{N}{1,3}")), True),
    "Qwen2.5": (normalizers.NFC(), split(GPT4.replace("NUMBERS", r"\p{N}")), False),
    "Mistral's Tekken": (None, split(TEKKEN), True),
    "Phi-4": (None, split(GPT4.replace("NUMBERS", r"\p{N}{1,3}")), False),
    "SmolLM": (
        None,
        pre.Sequence([pre.Digits(individual_digits=True), pre.ByteLevel(add_prefix_space=False)]),
        False,
    ),
}


def byte_level(bpe: Tokenizer, name: str, added: list[Any] | None = None) -> Any:
    """Returns a tokenizer of their library, laid out as the one of that name, with the merges of `bpe`."""
    normalizer, pre_tokenizer, ignore_merges = BYTE_LEVEL[name]
    model = json.loads(tokenizer_json(bpe))["model"]
    vocab = dict(model["vocab"]) | (
        {"Ġtheyabc": len(model["vocab"]), "the": len(model["vocab"]) + 1} if ignore_merges else {}
    )
    merges = [tuple(pair) for pair in model["merges"]]
    made = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=merges, ignore_merges=ignore_merges))
    made.pre_tokenizer, made.decoder = pre_tokenizer, decoders.ByteLevel()
    if normalizer:
        made.normalizer = normalizer
    made.add_special_tokens(["<|endoftext|>", "<|im_start|>"])
    made.add_tokens(added or [])
    made.encode_special_tokens = True
    return made


def loaded(made: Any, folder: pathlib.Path, **changes: Any) -> Tokenizer:
    path = folder / "tokenizer.json"
    path.write_text(json.dumps({**json.loads(made.to_str()), **changes}))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lmtiny.tokenizer.tokenizer.warn", lambda _: None)
        return load(path)


@pytest.fixture(scope="module")
def pairs(
    bpe: Tokenizer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, tuple[Any, Tokenizer]]]:
    made = {name: byte_level(bpe, name) for name in BYTE_LEVEL}
    return {name: (one, loaded(one, tmp_path_factory.mktemp("layout"))) for name, one in made.items()}


@pytest.mark.parametrize("name", BYTE_LEVEL)
def test_a_byte_level_layout_gives_the_ids_of_their_library(
    pairs: dict[str, tuple[Any, Tokenizer]], corpus: list[str], name: str
) -> None:
    theirs, ours = pairs[name]

    @given(text=texts | st.sampled_from(corpus))
    @settings(max_examples=100, deadline=None, database=None)
    def check(text: str) -> None:
        assert ours.encode(text) == theirs.encode(text, add_special_tokens=False).ids

    check()
    assert ours.encode("<|endoftext|><|im_start|>") == ours.encode("<|endoftext|>") + ours.encode(
        "<|im_start|>"
    )
    assert max(ours.encode("<|endoftext|><|im_start|><|bos|>")) < theirs.token_to_id("<|endoftext|>")


def test_a_file_that_was_read_is_exported_as_it_was(pairs: dict[str, tuple[Any, Tokenizer]]) -> None:
    for theirs, ours in pairs.values():
        assert json.loads(tokenizer_json(ours)) == json.loads(theirs.to_str())


def llama2() -> Any:
    vocab = {"<unk>": 0, "▁": 1, "a": 2, "▁a": 3}
    made = tokenizers.Tokenizer(
        models.BPE(vocab, [("▁", "a")], unk_token="<unk>", byte_fallback=True)
    )
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    return made


def gemma() -> Any:
    made = llama2()
    made.normalizer, made.pre_tokenizer = (
        normalizers.Replace(" ", "▁"),
        pre.Split(" ", "merged_with_previous"),
    )
    return made


def metaspace() -> Any:
    made = llama2()
    made.normalizer, made.pre_tokenizer = None, pre.Metaspace()
    return made


def of_words(model: Any, pre_tokenizer: Any) -> Any:
    made = tokenizers.Tokenizer(model)
    made.pre_tokenizer = pre_tokenizer
    return made


def several_splits(bpe: Tokenizer) -> Any:
    made = byte_level(bpe, "GPT-2")
    made.pre_tokenizer = split(r"\p{N}{1,3}", "[一-龥぀-ゟ゠-ヿ]+", GPT4.replace("NUMBERS", r"\p{N}"))
    return made


REFUSED = {
    "Llama 2": (lambda _: llama2(), r"its pre_tokenizer is null.*name the \.model"),
    "Gemma": (lambda _: gemma(), r"its pre_tokenizer \('Split'\) is not"),
    "Mistral's first": (lambda _: metaspace(), r"its pre_tokenizer \('Metaspace'\) is not"),
    "Phi-2": (
        lambda bpe: byte_level(bpe, "GPT-2", [tokenizers.AddedToken("  ", normalized=False)]),
        "added token '  ' is ordinary text",
    ),
    "DeepSeek": (several_splits, r"\('Split, Split, Split, ByteLevel'\) is not a split and ByteLevel"),
    "BERT": (
        lambda _: of_words(models.WordPiece({"[UNK]": 0, "a": 1}), pre.BertPreTokenizer()),
        "model.type = 'WordPiece'",
    ),
    "T5": (
        lambda _: of_words(models.Unigram([("<unk>", 0.0), ("▁a", -1.0)], 0), pre.Metaspace()),
        "model.type = 'Unigram'",
    ),
    "words": (
        lambda _: of_words(models.WordLevel({"a": 0}, unk_token="a"), pre.Whitespace()),
        "model.type = 'WordLevel'",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_another_layout_is_refused_in_one_line(bpe: Tokenizer, tmp_path: pathlib.Path, name: str) -> None:
    make, message = REFUSED[name]
    with pytest.raises(UserError, match=message) as caught:
        loaded(make(bpe), tmp_path)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


FEW = {char: value for value, char in printable_bytes().items()}
pieces = st.text("abcd", min_size=2, max_size=4)


@given(
    made=st.lists(st.tuples(pieces, st.integers(1, 3)), max_size=8),
    unmade=st.lists(pieces, max_size=4),
    ignore_merges=st.booleans(),
    strings=st.lists(st.text("abcd ", max_size=12), min_size=5, max_size=5),
)
@settings(max_examples=300, deadline=None, database=None)
def test_any_merges_give_the_ids_of_their_library_or_one_line(
    tmp_path_factory: pytest.TempPathFactory,
    made: list[tuple[str, int]],
    unmade: list[str],
    ignore_merges: bool,
    strings: list[str],
) -> None:
    """Tokens that their merges do not reach among them, with and without ignore_merges."""
    vocab = dict(FEW)
    merges = []
    for token, place in made:
        left, right = token[:place], token[place:]
        if right and left in vocab and right in vocab:
            vocab.setdefault(token, len(vocab))
            merges.append((left, right))
    for token in unmade:
        vocab.setdefault(token, len(vocab))
    theirs = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=merges, ignore_merges=ignore_merges))
    theirs.pre_tokenizer = pre.ByteLevel(add_prefix_space=False)
    try:
        ours = loaded(theirs, tmp_path_factory.getbasetemp())
    except UserError as error:
        assert "of two bytes has no merge" in str(error) or "not in the order" in str(error)
        return
    for text in [*strings, *vocab, *(" " + token for token in unmade), " ".join(unmade + unmade)]:
        assert ours.encode(text) == theirs.encode(text, add_special_tokens=False).ids
