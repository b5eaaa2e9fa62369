"""Runs stages on datatrove's executors: here, on a Slurm cluster, or on a Ray cluster. What is finished is not done again.

datatrove marks each finished task by a file, wherever it ran; a task that was killed is done anew from its first
document, and what it had left is overwritten.
"""

import json
import os
import pathlib
import shlex
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any

import loguru
import ml_collections
from datatrove.executor import LocalPipelineExecutor, RayPipelineExecutor, SlurmPipelineExecutor

from lmtiny import console, files, json_data
from lmtiny.errors import UserError
from lmtiny.refining.stages import Stage

Run = Callable[[str, Callable[..., None], Sequence[tuple[Any, ...]], Sequence[int]], None]
MEMORY_GB = 2  # for a task, asked of the cluster


def execute(stages: list[Stage], folder: pathlib.Path, corpus: ml_collections.ConfigDict, run: Run) -> None:
    """Runs the stages, one after the other, where `corpus.executor` says; `run` is what runs jobs on this machine.

    Raises:
      UserError: the cluster is not there, a task failed, or the work is now the Slurm cluster's and not done yet.
    """
    if corpus.executor == "slurm":
        _on_slurm(stages, folder, corpus)
    elif corpus.executor == "ray":
        _on_ray(stages, folder)
    else:
        for stage in stages:
            _here(stage, _logs(folder, stage), run)


def _logs(folder: pathlib.Path, stage: Stage) -> str:
    return str(folder / "logs" / stage.name.replace(" ", "-"))


def _here(stage: Stage, logs: str, run: Run) -> None:
    """Runs the tasks of a LocalPipelineExecutor in our own processes.

    Its own run() starts a manager by fork, which a process with JAX in it must not do, and when it is killed leaves the
    manager and the workers behind, which go on writing; ours end with the process that started them.
    """
    todo = LocalPipelineExecutor([], tasks=stage.tasks, logging_dir=logs).get_incomplete_ranks()
    executors = [LocalPipelineExecutor(stage.pipeline([rank]), tasks=stage.tasks, logging_dir=logs) for rank in todo]
    run(stage.name, _task, list(zip(executors, todo, strict=True)), [stage.sizes[rank] for rank in todo])


def _task(executor: LocalPipelineExecutor, rank: int) -> None:
    loguru.logger.disable("datatrove")  # it would speak on stderr; the report has the counts
    executor._run_for_rank(rank)


def _on_ray(stages: list[Stage], folder: pathlib.Path) -> None:
    import ray

    loguru.logger.disable("datatrove")
    ray.init(ignore_reinit_error=True, log_to_driver=False)
    for stage in stages:
        executor = RayPipelineExecutor(
            stage.pipeline(range(stage.tasks)), tasks=stage.tasks, logging_dir=_logs(folder, stage), mem_per_cpu_gb=MEMORY_GB
        )
        todo = len(executor.get_incomplete_ranks())
        if todo:
            console.say(f"{stage.name}: {todo} of {stage.tasks} tasks on Ray, {int(ray.cluster_resources().get('CPU', 0))} cores")
            executor.run()
        if failed := executor.get_incomplete_ranks():
            raise UserError(
                f"{stage.name}: {len(failed)} of {stage.tasks} tasks failed on Ray, the first is {failed[0]}; their logs are in"
                f" {_logs(folder, stage)}/logs; what is finished is kept"
            )


def _on_slurm(stages: list[Stage], folder: pathlib.Path, corpus: ml_collections.ConfigDict) -> None:
    """Submits what is not finished, each stage behind the one before; returns only when all of it is finished."""
    loguru.logger.disable("datatrove")
    executors: list[SlurmPipelineExecutor] = []
    for stage in stages:
        executors.append(slurm_executor(stage, folder, corpus, executors[-1] if executors else None))
    if not any(executor.get_incomplete_ranks() for executor in executors):
        return
    submitted = folder / "submitted.json"
    again = "give the same command again when they have ended; what is finished is kept"
    if submitted.exists() and (waiting := _in_queue(json_data.read(submitted, [str]))):
        raise UserError(f"Slurm jobs {', '.join(waiting)} are still at work on this corpus; {again}")
    try:
        executors[-1].launch_job()  # which launches those that it depends on first
    except FileNotFoundError:
        raise UserError("corpus.executor = 'slurm' needs sbatch, which is not on this machine; start from a login node") from None
    except subprocess.CalledProcessError as error:
        raise UserError(f"sbatch refused the job (exit {error.returncode}): see above") from None
    ids = [str(executor.job_id) for executor in executors if executor.job_id != -1]
    files.write_aside(submitted, json.dumps(ids))
    raise UserError(f"the corpus is now being refined by Slurm jobs {', '.join(ids)}; {again}")


def slurm_executor(
    stage: Stage, folder: pathlib.Path, corpus: ml_collections.ConfigDict, depends: SlurmPipelineExecutor | None
) -> SlurmPipelineExecutor:
    """Returns the stage as an array of Slurm jobs, in this environment; the folder must be one that all nodes see."""
    environment = f"export PATH={shlex.quote(os.path.dirname(sys.executable))}:$PATH"
    return SlurmPipelineExecutor(
        stage.pipeline(range(stage.tasks)), tasks=stage.tasks, time=corpus.slurm_time, partition=corpus.slurm_partition, qos="",
        mem_per_cpu_gb=MEMORY_GB, job_name=f"lmtiny-{stage.name.replace(' ', '-')}", env_command=environment,
        logging_dir=_logs(folder, stage), depends=depends,
    )  # fmt: skip


def _in_queue(ids: list[str]) -> list[str]:
    """Returns those of the Slurm jobs that wait or run."""
    try:
        listed = subprocess.run(["squeue", "--noheader", "--format=%A", f"--jobs={','.join(ids)}"], capture_output=True, text=True)
    except FileNotFoundError:
        return []
    return sorted(set(listed.stdout.split()) & set(ids))
