"""Preparation: the right rows, resumable at every step, the same bytes however it came about, and loud about damage."""

import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from lmtiny import corpus, files, tokenizer
from lmtiny.data import pool, positions, preparation, prepare, publishing, segments, shards, stages, verify
from lmtiny.data.loader import Rows
from lmtiny.errors import UserError

ROOT = pathlib.Path(__file__).parent.parent.parent


def chunks_in(prepared, split: str) -> list[tuple[int, ...]]:
    """Returns the chunks of all rows, without `<|bos|>` and padding."""
    found = []
    for row in Rows(prepared, split, prepared.row_length(split)).batch(np.arange(prepared.num_rows(split))):
        for piece in np.split(row, np.flatnonzero(row == prepared.bos_id))[1:]:
            found += [tuple(piece[1:].tolist())] * (len(piece) > 1)
    return found


def test_every_token_of_every_document_is_in_exactly_one_row(config_of) -> None:
    config = config_of()
    prepared = prepare(config)
    documents = [document["text"] for unit in corpus.units(config) for document in unit.read()]
    expected = []
    for text in documents:
        ids = prepared.tokenizer.encode(text)
        expected += [tuple(ids[start : start + 32]) for start in range(0, len(ids), 32)]
    found = {split: chunks_in(prepared, split) for split in ("train", "validation")}
    assert sorted(found["train"] + found["validation"]) == sorted(expected)
    counts = prepared.manifest["splits"]
    assert counts["train"]["documents"] + counts["validation"]["documents"] == len(documents)
    assert counts["train"]["bytes"] + counts["validation"]["bytes"] == sum(len(text.encode()) for text in documents)
    for split, chunks in found.items():
        assert counts[split]["tokens"] == sum(map(len, chunks))
        rows = Rows(prepared, split, 32).batch(np.arange(prepared.num_rows(split)))
        assert counts[split]["padding_share"] == pytest.approx(1 - (sum(map(len, chunks)) + len(chunks)) / rows.size)
        assert (positions(rows, prepared.bos_id)[:, 0] == 0).all() and (segments(rows, prepared.bos_id)[:, 0] == 1).all()
    assert counts["train"]["padding_share"] < 0.01 and counts["train"]["crop_share"] == 0
    assert 0.05 < counts["validation"]["documents"] / len(documents) < 0.15
    assert sorted(prepared.manifest["sources"]) == [f"{number}.txt" for number in range(5)]
    assert prepared.dtype == np.dtype("<u2")


def test_listed_sources_are_prepared_and_counted_by_name(config_of, corpus_folder) -> None:
    listed = [{"name": name, "path": str(corpus_folder / f"{name}.txt"), "cut": cut} for name, cut in (("0", "file"), ("1", "sections"))]
    config = config_of(**{"corpus.kind": "sources", "corpus.path": "", "corpus.sources": listed})
    prepared = prepare(config)
    sizes = {unit.source: sum(1 for _ in unit.read()) for unit in corpus.units(config)}
    counted = prepared.manifest["sources"]
    assert sizes == {name: sum(counted[name][side][0] for side in ("train", "validation")) for name in counted}
    assert sizes["0"] == 1 < sizes["1"]
    assert prepare(config).manifest == prepared.manifest


def test_the_tokenizer_sees_training_text_only(config_of, tmp_path) -> None:
    for name, letters in (("a.txt", "abcdef"), ("b.txt", "qqqqxxxx")):
        (tmp_path / name).write_text(" ".join(letters[i % 5 :] + letters[: i % 7] for i in range(3000)))
    found = prepare(config_of(**{"corpus.path": str(tmp_path / "*.txt"), "corpus.validation_path": "b.txt", "corpus.near_duplicate": 2.0}))
    learned = b"".join(found.tokenizer.tokens[256:])
    assert b"ab" in learned and b"qq" not in learned


