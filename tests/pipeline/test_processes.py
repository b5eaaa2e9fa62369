"""Two real processes that find each other on this machine train as one does, save together, and one goes on alone."""

import subprocess
import sys

import numpy as np


def together(runs, workdir, *flags):
    command = [str(runs.repository / "launch/local.sh"), "--processes", "2", "--devices", "2", "--", *runs.command(workdir, *flags)]
    return subprocess.run(command, cwd=runs.folder, env=runs.env() | {"XLA_FLAGS": ""}, capture_output=True, text=True, timeout=300)


def test_two_processes_are_one(whole, runs):
    flags = ("--config.parallel.fsdp=2", "--config.checkpoint.keep=9")
    done = together(runs, "run", *flags)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "on 4 cpu (data 2, fsdp 2)" in done.stdout
    assert done.stdout.count("first step done") == 1  # one of the two speaks
    alone, two = whole[0].losses("whole"), runs.losses("run")
    np.testing.assert_allclose([two[step] for step in sorted(two)], [alone[step] for step in sorted(alone)], rtol=1e-5)
    # What two wrote, one reads.
    flags = ["--resume", str(runs.folder / "run/8"), "--config.parallel.fsdp=1"]
    resumed = runs.train("", command=[sys.executable, "-m", "lmtiny.train", *flags])
    assert resumed.returncode == 0, resumed.stderr
    assert "going on after step 8" in resumed.stdout
    one = runs.losses("run")
    np.testing.assert_allclose([one[step] for step in sorted(one)], [alone[step] for step in sorted(alone)], rtol=1e-5)
