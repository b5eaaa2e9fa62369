"""command_line: configs and overrides, refusals in one line that name the neighbour, help that is quick and complete."""

import argparse
import pathlib
import subprocess
import sys
import time

import pytest

from lmtiny import command_line
from lmtiny.config import KNOBS, knobs
from lmtiny.errors import UserError

DOC = """Trains a model.

    python -m lmtiny.train --config configs/tiny.py
"""


@pytest.fixture
def config_file(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").mkdir()
    for name in ("tiny", "other"):
        (tmp_path / "configs" / f"{name}.py").write_text("from lmtiny.config import defaults\n\ndef get_config():\n    return defaults()\n")
    return "configs/tiny.py"


def flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--checkpoint", required=True, help="a run, or a step of it")
    parser.add_argument("--steps", type=int, default=3, help="how many")


def test_config_overrides_and_workdir(config_file: str) -> None:
    config, args = command_line.parse(
        DOC,
        None,
        ["--config", config_file, "--config.model.qk_norm=false", "--config.model.num_layers", "2",
         "--config.optimizer.learning_rate=3e-4", "--config.corpus.kind=files", "--config.corpus.path=a=b"],
    )
    assert (config.model.qk_norm, config.model.num_layers, config.optimizer.learning_rate, config.corpus.path) == (False, 2, 3e-4, "a=b")
    assert args.workdir == pathlib.Path("runs/tiny")
    assert args.overrides["model.num_layers"] == "2"
    assert command_line.parse(DOC, None, [f"--config={config_file}", "--workdir", "x"])[1].workdir == pathlib.Path("x")
    assert command_line.parse(DOC, None, ["--config", config_file, "--config.name=mine"])[1].workdir == pathlib.Path("runs/mine")


def test_flags_of_the_entry_point() -> None:
    args = command_line.parse_plain(DOC, flags, ["--checkpoint", "runs/tiny", "--steps=5"])
    assert vars(args) == {"checkpoint": "runs/tiny", "steps": 5}


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--cofnig", "x"], "there is no flag --cofnig; did you mean --config?"),
        (["--work", "x"], "there is no flag --work; did you mean --workdir?"),  # no abbreviation is guessed
        (["--config.model.num_layer=2"], "there is no flag --config.model.num_layer; did you mean --config.model.num_layers?"),
        (["--config.modle.width", "2"], "there is no flag --config.modle.width; did you mean --config.model.width?"),
        (["--model.width=2"], "there is no flag --model.width; did you mean --config.model.width?"),
        (["--learning_rate", "1"], "there is no flag --learning_rate; did you mean --config.optimizer.learning_rate?"),
        (["--config.corpus.cutt=file"], "there is no flag --config.corpus.cutt; there are --config.corpus.kind, --config.corpus.path, "),
        (["--config.train.learning_rate=1"], "there is no flag --config.train.learning_rate; did you mean --config.optimizer.learning"),
        (["--zzz"], "there is no flag --zzz; --help lists them all"),
        (["--mesh", "fsdp=4"], "there is no flag --mesh; the axes of the mesh are knobs, as in --config.parallel.fsdp=4"),
        (["--config.model.qk_norm"], "--config.model.qk_norm needs a value, as in --config.model.qk_norm=VALUE"),
        (["--config.model.qk_norm", "--workdir", "x"], "--config.model.qk_norm needs a value"),
        (["--config"], "argument --config: expected one argument"),
        (["configs/tiny.py"], "unexpected argument 'configs/tiny.py'; did you mean --config configs/tiny.py?"),
        (["tiny"], "unexpected argument 'tiny'; did you mean --config configs/tiny.py?"),
        (["train"], "unexpected argument 'train'; --help shows what is understood"),
        (["--config", "tiny"], "no config file 'tiny'; did you mean configs/tiny.py?"),
        (["--config", "zzz"], "no config file 'zzz'; there are configs/other.py, configs/tiny.py"),
        (["--config.optimizer.lr=1"], "there is no flag --config.optimizer.lr; did you mean --config.optimizer.learning_rate?"),
        (["--lr=1"], "there is no flag --lr; did you mean --config.optimizer.learning_rate?"),
        (["--config.model.d_model=1"], "there is no flag --config.model.d_model; did you mean --config.model.width?"),
        (["--config", "configs/tiny.py", "--config", "configs/other.py"], "--config is given twice: leave one out"),
        (["--workdir=a", "--workdir", "b"], "--workdir is given twice: leave one out"),
        (["--config", ""], "argument --config: '' is empty"),
        (["--config=configs/tiny.py", "--workdir="], "argument --workdir: '' is empty"),
        (["--config", "x" * 5000], "argument --config: 'xxx"),
        (["--config", "configs"], "no config file 'configs'"),
        (["--config=configs/tiny.py", "--workdir", "x" * 5000], "argument --workdir: 'xxx"),
        (["--config=configs/tiny.py", "--workdir", "x" * 300], "argument --workdir: 'xxx"),
        (["--" + "x" * 100_000], "there is no flag --xxx"),
        (["--config." + "x" * 100_000], "--config.xxx"),
        (["x" * 100_000], "unexpected argument 'xxx"),
        (["--config=configs/tiny.py", "--config.seed=" + "x" * 100_000], "seed: 'xxx"),
        ([], "--config is missing: name a config file, as in --config configs/tiny.py; there are: configs/other.py, configs/tiny.py"),
        (["--config", "configs/tinny.py"], "no config file 'configs/tinny.py'; did you mean configs/tiny.py?"),
        (["--config", "configs/nope.py"], "no config file 'configs/nope.py'; there are configs/other.py, configs/tiny.py"),
        (["--config.parallel=fsdp"], "there is no flag --config.parallel; there are --config.parallel.data, --config.parallel.fsdp"),
        (["--config", "configs/tiny.py", "--config.model.qk_norm=maybe"], "model.qk_norm: 'maybe' is not true or false"),
    ],
)
def test_refusals_name_the_neighbour(config_file: str, argv: list[str], said: str) -> None:
    with pytest.raises(UserError) as refusal:
        command_line.parse(DOC, None, argv)
    assert str(refusal.value).startswith(said) and "\n" not in str(refusal.value) and len(str(refusal.value)) < 500


