"""python -m lmtiny.plan as a person starts it, without and with the TPU compiler."""

import importlib.util
import json
import math
import os
import pathlib
import subprocess
import sys
import types

import pytest

from lmtiny import config as config_lib
from lmtiny.errors import UserError
from lmtiny.parallel import chips
from lmtiny.planning import slices, tpu_compiler
from lmtiny.planning import survey as survey_lib

ROOT = pathlib.Path(__file__).parents[2]
TINY = ("--config", str(ROOT / "configs" / "tiny.py"))


def plan(*arguments, **environment):
    command = [sys.executable, "-m", "lmtiny.plan", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, env={**os.environ, **environment})


def test_help_and_wrong_flags_do_not_wait_for_jax():
    code = "import sys\nfrom lmtiny import plan\ntry:\n    plan.main()\nfinally:\n    assert 'jax' not in sys.modules"
    for arguments, status, text in ((["--help"], 0, "--compile SLICE"), (["--divice", "v5e"], 1, "")):
        done = subprocess.run([sys.executable, "-c", code, *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == status and text in done.stdout and "AssertionError" not in done.stderr


def test_a_plan_names_memory_traffic_and_time(tmp_path):
    done = plan(*TINY, "--device", "v5e-8", "--json", str(tmp_path / "plan.json"), "--config.model.compute_dtype=bfloat16")
    assert done.returncode == 0, done.stderr
    for text in ("mesh: fsdp 8", "weights", "saved activations", "it fits", "reduce-scatter", "MFU at most", "819 GB/s memory"):
        assert text in done.stdout, text
    report = json.loads((tmp_path / "plan.json").read_text())
    assert report["mesh"]["fsdp"] == 8 and report["chip"]["name"] == "v5e" and report["memory"]["needed"] > 0
    assert report["parameters"]["total"] == sum(count for name, count in report["parameters"].items() if name != "total")


def test_what_does_not_fit_is_said_with_advice(tmp_path):
    done = plan(*TINY, "--device", "v5e", "--config.train.batch_size=2048", "--json", str(tmp_path / "plan.json"))
    assert done.returncode == 3
    assert "IT DOES NOT FIT" in done.stdout and "\nor with  --config.train.accumulation=2  (" in done.stdout
    found = json.loads((tmp_path / "plan.json").read_text())["advice"]
    assert [one["seconds"] for one in found] == sorted(one["seconds"] for one in found) and found[0]["text"] in done.stdout


def test_what_no_knob_helps_is_told_of_the_survey():
    done = plan(*TINY, "--device", "v5e", "--config.model.width=16384", "--config.model.num_heads=128")
    assert done.returncode == 3 and "no knob makes it fit here: take more devices, --survey v5e says how many it takes" in done.stdout


@pytest.mark.exhaustive
def test_a_survey_takes_the_fewest_microbatches_that_fit(tmp_path):
    done = plan("--config", str(ROOT / "configs" / "d12.py"), "--survey", "v5e", "--json", str(tmp_path / "survey.json"))
    assert done.returncode == 0, done.stderr
    one, four, *_ = found = json.loads((tmp_path / "survey.json").read_text())["survey"]
    assert [option["name"] for option in found] == [f"v5e-{count}" for count in (1, 4, 8, 16, 32, 64, 128, 256)]
    assert all(option["fits"] for option in found) and [option["mesh"] for option in found[1:]] == [
        {"fsdp": int(option["name"].split("-")[1])} for option in found[1:]
    ]
    assert one["accumulation"] > 1 and four["accumulation"] == 1
    with_fewer = ["--config", str(ROOT / "configs" / "d12.py"), "--device", "v5e-1"]
    with_fewer.append(f"--config.train.accumulation={one['accumulation'] // 2}")
    assert one["needed"] <= 0.95 * 15.75 * 2**30 < plan_needs(tmp_path, *with_fewer)


def option(name, chip, slice_name, num_devices):
    return survey_lib.option(config_lib.load(str(ROOT / "configs" / f"{name}.py")), chips.by_name(chip), slice_name, num_devices)


def test_a_survey_splits_heads_only_where_nothing_else_fits():
    rows_do_not_divide = option("gpt2_124m", "h100", "h100 x 16", 16)  # 120 of a microbatch: of 96, 16 devices have 6 each
    assert rows_do_not_divide.fits and rows_do_not_divide.mesh == {"fsdp": 16} and rows_do_not_divide.accumulation == 5
    too_large = option("qwen2_5_7b", "v5e", "v5e-16", 16)
    assert too_large.fits and too_large.mesh == {"fsdp": 8, "tensor": 2}
    far_too_large = option("qwen2_5_7b", "v5e", "v5e-4", 4)
    assert not far_too_large.fits and far_too_large.mesh == {"fsdp": 4} and far_too_large.accumulation == 64


@pytest.mark.parametrize(("fitting", "chosen"), [({1}, 1), ({4, 8}, 4), ({2, 4, 8}, 2), ({8}, 8), (set(), 8)])
def test_a_survey_takes_the_fewest_microbatches(fitting, chosen, monkeypatch):
    def memory_on(chip, config, shape):
        return types.SimpleNamespace(needed=0.0 if config.train.accumulation in fitting else math.inf)

    monkeypatch.setattr(survey_lib, "memory_on", memory_on)
    config = config_lib.load(str(ROOT / "configs" / "tiny.py"))  # of 8 rows
    found = survey_lib.option(config, chips.by_name("v5e"), "v5e-1", 1)
    assert found.accumulation == chosen and found.fits == bool(fitting)


def plan_needs(folder, *arguments):
    plan(*arguments, "--json", str(folder / "plan.json"))
    return json.loads((folder / "plan.json").read_text())["memory"]["needed"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--device", "v5"), "there is no device 'v5'; did you mean v5"),
        (("--device", "v5e-9"), "the nearest is v5e-8"),
        (("--device", "RTX-4090"), "there is no device 'RTX-4090'; did you mean rtx4090?"),
        (("--survey", "NVIDIA H100 80GB HBM3"), "did you mean h100?"),
        (("--survey", "v5litepod-16"), "--survey v5e"),
        (("--device", "h100-8"), "--device h100 --devices 8"),
        (("--device", "v5e-8", "--mesh", "fsdp=4,data=3"), "makes 12 devices, but there are 8"),
        (("--device", "v5e-8", "--devices", "4"), "has 8 devices, not 4"),
        (("--compile", "v5e-8", "--device", "v5e"), "leave --device out"),
        (("--device", "v5e-8", "--mesh", "fsdp=4,fsdp=2"), "fsdp is given twice"),
        (("--device", "v5e", "--devices", "0"), "argument --devices: 0 must lie within 1 and 16,384"),
        (("--device", "v5e", "--devices", "10000000000"), "must lie within 1 and 16,384"),
        (("--device", "v5e-8", "--slices", "10000000000"), "must lie within 1 and 16,384"),
        (("--device", "v5e-8", "--mesh", f"fsdp={'9' * 200}"), "should read fsdp=NUMBER"),
        (("--device", f"v5e-{'9' * 200}"), "there is no TPU slice"),
        (("--device", "v5e-8", "--json", "x" * 5000), "--json"),
        (("--device", "v5e-8", "--mesh", "context=2", "--config.model.attention=splash"), "has no ring"),
        (("--device", "v5e-8", "--json", "."), "is a folder; name a file"),
        (("--device", "v5e-8", "--json", "nowhere/plan.json"), "in a folder that is not there"),
        (("--device", "v5e-8", "--mesh", "pipeline=8"), "model.num_layers = 2 is not divisible"),
        (("--survey", "v5e-8"), "--survey v5e"),
        (("--survey", "v5e", "--config.parallel.fsdp=4"), "leave --device"),
        (("--survey", "v5"), "there is no device 'v5'; did you mean v5"),
        (("--survey", "v5e", "--mesh", "fsdp=4"), "chooses devices and meshes by itself"),
    ],
    ids=lambda value: str(value)[:80],
)
def test_mistakes_are_refused_in_one_line(arguments, message):
    done = plan(*TINY, *arguments)
    assert done.returncode == 1 and message in done.stderr and len(done.stderr.splitlines()) == 1


def test_a_compiler_that_fails_is_one_line():
    with pytest.raises(UserError, match="^the TPU compiler failed, .*: UNIMPLEMENTED: some fusion$"):
        tpu_compiler._too_large(slices.parse("v5e-8"), "UNIMPLEMENTED: some fusion", 1.0, 1)


def test_json_replaces_a_plan_and_no_file_of_somebody_else(tmp_path):
    file = tmp_path / "plan.json"
    for _ in range(2):
        assert plan(*TINY, "--device", "v5e", "--json", str(file)).returncode == 0
    for theirs in ("mine", "[1]", '{"config": {"model": {}}}'):
        file.write_text(theirs)
        done = plan(*TINY, "--device", "v5e", "--json", str(file))
        assert done.returncode == 1 and "is there, and is no plan" in done.stderr and file.read_text() == theirs


def test_compiling_says_how_long_it_takes(capsys):
    with tpu_compiler.told_meanwhile("compiling", every_s=0.001):
        while "compiling: " not in (said := capsys.readouterr().out):
            pass
    assert said.splitlines()[0].endswith(" ms so far")


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is not None, reason="libtpu is installed")
def test_without_libtpu_the_remedy_is_named():
    done = plan(*TINY, "--compile", "v5e-8")
    assert done.returncode == 1 and 'pip install -e ".[tpu]"' in done.stderr and len(done.stderr.splitlines()) == 1


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason='needs the TPU compiler: pip install -e ".[tpu]"')
def test_the_tpu_compiler_compiles_the_train_step(tmp_path):
    changes = ("--config.model.num_layers=2", "--config.model.width=128", "--config.model.num_heads=1", "--config.model.scan_layers=true",
               "--config.tokenizer.vocab_size=512", "--config.optimizer.name=adamw", "--config.model.remat=block")  # fmt: skip
    done = plan(*TINY, *changes, "--compile", "v5e-8", "--json", str(tmp_path / "plan.json"))
    assert done.returncode == 0 and done.stderr == "", done.stderr
    assert "it fits, says the compiler" in done.stdout
    report = json.loads((tmp_path / "plan.json").read_text())["compiled"]
    formula = json.loads((tmp_path / "plan.json").read_text())["memory"]
    assert report["arguments"] == pytest.approx(formula["weights"] + formula["optimizer state"] + formula["batch"], rel=0.1)
    assert {"all-gather", "reduce-scatter"} <= {one["kind"] for one in report["collectives"]}


@pytest.mark.parametrize(
    ("message", "sizes"),
    [
        ("RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries (27.94G) exceeds "
         "available HBM (15.75G).", (27.94 * 2**30, 15.75 * 2**30)),
        ("RESOURCE_EXHAUSTED: ... Used 20.12G of 15.75G hbm. Exceeded hbm capacity by 4.37G.", (20.12 * 2**30, 15.75 * 2**30)),
        ("RESOURCE_EXHAUSTED: something else", (0.0, 0.0)),
    ],
)  # fmt: skip
def test_the_compilers_message_is_read(message, sizes):
    assert tpu_compiler.sizes_in(message) == pytest.approx(sizes)