def test_a_sample_is_of_the_size_asked_for_and_from_everywhere(config_of, monkeypatch) -> None:
    seen, learn = {}, tokenizer.learn

    def watched(kind, texts, vocab_size, limit, progress, _):
        seen[limit] = list(texts)
        return learn(kind, seen[limit], vocab_size, limit, progress)

    monkeypatch.setattr(tokenizer, "learn", watched)
    manifests = [prepare(config_of(str(limit), **{"tokenizer.sample_bytes": limit})).manifest for limit in (1, 20_000, 10**9)]
    sizes = {limit: sum(len(text.encode()) for text in texts) for limit, texts in seen.items()}
    assert sizes[10**9] == manifests[0]["splits"]["train"]["bytes"]
    assert 20_000 <= sizes[20_000] < 23_000 and len(seen[1]) == 1
    places = [seen[10**9].index(text) for text in seen[20_000]]
    assert max(places) - min(places) > 20  # of 45


def test_a_ready_tokenizer_is_cut_and_superwords_and_foreign_ones_prepare_too(config_of) -> None:
    learned = prepare(config_of("learned"))
    ready = str(learned.folder / "tokenizer")
    cut = prepare(config_of("cut", **{"tokenizer.path": ready, "tokenizer.cut": 280}))
    assert cut.tokenizer.hash == prepare(config_of("small", **{"tokenizer.vocab_size": 280})).tokenizer.hash != learned.tokenizer.hash
    with pytest.raises(UserError, match="was prepared from something else"):
        prepare(config_of("cut", **{"tokenizer.path": ready, "tokenizer.cut": 281}))
    with pytest.raises(UserError, match=r"tokenizer\.cut = 280 cuts a ready tokenizer"):
        config_of("none", **{"tokenizer.cut": 280})
    joined = prepare(config_of("joined", **{"tokenizer.kind": "superword", "tokenizer.vocab_size": 600}))
    assert joined.tokenizer.kind == "superword" and any(token.count(b" ") > 1 for token in joined.tokenizer.tokens)
    path = joined.folder.parent / "theirs.json"
    path.write_text(json.dumps(json.loads(tokenizer.tokenizer_json(joined.tokenizer)) | {"added_tokens": []}))
    theirs = prepare(config_of("theirs", **{"tokenizer.path": str(path)}))
    verify(theirs)
    assert theirs.tokenizer.kind == "huggingface" and chunks_in(theirs, "train") == chunks_in(joined, "train")


def test_a_finished_one_is_recognised_at_once(config_of, hashes, monkeypatch) -> None:
    config = config_of()
    prepared = prepare(config)
    before = hashes(prepared.folder)
    assert {path.name for path in prepared.folder.iterdir()} == {
        ".lmtiny", ".lock", "manifest.json", "report.html", "report.json", "tokenizer",
        *(file.name for split in shards.SPLITS for file in prepared.shards(split))
    }  # fmt: skip
    monkeypatch.setattr(preparation, "_build", None)
    began = time.perf_counter()
    again = prepare(config)
    assert time.perf_counter() - began < 1  # 5 ms on the machine this was written on
    assert again.manifest == prepared.manifest
    assert hashes(prepared.folder) == before


def test_the_default_folder_is_named_after_what_it_depends_on(config_of, tmp_path, monkeypatch, corpus_folder) -> None:
    monkeypatch.chdir(tmp_path)
    first = prepare(config_of(""))
    assert first.folder.parent == pathlib.Path("prepared")
    assert first.folder.name.startswith("corpus") and "-bpe300-T32-" in first.folder.name
    assert prepare(config_of("")).folder == first.folder
    assert "-byte-T32-" in prepare(config_of("", **{"tokenizer.kind": "byte"})).folder.name, "no size where it follows from the text"
    assert prepare(config_of("", seed=5, **{"data.num_processes": 2, "train.num_steps": 7})).folder == first.folder
    copy = tmp_path / "copy"
    shutil.copytree(corpus_folder, copy)
    elsewhere = config_of("", **{"corpus.path": str(copy)})
    assert preparation._depends_on(elsewhere, corpus.units(elsewhere), None) == first.manifest["depends_on"]


STAGES = [
    (stages, "write_documents", 2), (preparation.corpus, "choose", 0), (stages, "screen", 3), (preparation.tokenizer, "learn", 0),
    (stages, "encode", 1), (shards, "write", 0), (shards, "write", 2), (publishing, "publish", 0), (shards, "write_manifest", 0),
]  # fmt: skip


