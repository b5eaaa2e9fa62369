"""Refining: what is planted goes and the rest stays, counted by reason, the same bytes however it came about."""

import gzip
import hashlib
import importlib.util
import json
import os
import pathlib
import signal
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from lmtiny import corpus, refining
from lmtiny.corpus.near_duplicates import Index
from lmtiny.data import pool
from lmtiny.errors import UserError
from lmtiny.files import is_aside
from lmtiny.refining import quality
from tests.refining.planted import config_for, prose

pytest.importorskip("datatrove", reason="needs the extra corpus: pip install 'lmtiny[corpus]'")
ROOT = pathlib.Path(__file__).parents[2]
ALL_FILTERS = ["gopher_quality", "gopher_repetition", "c4", "fineweb"]


def ids(documents: list[dict]) -> list[str]:
    return [document["id"] for document in documents]


def test_nothing_is_asked_for_and_nothing_changes(make_corpus) -> None:
    plan = refining.plan_of(config_for(make_corpus(a=["x"])))
    assert plan.nothing() and plan.depends_on() == {}
    code = "import lmtiny.data, sys; print({'datatrove', 'loguru', 'scipy', 'py3langid'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert done.stdout.strip() == "set()", done.stderr


def test_each_filter_drops_what_it_is_for(make_corpus, refined) -> None:
    good = [prose(seed, 24) for seed in range(4)]
    bad = {
        "gopher_short_doc": " ".join(prose(12, 3).split()[:40]),
        "duplicated_5_n_grams": " ".join([prose(9, 6), prose(8, 6), prose(9, 6)]),
        "gopher_below_alpha_threshold": prose(10, 6) + " " + " ".join(str(number * number) for number in range(1000, 1060)),
        "too_few_sentences": "\n".join(prose(seed, 1).rstrip(".") for seed in range(30, 60)),
        "curly_bracket": prose(11, 12) + " function() {.",
    }
    documents, tally = refined(make_corpus(web=[*good, *bad.values()]), filters=ALL_FILTERS)
    assert sorted(document["text"] for document in documents) == sorted(text.replace("\n\n", "\n") for text in good)  # C4 joins lines
    assert set(tally.reasons()) == set(bad)
    assert all(count == 1 for count in tally.reasons().values())
    kept_and_dropped = sum(count for count, _ in tally.flow["fineweb"].values()) + tally.reasons().total()
    assert kept_and_dropped == tally.flow["read"]["web.jsonl"][0] == len(good) + len(bad)
    shown = {key.split("\t")[2]: held[0]["text"] for key, held in tally.samples.items()}
    assert {reason: text[:1200] for reason, text in bad.items()} == shown


def test_a_source_may_have_settings_of_its_own(make_corpus, refined) -> None:
    code = "def f(x):\n    return {x: 1}\n" * 10
    folder = make_corpus(code=[code], web=[code, prose(1, 24)])
    sources = [{"name": kind, "path": str(folder / f"{kind}.jsonl")} for kind in ("code", "web")]
    own = [sources[0] | {"filters": [], "cleaning": []}, sources[1]]
    documents, tally = refined(folder, sources=own, filters=["c4"], cleaning=["unicode", "unwrap"])
    assert [document["text"] for document in documents if document["source"] == "code"] == [code.strip()]
    assert len(documents) == 2 and "code" not in tally.changed.get("unwrap", {}) and tally.flow["c4"].keys() == {"code", "web"}
    with pytest.raises(UserError, match=r"corpus.sources\[1\] has no 'filter'; did you mean filters\?"):
        config_for(folder, sources=[sources[0], sources[1] | {"filter": ["c4"]}])
    with pytest.raises(UserError, match=r"corpus.sources\[1\].filters = .* must be some of"):
        config_for(folder, sources=[sources[0], sources[1] | {"filters": ["c5"]}])


