"""The comparison: its counts are the tokenizers' own, who is better follows from them, and it is written as text, Markdown and plot."""

import pathlib
import sys

import pytest

from lmtiny import prepare
from lmtiny.errors import UserError
from lmtiny.tokenizer import Tokenizer, compare

KINDS = ("books", "code", "conversation", "english", "korean", "mathematics", "science", "wiki")
READY = pathlib.Path(__file__).parents[2] / "tokenizer_data" / "builtin_16384"


def test_there_is_a_sample_of_each_kind_of_text() -> None:
    texts = compare.samples()
    assert tuple(texts) == KINDS
    assert all(2000 < len(text.encode()) < 8000 for text in texts.values())
    assert sum("가" <= char <= "힣" for char in texts["korean"]) > 500


def test_counts_are_the_tokenizers_own_and_the_better_one_has_fewer(tokenizers: dict[str, Tokenizer]) -> None:
    texts = {"one": "the quick brown fox, the quick brown fox", "two": "모든 국민은"}
    found = compare.compare(tokenizers["bpe"], {"bytes": tokenizers["byte"], "same": tokenizers["bpe"]}, texts)
    assert found.tokens["ours"] == [len(tokenizers["bpe"].encode(text)) for text in texts.values()]
    assert found.tokens["bytes"] == found.sizes == [40, 16]
    own = found.tokens["ours"][0]
    rows = found.rows("bytes")
    assert rows[0] == ("one", "40", "40", "1.00", f"{own}", f"{40 / own:.2f}", f"{own / 40 - 1:+.1%}", "ours")
    assert rows[2][:3] == ("all", "56", "56") and rows[2][4] == str(sum(found.tokens["ours"]))
    assert [row[6:] for row in found.rows("same")] == [("+0.0%", "equal")] * 3
    worse = compare.compare(tokenizers["byte"], {"peer": tokenizers["bpe"]}, texts).rows("peer")
    assert worse[0][6].startswith("+") and worse[0][7] == "peer"


def test_it_is_written_as_text_markdown_and_plot(tokenizers: dict[str, Tokenizer], tmp_path: pathlib.Path) -> None:
    found = compare.compare(tokenizers["bpe"], {"A": tokenizers["byte"], "B": tokenizers["char"]}, {"x": "some words", "y": "1 2"})
    text, markdown, plot = compare.save(found, tmp_path / "new", "a title")
    assert all(path.read_text().count("tokens against A") == 1 and compare.EXPLAINED in path.read_text() for path in (text, markdown))
    assert text.read_text().count("  better") == 2 and "A tokens" in text.read_text() and "B tokens" in text.read_text()
    lines = markdown.read_text().splitlines()
    assert "A tokens" in markdown.read_text() and "B tokens" in markdown.read_text()
    assert lines[0] == "# a title" and len({line.count("|") for line in lines if line.startswith("|")}) == 1
    assert plot.read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["compare.md", "compare.png", "compare.txt"]
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        compare.save(found, tmp_path / "file", "")


def test_samples_of_ones_own_must_be_text(tmp_path: pathlib.Path) -> None:
    with pytest.raises(UserError, match=r"no \.txt in"):
        compare.samples(tmp_path)
    (tmp_path / "a.txt").write_bytes(b"\xff")
    with pytest.raises(UserError, match=r"a\.txt cannot be read as UTF-8"):
        compare.samples(tmp_path)
    (tmp_path / "a.txt").write_bytes(b"")
    with pytest.raises(UserError, match=r"a\.txt is empty"):
        compare.samples(tmp_path)


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    config = str(pathlib.Path(__file__).parents[2] / "configs" / "tiny.py")
    monkeypatch.setattr(sys, "argv", ["prepare", "--config", config, f"--config.tokenizer.path={READY}", *arguments])
    prepare.main()


