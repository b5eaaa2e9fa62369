"""What the benchmarks of a train step share: building it from a config, its compiled memory, its time, the machine's facts."""

import dataclasses
import json
import os
import pathlib
import platform
import statistics
import time

import flags as flags_lib
import jax
import numpy as np

from lmtiny import config as config_lib
from lmtiny.model import attend, size
from lmtiny.parallel import cpu_matmul, host
from lmtiny.parallel import mesh as mesh_lib
from lmtiny.training.optimizer import make_optimizer
from lmtiny.training.state import init_state
from lmtiny.training.step import traced_train_step

MIB = 2**20
ROOT = pathlib.Path(__file__).resolve().parents[1]

host.leave_out_missing_tpu()  # here, before any of them asks jax for devices


@dataclasses.dataclass
class Step:
    """A compiled train step of `config` on `mesh`. temp_mib: MiB of temporaries on a device; state_mib: of its arguments."""

    config: object
    mesh: object
    run: object

    @property
    def temp_mib(self):
        return self.run.memory_analysis().temp_size_in_bytes / MIB

    @property
    def state_mib(self):
        return self.run.memory_analysis().argument_size_in_bytes / MIB

    def start(self):
        """Returns (a fresh state, a batch of random tokens)."""
        with jax.set_mesh(self.mesh):
            optimizer = make_optimizer(self.config, size.abstract(self.config)[2])
            return init_state(self.config, optimizer, self.mesh), self.batch(np.random.default_rng(0))

    def batch(self, random):
        """Returns a batch of tokens drawn with `random` from the whole vocabulary; none of them begins a document."""
        shape = (self.config.train.batch_size, self.config.model.context_length + 1)
        rows = random.integers(0, self.config.tokenizer.vocab_size, shape).astype(np.int32)
        return mesh_lib.place_batch(self.mesh, rows, shape[0])


def build(path, overrides, num_devices=1):
    """Returns the Step of a config file with `overrides` (dotted knob -> value) on the first `num_devices` devices."""
    return of(config_lib.load(path, {name: str(value) for name, value in overrides.items()}), jax.devices()[:num_devices])


def of(config, devices=None):
    """Returns the Step of a config on `devices` (default: all)."""
    mesh = mesh_lib.make_mesh(config, devices)
    cpu_matmul.use(config, mesh)
    config, _ = attend.resolved(config, mesh)
    with jax.set_mesh(mesh):
        return Step(config, mesh, traced_train_step(config, mesh, config.tokenizer.vocab_size).lower().compile())


def paired_seconds(steps, repeats):
    """Returns {name: (median seconds of a step, share of the machine's cores that worked)} of named Steps, run in turns."""
    times, work = _turns(steps, repeats)
    return {name: (statistics.median(times[name]), sum(work[name]) / sum(times[name])) for name in steps}


def seconds_in_turns(steps, repeats):
    """Returns {name: seconds of its step in each turn} of named Steps."""
    return _turns(steps, repeats)[0]


def _turns(steps, repeats):
    running = {name: step.start() for name, step in steps.items()}
    times, work = {name: [] for name in steps}, {name: [] for name in steps}
    for turn in range(repeats + 1):
        for name, step in steps.items():
            state, tokens = running[name]
            wall, cpu = time.perf_counter(), time.process_time()
            state, _ = jax.block_until_ready(step.run(state, tokens))
            if turn:  # the first warms up
                times[name].append(time.perf_counter() - wall)
                work[name].append(time.process_time() - cpu)
            running[name] = state, tokens
    return times, work


def medians_in_turns(runs, repeats):
    """Returns {name: median seconds} of named functions without arguments, run in turns, waiting for what they return."""
    times = {name: [] for name in runs}
    for turn in range(repeats + 1):
        for name, run in runs.items():
            start = time.perf_counter()
            jax.block_until_ready(run())
            if turn:  # the first warms up
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(seconds) for name, seconds in times.items()}


def machine():
    """Returns what a figure was taken on."""
    model = platform.processor() or platform.machine()
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo") as file:
            model = next((line.split(":")[1].strip() for line in file if line.startswith("model name")), model)
    return {"device": jax.devices()[0].device_kind, "processor": model, "cores": os.cpu_count(), "jax": jax.__version__,
            "python": platform.python_version()}  # fmt: skip


def flags(doc, draws=True):
    """Returns a parser with the flags that all of them have, and --out for those that draw."""
    parser = flags_lib.parser(doc)
    parser.add_argument("--config", default=str(ROOT / "configs" / "tiny.py"), help="the config file that is varied")
    flags_lib.add_set(parser, "another knob of the config, where the sweep does not set it")
    parser.add_argument("--repeats", type=flags_lib.at_least(1), default=5, help="timed steps of each")
    if draws:
        parser.add_argument("--out", type=flags_lib.new_file, help="write a plot, as PNG")
    return parser


def finish(record):
    """Prints the one line of JSON that ends a benchmark."""
    print(json.dumps(machine() | record))