def test_broken_encodings_are_repaired(make_corpus, refined) -> None:
    [document], tally = refined(make_corpus(web=["The cafÃ© isnâ€™t open on Sundays."]), cleaning=["unicode"])
    assert document["text"] == "The café isn’t open on Sundays."
    assert tally.changed == {"unicode": {"web.jsonl": [1, 7]}}


def test_other_languages_are_dropped(make_corpus, refined) -> None:
    french = "Tous les êtres humains naissent libres et égaux en dignité et en droits. Ils sont doués de raison et de conscience."
    documents, tally = refined(make_corpus(web=[prose(1, 5), french]), language="en")
    assert len(documents) == 1 and tally.reasons() == {"language fr": 1}
    with pytest.raises(UserError, match="corpus.language = 'english' is not known; did you mean 'en'\\?$"):
        refined(make_corpus(web=["x"]), language="english")
    sources = [{"name": "mine", "path": str(make_corpus(web=["x"])), "language": "xx"}]
    with pytest.raises(UserError, match="^the language of the source mine = 'xx' is not known; there are ace, "):
        refined(None, sources=sources)


def changed(text: str, share: float, seed: int) -> str:
    """Returns the text with that share of its words replaced, in places far apart."""
    random, words = np.random.default_rng(seed), text.split(" ")
    for place in random.choice(len(words), round(share * len(words)), replace=False):
        words[place] = f"other{place}"
    return " ".join(words)


def test_planted_near_duplicates_go_and_others_stay(make_corpus, refined) -> None:
    originals = [prose(seed, 30) for seed in range(60)]
    near = [changed(text, 0.01, seed) for seed, text in enumerate(originals[:30])]
    far = [changed(text, 0.3, seed) for seed, text in enumerate(originals[30:])]
    similar = [Index.of([text]).similarity(copy) for text, copy in zip(originals, near + far, strict=True)]
    assert min(similar[:30]) > 0.85 and max(similar[30:]) < 0.3
    documents, tally = refined(make_corpus(a=originals, b=near + far), deduplicate=True)
    texts = {document["text"] for document in documents}
    assert all((text in texts) != (copy in texts) for text, copy in zip(originals, near, strict=False))
    assert set(originals[30:]) | set(far) <= texts
    assert tally.reasons() == {"near-duplicate of another": 30}


def test_only_the_sources_that_ask_for_it_are_deduplicated(make_corpus, refined) -> None:
    folder = make_corpus(a=[prose(1, 9), prose(1, 9)], b=[prose(1, 9), prose(1, 9)])
    documents, _ = refined(folder, sources=[{"path": str(folder / "a.jsonl"), "deduplicate": True}, {"path": str(folder / "b.jsonl")}])
    assert [document["source"] for document in documents] == ["a", "b", "b"]


def test_held_out_documents_are_cleaned_and_no_more(make_corpus, refined) -> None:
    folder = make_corpus(a=[prose(1, 9), prose(2, 9)], held=["Too shortâ€¦ ", prose(1, 9), prose(1, 9)])
    knobs = {"validation_path": "held.jsonl", "cleaning": ["unicode"], "filters": ["gopher_quality"], "deduplicate": True}
    documents, _ = refined(folder, **knobs)
    assert [document["text"] for document in documents] == [prose(1, 9), prose(2, 9), "Too short…", prose(1, 9), prose(1, 9)]