def test_the_command_compares_a_ready_tokenizer_and_leaves_out_what_it_cannot_have(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], bpe: Tokenizer
) -> None:
    monkeypatch.chdir(tmp_path)
    bpe.save(tmp_path / "mine")
    run(monkeypatch, "--compare", "--compare-with", "mine", "r50k_base", "--ranks", str(tmp_path), "--export", "out.json")
    shown = capsys.readouterr()
    assert "mine tokens" in shown.out and "korean" in shown.out and "r50k_base is left out" in shown.err
    assert {"compare", "mine", "out.json"} == {path.name for path in tmp_path.iterdir()}, "no shards are made for it"
    with pytest.raises(UserError, match="cannot be written"):
        run(monkeypatch, "--export", "no_folder/out.json")
    with pytest.raises(UserError, match="--ranks nope is no folder"):
        run(monkeypatch, "--compare", "--ranks", "nope")
    with pytest.raises(UserError, match=r"--export \. is a folder; name a file, such as tokenizer\.json"):
        run(monkeypatch, "--export", ".")
    (tmp_path / "precious.txt").write_text("mine")
    with pytest.raises(
        UserError, match=r"--export precious\.txt is there, and is no tokenizer\.json of lmtiny's"
    ):
        run(monkeypatch, "--export", "precious.txt")
    with pytest.raises(UserError, match=r"--compare: precious\.txt is a file; name a folder"):
        run(monkeypatch, "--compare", "precious.txt")
    assert (tmp_path / "precious.txt").read_text() == "mine"
    before = (tmp_path / "out.json").read_text()
    capsys.readouterr()
    run(monkeypatch, "--config.tokenizer.cut=1024", "--export", "out.json", "--workdir", "else where")
    assert (tmp_path / "out.json").read_text() != before
    assert capsys.readouterr().out.endswith(" --workdir 'else where'\n")


def test_without_a_network_it_is_said_once_and_shortly(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    import tiktoken

    def offline(_: str) -> None:
        raise ConnectionError("HTTPSConnectionPool(host='a.host', port=443): Max retries exceeded with url: " + "/encodings" * 9)

    monkeypatch.setattr(tiktoken, "get_encoding", offline)
    with pytest.raises(UserError, match=r"^no tokenizer .* cannot fetch r50k_base \(ConnectionError\).* --ranks names") as error:
        run(monkeypatch, "--compare")
    assert len(str(error.value)) < 240 and capsys.readouterr().err == ""


def test_the_command_cuts_a_ready_tokenizer(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run(monkeypatch, "--config.tokenizer.cut=1024", "--export", "out.json")
    assert '"<|output_end|>": ' not in (tmp_path / "out.json").read_text() and '"id": 1023' in (tmp_path / "out.json").read_text()
    with pytest.raises(UserError, match="cannot be cut to 20000"):
        run(monkeypatch, "--config.tokenizer.cut=20000", "--export", "out.json")


def test_what_would_do_nothing_is_refused(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="^--ranks, --samples: only with --compare$"):
        run(monkeypatch, "--ranks", ".", "--samples", ".", "--export", "out.json")
    with pytest.raises(UserError, match=r"kind = 'superword', but .*builtin_16384 is of the kind 'bpe': leave it out$"):
        run(monkeypatch, "--config.tokenizer.kind=superword", "--export", "out.json")
    with pytest.raises(UserError, match=r"vocab_size = 2048, but .*builtin_16384 has 16384 tokens: leave it out, or .*tokenizer\.cut$"):
        run(monkeypatch, "--config.tokenizer.vocab_size=2048", "--export", "out.json")
    run(monkeypatch, "--config.tokenizer.vocab_size=16384", "--export", "out.json")
    run(monkeypatch, "--config.tokenizer.vocab_size=2048", "--config.tokenizer.cut=2048", "--export", "out.json")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config.tokenizer.kind=byte", "--export", "out.json"], "a byte tokenizer cannot be written .*; .* bpe and superword can"),
        (["--export", "no_folder/out.json"], "no_folder/out.json cannot be written: there is no folder "),
        (["--compare", "--compare-with", "nothing"], "no tokenizer to compare with: nothing"),
        (["--compare", "--compare-with", str(READY), "--samples", "nowhere"], "no .txt in nowhere"),
    ],
    ids=str,
)
def test_what_cannot_come_of_it_is_said_before_anything_is_prepared(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("lmtiny.prepare.prepare", None)
    with pytest.raises(UserError, match=message):
        run(monkeypatch, "--config.tokenizer.path=", *arguments)


def test_gpt_ranks_from_a_folder(test_data: pathlib.Path) -> None:
    found = compare.peers(list(compare.PEERS), test_data / "tokenizers")
    assert list(found) == ["GPT-2", "GPT-4", "GPT-4o"]
    counts = compare.compare(found["GPT-4"], {"GPT-2": found["GPT-2"]}, {"x": "hello world"})
    assert counts.tokens == {"ours": [2], "GPT-2": [2]}
