"""launch/tpu_vm.sh: the gcloud lines it would run, words that arrive as they were typed, refusals in one line."""

import os
import pathlib
import shlex
import subprocess

import pytest

from lmtiny.planning import slices

SCRIPT = pathlib.Path(__file__).parents[2] / "launch" / "tpu_vm.sh"
WHERE = ["--name", "tiny", "--zone", "us-west4-a", "--project", "mine"]
GCLOUD = "gcloud compute tpus tpu-vm"


def tpu_vm(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(SCRIPT), *arguments], capture_output=True, text=True, timeout=60, env={**os.environ, **environment}, check=False
    )


def dry(*arguments: str) -> list[list[str]]:
    """Returns the lines of a dry run, split into words as a shell would."""
    ended = tpu_vm(*arguments)
    assert (ended.returncode, ended.stderr) == (0, "")
    return [shlex.split(line) for line in ended.stdout.splitlines()]


@pytest.mark.parametrize(
    ("extra", "flags"),
    [
        (["--type", "v5litepod-8", "--spot"], "--accelerator-type=v5litepod-8 --version=v2-alpha-tpuv5-lite --spot"),
        (["--type", "v5e-16"], "--accelerator-type=v5litepod-16 --version=v2-alpha-tpuv5-lite"),
        (["--type=v5p-32"], "--accelerator-type=v5p-32 --version=v2-alpha-tpuv5"),
        (["--type", "v6e-8"], "--accelerator-type=v6e-8 --version=v2-alpha-tpuv6e"),
        (["--type", "v4-8"], "--accelerator-type=v4-8 --version=tpu-ubuntu2204-base"),
        (["--type", "v9-8", "--version", "new"], "--accelerator-type=v9-8 --version=new"),
    ],
)
def test_create_copies_and_installs(extra: list[str], flags: str) -> None:
    create, copy, install = dry("create", *WHERE, *extra, "--dry-run")
    assert create == f"{GCLOUD} create tiny --zone=us-west4-a --project=mine {flags}".split()
    assert copy == f"{GCLOUD} scp lmtiny.tar.gz tiny:lmtiny.tar.gz --zone=us-west4-a --project=mine --worker=all".split()
    assert install[:-1] == f"{GCLOUD} ssh tiny --zone=us-west4-a --project=mine --worker=all".split()
    assert install[-1].startswith("--command=set -e; mkdir -p lmtiny;") and install[-1].endswith("pip install -q -e '.[tpu]'")
    assert dry("copy", *WHERE, "--dry-run") == [copy, install]


@pytest.mark.parametrize("name", ["v5e-256", "v6e-4", "v5p-8", "v4-16"])
def test_a_slice_has_the_names_that_plan_and_gcloud_have_for_it(name: str) -> None:
    planned = slices.parse(name)
    assert slices.parse(planned.accelerator_type) == planned
    for spelled in (name, planned.accelerator_type):
        create, *_ = dry("create", *WHERE, "--type", spelled, "--dry-run")
        assert f"--accelerator-type={planned.accelerator_type}" in create


def test_status_and_delete() -> None:
    assert dry("status", *WHERE, "--dry-run") == [f"{GCLOUD} describe tiny --zone=us-west4-a --project=mine".split()]
    assert dry("delete", *WHERE, "--dry-run") == [f"{GCLOUD} delete tiny --zone=us-west4-a --project=mine --quiet".split()]


WORDS = ["plain", "two words", "it's", '"$HOME" `id` \\ *', "", "a\nb", "--config.evaluation.prompts=[\"The \", \"É\"]"]


def fake_gcloud(folder: pathlib.Path, body: str) -> str:
    """Returns a PATH on which `gcloud` is a shell script of `body`."""
    (folder / "gcloud").write_text(f"#!/bin/sh\n{body}\n")
    (folder / "gcloud").chmod(0o755)
    return f"{folder}:{os.environ['PATH']}"


def test_the_words_of_a_command_arrive_as_they_were_typed(tmp_path: pathlib.Path) -> None:
    """The fake runs --command as the worker's shell would."""
    (tmp_path / "lmtiny").mkdir()
    path = fake_gcloud(tmp_path, f'for last; do :; done\ncd "{tmp_path}" && exec sh -c "${{last#--command=}}"')
    program = "import sys, os; print(sys.argv[1:], os.path.basename(os.getcwd()))"
    ended = tpu_vm("run", *WHERE, "--", "python3", "-c", program, *WORDS, PATH=path)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout == f"{WORDS} lmtiny\n"
    failed = tpu_vm("run", *WHERE, "--", "sh", "-c", "exit 6", PATH=path)
    assert failed.returncode == 6


def test_a_dry_run_prints_what_a_shell_reads_back() -> None:
    (line,) = dry("run", *WHERE, "--dry-run", "--", "printf", "%s|", "two words", "it's")
    assert line[:-1] == f"{GCLOUD} ssh tiny --zone=us-west4-a --project=mine --worker=all".split()
    remote = line[-1].removeprefix('--command=cd lmtiny && LMTINY_COORDINATOR=auto PATH="$PWD/.venv/bin:$PATH" ')
    assert shlex.split(remote) == ["printf", "%s|", "two words", "it's"]


def test_a_failing_gcloud_ends_create_with_its_code(tmp_path: pathlib.Path) -> None:
    ended = tpu_vm("create", *WHERE, "--type", "v6e-8", PATH=fake_gcloud(tmp_path, 'echo "$4"; exit 4'))
    assert (ended.returncode, ended.stdout) == (4, "create\n")  # neither copied nor installed


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "say what to do: create, copy, run, status or delete"),
        (["cretae"], "there is no 'cretae'; create, copy, run, status and delete are known"),
        (["create", *WHERE], "create needs --type TYPE"),
        (["create", *WHERE, "--type", "v9-8"], "the TPU software for 'v9-8' is not known here, but for v5e-N, v6e-N,"),
        (["status", *WHERE[2:]], "status needs --name NAME"),
        (["status", *WHERE[:2], *WHERE[4:]], "status needs --zone ZONE"),
        (["delete", *WHERE[:4]], "delete needs --project PROJECT"),
        (["status", *WHERE, "--tpye", "x"], "there is no flag '--tpye'"),
        (["status", "--name", "--zone", "x"], "--name needs a value"),
        (["status", *WHERE, "--spot"], "--type, --version and --spot belong to create, not to status"),
        (["run", *WHERE], "run needs a command after --"),
        (["delete", *WHERE, "--", "x"], "delete takes no command"),
    ],
)
def test_refusals_are_one_line(arguments: list[str], said: str) -> None:
    ended = tpu_vm(*arguments, *["--dry-run"] * ("--" not in arguments))
    if not arguments:
        ended = tpu_vm()
    elif arguments[0] == "cretae":
        ended = tpu_vm("cretae")
    assert ended.returncode == 1 and ended.stdout == ""
    assert ended.stderr.startswith(f"launch/tpu_vm.sh: error: {said}") and ended.stderr.count("\n") == 1


def test_help_has_examples_on_top() -> None:
    ended = tpu_vm("create", "--help")
    assert ended.returncode == 0 and "launch/tpu_vm.sh create --name tiny" in ended.stdout.splitlines()[2]