@pytest.mark.parametrize("kind", ["txt", "jsonl", "csv"])
def test_what_shares_words_in_a_row_with_an_evaluation_set_goes(make_corpus, refined, tmp_path, kind: str) -> None:
    question = "Janet has 16 ducks that lay eggs, and she sells them at the farmers market daily for a fresh price."
    content = {
        "txt": question, "jsonl": json.dumps({"id": 7, "question": question, "choices": ["a", "b"]}), "csv": f'"{question}",A,B\n',
    }[kind]  # fmt: skip
    (tmp_path / f"task.{kind}").write_text(content)
    words = question.split()
    texts = [
        "He asked: JANET has 99 ducks that lay eggs -- and she sells them at the farmers market! " + prose(1, 3),  # 13 in a row
        " ".join(words[:12]) + " otherwise " + prose(2, 3),
        prose(3, 3),
    ]
    documents, tally = refined(make_corpus(web=texts), decontaminate=str(tmp_path / f"task.{kind}"))
    assert ids(documents) == ids(documents)[:2] and [document["text"] for document in documents] == texts[1:]
    assert tally.reasons() == {"contaminated": 1}
    [[sample]] = tally.samples.values()
    assert "contaminated_ngram janet has 0 ducks" in sample["note"] and f"contaminated_task task.{kind}" in sample["note"]


def test_an_evaluation_set_of_a_kind_that_is_not_read_is_refused_beside_others_too(make_corpus, refined, tmp_path) -> None:
    (tmp_path / "sets").mkdir()
    (tmp_path / "sets" / "held.txt").write_text(prose(1, 3))
    (tmp_path / "sets" / "x.tsv").write_text("a\tb")
    with pytest.raises(UserError, match=r"corpus.decontaminate: .*x\.tsv is not one of \.txt, .*\.csv .*; convert it, rename"):
        refined(make_corpus(web=[prose(2, 3)]), decontaminate=str(tmp_path / "sets"))


def test_a_compressed_evaluation_set_is_read(make_corpus, refined, tmp_path) -> None:
    (tmp_path / "task.jsonl.gz").write_bytes(gzip.compress(json.dumps({"question": prose(5, 3)}).encode()))
    documents, _ = refined(make_corpus(web=[prose(1, 3) + " " + prose(5, 3), prose(2, 3)]), decontaminate=str(tmp_path / "*.gz"))
    assert [document["text"] for document in documents] == [prose(2, 3)]


def test_what_was_met_is_named_as_its_file_is(make_corpus, refined, tmp_path) -> None:
    sets = {"gsm-18.jsonl": 1, "a/test.txt": 2, "b/test.txt": 3}
    for name, seed in sets.items():
        (tmp_path / "sets" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "sets" / name).write_text(json.dumps(prose(seed, 3)))
    _, tally = refined(make_corpus(web=[prose(seed, 3) for seed in range(5)]), decontaminate=str(tmp_path / "sets"))
    samples = [one for key, held in tally.samples.items() if "decontaminate" in key for one in held]
    named = {one["text"]: one["note"].rpartition("contaminated_task ")[2] for one in samples}
    assert named == {prose(1, 3): "gsm-18.jsonl", prose(2, 3): "a%2Ftest.txt", prose(3, 3): "b%2Ftest.txt"}


def test_evaluation_sets_in_which_nothing_can_be_found_are_warned_of_and_counted(make_corpus, refined, tmp_path, capsys) -> None:
    (tmp_path / "sets").mkdir()
    rows = {"empty.txt": "", "short.csv": "What is two and two?,4\n\nWho?,me\n", "held.txt": prose(1, 3), "french.txt": prose(3, 3) + " é"}
    for name, content in rows.items():
        (tmp_path / "sets" / name).write_bytes(content.encode("latin-1"))
    _, tally = refined(make_corpus(web=[prose(2, 3)]), decontaminate=str(tmp_path / "sets"))
    assert tally.evaluation == {"empty.txt": [0, 0], "french.txt": [1, 0], "held.txt": [1, 0], "short.csv": [2, 2]}
    encoding, nothing = capsys.readouterr().err.splitlines()
    assert "french.txt: 1 place is not UTF-8" in encoding
    assert "corpus.decontaminate: empty.txt, short.csv: no item of 13 words in a row" in nothing


