"""`python -m lmtiny.chat` on a trained run: text out, the same for the same seed, and one line for what is wrong."""

import shutil
import signal
import subprocess
import sys

import pytest


def chat(runs, *flags, text=None):
    command = [sys.executable, "-m", "lmtiny.chat", *flags]
    return subprocess.run(
        command, cwd=runs.folder, env=runs.env(), capture_output=True, input=text, text=True, errors="surrogateescape", timeout=120
    )


@pytest.fixture(scope="module")
def run(whole):
    return str(whole[0].folder / "whole")


def test_a_prompt_is_gone_on_with(runs, run):
    first, again, other = (chat(runs, "--checkpoint", run, "--prompt", "The ", "--max-tokens", "40", "--seed", seed) for seed in "112")
    assert first.returncode == 0, first.stderr
    assert first.stdout.strip() and first.stdout == again.stdout != other.stdout
    assert first.stderr == ""


def test_typed_lines_are_prompts_until_an_empty_one(runs, run):
    done = chat(runs, "--checkpoint", f"{run}/12", "--max-tokens", "5", "--temperature", "0", text="The licence\nThe licence\n\nnot read\n")
    assert done.returncode == 0, done.stderr
    hello, *answers = done.stdout.splitlines()
    assert "step 12" in hello
    assert len([line for line in answers if line]) >= 2
    assert chat(runs, "--checkpoint", run, "--max-tokens", "5", text="").returncode == 0


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "--checkpoint"),
        (["--checkpoint", "nowhere"], "nowhere does not exist"),
        (["--checkpoint", "RUN/7"], "checkpoints/7 does not exist"),
        (["--checkpoint", "RUN", "--top-p", "0"], "argument --top-p: 0.0 must be above 0 and at most 1"),
        (["--checkpoint", "RUN", "--temperature", "hot"], "argument --temperature: 'hot' is not a number"),
        (["--checkpoint", "RUN", "--temperature", "1e308"], "argument --temperature: 1e+308 must lie within 0 and 1,000"),
        (["--checkpoint", "RUN", "--temperature", "nan"], "argument --temperature: nan must lie within"),
        (["--checkpoint", "RUN", "--top-p", "nan"], "argument --top-p: nan must be above 0"),
        (["--checkpoint", "RUN", "--top-k", "1000000000000"], "argument --top-k: 1000000000000 must lie within 0 and 2,147,483,647"),
        (["--checkpoint", "RUN", "--seed", "99999999999999999999"], "argument --seed: 99999999999999999999 must lie within"),
        (["--checkpoint", "RUN", "--seed", "²"], "argument --seed: '²' is not a whole number"),
        (["--checkpoint", "RUN", "--seed", "1", "--seed", "2"], "--seed is given twice: leave one out"),
        (["--checkpoint", ""], "argument --checkpoint: '' is empty"),
        (["--checkpoint", "x" * 5000], "has 5,000 letters; there may be 4,096"),
        (["--checkpoint", "RUN", "--max-tokens", "0"], "argument --max-tokens: 0 must lie within 1 and 1,000,000,000"),
        (["--checkpoint", "RUN/config.json"], "is a file; give the folder of a run"),
        (["--checkpoint", "RUN", "--temprature", "1"], "did you mean --temperature?"),
    ],
    ids=str,
)
def test_what_is_wrong_is_told_in_one_line(runs, run, flags, message):
    done = chat(runs, *[flag.replace("RUN", run) for flag in flags], "--prompt", "x")
    assert done.returncode == 1
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("lmtiny: error: ") and message in line


def test_a_conversation_is_not_begun_with_what_would_end_it(runs, run):
    done = chat(runs, "--checkpoint", run, "--top-k", "-1", text="x\n")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "lmtiny: error: argument --top-k: -1 must lie within 0 and 2,147,483,647\n"


def test_of_a_prompt_longer_than_the_context_it_is_told_how_much_is_read(runs, run):
    done = chat(runs, "--checkpoint", run, "--max-tokens", "5", text="The licence " * 1000 + "\n\udcff\n\n")
    assert done.returncode == 0
    (line,) = done.stderr.splitlines()
    assert line.startswith("lmtiny: warning: the prompt has ") and line.endswith("tokens, the model's context 32: the last 27 are read")


def test_another_tokenizer_is_refused(runs, run, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    from lmtiny.tokenizer import learn

    learn("byte", [], 265, 1).save(tmp_path / "run/tokenizer")
    done = chat(runs, "--checkpoint", "run", "--prompt", "x")
    assert done.returncode == 1 and "is not the tokenizer" in done.stderr


def test_an_empty_prompt_is_told(runs, run):
    done = chat(runs, "--checkpoint", run, "--prompt", "")
    assert done.returncode == 1 and done.stderr == "lmtiny: error: --prompt is empty: give a text to go on with\n"


def test_ctrl_c_ends_it_with_130(runs, run):
    """In a conversation, since an answer may be over before the signal comes, and a conversation is not."""
    command = [sys.executable, "-u", "-m", "lmtiny.chat", "--checkpoint", run, "--max-tokens", "1000000", "--top-k", "0"]
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    with subprocess.Popen(command, cwd=runs.folder, env=runs.env(), **pipes) as process:
        process.stdin.write(b"x\n")
        process.stdin.flush()
        assert b"an empty line ends" in process.stdout.readline()
        process.stdout.read(1)
        process.send_signal(signal.SIGINT)
        process.wait(60)
        errors = process.stderr.read()
    assert process.returncode == 130 and errors.decode().endswith("lmtiny: interrupted\n")
