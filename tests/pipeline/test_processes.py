"""Real processes that find each other on this machine train as one does, save together, and another number of them goes on."""

import subprocess

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
    resume = runs.resume("run/8", *undone)
    resumed = together(runs, then, 1, *resume) if then > 1 else runs.train("", command=resume)
    assert resumed.returncode == 0, resumed.stderr
    assert "going on after step 8" in resumed.stdout
    one = runs.losses("run")
    np.testing.assert_allclose([one[step] for step in sorted(one)], [alone[step] for step in sorted(alone)], rtol=1e-5)


def test_processes_that_do_not_share_the_folder_of_the_run_say_so_before_the_first_step(whole, runs):
    command = runs.command("run")
    command[command.index("--workdir") + 1] = "run"  # in the current folder, which each has for itself
    apart = ["bash", "-c", 'mkdir "disk$LMTINY_PROCESS_ID" && cd "disk$LMTINY_PROCESS_ID" && exec "$@"', "x"]
    done = together(runs, 2, 1, *apart, *command, "--config.parallel.data=2")
    said = done.stdout + done.stderr
    line = "lmtiny: error: --workdir run is not on a file system that all 2 processes share: process 1 does not see"
    assert done.returncode == 1 and said.count(line) >= 1, said
    assert "first step done" not in said and "Traceback" not in said
    assert sorted(path.name for path in (runs.folder / "disk0/run").iterdir()) == [".lmtiny", ".lock"]