@pytest.mark.parametrize(("module", "name", "calls"), STAGES, ids=[f"{name}-{calls}" for _, name, calls in STAGES])
def test_a_run_that_failed_goes_on_where_it_stopped(config_of, hashes, monkeypatch, module, name: str, calls: int) -> None:
    whole = hashes(prepare(config_of("whole")).folder)
    config = config_of("again")
    original, made = getattr(module, name), []

    def failing(*args, **kwargs):
        if len(made) == calls:
            raise KeyboardInterrupt
        made.append(args)
        return original(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(module, name, failing)
        with pytest.raises(KeyboardInterrupt):
            prepare(config)
    assert not (pathlib.Path(config.data.dir) / "manifest.json").exists()

    def output(call: tuple) -> str:
        return str(call[0] if name == "write" else call[-1])

    repeated: list[tuple] = []
    monkeypatch.setattr(module, name, lambda *args, **kwargs: (repeated.append(args), original(*args, **kwargs))[1])
    prepared = prepare(config)
    assert hashes(prepared.folder) == whole
    if calls:
        assert repeated and not set(map(output, made)) & set(map(output, repeated))


def test_a_run_killed_outright_goes_on(config_of, hashes, tmp_path, monkeypatch) -> None:
    whole = hashes(prepare(config_of("whole")).folder)
    config = config_of("killed", **{"data.num_processes": 2})
    code = (
        "import os, signal\n"
        "from lmtiny.config import from_dict\n"
        "from lmtiny.data import preparation, shards\n"
        "shards_write = shards.write\n"
        "def write(path, *rest):\n"
        "    if '00002-of' in path.name:\n"
        "        open(str(path) + '.aside-1-0123abcd', 'w').write('half')\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    shards_write(path, *rest)\n"
        "shards.write = write\n"
        "if __name__ == '__main__':\n"
        f"    preparation.prepare(from_dict({config.to_dict()!r}, 'test'))\n"
    )
    (tmp_path / "kill.py").write_text(code)
    ended = subprocess.run([sys.executable, str(tmp_path / "kill.py")], env={**os.environ, "PYTHONPATH": str(ROOT)}, timeout=60)
    assert ended.returncode == -signal.SIGKILL
    work = pathlib.Path(config.data.dir) / "parts"
    assert len(list(work.glob("train-*.array_record"))) == 2 and list(work.glob("*.aside-*"))
    (work.parent / "manifest.aside-1-0123abcd.json").write_text("half")
    monkeypatch.setattr(tokenizer, "learn", None)  # what was learned is not learned again
    prepared = prepare(config)
    assert hashes(prepared.folder) == whole
    verify(prepared)


def test_workers_end_with_a_killed_parent(tmp_path) -> None:
    (tmp_path / "kill.py").write_text(
        "import os, signal, time, pathlib\n"
        "from lmtiny.data import pool\n"
        "def job(path):\n"
        "    pathlib.Path(path).write_text(str(os.getpid()))\n"
        "    time.sleep(60)\n"
        "if __name__ == '__main__':\n"
        f"    with pool.workers(2, 2, 0) as run:\n        run('x', job, [({str(tmp_path / 'a')!r},), ({str(tmp_path / 'b')!r},)], [1, 1])\n"
    )
    process = subprocess.Popen([sys.executable, str(tmp_path / "kill.py")], env={**os.environ, "PYTHONPATH": str(ROOT)})
    waiting = [tmp_path / "a", tmp_path / "b"]
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and not all(path.exists() and path.read_text() for path in waiting):
        time.sleep(0.05)
    pids = [int(path.read_text()) for path in waiting]
    process.kill()
    process.wait()
    while time.monotonic() < deadline and any(map(lives, pids)):
        time.sleep(0.05)
    assert not any(map(lives, pids))


def lives(pid: int) -> bool:
    """Returns whether a process runs; one that ended and that nobody waited for does not."""
    listed = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True)
    return listed.stdout.strip()[:1] not in ("", "Z")


def test_the_number_of_processes_changes_no_byte(config_of, hashes) -> None:
    one = hashes(prepare(config_of("one", **{"data.num_processes": 1})).folder)
    two = hashes(prepare(config_of("two", **{"data.num_processes": 2})).folder)
    assert one == two


