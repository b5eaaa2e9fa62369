"""The benchmarks still start: their configs load, the GPU's is rehearsed on a CPU, and what they cannot do is one line."""

import argparse
import json
import pathlib
import re
import subprocess
import sys
import tempfile
import types

import pytest

FOLDER = pathlib.Path(__file__).parents[1] / "benchmarks"
BENCHMARKS = sorted(path.stem for path in FOLDER.glob("*.py") if "run_main(main)" in path.read_text(encoding="utf-8"))


def run(name, *flags):
    return subprocess.run([sys.executable, str(FOLDER / f"{name}.py"), *flags], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("name", ["gpt2_124m", "d12"])
def test_the_gpus_rehearsal_is_a_smaller_model_of_the_same_kind(benchmark, name):
    gpu = benchmark("gpu")
    whole, small = gpu.config_of(name, 32, {}), gpu.config_of(name, 2, gpu.REHEARSAL)
    changed = {knob.split(".")[1] for knob in gpu.REHEARSAL}
    assert {knob for knob in whole.model if whole.model[knob] != small.model[knob]} == changed
    layers, _, width, length, rows, _ = gpu.shape_of(whole)
    assert (layers, width, length, rows) == (12, 768, {"gpt2_124m": 1024, "d12": 2048}[name], 32)


def test_a_step_beside_nanogpt_has_nanogpts_matrices(benchmark):
    from lmtiny.model import size

    contest, shape = benchmark("contest"), benchmark("cpu_step").SHAPES["gpt"]
    # nanoGPT's are 12 * 384 ** 2 and the scales of two norms in each of 6 layers; lmtiny's norms have biases too.
    counted = size.count_parameters(contest.lmtiny_config(shape, "float32", {}))
    assert counted["blocks"] == 6 * (12 * 384**2 + 2 * 2 * 384)
    assert counted["positions"] == 256 * 384


class Told:
    """A contestant whose steps take the seconds that it is told."""

    def __init__(self, who, seconds):
        self.who, self.median, self.times, self.cpu, self.numbers = who, seconds, [], [], []
        self.process = types.SimpleNamespace(stdin=types.SimpleNamespace(close=lambda: None), kill=lambda: None)

    def wait(self):
        pass

    def step(self, number):
        self.numbers.append(number)
        self.times.append(self.median)


def test_a_way_that_is_hopeless_beside_its_own_side_is_left_out_after_a_step(benchmark):
    ours, slow_ours, peer, hopeless = Told("ours", 0.5), Told("ours", 2.0), Told("peer", 5.0), Told("peer", 20.5)
    assert benchmark("contest").contest([ours, slow_ours, peer, hopeless], 3, 1.0) == [ours, slow_ours, peer]
    assert ours.numbers == [1, *[2] * 4] and slow_ours.numbers == peer.numbers == [1] * 5
    assert hopeless.numbers == [1]


def test_the_log_of_a_part_that_failed_outlives_its_folder(benchmark, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with tempfile.TemporaryDirectory() as work, pytest.raises(SystemExit) as ended:
        command = [sys.executable, "-c", "import sys; print('first'); sys.exit('last')"]
        benchmark("sides").run(command, pathlib.Path(work) / "part.log", work)
    told = re.fullmatch(r"part ended with code 1: last \(all of it: (.*)\)", str(ended.value))
    assert sorted(pathlib.Path(told[1]).read_text(encoding="utf-8").split()) == ["first", "last"]


@pytest.mark.parametrize("which", ["RECIPE", "QUESTIONS"])
def test_every_variant_of_the_recipe_is_a_config(benchmark, which):
    recipe, variants = benchmark("recipe"), benchmark("variants")
    base = [f"{knob}={value}" for knob, value in variants.QUESTIONS_BASE.items()] * (which == "QUESTIONS")
    found = getattr(variants, which)
    args = argparse.Namespace(config=str(FOLDER.parent / "configs" / "tiny.py"), set=base, variants=found)
    for name in found:
        recipe.config_of(args, name)


@pytest.mark.parametrize(
    ("name", "flags", "line"),
    [
        ("gpu", [], "lmtiny: error: jax finds no GPU here"),
        ("gpu", ["--rehearse", "--set", "model.widht=3"], "did you mean model.width?"),
        ("cpu_step", ["--peer", "/nowhere"], "--peer /nowhere: no checkout of nanoGPT"),
        ("start", ["--set", "train.batch_size"], "'train.batch_size' is not KNOB=VALUE"),
    ],
)
def test_what_cannot_be_done_is_one_line(name, flags, line):
    done = run(name, *flags)
    assert done.returncode
    assert line in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", BENCHMARKS)
def test_help_answers(name):
    done = run(name, "--help")
    assert not done.returncode, done.stderr
    assert done.stdout.startswith("usage: ")


@pytest.mark.exhaustive
def test_the_gpus_rehearsal_runs():
    done = run("gpu", "--rehearse", "--turns", "1", "--seconds", "0.1")
    assert not done.returncode, done.stderr
    record = json.loads(done.stdout.splitlines()[-1])
    for found in record["configs"].values():
        assert found["steps"]["ours"]["tokens_per_second"] > 0
        assert len(found["parts_ms"]) == 5