def test_a_missing_pyarrow_is_told_before_any_text_is_read(make_corpus, refined, tmp_path, monkeypatch) -> None:
    (tmp_path / "set.jsonl.zst").write_bytes(b"never read")
    (tmp_path / "good.txt").write_text("a good text")
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name == "pyarrow" else find_spec(name, *more))
    good = {"quality": "filter", "quality_good": str(tmp_path / "good.txt")}
    for knob, more in (("decontaminate", {}), ("quality_bad", good)):
        with pytest.raises(UserError, match=rf"^corpus.{knob}: .*set.jsonl.zst: reading .zst needs pyarrow: pip install"):
            refined(make_corpus(web=[prose(2, 3)]), **{knob: str(tmp_path / "set.jsonl.zst")}, **more)


def test_a_score_needs_two_sides_and_more_than_a_few_texts(make_corpus, refined, tmp_path, capsys) -> None:
    for name in ("good", "bad"):
        (tmp_path / f"{name}.txt").write_text(f"a {name} text")
    folder = make_corpus(web=[prose(2, 3)])
    good, bad = (str(tmp_path / f"{name}.txt") for name in ("good", "bad"))
    with pytest.raises(UserError, match=r"quality_good and corpus.quality_bad both name .*good\.txt"):
        refined(folder, quality="filter", quality_good=good, quality_bad=str(tmp_path / "*.txt"))
    refined(folder, quality="filter", quality_threshold=0.0, quality_good=good, quality_bad=bad)
    assert [line.partition(" = ")[0] for line in capsys.readouterr().err.splitlines()] == [
        f"lmtiny: warning: corpus.quality_{name}" for name in ("good", "bad")
    ]
    (tmp_path / "good.txt").write_text("a good text" * 10)
    refined(folder, quality="filter", quality_threshold=0.0, quality_good=good, quality_bad=bad)
    length = "half the texts of corpus.quality_good have up to 110 characters, of corpus.quality_bad 10: the score may tell lengths"
    assert length in capsys.readouterr().err


def test_every_stage_counts_every_source_held_out_or_not(make_corpus, refined) -> None:
    """So that what a stage dropped is what is missing in its row, and one that drops all has a row."""
    folder = make_corpus(a=[prose(1, 9), prose(2, 9), "short"], held=["Too short… "], notes=["one", "two"])
    listed = [
        {"name": "a", "path": f"{folder}/[ah]*.jsonl", "validation": "held.jsonl", "filters": ["gopher_quality"]},
        {"name": "notes", "path": f"{folder}/notes.jsonl", "language": "en", "language_threshold": 1.0, "deduplicate": True},
    ]
    _, tally = refined(folder, sources=listed)
    before = {"a": 4, "notes": 2}
    for stage in ("read", "language", "gopher_quality", "deduplicate"):
        dropped = {source: sum(count for count, _ in of.values()) for source, of in tally.dropped.get(stage, {}).items()}
        now = {source: tally.flow[stage].get(source, [0])[0] for source in before}
        assert now == {source: count - dropped.get(source, 0) for source, count in before.items()}, stage
        before = now
    assert before == {"a": 3, "notes": 0}


def test_a_score_learned_from_two_kinds_of_text_tells_them_apart(make_corpus, refined, tmp_path) -> None:
    words = ["buy", "cheap", "click", "here", "now", "!!!", "prose", "the"]
    spam = [" ".join(np.random.default_rng(seed).choice(words, 120)) for seed in range(40)]
    good = [prose(seed, 12) for seed in range(40)]
    for name, texts in (("good", good[:20]), ("bad", spam[:20])):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    given = {"quality_good": str(tmp_path / "good.jsonl"), "quality_bad": str(tmp_path / "bad.jsonl")}
    folder = make_corpus(web=good[20:] + spam[20:])
    documents, tally = refined(folder, quality="filter", **given)
    assert [document["text"] for document in documents] == good[20:]
    assert sum(tally.scores["web.jsonl"]) == 40 and tally.reasons() == {"low quality": 20}
    sampled, _ = refined(folder, quality="weight", quality_exponent=3.0, **given)
    again, _ = refined(folder, quality="weight", quality_exponent=3.0, **given)
    assert sampled == again and sum(document["text"] in good for document in sampled) >= 10 and len(sampled) < 35
    with pytest.raises(UserError, match="corpus.quality needs corpus.quality_bad"):
        refined(folder, quality="filter", quality_good="x")


