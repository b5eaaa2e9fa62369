"""What a run writes down: metrics.jsonl, TensorBoard events, curves.png and samples.txt in the run's folder."""

import json
import math
import os
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any, SupportsFloat

from lmtiny import console
from lmtiny.errors import UserError
from lmtiny.files import write_aside, written

# (key in metrics.jsonl, label with its unit, height of its panel); the keys a training loop writes for its curves.
CURVES = (
    ("loss", "training loss\n(nats per token)", 3),
    ("validation_bits_per_byte", "validation\n(bits per byte)", 3),
    ("learning_rate", "learning rate\n(per step)", 2),
)


class RunLog:
    """The numbers of one run, step by step. In a run of several processes, only the first one keeps a log."""

    def __init__(self, folder: str | os.PathLike[str], tensorboard: bool, resume_step: int | None = None) -> None:
        """Opens the log in `folder`; with `resume_step`, earlier lines stay and those of later steps are dropped."""
        self.folder = pathlib.Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / "metrics.jsonl"
        kept = [] if resume_step is None else [line for line in read_metrics(self.folder) if line["step"] <= resume_step]
        write_aside(path, "".join(json.dumps(line) + "\n" for line in kept))
        self._file = path.open("a", encoding="utf-8")
        self._events = _events(self.folder / "tensorboard", resume_step) if tensorboard else None

    def write(self, step: int, **numbers: SupportsFloat) -> None:
        """Appends a line of `numbers` (Python's, NumPy's or JAX's scalars) and flushes it; NaN and infinity become null."""
        values = {name: value if isinstance(value, int) else float(value) for name, value in numbers.items()}
        finite = {name: value if math.isfinite(value) else None for name, value in values.items()}
        self._file.write(json.dumps({"step": int(step), **finite}) + "\n")
        self._file.flush()
        if self._events is not None:
            for name, value in values.items():
                self._events.add_scalar(name, value, step)

    def close(self) -> None:
        """Writes what is left and closes the files; may be called twice."""
        self._file.close()
        if self._events is not None:
            self._events.close()
            self._events = None


def _events(folder: pathlib.Path, resume_step: int | None) -> Any:
    """Returns a TensorBoard writer, or None (said once) where tensorboardX is not installed."""
    try:
        from tensorboardX import SummaryWriter
    except ImportError:
        console.warn("tensorboardX is not installed: no TensorBoard events; --config.log.tensorboard=false says you know")
        return None
    return SummaryWriter(str(folder), purge_step=0 if resume_step is None else resume_step + 1)


def read_metrics(folder: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Returns the lines of metrics.jsonl in `folder` ([] where there is none); a half-written last line is left out.

    Raises:
      UserError: a line that is not the last one is no JSON object with a "step".
    """
    path = pathlib.Path(folder) / "metrics.jsonl"
    lines = path.read_bytes().splitlines() if path.is_file() else []
    metrics = []
    for number, line in enumerate(lines, 1):
        try:
            values = json.loads(line)
            values["step"] >= 0  # noqa: B015 -- a number under "step" is what makes a line
        except (ValueError, TypeError, KeyError):
            if number == len(lines):  # the process died while writing it
                break
            raise UserError(f"{path}: line {number} is not an object with a step; repair it or move the file away") from None
        metrics.append(values)
    return metrics


def plot_curves(folder: str | os.PathLike[str]) -> pathlib.Path:
    """Draws loss, validation loss and learning rate from metrics.jsonl into curves.png; returns its path.

    Raises:
      UserError: there is nothing to draw.
    """
    from matplotlib.figure import Figure  # without pyplot: no display is looked for, nothing global is kept
    from matplotlib.ticker import MaxNLocator

    folder = pathlib.Path(folder)
    lines = read_metrics(folder)
    points = {key: [(line["step"], line[key]) for line in lines if line.get(key) is not None] for key, _, _ in CURVES}
    panels = [curve for curve in CURVES if points[curve[0]]]
    if not panels:
        raise UserError(f"{folder / 'metrics.jsonl'}: no {', '.join(key for key, _, _ in CURVES)} in it to draw")
    figure = Figure(figsize=(8, 1.2 * sum(height for _, _, height in panels)), layout="constrained")
    grid = figure.subplots(len(panels), 1, sharex=True, squeeze=False, height_ratios=[height for _, _, height in panels])
    for axes, (key, label, _) in zip(grid[:, 0], panels, strict=True):
        steps, values = zip(*points[key], strict=True)
        axes.plot(steps, values, linewidth=1.2, marker="o" if len(steps) < 60 else None, markersize=3)
        axes.set_ylabel(label)
        axes.ticklabel_format(axis="y", scilimits=(-3, 5))
        axes.grid(alpha=0.3)
        if key != "learning_rate":
            axes.annotate(f"last {values[-1]:.4g}, lowest {min(values):.4g}", (0.99, 0.96), xycoords="axes fraction", ha="right", va="top")
    grid[-1, 0].set_xlabel("optimizer step")
    grid[-1, 0].xaxis.set_major_locator(MaxNLocator(integer=True))
    grid[0, 0].set_title(folder.resolve().name)
    path = folder / "curves.png"
    with written(path) as aside:
        figure.savefig(aside, dpi=120)
    return path


def append_samples(folder: str | os.PathLike[str], step: int, samples: Iterable[Sequence[str]]) -> pathlib.Path:
    """Appends (prompt, text that the model went on with) pairs to samples.txt under a heading with the step; returns its path."""
    path = pathlib.Path(folder) / "samples.txt"
    blocks = [f"=== step {step} ===\n", *(f"[{prompt}]{text}\n---\n" for prompt, text in samples)]
    with path.open("a", encoding="utf-8", errors="replace") as file:
        file.write("".join(blocks))
    return path
