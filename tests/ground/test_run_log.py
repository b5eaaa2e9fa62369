"""run_log: the numbers of a run survive kills and resumes, and are drawn."""

import builtins
import json
import math
import pathlib
from typing import Any

import numpy as np
import pytest

from lmtiny.errors import UserError
from lmtiny.run_log import RunLog, append_samples, plot_curves, read_metrics


def write_steps(folder: pathlib.Path, steps: range, resume_step: int | None = None) -> None:
    log = RunLog(folder, tensorboard=False, resume_step=resume_step)
    for step in steps:
        log.write(step, loss=float(step), learning_rate=np.float32(0.5))
    log.close()
    log.close()


def test_a_line_is_on_disk_as_soon_as_it_is_written(tmp_path: pathlib.Path) -> None:
    log = RunLog(tmp_path / "run", tensorboard=False)
    log.write(np.int64(3), loss=np.float32(1.5), rows=7, grad=math.nan, other=-math.inf)  # type: ignore[arg-type]
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    log.close()
    values = [json.loads(line, parse_constant=pytest.fail) for line in lines]
    assert values == [{"step": 3, "loss": 1.5, "rows": 7, "grad": None, "other": None}]


def test_a_resumed_log_drops_what_came_after_and_a_half_written_line(tmp_path: pathlib.Path) -> None:
    write_steps(tmp_path, range(6))
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "lo')  # killed here
    assert [line["step"] for line in read_metrics(tmp_path)] == [0, 1, 2, 3, 4, 5]
    write_steps(tmp_path, range(4, 6), resume_step=3)
    assert [line["step"] for line in read_metrics(tmp_path)] == [0, 1, 2, 3, 4, 5]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["metrics.jsonl"]


def test_a_new_log_starts_empty(tmp_path: pathlib.Path) -> None:
    write_steps(tmp_path, range(6))
    write_steps(tmp_path, range(2))
    assert [line["step"] for line in read_metrics(tmp_path)] == [0, 1]


WRONG = ["not json", "[1]", '{"loss": 1}', '{"step": "x"}', '{"step": 1, "loss": "low"}', '{"step": 1, "loss": 1e999}',
         pytest.param("[" * 100_000, id="nested"), pytest.param('{"step": 1, "loss": 1' + "0" * 400 + "}", id="huge")]  # fmt: skip


@pytest.mark.parametrize("wrong", WRONG)
def test_a_broken_line_in_the_middle_is_told(tmp_path: pathlib.Path, wrong: str) -> None:
    (tmp_path / "metrics.jsonl").write_text(f'{{"step": 1}}\n{wrong}\n{{"step": 2}}\n')
    with pytest.raises(UserError, match="line 2 is not an object of numbers with a step"):
        read_metrics(tmp_path)


def test_tensorboard_events_are_written(tmp_path: pathlib.Path) -> None:
    log = RunLog(tmp_path, tensorboard=True)
    log.write(1, validation_bits_per_byte=1.25)
    log.close()
    events = list((tmp_path / "tensorboard").iterdir())
    assert len(events) == 1 and b"validation_bits_per_byte" in events[0].read_bytes()


def test_a_missing_tensorboard_is_said_once_and_ends_nothing(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any, **named: Any) -> Any:
        if name == "tensorboardX":
            raise ImportError(name)
        return real(name, *rest, **named)

    monkeypatch.setattr(builtins, "__import__", without)
    log = RunLog(tmp_path, tensorboard=True)
    log.write(1, loss=1.0)
    log.write(2, loss=1.0)
    log.close()
    assert capsys.readouterr().err.count("tensorboardX is not installed") == 1
    assert len(read_metrics(tmp_path)) == 2


def test_curves_are_drawn_from_what_is_there(tmp_path: pathlib.Path) -> None:
    with pytest.raises(UserError, match="to draw"):
        plot_curves(tmp_path)
    write_steps(tmp_path, range(3))
    first = plot_curves(tmp_path)
    assert first == tmp_path / "curves.png" and first.read_bytes().startswith(b"\x89PNG")
    small = first.stat().st_size
    log = RunLog(tmp_path, tensorboard=False, resume_step=2)
    log.write(3, loss=math.nan, validation_bits_per_byte=2.5)
    log.close()
    assert plot_curves(tmp_path).stat().st_size > small  # a third panel, and a gap where the loss was NaN
    assert sorted(path.name for path in tmp_path.iterdir()) == ["curves.png", "metrics.jsonl"]


def test_samples_are_appended(tmp_path: pathlib.Path) -> None:
    append_samples(tmp_path, 1, [("The ", "cat")])
    path = append_samples(tmp_path, 2, [("Ω", "a\nb \ud800")])
    assert path.read_text(encoding="utf-8") == "=== step 1 ===\n[The ]cat\n---\n=== step 2 ===\n[Ω]a\nb ?\n---\n"