def test_the_sample_is_of_the_size_that_the_scores_ask_for() -> None:
    for score, exponent in ((0.0, 9.0), (0.5, 1.0), (0.9, 9.0), (1.0, 9.0)):
        stayed = np.mean([quality.stays(f"text {number}", score, exponent) for number in range(4000)])
        assert abs(stayed - (2 - score) ** -exponent) < 0.04


def test_nothing_left_is_told_with_its_reasons(make_corpus, refined) -> None:
    with pytest.raises(UserError, match=r"no training document is left; dropped for: gopher_short_doc 2; .*corpus.filters"):
        refined(make_corpus(web=["one", "two"]), filters=["gopher_quality"])


def test_the_knob_that_dropped_the_most_is_the_one_to_change(make_corpus, refined, tmp_path) -> None:
    texts = [prose(seed, 24) for seed in range(4)]
    for name, of in (("good", ["one good text"]), ("bad", ["buy cheap"]), ("task", texts)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in of))
    quality = {f"quality_{name}": str(tmp_path / f"{name}.jsonl") for name in ("good", "bad")}
    folder = make_corpus(web=[*texts, "{ short }"])
    for knobs, remedy in (
        ({"language": "de"}, "language en 5; set corpus.language to the language of the text"),
        ({"quality": "filter", "quality_threshold": 1.0, **quality}, "low quality 5; lower corpus.quality_threshold, or"),
        ({"quality": "weight", "quality_exponent": 1000.0, **quality}, "not sampled 5; lower corpus.quality_exponent, or"),
        ({"decontaminate": str(tmp_path / "task.jsonl"), "filters": ["c4"]}, "contaminated 4, .* 1; take the training text out of"),
    ):
        with pytest.raises(UserError, match=f"no training document is left; dropped for: {remedy}"):
            refined(folder, **knobs)
    with pytest.raises(UserError, match="no training document is left; dropped for: no text 2; give records with text"):
        refined(make_corpus(web=["", " "]), filters=["c4"])
    (tmp_path / "blank").mkdir()
    (tmp_path / "blank" / "a.txt").write_text(" \n\n ")
    with pytest.raises(UserError, match="no training document is left: none that was read has text"):
        refined(tmp_path / "blank", filters=["c4"])


# A process that refines, and dies as `kill -9` would have it at one moment of the stage that is named.
KILL = """
import json, os, pathlib, signal, sys
from lmtiny import corpus, refining
from lmtiny.config import from_dict
from lmtiny.data import pool
from lmtiny.refining import executors, refine, stages, steps
import datatrove.pipeline.dedup.minhash as minhash
import datatrove.executor.base as base
die = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)
stage = sys.argv[1]
if stage == "index":
    from lmtiny.refining import decontamination
    decontamination.np.array = die
elif stage == "filtering":  # with half of the second part written
    reading = steps.ReadUnits.run
    def run(self, data, rank=0, world_size=1):
        for number, document in enumerate(reading(self, data, rank, world_size)):
            if (rank, number) == (1, 9): die()
            yield document
    steps.ReadUnits.run = run
elif stage == "signing":  # with its files open
    shingles, seen = minhash.MinhashDedupSignature.get_shingles, []
    def get_shingles(self, text):
        seen.append(text)
        return die() if len(seen) == 15 else shingles(self, text)
    minhash.MinhashDedupSignature.get_shingles = get_shingles
elif stage == "pairing":
    ranged = minhash.MinhashDedupBuckets.get_worker_hash_range
    minhash.MinhashDedupBuckets.get_worker_hash_range = lambda self, files, rank, n: (die if rank == 5 else ranged)(self, files, rank, n)
elif stage == "clustering":  # before it is marked as done
    marked = base.PipelineExecutor.mark_rank_as_completed
    base.PipelineExecutor.mark_rank_as_completed = lambda self, rank: die() if "clustering" in str(self.logging_dir) else marked(self, rank)
elif stage == "removing":
    counted = steps.Counted.run
    def run(self, data, rank=0, world_size=1):
        for number, document in enumerate(counted(self, data, rank, world_size)):
            if self.stage == "deduplicate" and rank == 1 and number == 5: die()
            yield document
    steps.Counted.run = run
if __name__ == "__main__":
    config = from_dict(json.loads(sys.argv[2]), "test")
    with pool.workers(1, 9, 0) as here:
        units = corpus.units(config)
        refining.refine(units, refining.plan_of(config), pathlib.Path(sys.argv[3]), config.corpus, here)
"""


