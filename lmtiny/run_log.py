"""What a run writes down: metrics.jsonl, TensorBoard events, curves.png and samples.txt in the run's folder."""

import contextlib
import errno
import json
import math
import os
import pathlib
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import IO, Any, SupportsFloat

from lmtiny import console, json_data
from lmtiny.errors import UserError
from lmtiny.files import write_aside, written

METRICS, SAMPLES, CURVES_FILE = "metrics.jsonl", "samples.txt", "curves.png"

# (key in metrics.jsonl, label with its unit, height of its panel); the keys a training loop writes for its curves.
CURVES = (
    ("loss", "training loss\n(nats per token)", 3),
    ("validation_bits_per_byte", "validation\n(bits per byte)", 3),
    ("learning_rate", "learning rate\n(per step)", 2),
)


class RunLog:
    """What one run writes down, step by step. In a run of several processes, only the first one keeps a log.

    What cannot be written is a warning, once for each file: a run is worth more than its log.
    """

    def __init__(self, folder: str | os.PathLike[str], tensorboard: bool, resume_step: int | None = None) -> None:
        """Opens the log in `folder`; with `resume_step`, earlier lines stay and those of later steps are dropped.

        Raises:
          UserError: a folder, or anything else that is no file, stands where a file belongs; metrics.jsonl is damaged.
        """
        self.folder = pathlib.Path(folder)
        self._told, self._file, self._events = set[str](), None, None
        for name in (METRICS, SAMPLES, CURVES_FILE):
            path = self.folder / name
            if path.is_symlink() or (path.exists() and not path.is_file()):
                raise UserError(f"{path} is not a file but a folder, a link or something else; move it away")
        kept = [] if resume_step is None else [line for line in read_metrics(self.folder) if line["step"] <= resume_step]
        with self._or_warn(METRICS):
            self.folder.mkdir(parents=True, exist_ok=True)
            write_aside(self.folder / METRICS, "".join(json.dumps(line) + "\n" for line in kept))
            self._file = open(self.folder / METRICS, "ab", buffering=0)  # noqa: SIM115 -- closed by close()
        if tensorboard:
            with self._or_warn("tensorboard"):
                self._events = _events(self.folder / "tensorboard", resume_step)

    _file: IO[bytes] | None
    _events: Any

    def write(self, step: int, **numbers: SupportsFloat) -> None:
        """Appends a line of `numbers` (Python's, NumPy's or JAX's scalars) and flushes it; NaN and infinity become null."""
        values = {name: value if isinstance(value, int) else float(value) for name, value in numbers.items()}
        finite = {name: value if math.isfinite(value) else None for name, value in values.items()}
        if self._file is not None:
            with self._or_warn(METRICS):
                _append(self._file, json.dumps({"step": int(step), **finite}).encode() + b"\n")
        if self._events is not None:
            with self._or_warn("tensorboard"):
                for name, value in values.items():
                    self._events.add_scalar(name, value, step)

    def samples(self, step: int, shown: Iterable[Sequence[str]]) -> None:
        """Appends (prompt, text that the model went on with) pairs to samples.txt, as `append_samples` does."""
        with self._or_warn(SAMPLES):
            append_samples(self.folder, step, shown)

    def finish(self) -> None:
        """Closes the log and draws curves.png."""
        self.close()
        with self._or_warn(CURVES_FILE):
            plot_curves(self.folder)

    def close(self) -> None:
        """Writes what is left and closes the files; may be called twice."""
        if self._file is not None:
            with self._or_warn(METRICS):
                self._file.close()
        if self._events is not None:
            events, self._events = self._events, None
            with self._or_warn("tensorboard"):
                events.close()

    @contextlib.contextmanager
    def _or_warn(self, name: str) -> Iterator[None]:
        try:
            yield
        except (OSError, UserError) as error:
            if name not in self._told:
                self._told.add(name)
                what = error.strerror if isinstance(error, OSError) else error
                console.warn(f"{self.folder / name} cannot be written: {what}; training does not wait for it")


def _append(file: IO[bytes], line: bytes) -> None:
    """Writes the whole line at the end of an unbuffered file, or nothing and raises OSError."""
    end = os.fstat(file.fileno()).st_size
    try:
        if file.write(line) != len(line):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    except OSError:
        with contextlib.suppress(OSError):
            file.truncate(end)
        raise


class _Events:
    """TensorBoard's file of events. tensorboardX writes it in a thread, and waits for ever where that met a full disk."""

    def __init__(self, folder: pathlib.Path, resume_step: int | None) -> None:
        from tensorboardX import event_file_writer, proto, summary

        folder.mkdir(parents=True, exist_ok=True)
        self._event, self._scalar = proto.event_pb2, summary.scalar
        self._writer = event_file_writer.EventsWriter(str(folder / "events"))
        start = self._event.SessionLog(status=self._event.SessionLog.START)
        # What came later, before a resume, counts no more.
        self._write(0 if resume_step is None else resume_step + 1, session_log=start)

    def add_scalar(self, name: str, value: float, step: int) -> None:
        self._write(step, summary=self._scalar(name, value))

    def _write(self, step: int, **what: Any) -> None:
        self._writer.write_event(self._event.Event(wall_time=time.time(), step=step, **what))
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


def _events(folder: pathlib.Path, resume_step: int | None) -> _Events | None:
    """Returns a TensorBoard writer, or None (said once) where tensorboardX is not installed."""
    try:
        return _Events(folder, resume_step)
    except ImportError:
        console.warn("tensorboardX is not installed: no TensorBoard events; --config.log.tensorboard=false says you know")
        return None


def read_metrics(folder: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Returns the lines of metrics.jsonl in `folder` ([] where there is none); a half-written last line is left out.

    Raises:
      UserError: a line that is not the last one is no JSON object of numbers with a "step".
    """
    path = pathlib.Path(folder) / METRICS
    lines = path.read_bytes().splitlines() if path.is_file() else []
    metrics = []
    for number, line in enumerate(lines, 1):
        try:
            values = json_data.parsed(line, "")
            json_data.check(values, {str: (float, type(None))}, "")
            json_data.check(values, {"step": int}, "")
            if any(abs(value) > 1e300 for value in values.values() if value is not None):  # which no axis of a plot takes
                raise UserError("too large")
        except UserError:
            if number == len(lines):  # the process died while writing it
                break
            what = f"{path}: line {number} is not an object of numbers with a step"
            raise UserError(f"{what}; repair it or move the file away") from None
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
        raise UserError(f"{folder / METRICS}: no {', '.join(key for key, _, _ in CURVES)} in it to draw")
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
    path = folder / CURVES_FILE
    with written(path) as aside:
        figure.savefig(aside, dpi=120)
    return path


def append_samples(folder: str | os.PathLike[str], step: int, samples: Iterable[Sequence[str]]) -> pathlib.Path:
    """Appends (prompt, text that the model went on with) pairs to samples.txt under a heading with the step; returns its path."""
    path = pathlib.Path(folder) / SAMPLES
    blocks = [f"=== step {step} ===\n", *(f"[{prompt}]{text}\n---\n" for prompt, text in samples)]
    if path.is_symlink():
        raise UserError(f"{path} is a link")  # which leads who knows where
    with path.open("ab", buffering=0) as file:
        _append(file, "".join(blocks).encode(errors="replace"))
    return path
