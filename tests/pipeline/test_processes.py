"""Real processes that find each other on this machine train as one does, save together, and another number of them goes on."""

import subprocess
import sys

import numpy as np
import pytest

from tests.conftest import RUN_ONCE
from tests.pipeline.conftest import SAMPLES


def together(runs, num_processes, devices, *command):
    launch = [str(runs.repository / "launch/local.sh"), "--processes", str(num_processes), "--devices", str(devices), "--"]
    return subprocess.run(
        [*launch, *command], cwd=runs.folder, env=runs.env() | {"XLA_FLAGS": RUN_ONCE}, capture_output=True, text=True, timeout=300
    )


@pytest.mark.parametrize(
    ("num_processes", "devices", "mesh", "then"),
    [
        (2, 2, {"data": 2, "fsdp": 2}, 1),
        pytest.param(4, 1, {"data": 2, "context": 2}, 2, marks=pytest.mark.exhaustive),
        pytest.param(2, 2, {"pipeline": 2, "tensor": 2}, 4, marks=pytest.mark.exhaustive),
    ],
    ids=["two", "four", "two-in-a-pipeline"],
)
def test_processes_are_one(whole, runs, num_processes, devices, mesh, then):
    flags = [f"--config.parallel.{name}={size}" for name, size in mesh.items()]
    done = together(runs, num_processes, devices, *runs.command("run", *flags, "--config.checkpoint.keep=9", *SAMPLES))
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"on 4 cpu ({', '.join(f'{name} {size}' for name, size in mesh.items())})" in done.stdout
    assert done.stdout.count("first step done") == 1  # one of them speaks
    alone, found = whole[0].losses("whole"), runs.losses("run")
    np.testing.assert_allclose([found[step] for step in sorted(found)], [alone[step] for step in sorted(alone)], rtol=1e-5)
    # What they wrote, another number of processes reads.
    undone = [f"--config.parallel.{name}={then if name == 'data' else 1}" for name in {"data": 0} | mesh]
    resume = [sys.executable, "-m", "lmtiny.train", "--resume", str(runs.folder / "run/8"), *undone]
    resumed = together(runs, then, 1, *resume) if then > 1 else runs.train("", command=resume)
    assert resumed.returncode == 0, resumed.stderr
    assert "going on after step 8" in resumed.stdout
    one = runs.losses("run")
    np.testing.assert_allclose([one[step] for step in sorted(one)], [alone[step] for step in sorted(alone)], rtol=1e-5)
