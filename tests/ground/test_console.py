"""console: readable numbers, tables, progress on a pipe and on a terminal, and how a program ends."""

import os
import pathlib
import pty
import re
import signal
import subprocess
import sys
import time

import pytest

from lmtiny import console


@pytest.mark.parametrize(
    ("number", "unit", "shown"),
    [
        (0, "", "0"),
        (999, "steps", "999 steps"),
        (1000, "", "1 k"),
        (999_999, "tokens", "1 M tokens"),
        (12_345_678, "tokens", "12.3 M tokens"),
        (12_345_678, "B", "12.3 MB"),
        (999.7, "", "1 k"),
        (0.00031, "", "0.00031"),
        (1.9e14, "FLOP/s", "190 TFLOP/s"),
        (-2500, "", "-2.5 k"),
        (float("nan"), "", "nan"),
        (float("-inf"), "B", "-inf B"),
        (3.5, "B", "3.5 B"),
    ],
)
def test_human(number: float, unit: str, shown: str) -> None:
    assert console.human(number, unit) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0, "0 ms"),
        (2e-5, "20 µs"),
        (0.035, "35 ms"),
        (0.266, "266 ms"),
        (4.24, "4.2 s"),
        (59.6, "1 min 00 s"),
        (185, "3 min 05 s"),
        (3599.7, "1 h 00 min"),
        (7500, "2 h 05 min"),
        (3 * 86400 + 4 * 3600, "3 d 04 h"),
        (float("inf"), "unknown"),
    ],
)
def test_duration(seconds: float, shown: str) -> None:
    assert console.duration(seconds) == shown


def test_table_aligns_and_sets_numbers_to_the_right() -> None:
    assert console.table(["step", "name"], [[1, "a"], [200, "b\x1b[2J\nc"]]).splitlines() == [
        "step  name",
        "----  -------",
        "   1  a",
        " 200  b\N{REPLACEMENT CHARACTER}[2J c",
    ]
    with pytest.raises(ValueError, match="a row of 1 cells under 2 headers"):
        console.table(["a", "b"], [["x"]])


def test_say_lets_no_escape_sequence_through(capsys: pytest.CaptureFixture[str]) -> None:
    console.say("tab\tok \x1b]0;title\x07 \x9b31m [bold]é")
    assert capsys.readouterr().out.replace("\N{REPLACEMENT CHARACTER}", "?") == "tab\tok ?]0;title? ?31m [bold]é\n"


def test_a_silent_process_says_nothing_but_warns(capsys: pytest.CaptureFixture[str]) -> None:
    console.silence()
    try:
        console.say("x")
        with console.progress("read", 10, "rows") as shown:
            shown.update(10)
        console.warn("look")
    finally:
        console.silence(False)
    assert capsys.readouterr() == ("", "lmtiny: warning: look\n")


