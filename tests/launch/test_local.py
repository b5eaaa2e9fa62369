"""launch/local.sh: emulated devices, processes that find each other, all stopped when one fails."""

import os
import pathlib
import pty
import re
import signal
import subprocess
import time

import pytest

SCRIPT = pathlib.Path(__file__).parents[2] / "launch" / "local.sh"


def local(*arguments: str) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    return subprocess.run([str(SCRIPT), *arguments], capture_output=True, text=True, timeout=60, env=clean, check=False)


def without_sleep(said: str) -> list[str]:
    """Returns the lines in order, without bash's remark that its `sleep` got the signal as well."""
    return sorted(line for line in said.splitlines() if not line.endswith("] Terminated"))


def test_one_process_gets_its_devices_and_its_words() -> None:
    body = 'echo "$JAX_PLATFORMS $XLA_FLAGS [$LMTINY_COORDINATOR]"; echo "$1"; exit 3'
    ended = local("--devices", "6", "--", "bash", "-c", body, "x", "a  'b' $HOME")
    assert ended.returncode == 3
    assert ended.stdout == "cpu --xla_force_host_platform_device_count=6 []\na  'b' $HOME\n"


def test_processes_are_told_of_each_other() -> None:
    body = 'echo "$LMTINY_PROCESS_ID $LMTINY_NUM_PROCESSES $LMTINY_COORDINATOR $XLA_FLAGS"'
    ended = local("--processes=3", "--devices=2", "--", "bash", "-c", body)
    assert ended.returncode == 0, ended.stderr
    lines = sorted(ended.stdout.splitlines())
    port = re.search(r"localhost:(\d+)", lines[0])
    assert port is not None
    assert lines == [f"[{i}] {i} 3 localhost:{port[1]} --xla_force_host_platform_device_count=2" for i in range(3)]


def test_when_one_fails_the_others_are_stopped(tmp_path: pathlib.Path) -> None:
    start = time.monotonic()
    body = """
        if [ "$LMTINY_PROCESS_ID" = 1 ]; then
            while [ ! -e "$1/0" ] || [ ! -e "$1/2" ]; do sleep 0.05; done  # the others are ready
            exit 7
        fi
        trap "echo stopping; exit 5" TERM
        touch "$1/$LMTINY_PROCESS_ID"
        for _ in {1..400}; do sleep 0.1; done"""
    ended = local("--processes", "3", "--", "bash", "-c", body, "x", str(tmp_path))
    assert ended.returncode == 7
    assert without_sleep(ended.stdout) == ["[0] stopping", "[2] stopping"]
    assert ended.stderr == "launch/local.sh: error: process 1 ended with exit code 7; the others are stopped\n"
    assert time.monotonic() - start < 9  # nobody had to be killed


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 9)], ids=["ctrl-c", "term"])
def test_a_signal_goes_to_all_processes_and_all_are_waited_for(number: signal.Signals, code: int) -> None:
    body = 'trap "sleep 0.3; echo int; exit 130" INT; trap "sleep 0.3; echo term; exit 9" TERM; echo ready; '
    body += 'for _ in {1..400}; do sleep 0.1; done'
    with subprocess.Popen([str(SCRIPT), "--processes", "2", "--", "bash", "-c", body], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert sorted(process.stdout.readline() for _ in range(2)) == ["[0] ready\n", "[1] ready\n"]
            process.send_signal(number)
            said, _ = process.communicate(timeout=30)
        finally:
            process.kill()  # the processes it leaves behind end by themselves after 40 s
    assert process.returncode == code
    word = "int" if number == signal.SIGINT else "term"
    assert without_sleep(said) == [f"[0] {word}", f"[1] {word}"]


def test_processes_do_not_outlive_a_script_that_is_killed() -> None:
    body = 'trap "echo stopping; exit 5" TERM; echo ready; for _ in {1..400}; do sleep 0.1; done'
    arguments = [str(SCRIPT), "--processes", "2", "--", "bash", "-c", body]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        assert sorted(process.stdout.readline() for _ in range(2)) == ["[0] ready\n", "[1] ready\n"]
        process.kill()
        said = process.stdout.read()
    assert without_sleep(said) == ["[0] stopping", "[1] stopping"]


def test_who_has_to_save_outlives_the_terminal(tmp_path: pathlib.Path) -> None:
    """The terminal is closed, and the script is told of it as its shell would tell it."""
    body = 'trap "echo x; echo x; touch $1/$LMTINY_PROCESS_ID; exit 5" HUP; echo ready; for _ in {1..400}; do sleep 0.1; done'
    arguments = [str(SCRIPT), "--processes", "2", "--", "bash", "-c", body, "x", str(tmp_path)]
    terminal, end = pty.openpty()
    with subprocess.Popen(arguments, stdout=end, stderr=subprocess.DEVNULL) as process:
        os.close(end)
        said = b""
        while said.count(b"ready") < 2:
            said += os.read(terminal, 100)
        os.close(terminal)
        process.send_signal(signal.SIGHUP)
        assert process.wait(30) == 5
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0", "1"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "no command: put it after --"),
        (["--devices", "8", "--"], "no command"),
        (["--devices", "0", "--", "true"], "--devices needs a whole number above 0, not '0'"),
        (["--processes", "x", "--", "true"], "--processes needs a whole number above 0, not 'x'"),
        (["--devices"], "--devices needs a whole number above 0, not ''"),
        (["--devcies", "8", "--", "true"], "there is no flag '--devcies'"),
        (["python"], "there is no flag 'python'"),
    ],
)
def test_refusals_are_one_line(arguments: list[str], said: str) -> None:
    ended = local(*arguments)
    assert ended.returncode == 1 and ended.stdout == ""
    assert ended.stderr.startswith(f"launch/local.sh: error: {said}") and ended.stderr.count("\n") == 1


def test_help_has_an_example_on_top() -> None:
    ended = local("--help")
    assert ended.returncode == 0 and "launch/local.sh --devices 8 -- python -m lmtiny.train" in ended.stdout.splitlines()[2]
