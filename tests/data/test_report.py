"""The report adds up, names what was dropped and why, and its page holds other people's text without obeying it."""

import html.parser
import json
import random
import re

import pytest

from lmtiny.data import prepare, report
from lmtiny.errors import UserError
from lmtiny.refining import Tally, tally
from tests.refining.planted import prose


class Page(html.parser.HTMLParser):
    """The tags, attributes and texts of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags, self.attributes, self.texts = set(), set(), []
        self.feed(text)

    def handle_starttag(self, tag, attributes) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attributes}

    def handle_data(self, data) -> None:
        self.texts.append(data)


def test_without_refining_it_tells_what_was_read_and_split(config_of) -> None:
    prepared = prepare(config_of())
    found = json.loads((prepared.folder / report.JSON).read_bytes())
    assert next(step["stage"] for step in found["stages"]) == "read" and len(found["stages"]) == 2
    for place, name in enumerate(("documents", "bytes")):
        read, kept = (sum(counts[place] for counts in step["sources"].values()) for step in found["stages"])
        assert kept == sum(split[name] for split in found["splits"].values()) == read
    assert sum(sum(counts) for counts in found["lengths"].values()) == sum(split["documents"] for split in found["splits"].values())
    assert sum(of["got"] for of in found["mixture"].values()) == pytest.approx(1)
    assert found["dropped"] == {} and found["samples"]["dropped"] == []


HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)> </pre></details><b>bold</b> &amp; \" ' javascript: {"


def test_the_page_shows_text_and_runs_nothing(config_of, tmp_path) -> None:
    pytest.importorskip("datatrove", reason="needs the extra corpus: pip install 'lmtiny[corpus]'")
    texts = [f"A sentence of some words, the {number}th of that kind, that ends with a full stop. " * 9 for number in range(20)]
    folder = tmp_path / "texts"
    folder.mkdir()
    name = "<script>alert(3)<&>.jsonl"
    texts += [HOSTILE, HOSTILE + " words" * 40]
    (folder / name).write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    config = config_of(**{"corpus.path": str(folder), "corpus.filters": ("gopher_quality",), "corpus.near_duplicate": 2.0})
    prepared = prepare(config)
    page = Page((prepared.folder / report.PAGE).read_text())
    assert not page.tags & {"script", "img", "iframe", "link", "object", "b"}
    assert not [name for name in page.attributes if name.startswith("on") or name in ("src", "href", "srcdoc")]
    assert any(HOSTILE in text for text in page.texts) and any(name in text for text in page.texts)
    assert "default-src 'none'" in (prepared.folder / report.PAGE).read_text()
    found = json.loads((prepared.folder / report.JSON).read_bytes())
    [read, filtered, split] = [next(iter(step["sources"].values())) for step in found["stages"]]
    dropped = sum(counts[0] for reasons in found["dropped"]["gopher_quality"].values() for counts in reasons.values())
    assert (read[0], filtered[0], dropped) == (22, 20, 2) and read[0] - dropped == filtered[0] == split[0]
    assert read[1] - sum(counts[1] for reasons in found["dropped"]["gopher_quality"].values() for counts in reasons.values()) == filtered[1]
    assert prepare(config).folder == prepared.folder
    prepare(config, rebuild=True)


def test_what_the_split_drops_has_its_source_its_size_and_samples(config_of, tmp_path) -> None:
    lines = [f"Line {number} of a text that says {number * number}, and something about it." for number in range(60)]
    (tmp_path / "texts").mkdir()
    texts = {"a": [lines[:20], lines[20:40], lines[:20]], "b": [lines[:20], lines[40:]], "held": [lines[40:59]]}
    for name, of in texts.items():
        (tmp_path / "texts" / f"{name}.jsonl").write_text("".join(json.dumps({"text": "\n".join(text)}) + "\n" for text in of))
    prepared = prepare(config_of(**{"corpus.path": str(tmp_path / "texts"), "corpus.validation_path": "held.jsonl"}))
    found = json.loads((prepared.folder / report.JSON).read_bytes())
    size = len("\n".join(lines[:20]))
    near = len("\n".join(lines[40:]))
    assert found["dropped"] == {
        "split": {"a.jsonl": {"exact copy": [1, size]}, "b.jsonl": {"exact copy": [1, size], "nearly a held-out document": [1, near]}}
    }
    assert {(one["source"], one["reason"], one["texts"][0]["text"][:8]) for one in found["samples"]["dropped"]} == {
        ("a.jsonl", "exact copy", "Line 0 o"), ("b.jsonl", "exact copy", "Line 0 o"), ("b.jsonl", "nearly a held-out document", "Line 40 "),
    }  # fmt: skip
    page = (prepared.folder / report.PAGE).read_text()
    assert "exact copy" in page and "1 documents" not in page and "1 document<" in page


def test_stages_stand_in_the_order_in_which_they_run(config_of, tmp_path) -> None:
    pytest.importorskip("datatrove", reason="needs the extra corpus: pip install 'lmtiny[corpus]'")
    texts = [*(prose(seed, 24) for seed in range(4)), "Ein kurzer Satz.", "A few short words.", f"{prose(5, 12)} f() {{."]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    knobs = {"filters": ("c4", "gopher_repetition", "gopher_quality"), "language": "en", "cleaning": ("unwrap", "unicode")}
    prepared = prepare(config_of(**{"corpus.path": str(tmp_path), **{f"corpus.{name}": value for name, value in knobs.items()}}))
    found = json.loads((prepared.folder / report.JSON).read_bytes())
    ran = ["read", "unicode", "unwrap", "language", "gopher_repetition", "gopher_quality", "c4"]
    assert [step["stage"] for step in found["stages"]][:-1] == ran
    assert list(found["dropped"]) == [stage for stage in ran if stage in found["dropped"]] and len(found["dropped"]) == 3
    page = Page((prepared.folder / report.PAGE).read_text())
    assert {"bytes, from", "documents"} <= set(page.texts)


def said(output: str) -> dict[str, tuple[int, int]]:
    """Returns the table of sides that was printed: what -> (documents, bytes)."""
    table = output[output.index("side  ") : output.index("learning the tokenizer")]
    rows = re.findall(r"^(\S.*?)  +([\d,]+|-)  +(-?[\d,]+)$", table, re.MULTILINE)
    return {what: (int(documents.replace(",", "").replace("-", "0")), int(size.replace(",", ""))) for what, documents, size in rows}


def spam(seed: int) -> str:
    words = ["buy", "cheap", "click", "here", "now", "prices", "offer", "the", "of", "and", "with", "free"]
    return " ".join(random.Random(seed).choices(words, k=150)) + "."


def test_the_terminal_tells_what_every_stage_dropped_and_it_adds_up(config_of, tmp_path, capsys) -> None:
    pytest.importorskip("datatrove", reason="needs the extra corpus: pip install 'lmtiny[corpus]'")
    good = [prose(seed, 24) for seed in range(30)]
    dropped = {
        "language": "Das ist ein kurzer Satz, der nicht auf Englisch ist und deshalb nicht bleibt.",
        "gopher_quality": "A few short words of English text.",
        "quality": spam(99),
        "contaminated": good[9],
        "near-duplicates of each other": good[0] + " And one more.",
    }
    texts = {"texts": [*good[:9], *dropped.values()], "good": good[10:], "bad": [spam(seed) for seed in range(20)], "task": good[9:10]}
    for name, of in texts.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in of))
    knobs = {"filters": ("gopher_quality",), "language": "en", "quality": "filter", "deduplicate": True}
    named = {"path": "texts", "quality_good": "good", "quality_bad": "bad", "decontaminate": "task"}
    knobs |= {knob: str(tmp_path / f"{name}.jsonl") for knob, name in named.items()}
    prepare(config_of(**{f"corpus.{name}": value for name, value in knobs.items()}))
    rows = said(capsys.readouterr().out)
    assert list(rows) == ["read", "train", "validation", *(f"dropped: {stage}" for stage in dropped)]
    read = rows.pop("read")
    assert read == (14, sum(len(text.encode()) for text in texts["texts"]))
    assert read == tuple(sum(column) for column in zip(*rows.values(), strict=True))
    assert [documents for documents, _ in rows.values()] == [8, 1, 1, 1, 1, 1, 1]


@pytest.mark.parametrize("refined", [False, True])
def test_records_without_text_are_counted_and_shown(config_of, tmp_path, capsys, refined) -> None:
    if refined:
        pytest.importorskip("datatrove", reason="needs the extra corpus: pip install 'lmtiny[corpus]'")
    texts = {"a": [*(prose(seed, 24) for seed in range(9)), None, "", " \r\n\u0007"], "b": [None, "  "]}
    for name, of in texts.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in of))
    prepared = prepare(config_of(**{"corpus.path": str(tmp_path / "*.jsonl"), "corpus.cleaning": ("unicode",) if refined else ()}))
    found = json.loads((prepared.folder / report.JSON).read_bytes())
    assert found["dropped"] == {"read": {"a.jsonl": {"no text": [3, 0]}, "b.jsonl": {"no text": [2, 0]}}}
    read, has_text, *_ = found["stages"]
    assert (read["stage"], has_text["stage"]) == ("read", "has text")
    assert {source: documents for source, (documents, _) in read["sources"].items()} == {"a.jsonl": 12, "b.jsonl": 2}
    assert {source: documents for source, (documents, _) in has_text["sources"].items()} == {"a.jsonl": 9, "b.jsonl": 0}
    page = Page((prepared.folder / report.PAGE).read_text())
    for split in found["splits"].values():
        assert {f"{split[name]:,}" for name in ("documents", "bytes", "tokens", "rows")} <= set(page.texts)
    assert [(one["source"], one["stage"], len(one["texts"])) for one in found["samples"]["dropped"]] == [
        ("a.jsonl", "read", 3), ("b.jsonl", "read", 2),
    ]  # fmt: skip
    assert {one["stage"] for one in found["samples"]["kept"]} == {tally.KEPT}
    rows = said(capsys.readouterr().out)
    assert rows["dropped: no text"] == (5, 0) and rows["read"][0] == 14
    assert rows.pop("read") == tuple(sum(column) for column in zip(*rows.values(), strict=True))


def test_lines_taken_out_of_documents_that_stay_are_counted(config_of, tmp_path, capsys) -> None:
    pytest.importorskip("datatrove", reason="needs the extra corpus: pip install 'lmtiny[corpus]'")
    texts = [prose(seed, 24).replace("\n\n", "\n").replace("[]", "") for seed in range(15)]  # c4 takes [] for a citation
    taken_out = "\nA line without an end\nWe use cookies, says our cookie policy."
    bad = [f"<{HOSTILE}>", "wrapped " * 3, *(text + taken_out for text in texts[12:]), "Short."]
    for name, of in (("a", [*texts[:6], *bad]), ("b", [*texts[6:12], texts[0] + taken_out, "\u2026"])):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in of))
    prepared = prepare(config_of(**{"corpus.path": str(tmp_path / "*.jsonl"), "corpus.filters": ("c4",), "corpus.near_duplicate": 2.0}))
    found = json.loads((prepared.folder / report.JSON).read_bytes())
    assert found["changed"] == {"c4": {"a.jsonl": [3, 3 * len(taken_out)], "b.jsonl": [1, len(taken_out)]}}
    read, filtered = (step["sources"] for step in found["stages"][:2])
    for source, (_, changed) in found["changed"]["c4"].items():
        dropped = sum(size for _, size in found["dropped"]["c4"][source].values())
        assert read[source][1] == filtered[source][1] + dropped + changed
    page = Page((prepared.folder / report.PAGE).read_text())
    assert {"Altered by cleaning and filters", "bytes taken out", str(3 * len(taken_out))} <= set(page.texts)
    before = {**found, "changed": {"unicode": {"a.jsonl": [1]}}}  # as reports were, which a preparation used again may have
    assert "Altered by cleaning and filters" in report.report_page.page(before)
    rows = said(capsys.readouterr().out)
    assert rows["taken out of what stays: c4"] == (0, 4 * len(taken_out)) and rows["dropped: exact copies"][0] == 1
    assert rows.pop("read") == tuple(sum(column) for column in zip(*rows.values(), strict=True))


def test_the_sum_of_tallies_does_not_depend_on_who_counted(tmp_path) -> None:
    def counted(numbers) -> Tally:
        one = Tally()
        for number in numbers:
            source, text = f"s{number % 2}", f"text {number} " * (number + 1)
            one.passed("read", source, len(text))
            one.score(source, number / 30)
            if number % 3:
                one.keep(source, f"id{number}", text)
            else:
                one.drop("filter", source, f"reason{number % 5}", f"id{number}", text)
                one.change("unicode", source, text, text[1:])
        return one

    for place, numbers in enumerate((range(30), range(17), range(17, 30))):
        (tmp_path / f"{place}.json").write_bytes(counted(numbers).to_json())
    whole, first, second = (tmp_path / f"{place}.json" for place in range(3))
    assert tally.load([first, second]).to_json() == tally.load([second, first]).to_json() == whole.read_bytes()
    assert tally.load([whole]).to_json() == whole.read_bytes()


def test_sources_too_many_to_tell_are_told_of_together() -> None:
    sizes = {f"s{number:03d}": number for number in range(100)}
    rename = report._grouped(sizes)
    told = report._sum({source: (1, size) for source, size in sizes.items()}, rename)
    assert len(told) == report.MAX_SOURCES + 1
    assert told["s099"] == [1, 99] and sum(count for count, _ in told.values()) == 100
    assert sum(size for _, size in told.values()) == sum(sizes.values())


def test_mixture_wanted_stands_beside_mixture_got(config_of) -> None:
    prepared = prepare(config_of())
    found = json.loads((prepared.folder / report.JSON).read_bytes())
    wanted = dict.fromkeys(found["mixture"], 0.2)
    shown = report.report_page._mixture({source: {**of, "wanted": wanted[source]} for source, of in found["mixture"].items()})
    assert shown.count("20.00 %") == 5 and len(re.findall(r'fill="#222"', shown)) == 5


@pytest.mark.parametrize(
    "change",
    [{"flow": None}, {"flow": {"read": {"a": [1]}}}, {"samples": {"a": [{}]}}, {"lengths": {"a": [""]}}],
)
def test_a_damaged_tally_is_told_in_one_line(tmp_path, change) -> None:
    one = Tally()
    one.passed("read", "a", 5)
    one.keep("a", "id", "text")
    file = tmp_path / "0.json"
    file.write_text(json.dumps({**json.loads(one.to_json()), **change}))
    with pytest.raises(UserError, match=re.escape(str(file))) as error:
        tally.load([file])
    assert "\n" not in str(error.value)
    file.write_text("{")
    with pytest.raises(UserError, match=re.escape(str(file))):
        tally.load([file])