def test_progress_on_a_pipe_is_a_line_now_and_then(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    with console.progress("train", 2000, "steps", start=1000) as shown:
        for step in range(1001, 1051):
            now[0] += 0.25
            shown.update(step, loss=2.34567, time="3 s")
    lines = capsys.readouterr().out.splitlines()
    # 12.5 s at 4 steps/s counted from the start, not from zero: two lines on the way, one at the end
    assert lines == [
        "train: 1,020/2,000 steps, 4 steps/s, 4 min 05 s left, loss 2.346, time 3 s",
        "train: 1,040/2,000 steps, 4 steps/s, 4 min 00 s left, loss 2.346, time 3 s",
        "train: 1,050/2,000 steps in 12 s, 4 steps/s, loss 2.346, time 3 s",
    ]


def test_the_rate_shown_is_a_recent_one(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    with console.progress("train", None, "steps") as shown:
        now[0] += 100  # the first step compiles
        for step in range(1, 101):
            now[0] += 1
            shown.update(step)
    lines = capsys.readouterr().out.splitlines()
    assert lines[-2] == "train: 96 steps, 1 steps/s"
    assert lines[-1] == "train: 100 steps in 3 min 20 s, 0.5 steps/s"


def test_the_rate_forgets_what_was_long_ago(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    with console.progress("train", None, "steps") as shown:
        for step, took in ((10, 10), (20, 10), (30, 60), (40, 60)):
            now[0] += took
            shown.update(step)
    assert capsys.readouterr().out.splitlines()[-2] == "train: 40 steps, 0.167 steps/s"


def test_progress_that_fails_says_where_it_stopped(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(RuntimeError, match="^boom$"), console.progress("read", 3e8, "bytes") as shown:
        shown.update(1.5e8)
        raise RuntimeError("boom")
    assert capsys.readouterr().out.startswith("read: stopped at 150 M/300 M bytes in ")


SHOW = """
import time
from lmtiny import console
with console.progress("train", 4, "steps") as shown:
    for step in range(4):
        time.sleep(0.12)
        shown.update(step + 1, loss=2.5)
        if step == 1:
            console.say("a line [bold]with brackets[/]")
"""


def on_a_terminal(code: str, **environment: str) -> tuple[int, str]:
    """Returns (exit code, all that a terminal received) of a Python program."""
    master, slave = pty.openpty()
    clean = {name: value for name, value in os.environ.items() if name not in ("CI", "NO_COLOR", "COLUMNS")}
    process = subprocess.Popen([sys.executable, "-c", code], stdout=slave, stderr=slave, env={**clean, "TERM": "xterm", **environment})
    os.close(slave)
    received = b""
    try:
        while chunk := os.read(master, 4096):
            received += chunk
    except OSError:  # Linux tells the end of a terminal so
        pass
    os.close(master)
    return process.wait(timeout=30), received.decode()


def test_progress_on_a_terminal_is_a_bar_that_leaves_one_line() -> None:
    code, received = on_a_terminal(SHOW, COLUMNS="100")
    assert code == 0
    assert "━" in received and "2/4 steps" in received
    assert "a line [bold]with brackets[/]" in received
    last = received.rpartition("\x1b[2Ktrain: ")[2]
    assert last.startswith("4/4 steps in ") and "━" not in last
    assert received.count("\x1b[?25l") == received.count("\x1b[?25h") == 1  # the cursor is hidden, and comes back


def test_no_color_is_honoured() -> None:
    colour = re.compile(r"\x1b\[[0-9;]*m")
    assert colour.search(on_a_terminal(SHOW)[1])
    assert not colour.search(on_a_terminal(SHOW, NO_COLOR="1")[1])


@pytest.mark.parametrize("environment", [{"CI": "true"}, {"TERM": "dumb"}], ids=["ci", "dumb"])
def test_no_control_code_in_ci_or_on_a_dumb_terminal(environment: dict[str, str]) -> None:
    code, received = on_a_terminal(SHOW, **environment)
    assert code == 0 and "\x1b" not in received and "train: 4/4 steps in " in received


def run(body: str, **options: str) -> subprocess.CompletedProcess[str]:
    code = f"from lmtiny import console\nfrom lmtiny.errors import UserError\ndef main():\n    {body}\nconsole.run_main(main)\n"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, env={**os.environ, **options})


def test_a_user_error_is_one_line_and_exit_1() -> None:
    ended = run("raise UserError('no file\\n  x')")
    assert (ended.returncode, ended.stdout, ended.stderr) == (1, "", "lmtiny: error: no file x\n")


def test_another_exception_keeps_its_traceback() -> None:
    ended = run("raise ValueError('why')")
    assert ended.returncode == 1 and ended.stderr.startswith("Traceback") and ended.stderr.endswith("ValueError: why\n")


def test_memory_that_jax_did_not_get_is_one_line() -> None:
    ended = run("raise RuntimeError('RESOURCE_EXHAUSTED: Out of memory allocating 5 bytes.\\nmore')")
    assert ended.returncode == 1 and ended.stderr.startswith("lmtiny: error: out of memory (Out of memory allocating 5 bytes); ")
    assert ended.stderr.count("\n") == 1 and "lmtiny.plan" in ended.stderr


def test_exit_codes_of_a_main_that_returns() -> None:
    assert run("return None").returncode == 0
    assert run("return 3").returncode == 3
    assert run("raise SystemExit(4)").returncode == 4


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_being_told_to_stop_is_a_line_and_exit_130(name: str) -> None:
    ended = run(f"import os, signal, time; os.kill(os.getpid(), signal.{name}); time.sleep(9)")
    assert (ended.returncode, ended.stderr) == (130, "lmtiny: interrupted\n")


def test_what_a_parent_ignores_is_ignored_but_for_sigterm() -> None:
    code = """
import signal
three = signal.SIGINT, signal.SIGHUP, signal.SIGTERM
[signal.signal(one, signal.SIG_IGN) for one in three]
from lmtiny import console
def main():
    [signal.raise_signal(one) for one in three[:2]]
    console.say("goes on")
    signal.raise_signal(signal.SIGTERM)
console.run_main(main)
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stdout, ended.stderr) == (130, "goes on\n", "lmtiny: interrupted\n")


def test_a_program_outlives_its_terminal(tmp_path: pathlib.Path) -> None:
    body = f"console.say('before'); input(); console.say('x'); console.warn('x'); open({str(tmp_path / 'saved')!r}, 'w')"
    code = f"from lmtiny import console\ndef main():\n    {body}; return 5\nconsole.run_main(main)\n"
    main_end, end = pty.openpty()
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=end, stderr=end) as program:
        os.close(end)
        assert os.read(main_end, 99) == b"before\r\n"
        os.close(main_end)
        program.communicate(b"\n", timeout=60)
    assert program.returncode == 5 and (tmp_path / "saved").exists()


def test_a_program_told_to_stop_outlives_the_reader_that_was_told_as_well() -> None:
    body = "import sys; input(); console.ctrl_c.stopping = True; console.say('x'); console.warn('x'); return 5"
    code = f"from lmtiny import console\ndef main():\n    {body}\nconsole.run_main(main)\n"
    pipe = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    with subprocess.Popen([sys.executable, "-c", code], **pipe) as program:
        assert program.stdin is not None and program.stdout is not None
        program.stdout.close()
        program.stdin.write(b"\n")
        program.stdin.close()
        assert program.wait(60) == 5


def test_a_reader_that_went_away_is_no_complaint(tmp_path: pathlib.Path) -> None:
    program = tmp_path / "program.py"
    body = "def main():\n    print('x\\n' * 100_000)\n    raise SystemExit(0)\n"
    program.write_text(f"from lmtiny import console\n{body}console.run_main(main)\n")
    ended = subprocess.run(f"'{sys.executable}' '{program}' | head -1", shell=True, capture_output=True, text=True, timeout=60)
    assert (ended.stdout, ended.stderr) == ("x\n", "")


def test_an_ascii_terminal_ends_no_run() -> None:
    ended = run("console.say('Ωμέγα')", PYTHONIOENCODING="ascii")
    assert (ended.returncode, ended.stdout) == (0, "?????\n")


def test_importing_the_console_loads_no_rich_and_no_jax() -> None:
    code = "import sys, lmtiny.console, lmtiny.run_log, lmtiny.command_line\n"
    code += "print({'rich', 'jax', 'matplotlib', 'tensorboardX'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60).stdout == "set()\n"


SIGNAL_AT_IMPORT = """
import runpy, signal, sys
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == "{}":
            signal.raise_signal(signal.{})
sys.meta_path.insert(0, Finder())
runpy.run_module("lmtiny.{}", run_name="__main__", alter_sys=True)
"""


@pytest.mark.parametrize("words", ["prepare SIGTERM", "train SIGHUP", "chat SIGINT", "plan SIGTERM"])
def test_being_told_to_stop_while_an_entry_point_is_imported_is_a_line_too(words: str) -> None:
    entry_point, name = words.split()
    command = [sys.executable, "-c", SIGNAL_AT_IMPORT.format("ml_collections", name, entry_point)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=pathlib.Path(__file__).parents[2])
    assert (ended.returncode, ended.stderr) == (130, "lmtiny: interrupted\n")


@pytest.mark.parametrize("words", ["prepare SIGTERM", "prepare SIGHUP", "train SIGINT"])
def test_who_told_it_to_stop_is_told_that_the_same_command_goes_on(words: str, tmp_path: pathlib.Path) -> None:
    entry_point, name = words.split()
    config = tmp_path / "config.py"
    config.write_text(f"import signal\nsignal.raise_signal(signal.{name})\n")
    command = [sys.executable, "-m", f"lmtiny.{entry_point}", "--config", str(config)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=pathlib.Path(__file__).parents[2])
    assert (ended.returncode, ended.stderr) == (130, "lmtiny: interrupted; the same command goes on from what is finished\n")


def test_ctrl_c_while_jax_is_imported_breaks_nothing_off() -> None:
    program = SIGNAL_AT_IMPORT.format("jaxlib", "SIGINT", "train")
    command = [sys.executable, "-c", program, "--config", "configs/tiny.py"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=pathlib.Path(__file__).parents[2])
    assert (ended.returncode, ended.stderr) == (130, "lmtiny: interrupted\n")


def test_ctrl_c_in_a_callback_of_the_garbage_collector_is_not_lost() -> None:
    heard = "gc.callbacks.append(lambda *_: [signal.raise_signal(number) for number in signals])"
    ended = run(f"import gc, signal; signals = iter([{int(signal.SIGINT)}]); {heard}; gc.collect(); signal.sigtimedwait([], 9)")
    assert (ended.returncode, ended.stderr) == (130, "lmtiny: interrupted\n")


def test_what_ctrl_c_made_of_compiled_code_is_an_interruption() -> None:
    ended = run("import lmtiny.ctrl_c\n    lmtiny.ctrl_c.heard = True\n    raise ImportError('the extension')")
    assert (ended.returncode, ended.stderr) == (130, "lmtiny: interrupted\n")
