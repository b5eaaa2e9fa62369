"""Numbers of a run in progress: read from the device late, so that it is never waited for between log lines."""

import pathlib
import time
from collections.abc import Callable

import jax
import ml_collections
import numpy as np

from lmtiny import console
from lmtiny.errors import UserError
from lmtiny.model import size
from lmtiny.parallel.mesh import peak_flops
from lmtiny.run_log import RunLog
from lmtiny.training.optimizer import peak_rates, schedule


class Reporter:
    """Logs every `log.every` steps: loss, gradient norm, rate, tokens/s, MFU; stops the run at a loss that is not finite."""

    def __init__(
        self, config: ml_collections.ConfigDict, log: RunLog | None, bar: console.Progress, first_step: int,
        started: float, newest_saved: Callable[[], int],
    ):  # fmt: skip
        """Args:
        log: None in all processes but the first.
        first_step: steps done before this start.
        started: time.monotonic() of the program's start.
        newest_saved: returns the newest step that is saved, 0 where none is.
        """
        self.newest_saved = newest_saved
        self.config, self.log, self.bar, self.started = config, log, bar, started
        self.first_step, self.counted, self.clock = first_step, first_step, time.monotonic()
        self.tokens_a_step = config.train.batch_size * config.model.context_length
        self.flops_a_token, self.peak = size.flops_per_token(config)["causal"], peak_flops() * jax.device_count()
        # Here, not at a log line: the device would first finish the step that it has at hand.
        self.rates = peak_rates(config)["matrix"] * np.asarray(schedule(config)(np.arange(config.train.num_steps)))
        self._waiting: tuple[int, dict[str, jax.Array]] | None = None

    def tell(self, step: int, metrics: dict[str, jax.Array]) -> None:
        """Takes the metrics of a step just dispatched, and reads those that waited: the device has the next step at hand."""
        self.catch_up()
        if step % self.config.log.every == 0 or step in (self.first_step + 1, self.config.train.num_steps):
            self._waiting = step, metrics

    def catch_up(self) -> None:
        """Reads and logs what waits; raises UserError naming step and row of a loss that was not finite."""
        if self._waiting is None:
            return
        (step, metrics), self._waiting = self._waiting, None
        values = {name: value.item() for name, value in jax.device_get(metrics).items()}
        self.refuse_bad(values["bad_step"], values["bad_row"])
        now = time.monotonic()
        if step == self.first_step + 1:  # it compiled: no measure of speed
            console.say(f"first step done {console.duration(now - self.started)} after the start, loss {values['loss']:.3f}")
        speed = (step - self.counted) * self.tokens_a_step / (now - self.clock)
        self.clock, self.counted = now, step
        figures: dict[str, float] = {
            "loss": values["loss"],
            "grad_norm": values["grad_norm"],
            "learning_rate": float(self.rates[step - 1]),
            "tokens_per_second": speed,
            "tokens": step * self.tokens_a_step,
        }
        if self.config.model.compute_dtype == "float16":
            figures["loss_scale"] = values["loss_scale"]
        if self.peak:
            figures["mfu"] = speed * self.flops_a_token / self.peak
        if self.log is not None:
            self.log.write(step, **figures)
        if step == self.first_step + 1 < self.config.train.num_steps:  # the rate of a step that was compiled foretells nothing
            return
        shown = {"mfu": f"{figures['mfu']:.1%}"} if self.peak else {}
        self.bar.update(step * self.tokens_a_step, step=f"{step}/{self.config.train.num_steps}", loss=f"{values['loss']:.3f}", **shown)

    def refuse_bad(self, bad_step: int, bad_row: int) -> None:
        """Raises UserError where a step was bad (>= 0): which, which row of the data, what is saved, and what to try."""
        if bad_step < 0:
            return
        batch_size, saved = self.config.train.batch_size, self.newest_saved()
        first = bad_step * batch_size
        rows = f"rows {first} to {first + batch_size - 1} (the gradient, no single row)"
        where = f"row {first + bad_row}" if bad_row >= 0 else rows
        raise UserError(
            f"the loss is not finite at step {bad_step + 1}, {where} of the shuffled data; "
            "the weights of that step were not changed, "
            f"and {f'checkpoint {saved} is good' if saved else 'nothing was saved yet'}. "
            "Lower optimizer.learning_rate, or raise optimizer.warmup_steps"
        )

    def resume(self, step: int) -> None:
        """Starts the clock anew after step `step`: what lay between (validation, samples, saving) is no training time."""
        self.clock, self.counted = time.monotonic(), step


def say_summary(workdir: pathlib.Path, config: ml_collections.ConfigDict, validation: str, started: float) -> None:
    """Prints how the run ended, what lies where, and what to type next."""
    lines = [("validation", validation), ("time", console.duration(time.monotonic() - started)), ("run", f"{workdir}/")]
    lines += [("weights", f"{workdir}/checkpoints/{config.train.num_steps}/")] + [
        (what, f"{workdir}/{name}")
        for what, name in _FILES
        if (workdir / name).exists()
    ]
    console.say("")
    for what, text in lines:
        console.say(f"  {what:<12}{text}")
    say_what_next(workdir)


_FILES = (("curves", "curves.png"), ("metrics", "metrics.jsonl"), ("samples", "samples.txt"), ("TensorBoard", "tensorboard/"))


def say_what_next(workdir: pathlib.Path) -> None:
    """Prints the command that talks to the model."""
    console.say(f"\nTalk to it:\n  python -m lmtiny.chat --checkpoint {workdir}")