def test_a_mistyped_flag_is_told_before_the_one_it_leaves_missing() -> None:
    with pytest.raises(UserError, match="^there is no flag --chekpoint; did you mean --checkpoint"):
        command_line.parse_plain(DOC, flags, ["--chekpoint", "x"])
    with pytest.raises(UserError, match="--checkpoint"):
        command_line.parse_plain(DOC, flags, [])
    with pytest.raises(UserError, match="argument --steps: invalid int value: 'x'"):
        command_line.parse_plain(DOC, flags, ["--checkpoint", "x", "--steps", "x"])


@pytest.mark.parametrize("columns", [60, 80, 132])
def test_help_names_every_knob_and_fits_the_terminal(
    columns: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    with pytest.raises(SystemExit) as stop:
        command_line.parse(DOC, flags, ["--help"])
    assert stop.value.code == 0
    said = capsys.readouterr().out
    assert said.startswith("Trains a model.\n\n    python -m lmtiny.train --config configs/tiny.py\n")
    assert "--checkpoint CHECKPOINT" in said and "--workdir RUN" in said
    words = " ".join(said.split())
    for name, knob in knobs():
        for shown, one in [(name, knob), *((key.name, key) for key in knob.keys)]:
            assert f"{shown} {one.type.__name__} " in words and one.meaning in words
    assert "(one of rmsnorm, layernorm)" in words and "(within 0 and 0.9)" in words and "int 256 tokens" in words
    assert "(within 1 and 1,024)" in words
    headings = [line[:-1] for line in said.splitlines() if line.endswith(":") and line[:-1] in KNOBS]
    assert headings == [section for section in KNOBS if section]
    assert max(map(len, said.splitlines())) <= max(columns, 80)


def test_help_without_a_config_has_no_knobs(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        command_line.parse_plain(DOC, flags, ["-h"])
    said = capsys.readouterr().out
    assert "--checkpoint" in said and "--config." not in said and "--workdir" not in said


def test_help_is_quick() -> None:
    start = time.monotonic()
    code = f"import sys; from lmtiny import command_line; command_line.parse({DOC!r}, None, ['--help'])"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert ended.returncode == 0 and "optimizer.learning_rate" in ended.stdout
    assert time.monotonic() - start < 2