def test_two_at_once_do_the_work_once(config_of, tmp_path, hashes) -> None:
    whole = hashes(prepare(config_of("whole")).folder)
    config = config_of("both")
    code = f"from lmtiny.config import from_dict; from lmtiny.data import prepare; prepare(from_dict({config.to_dict()!r}, 'test'))"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    both = [subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    outputs = [process.communicate(timeout=60)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert sum("learning the tokenizer" in output for output in outputs) == 1
    assert hashes(pathlib.Path(config.data.dir)) == whole


@pytest.mark.parametrize(
    ("knob", "value", "message"),
    [
        ("model.context_length", 64, r"T \(data.row_length, or else model.context_length\) was 32, is 64"),
        ("evaluation.context_length", 64, r"T of validation rows \(evaluation.context_length\) was not set, is 64"),
        ("tokenizer.kind", "byte", "tokenizer.kind was 'bpe', is 'byte'"),
        ("tokenizer.vocab_size", 280, "tokenizer.vocab_size was 300, is 280"),
        ("corpus.near_duplicate", 0.9, "corpus.near_duplicate was 0.5, is 0.9"),
        ("data.rows_per_shard", 999, "data.rows_per_shard was 200, is 999"),
    ],
)
def test_another_setting_in_the_same_folder_is_refused_or_rebuilt(config_of, knob: str, value, message: str) -> None:
    prepare(config_of())
    other = config_of(**{knob: value})
    with pytest.raises(UserError, match=message) as caught:
        prepare(other)
    assert "--rebuild" in str(caught.value) and "\n" not in str(caught.value)
    prepared = prepare(other, rebuild=True)
    verify(prepared)
    assert prepare(other).manifest == prepared.manifest
    assert sorted(prepared.folder.glob("*.array_record")) == sorted(file for split in shards.SPLITS for file in prepared.shards(split))
    with pytest.raises(UserError):
        prepare(config_of())


def test_a_rebuild_that_is_killed_is_not_taken_for_the_old_one(config_of, monkeypatch) -> None:
    config = config_of()
    prepare(config)
    monkeypatch.setattr(shards, "write", None)
    with pytest.raises(TypeError):
        prepare(config, rebuild=True)
    with pytest.raises(UserError, match="holds no prepared data"):
        shards.read(pathlib.Path(config.data.dir))


def test_another_text_in_the_same_folder_is_refused(config_of, corpus_folder, tmp_path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(corpus_folder, copy)
    config = config_of(**{"corpus.path": str(copy)})
    prepare(config)
    (copy / "2.txt").write_text("A new text. " * 100)
    with pytest.raises(UserError, match="prepared from something else: the text of the corpus has changed; name another"):
        prepare(config)


def test_a_setting_that_makes_other_documents_is_told_and_not_a_text_that_changed(config_of, corpus_folder, tmp_path) -> None:
    folder = {"data.dir": str(tmp_path / "shards")}
    prepare(config_of(**folder))
    with pytest.raises(UserError, match="something else: corpus.section_bytes was 2048, is 1024; name another"):
        prepare(config_of(**folder, **{"corpus.section_bytes": 1024}))


def test_a_ready_tokenizer_is_used_and_its_change_noticed(config_of, tmp_path) -> None:
    ready = [tokenizer.learn("bpe", [text * 50], 300, 10**6) for text in ("hello there general ", "another kind of text ")]
    for number, one in enumerate(ready):
        one.save(tmp_path / f"ready{number}", {})
    prepared = prepare(config_of(**{"tokenizer.path": str(tmp_path / "ready0")}))
    assert prepared.tokenizer.hash == ready[0].hash
    with pytest.raises(UserError, match="tokenizer.path was"):
        prepare(config_of(**{"tokenizer.path": str(tmp_path / "ready1")}))


def flip(path: pathlib.Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_damage_is_noticed(config_of) -> None:
    config = config_of()
    prepared = prepare(config)
    shard, manifest = prepared.shards("train")[0], prepared.folder / "manifest.json"
    good = {path: path.read_bytes() for path in (shard, manifest)}
    flip(shard)
    prepare(config)  # a look at the sizes does not see it
    with pytest.raises(UserError, match=r"train-00000.* was altered or damaged: its SHA-256"):
        verify(prepared)
    shard.write_bytes(good[shard][:-10])
    with pytest.raises(UserError, match=r"train-00000.* has \d+ bytes instead of \d+; .*--rebuild"):
        prepare(config)
    shard.unlink()
    with pytest.raises(UserError, match=r"train-00000.* is missing"):
        prepare(config)
    shard.write_bytes(good[shard])
    flip(manifest)
    with pytest.raises(UserError, match=r"manifest\.json"):
        prepare(config)
    manifest.write_bytes(good[manifest][:100])
    with pytest.raises(UserError, match=r"manifest\.json is not JSON: .*--rebuild"):
        prepare(config)
    for other in ({"format": 99}, {}, []):
        manifest.write_text(json.dumps(other))
        with pytest.raises(UserError, match="this program reads format 1"):
            prepare(config)
    manifest.write_text(json.dumps({**json.loads(good[manifest]), "row_length": 16}))
    with pytest.raises(UserError, match="does not match its hash"):
        prepare(config)
    manifest.unlink()
    with pytest.raises(UserError, match="holds no prepared data"):
        shards.read(prepared.folder)
    manifest.write_bytes(good[manifest])
    verify(prepare(config))
    tokenizer.learn("byte", [], 300, 1).save(prepared.folder / "tokenizer", {})
    with pytest.raises(UserError, match="is not the tokenizer these shards were made with"):
        verify(shards.read(prepared.folder))
    verify(prepare(config, rebuild=True))


def test_planted_near_duplicates_leave_the_training_side(config_of, tmp_path, corpus_folder) -> None:
    texts = [file.read_text() for file in sorted(corpus_folder.iterdir())]
    held_out = texts[0][:1500]
    near = held_out.replace(held_out[700:720], "something else here", 1)
    records = [*(text[:1500] for text in texts[1:]), near, held_out, held_out.upper(), texts[1][:1500]]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in records))
    (tmp_path / "held.jsonl").write_text(json.dumps({"text": held_out}) + "\n")
    knobs = {"corpus.path": str(tmp_path / "train.jsonl"), "corpus.validation_path": str(tmp_path / "held.jsonl")}
    manifest = prepare(config_of("near", **knobs)).manifest
    assert (manifest["duplicates"], manifest["near_duplicates"]) == (2, 2)
    assert manifest["splits"]["train"]["documents"] == 4
    manifest = prepare(config_of("never", **knobs, **{"corpus.near_duplicate": 1.5})).manifest
    assert (manifest["duplicates"], manifest["near_duplicates"]) == (2, 0)
    assert manifest["splits"]["train"]["documents"] == 6


def test_one_short_file_is_enough(config_of, tmp_path, capsys) -> None:
    text = "\n".join(f"Line {number} of a small poem about the number {number * number}." for number in range(40))
    (tmp_path / "a.txt").write_text(text)
    knobs = {"corpus.path": str(tmp_path / "a.txt"), "corpus.section_bytes": 65536, "model.context_length": 2048}  # a document, a row
    prepared = prepare(config_of(**knobs))
    assert "a single document" in capsys.readouterr().out
    decode = prepared.tokenizer.decode
    kept = [decode(chunk) for split in shards.SPLITS for chunk in chunks_in(prepared, split)]
    assert len(kept) == 2 and "\n".join(kept) == text


def test_next_to_nothing_to_validate_with_is_warned_of(config_of, tmp_path, corpus_folder, capsys) -> None:
    prepare(config_of("enough"))
    assert capsys.readouterr().err == ""
    (tmp_path / "held.txt").write_text("Forty-eight bytes are not much to validate with.")
    held = {"path": str(corpus_folder), "validation": str(tmp_path / "held.txt")}
    ways = {
        "corpus.validation_path": {"corpus.validation_path": held["validation"]},
        "a source's validation": {"corpus.path": "", "corpus.kind": "sources", "corpus.sources": [held]},
    }
    for number, (way, knobs) in enumerate(ways.items()):
        prepare(config_of(f"few{number}", **knobs))
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("lmtiny: warning: only 48 bytes in 1 document held out for validation: ")
        assert line.endswith(f"; hold out 4,000 or more with {way} or a larger corpus.validation_fraction")


def test_far_more_held_out_than_was_asked_for_is_warned_of(config_of, tmp_path, capsys) -> None:
    random, folder = np.random.default_rng(0), tmp_path / "few"
    folder.mkdir()
    for number in range(3):
        (folder / f"{number}.txt").write_text(" ".join(map(str, random.integers(0, 10**6, 1000))))
    prepare(config_of("much", **{"corpus.path": str(folder), "corpus.section_bytes": 2**16}))
    (line,) = capsys.readouterr().err.splitlines()
    assert re.match(r"lmtiny: warning: 3[234]% of the text is held out for validation, and corpus\.validation_fraction is 0\.1: ", line)
    assert line.endswith("; name what to hold out with corpus.validation_path")
    prepare(config_of("named", **{"corpus.path": str(folder), "corpus.validation_path": str(folder / "0.txt")}))
    assert capsys.readouterr().err == ""


def test_text_that_only_repeats_itself_is_refused_in_words(config_of, tmp_path) -> None:
    (tmp_path / "a.txt").write_text("the same words again and again. " * 1000)
    with pytest.raises(UserError, match="nothing is left to train on.*near_duplicate"):
        prepare(config_of(**{"corpus.path": str(tmp_path / "a.txt")}))


def test_a_folder_that_cannot_be_written(config_of, tmp_path) -> None:
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(UserError, match="data.dir: .*taken is a file; name a folder"):
        prepare(config_of("taken"))


@pytest.mark.parametrize("stage", ["documents", "keys", "lengths", "train", "lmtiny_tokenizer"])
def test_a_full_disk_is_one_line_wherever_it_is_met(config_of, monkeypatch, stage: str) -> None:
    """Files with that in their name cannot be written: /dev/full is a device that is always full."""
    full, opening, config = pathlib.Path("/dev/full"), open, config_of("full")
    if not full.exists():
        pytest.skip("this system has no /dev/full")

    def open_(file, mode="r", *rest, **more):
        wanted = "w" in mode and stage in pathlib.Path(str(file)).name and "parts/tokenizer" not in str(file)
        return opening(full if wanted else file, mode, *rest, **more)

    with monkeypatch.context() as patch:
        patch.setattr("builtins.open", open_)
        array_record, to_full = shards.array_record_module, (lambda _, how: writer(str(full), how))
        writer = array_record.ArrayRecordWriter
        patch.setattr(array_record, "ArrayRecordWriter", to_full if stage == "train" else writer)
        with pytest.raises(UserError, match=r"full cannot be written: No space left on device; what is finished is kept; --config.data"):
            prepare(config)
    verify(prepare(config))


@pytest.mark.parametrize(("limit", "fraction"), [(5_000, 0.1), (24_000, 0.5)], ids=["documents", "an array"])
def test_a_limit_on_the_size_of_files_is_one_line(config_of, limit: int, fraction: float) -> None:
    resource = pytest.importorskip("resource")
    code = (
        f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {resource.RLIM_INFINITY}))\n"
        "from lmtiny import config, console, data\n"
        f"config = config.from_dict({config_of(**{'corpus.validation_fraction': fraction}).to_dict()!r}, 'test')\n"
        "console.run_main(lambda: data.prepare(config) and None)\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert ended.stderr.endswith("cannot be written: File too large; what is finished is kept; --config.data.dir names another folder\n")
    assert len(ended.stderr.splitlines()) == 1


def test_a_start_that_is_refused_leaves_no_folder(config_of, tmp_path) -> None:
    pytest.importorskip("datatrove", reason="needs the extra corpus: pip install 'lmtiny[corpus]'")
    with pytest.raises(UserError, match="corpus.language = 'english' is not known"):
        prepare(config_of("refused", **{"corpus.language": "english"}))
    (tmp_path / "bad.jsonl").write_text("no JSON\n")
    with pytest.raises(UserError, match="not JSON"):
        prepare(config_of("refused", **{"corpus.path": str(tmp_path / "bad.jsonl")}))
    assert not (tmp_path / "refused").exists()
    for name, text in (("none", "null"), ("one", '"a"'), ("same", '"again"}\n{"text": "again"')):
        (tmp_path / f"{name}.jsonl").write_text(f'{{"text": {text}}}\n')
        with pytest.raises(UserError, match="the corpus (has|is)"):
            prepare(config_of("refused", **{"corpus.path": str(tmp_path / f"{name}.jsonl")}))
        assert not (tmp_path / "refused").exists()
    with pytest.raises(UserError, match="no training document is left"):
        prepare(config_of("refused", **{"corpus.language": "de"}))
    assert not (tmp_path / "refused").exists()
    (tmp_path / "mine").mkdir()
    with pytest.raises(UserError, match="not JSON"):
        prepare(config_of("mine", **{"corpus.path": str(tmp_path / "bad.jsonl")}))
    assert (tmp_path / "mine").exists()


def test_a_missing_library_is_told_before_anything_is_read(config_of, corpus_folder, tmp_path, monkeypatch) -> None:
    texts, made = tmp_path / "texts", tmp_path / "prepared"
    shutil.copytree(corpus_folder, texts)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setattr("lmtiny.data.stages.read", lambda *_: pytest.fail("has begun to read"))
    listed = {"corpus.path": "", "corpus.kind": "sources", "corpus.sources": [{"name": "mine", "path": str(texts)}]}
    for name in ("z.parquet", "z.jsonl.zst"):
        (texts / name).write_bytes(b"x")
        line = rf"{texts}/{name}: reading {pathlib.Path(name).suffix} needs pyarrow: pip install 'lmtiny\[parquet\]'$"
        for knobs, start in (({"corpus.path": str(texts)}, "^"), (listed, "^source mine: ")):
            with pytest.raises(UserError, match=start + line):
                prepare(config_of(**knobs))
        (texts / name).unlink()
    assert not made.exists()


def test_what_is_finished_is_used_without_the_library_that_it_was_made_with(config_of, corpus_folder, tmp_path, monkeypatch) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    texts = shutil.copytree(corpus_folder, tmp_path / "texts")
    (texts / "z.txt.zst").write_bytes(pyarrow.compress(b"A text.", "zstd", asbytes=True))
    made = prepare(config_of(**{"corpus.path": str(texts)}))
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert prepare(config_of(**{"corpus.path": str(texts)})).digest == made.digest


def test_a_large_vocabulary_takes_four_bytes() -> None:
    assert stages.token_dtype(65536) == np.dtype("<u2") and stages.token_dtype(65537) == np.dtype("<u4")


def test_a_part_that_fails_half_way_leaves_nothing(tmp_path) -> None:
    with pytest.raises(ZeroDivisionError), files.opened(tmp_path / "part") as file:
        file.write(b"half")
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []


def test_a_dead_worker_is_told_of(config_of) -> None:
    with pytest.raises(UserError, match="a process that prepares data died"), pool.workers(2, 2, 0) as run:
        run("x", os._exit, [(3,), (3,)], [1, 1])


def test_the_command_says_what_comes_next(config_of, tmp_path) -> None:
    values = config_of().to_dict()
    (tmp_path / "c.py").write_text(f"from lmtiny.config import from_dict\ndef get_config():\n    return from_dict({values!r}, 'c')\n")
    command = [sys.executable, "-W", "error", "-m", "lmtiny.prepare", "--config", str(tmp_path / "c.py")]
    ended = subprocess.run([*command, "--config.data.num_processes=2", "--verify"], capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout.splitlines()[-1] == f"next: python -m lmtiny.train --config {tmp_path / 'c.py'} --config.data.num_processes=2"
    code = "import lmtiny.prepare, sys; print({'jax', 'grain', 'pyarrow'} & set(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert loaded.stdout.strip() == "set()"


def test_shards_are_not_put_among_the_texts(config_of, tmp_path) -> None:
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("A text.\n\nAnother.")
    with pytest.raises(UserError, match="is the folder of the texts; name one for the shards alone"):
        prepare(config_of(**{"corpus.path": str(tmp_path / "texts"), "data.dir": f"{tmp_path}/texts/../texts"}))
    assert [path.name for path in (tmp_path / "texts").iterdir()] == ["a.txt"]


def test_rows_of_before_are_found_again_where_validation_can_be_cut_from_them(config_of) -> None:
    before = prepare(config_of(**{"evaluation.context_length": 64}))
    assert (before.row_length("train"), before.row_length("validation")) == (32, 64)
    for length, found in ((64, True), (32, True), (0, True), (128, False)):
        other = config_of(**{"evaluation.context_length": length})
        again = preparation.prepared_before(other, before.digest)
        assert (again is not None) == found, length
    assert preparation.prepared_before(config_of(), "0" * 64) is None
    plain = prepare(config_of("plain"))
    assert plain.digest == before.digest, "training's rows do not depend on those of validation"
