"""Past one machine: the jobs that Slurm is given, what they do when they run, and the same bytes from Ray."""

import json
import os
import pathlib
import re
import subprocess
import sys

import pytest

from lmtiny import corpus, refining
from lmtiny.data import pool
from lmtiny.errors import UserError
from tests.refining.planted import config_for, prose

pytest.importorskip("datatrove", reason="needs the extra corpus: pip install 'lmtiny[corpus]'")
STAGES = ["cleaning-and-filtering", "signing-documents", "pairing-documents", "clustering-documents", "removing-near-duplicates"]
KNOBS = {"filters": ["gopher_quality"], "deduplicate": True, "minhash_buckets": 3, "minhash_hashes": 12}

# Slurm's programs, as far as datatrove calls them: sbatch keeps what it is given, srun runs its command here.
SLURM = {
    "sbatch": """
import os, pathlib, sys
folder = pathlib.Path(os.environ["SUBMITTED"])
number = 100 + len(list(folder.iterdir()))
(folder / str(number)).write_text(" ".join(sys.argv[1:-1]) + "\\n" + pathlib.Path(sys.argv[-1]).read_text())
print("Submitted batch job", number)
""",
    "srun": "import os, sys; os.execvp(sys.argv[4], sys.argv[4:])",  # after -l -n 1
    "squeue": "import os; print(os.environ.get('QUEUE', ''))",
    "scontrol": "print('here')",
}


@pytest.fixture
def slurm(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    """Returns the folder in which a stand-in for Slurm leaves the jobs that it is given."""
    programs, submitted = tmp_path / "bin", tmp_path / "submitted"
    for folder in (programs, submitted):
        folder.mkdir()
    for name, code in SLURM.items():
        (programs / name).write_text(f"#!{sys.executable}\n{code}")
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("SUBMITTED", str(submitted))
    return submitted


def test_slurm_is_given_the_stages_in_a_row(make_corpus, refined, slurm, monkeypatch) -> None:
    folder = make_corpus(a=[prose(1, 12)], b=[prose(2, 12)])
    knobs = {**KNOBS, "executor": "slurm", "slurm_partition": "cpu", "slurm_time": "01:00:00"}
    with pytest.raises(UserError, match=r"is now being refined by Slurm jobs 100, 102, 104, 106, 108; give the same command again"):
        refined(folder, **knobs)
    jobs = {int(file.name): file.read_text() for file in slurm.iterdir()}
    stages = [jobs[number] for number in range(100, 110, 2)]  # between them the jobs that add up datatrove's statistics
    for place, (job, name, tasks) in enumerate(zip(stages, STAGES, (2, 2, 3, 1, 2), strict=True)):
        given = dict(re.findall(r"^#SBATCH --([\w-]+)=(.*)$", job, re.M))
        assert (given["job-name"], given["partition"], given["time"]) == (f"lmtiny-{name}", "cpu", "01:00:00")
        assert given["array"] == f"0-{tasks - 1}" and given["mem-per-cpu"] == "2G"
        first = job.splitlines()[0]
        assert (f"--dependency=afterok:{98 + 2 * place}" in first) == (place > 0)
        [command] = [line for line in job.splitlines() if line.strip().startswith("srun")]
        assert command.split()[-2] == "launch_pickled_pipeline" and pathlib.Path(command.split()[-1]).is_file()
        assert subprocess.run(["bash", "-n"], input=job.split("\n", 1)[1], text=True).returncode == 0
    monkeypatch.setenv("QUEUE", "104")
    with pytest.raises(UserError, match=r"Slurm jobs 104 are still at work"):
        refined(folder, **knobs)
    [submitted] = (slurm.parent / "work").rglob("submitted.json")
    for damaged in ("{}", "[1]", "["):
        submitted.write_text(damaged)
        with pytest.raises(UserError, match=r"submitted\.json"):
            refined(folder, **knobs)
    submitted.unlink()
    monkeypatch.setenv("PATH", os.path.dirname(sys.executable))
    with pytest.raises(UserError, match="needs sbatch, which is not on this machine"):
        refined(folder, **knobs)
    with pytest.raises(UserError, match=r"needs corpus\.slurm_partition"):
        config_for(folder, executor="slurm")


@pytest.mark.exhaustive
def test_what_slurm_is_given_does_the_work(make_corpus, refined, slurm, tmp_path) -> None:
    folder = make_corpus(a=[prose(1, 12), "short"], b=[prose(1, 12), prose(2, 12)])
    expected, _ = refined(folder, **KNOBS)
    (tmp_path / "work").rename(tmp_path / "local")
    knobs = {**KNOBS, "executor": "slurm", "slurm_partition": "cpu"}
    with pytest.raises(UserError, match="is now being refined"):
        refined(folder, **knobs)
    environment = {**os.environ, "PYTHONPATH": str(pathlib.Path(__file__).parents[2]), "SLURM_NODELIST": "here"}
    for number in range(100, 110, 2):
        script = (slurm / str(number)).read_text().split("\n", 1)[1]
        last = int(re.search(r"--array=0-(\d+)", script)[1])
        for task in range(last + 1):
            done = subprocess.run(
                ["bash", "-c", script], env={**environment, "SLURM_ARRAY_TASK_ID": str(task)}, capture_output=True, text=True, timeout=60
            )
            assert done.returncode == 0, done.stderr
    assert refined(folder, **knobs)[0] == expected


@pytest.mark.exhaustive
def test_ray_gives_the_same_bytes(make_corpus, tmp_path) -> None:
    """In a process of its own: ray's threads and warnings stay out of the other tests."""
    pytest.importorskip("ray", reason="needs the extra ray: pip install 'lmtiny[ray]'")
    folder = make_corpus(a=[prose(1, 12), "short"], b=[prose(1, 12), prose(2, 12)])
    config = config_for(folder, **KNOBS)
    units, plan = corpus.units(config), refining.plan_of(config)
    with pool.workers(1, 9, 0) as here:
        local = refining.refine(units, plan, tmp_path / "local", config.corpus, here)
    config.corpus.executor = "ray"
    code = (
        "import json, pathlib, sys\nfrom lmtiny import corpus, refining\nfrom lmtiny.config import from_dict\n"
        "config = from_dict(json.loads(sys.argv[1]), 'test')\n"
        "refining.refine(corpus.units(config), refining.plan_of(config), pathlib.Path(sys.argv[2]), config.corpus, None)\n"
    )
    command = [sys.executable, "-c", code, json.dumps(config.to_dict()), str(tmp_path / "ray")]
    environment = {**os.environ, "PYTHONPATH": str(pathlib.Path(__file__).parents[2])}
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    made = sorted(path.relative_to(tmp_path / "local") for path in (tmp_path / "local").rglob("*.jsonl"))
    assert len(local) == 2 and len(made) == 4
    for name in made:
        assert (tmp_path / "ray" / name).read_bytes() == (tmp_path / "local" / name).read_bytes()
