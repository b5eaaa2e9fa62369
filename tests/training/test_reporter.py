"""The figures of a run in progress: the time between two readings counts whole, and nothing is computed at a log line."""

import types

import numpy as np
import pytest

from lmtiny import config as config_lib
from lmtiny.errors import UserError
from lmtiny.training import reporter
from lmtiny.training.optimizer import peak_rates, schedule


def told(monkeypatch, num_steps, readings):
    """Returns (what was logged, by step; what the bar was told) of a run whose losses are read at these times."""
    config = config_lib.defaults()
    config_lib.set_knob(config, "train.num_steps", num_steps)
    config_lib.set_knob(config, "optimizer.warmup_steps", 1)
    config_lib.set_knob(config, "log.every", 1)
    times = iter([0.0, *readings])
    monkeypatch.setattr(reporter, "time", types.SimpleNamespace(monotonic=lambda: next(times)))
    logged, shown = {}, []
    log = types.SimpleNamespace(write=lambda step, **figures: logged.update({step: figures}))
    bar = types.SimpleNamespace(update=lambda done, **figures: shown.append(done))
    one = reporter.Reporter(config, log, bar, 0, started=0.0, newest_saved=lambda: 0)
    monkeypatch.setattr(reporter, "schedule", None)  # on a device it would wait for the step that is at work
    for step in range(1, num_steps + 1):
        one.tell(step, {"loss": np.float32(2), "grad_norm": np.float32(1), "bad_step": np.int32(-1), "bad_row": np.int32(-1)})
    one.catch_up()
    return logged, [done // one.tokens_a_step for done in shown], one.tokens_a_step


def test_tokens_per_second_are_those_between_two_readings(monkeypatch):
    logged, shown, tokens = told(monkeypatch, 4, [10.0, 12.0, 16.0, 17.0])
    assert [logged[step]["tokens_per_second"] for step in (2, 3, 4)] == [tokens / 2, tokens / 4, tokens]
    assert shown == [2, 3, 4]  # the first step's time is mostly that of compiling


def test_the_rate_logged_is_that_of_the_step(monkeypatch):
    logged, _, _ = told(monkeypatch, 3, [1.0, 2.0, 3.0])
    config = config_lib.defaults()
    config.train.num_steps, config.optimizer.warmup_steps = 3, 1
    expected = [peak_rates(config)["matrix"] * float(schedule(config)(step)) for step in range(3)]
    assert [logged[step]["learning_rate"] for step in (1, 2, 3)] == pytest.approx(expected, rel=1e-6)


def test_a_run_of_one_step_has_done_it(monkeypatch):
    assert told(monkeypatch, 1, [3.0])[1] == [1]


@pytest.mark.parametrize(("saved", "said"), [(0, "nothing was saved yet"), (4, "checkpoint 4 is good")])
def test_a_loss_that_is_not_finite_names_the_checkpoint_there_is(saved, said):
    config = config_lib.defaults()
    config.train.num_steps, config.optimizer.warmup_steps = 8, 1
    one = reporter.Reporter(config, None, None, 0, started=0.0, newest_saved=lambda: saved)
    one.refuse_bad(-1, -1)
    with pytest.raises(UserError, match=f"not finite at step 6, row {5 * config.train.batch_size + 3} .*{said}"):
        one.refuse_bad(5, 3)