def contents(folder: pathlib.Path) -> dict[str, str]:
    """Returns {name: hash} of all documents and counts."""
    files = [file for file in sorted(folder.rglob("*.json*")) if "logs" not in file.parts and not is_aside(file)]
    return {file.relative_to(folder).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


@pytest.fixture(scope="module")
def to_be_killed(tmp_path_factory) -> tuple[Any, dict[str, str]]:
    """Returns the config of a corpus for which every stage has something to do, and the contents of its whole refining."""
    folder = tmp_path_factory.mktemp("killed")
    texts = [prose(seed, 12) for seed in range(20)]
    parts = {"a": [*texts[:10], "short"], "b": [changed(text, 0.01, 1) for text in texts[:5]] + texts[10:]}
    (folder / "texts").mkdir()
    for name, one in parts.items():
        (folder / f"texts/{name}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in one))
    (folder / "task.txt").write_text(texts[3][:300])
    config = config_for(folder / "texts", filters=ALL_FILTERS, deduplicate=True, decontaminate=str(folder / "task.txt"))
    documents = refine_into(config, folder / "whole")
    assert len(documents) == 26 - 1 - 2 - 4  # the short one, both of the contaminated, the copies
    return config, contents(folder / "whole")


def refine_into(config: Any, folder: pathlib.Path) -> list[dict]:
    units = corpus.units(config)
    with pool.workers(1, 9, 0) as here:
        refined = refining.refine(units, refining.plan_of(config), folder, config.corpus, here)
    return [document for unit in refined for document in unit.read()]


@pytest.mark.parametrize("stage", ["index", "filtering", "signing", "pairing", "clustering", "removing"])
def test_killed_in_any_stage_and_run_again_it_gives_the_same_bytes(to_be_killed, tmp_path, stage: str) -> None:
    config, expected = to_be_killed
    (tmp_path / "kill.py").write_text(KILL)
    command = [sys.executable, str(tmp_path / "kill.py"), stage, json.dumps(config.to_dict()), str(tmp_path / "work")]
    ended = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=120)
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    assert contents(tmp_path / "work") != expected
    refine_into(config, tmp_path / "work")
    assert contents(tmp_path / "work") == expected


def test_finished_tasks_are_not_done_again_and_more_processes_change_no_byte(make_corpus, refined, tmp_path, monkeypatch) -> None:
    folder = make_corpus(a=[prose(seed, 12) for seed in range(5)], b=[prose(seed, 12) for seed in range(3, 9)])
    first, _ = refined(folder, filters=["gopher_quality"], deduplicate=True)
    expected = contents(tmp_path / "work")
    from lmtiny.refining import executors

    with monkeypatch.context() as patch:
        patch.setattr(executors, "_task", None)
        again, _ = refined(folder, filters=["gopher_quality"], deduplicate=True)
    assert again == first
    (tmp_path / "work").rename(tmp_path / "one")
    assert refined(folder, processes=2, filters=["gopher_quality"], deduplicate=True)[0] == first
    assert contents(tmp_path / "work") == expected
