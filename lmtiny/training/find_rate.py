"""The learning-rate finder: one short run whose rate grows exponentially (Smith 2017, arXiv 1506.01186, section 3.3)."""

import math
import pathlib

import numpy as np

from lmtiny import console
from lmtiny.errors import UserError
from lmtiny.files import written

LOWEST, HIGHEST = 1e-3, 1e3  # of the sweep, as shares of the config's peak rates
FEWEST = 10  # losses that a suggestion may rest on


def sweep(num_steps: int) -> np.ndarray:
    """Returns the share of the peak rate at each step, growing from LOWEST to HIGHEST by the same factor a step."""
    return LOWEST * (HIGHEST / LOWEST) ** (np.arange(num_steps) / max(1, num_steps - 1))


def smoothed(losses: np.ndarray, decay: float = 0.9) -> np.ndarray:
    """Returns the exponential moving average of the losses, corrected for its start."""
    average, result = 0.0, []
    for index, loss in enumerate(losses):
        average = decay * average + (1 - decay) * loss
        result.append(average / (1 - decay ** (index + 1)))
    return np.array(result)


def diverged(losses: np.ndarray) -> bool:
    """Returns whether the smoothed loss has left its lowest value far below: larger rates have nothing to tell."""
    average = smoothed(losses)
    return bool(len(losses) > 10 and average[-1] > 1.5 * average.min())


def finite(losses: np.ndarray) -> np.ndarray:
    """Returns the losses before the first that is no finite number: from there on all is lost."""
    return losses[: int(np.argmin(np.append(np.isfinite(losses), False)))]


def suggest(rates: np.ndarray, losses: np.ndarray) -> float:
    """Returns a tenth of the rate at which the smoothed loss is lowest: the rule of Smith's successors (fast.ai, 2018).

    No less than the lowest rate tried; losses that are not finite, and what follows them, do not count.

    Raises:
      UserError: too few losses, or none below the first.
    """
    losses = finite(losses)
    if len(losses) < FEWEST:
        raise UserError(
            f"--find-lr: the loss is a finite number for {len(losses)} steps, {FEWEST} or more are needed;"
            " try a lower optimizer.learning_rate, or a higher train.num_steps"
        )
    lowest = int(np.argmin(smoothed(losses)))
    if lowest == 0:
        raise UserError(f"--find-lr: the loss only rises, from {rates[0]:.2g} on; try a lower optimizer.learning_rate")
    return float(max(rates[lowest] / 10, rates[0]))


def plot(path: pathlib.Path, rates: np.ndarray, losses: np.ndarray, suggestion: float) -> None:
    """Draws loss against learning rate, as far as it is finite, with the suggestion marked, into a PNG.

    Warns where it cannot be written: the suggestion is made.
    """
    from matplotlib.figure import Figure  # slow to import, and only needed here

    losses = finite(losses)
    rates = rates[: len(losses)]
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    axes.plot(rates, losses, alpha=0.3, label="loss of each step")
    average = smoothed(losses)
    axes.plot(rates, average, label="smoothed")
    axes.axvline(suggestion, linestyle="--", color="black", label=f"suggested: {suggestion:.2g}")
    axes.set_xscale("log")
    axes.set_ylim(min(average) - 0.1 * math.log(2), average[0] * 1.2)
    axes.set_xlabel("learning rate (optimizer.learning_rate)")
    axes.set_ylabel("training loss (nats per token)")
    axes.grid(alpha=0.3)
    axes.legend()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with written(path) as aside:
            figure.savefig(aside, dpi=120)
    except OSError as error:
        console.warn(f"{path} cannot be written: {error.strerror or error}")
