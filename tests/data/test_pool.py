"""Several processes: a signal ends them as a whole, and says nothing but one line."""

import pathlib
import signal
import subprocess
import sys

import pytest

PROGRAM = """
import signal
from lmtiny.data import pool
with pool.workers({processes}, 2, 1) as run:
    run("work", {function}, [{job}] * 2, [1, 1])
    {then}
"""


def ended(processes: int = 2, **parts: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", PROGRAM.format(processes=processes, **parts)], capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("processes", [1, 2])
def test_sigterm_leaves_nothing_behind(processes: int) -> None:
    done = ended(processes, function="abs", job="(1,)", then="signal.raise_signal(signal.SIGTERM)")
    assert (done.returncode, done.stderr) == (128 + signal.SIGTERM, "lmtiny: terminated; the same command goes on from what is finished\n")


SIGTERM_IN_COMPILED_CODE = """
import signal
from lmtiny import console
from lmtiny.data import pool

def main():
    with pool.workers(2, 2, 1):
        try:
            signal.raise_signal(signal.SIGTERM)
        except KeyboardInterrupt:
            raise RuntimeError("INTERNAL: KeyboardInterrupt") from None  # as sentencepiece's trainer does

console.run_main(main)
"""


def test_what_sigterm_made_of_compiled_code_ends_as_an_interruption() -> None:
    done = subprocess.run([sys.executable, "-c", SIGTERM_IN_COMPILED_CODE], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (130, "lmtiny: interrupted\n")


def test_a_process_hears_neither_ctrl_c_nor_a_closed_terminal_from_its_first_moment_on() -> None:
    blocked = "{signal.SIGINT, signal.SIGHUP} & signal.pthread_sigmask(signal.SIG_BLOCK, [])"
    ignored = "signal.getsignal(signal.SIGINT) is signal.getsignal(signal.SIGHUP) is signal.SIG_IGN"
    job = f"('import signal; assert {blocked} == {{signal.SIGINT, signal.SIGHUP}}; assert {ignored}',)"
    done = ended(function="exec", job=job, then=f"assert not {blocked}")
    assert (done.returncode, done.stderr) == (0, "")


UNGUARDED = """
from lmtiny.config import defaults
from lmtiny.data import preparation

config = defaults()
config.corpus.update({"kind": "files", "path": "FOLDER/in"})
config.data.update({"dir": "FOLDER/out", "num_processes": 2})
preparation.prepare(config)
"""


def test_a_script_whose_workers_run_it_again_is_told_so(tmp_path: pathlib.Path) -> None:
    (tmp_path / "in").mkdir()
    for name in ("a", "b"):
        (tmp_path / "in" / f"{name}.txt").write_text(f"{name} few words of text that nobody has written before. " * 50)
    script = tmp_path / "script.py"
    script.write_text(UNGUARDED.replace("FOLDER", str(tmp_path)))
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "lacks `if __name__ == '__main__':`" in done.stderr.splitlines()[-1]
