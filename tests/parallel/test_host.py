"""What a process tells jax and malloc about its machine before it computes."""

import importlib.util
import os
import socket
import subprocess
import sys
import types

import pytest

from lmtiny.errors import UserError
from lmtiny.parallel import host, mesh

FAULTS = """
import resource
from lmtiny.parallel import host
host.keep_freed_memory()
import jax, jax.numpy as jnp
step = jax.jit(lambda x: jnp.sort(x * 2) + 1)
x = jnp.ones(8_000_000)
for _ in range(3):
    step(x).block_until_ready()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    step(x).block_until_ready()
print((resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / 5)
"""


@pytest.mark.parametrize(
    ("libtpu", "files", "own", "expected"),
    [
        (True, (), None, "cpu"),
        (True, ("nvidia[0-9]*", "jax_cuda13_plugin"), None, "cuda,cpu"),
        (True, ("nvidia[0-9]*",), None, "cpu"),
        (True, ("accel*",), None, None),
        (False, (), None, None),
        (True, (), "tpu,cpu", "tpu,cpu"),
    ],
)
def test_jax_looks_for_a_tpu_only_where_libtpu_may_find_one(libtpu, files, own, expected, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name in files or (libtpu and name == "libtpu") or None)
    monkeypatch.setattr(host, "_present", lambda *patterns: bool(set(patterns) & set(files)))
    monkeypatch.setattr(host.os, "environ", {"JAX_PLATFORMS": own} if own else {})
    told = []
    imported = types.SimpleNamespace(config=types.SimpleNamespace(update=lambda *setting: told.append(setting)))
    monkeypatch.setitem(sys.modules, "jax", imported)  # which read the environment when it was imported
    host.leave_out_missing_tpu()
    assert host.os.environ.get("JAX_PLATFORMS") == expected
    assert told == ([("jax_platforms", expected)] if expected and not own else [])


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's malloc is of Linux")
def test_a_step_takes_few_fresh_pages():
    own = ("GLIBC_TUNABLES", "LD_PRELOAD", "XLA_FLAGS")
    clean = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_") and name not in own}
    done = subprocess.run([sys.executable, "-c", FAULTS], env=clean | {"JAX_PLATFORMS": "cpu"}, capture_output=True, text=True, check=True)
    assert float(done.stdout) < 15_000  # 32 MB are 8,000 pages; without the setting it is 39,000


@pytest.mark.parametrize("name", ["MALLOC_ARENA_MAX", "GLIBC_TUNABLES", "LD_PRELOAD"])
def test_settings_of_the_users_own_are_left_alone(name, monkeypatch):
    monkeypatch.setenv(name, "1")
    monkeypatch.setattr(host.ctypes, "CDLL", lambda _: pytest.fail("malloc was changed"))
    host.keep_freed_memory()


EIGHT = "--xla_force_host_platform_device_count=8"
PATIENCE = "--xla_cpu_collective_call_terminate_timeout_seconds"


@pytest.mark.parametrize(
    ("own", "expected"),
    [
        ({}, {}),
        ({"XLA_FLAGS": "--xla_dump_to=x"}, {"XLA_FLAGS": "--xla_dump_to=x"}),
        ({"XLA_FLAGS": EIGHT}, {"XLA_FLAGS": f"{EIGHT} {PATIENCE}=3600"}),
        ({"XLA_FLAGS": f"{PATIENCE}=9 {EIGHT}"}, {"XLA_FLAGS": f"{PATIENCE}=9 {EIGHT}"}),
    ],
)
def test_emulated_devices_get_time_to_wait_for_each_other(own, expected, monkeypatch):
    monkeypatch.setattr(host.os, "environ", dict(own))
    host.let_emulated_devices_wait()
    assert host.os.environ == expected


@pytest.mark.parametrize(("backend", "devices", "kept"), [("cpu", 1, True), ("cpu", 8, False), ("gpu", 8, True)])
def test_a_program_over_several_cpu_devices_is_not_kept(backend, devices, kept, monkeypatch, tmp_path):
    told = {"jax_enable_compilation_cache": True}
    monkeypatch.setattr(mesh.jax, "config", types.SimpleNamespace(update=told.__setitem__))
    monkeypatch.setattr(mesh.jax, "devices", lambda: [types.SimpleNamespace(platform=backend)] * devices)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    mesh.use_compile_cache()
    assert told["jax_enable_compilation_cache"] == kept
    assert told.get("jax_compilation_cache_dir") == (str(tmp_path / "lmtiny" / "compiled") if kept else None)


TOGETHER = {"LMTINY_COORDINATOR": "localhost:1234", "LMTINY_NUM_PROCESSES": "2", "LMTINY_PROCESS_ID": "0"}


def set_all(monkeypatch, changes):
    for name, value in (TOGETHER | changes).items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize(
    ("name", "values", "said"),
    [
        ("COORDINATOR", ["localhost:x", "localhost", ":80", "localhost:0", "localhost:65536", ""], "should read HOST:PORT"),
        ("NUM_PROCESSES", ["0", "-1", "two", "", "1e3", "9" * 99], "should be the number of processes of this run, 1"),
        ("PROCESS_ID", ["2", "-1", "", "0.5", "\N{SUPERSCRIPT TWO}"], "should be this process's own number, 0 to 1"),
    ],
)
def test_variables_that_are_wrong_are_named(name, values, said, monkeypatch):
    monkeypatch.setattr(mesh.jax.distributed, "initialize", lambda *_, **__: pytest.fail("jax was asked"))
    for value in values:
        set_all(monkeypatch, {f"LMTINY_{name}": value})
        with pytest.raises(UserError, match=f"LMTINY_{name}=.*{said}"):
            mesh.start_processes()


@pytest.mark.parametrize("coordinator", ["localhost:1234", "auto"])
def test_what_jax_says_of_processes_that_it_does_not_find_is_one_line(coordinator, monkeypatch):
    def initialize(*_, **__):
        raise RuntimeError("UNKNOWN: Failed to start RPC server\nand more")

    monkeypatch.setattr(mesh.jax.distributed, "initialize", initialize)
    set_all(monkeypatch, {"LMTINY_COORDINATOR": coordinator})
    with pytest.raises(UserError, match=f"LMTINY_COORDINATOR={coordinator}.*Failed to start RPC server.$"):
        mesh.start_processes()


def test_a_coordinator_that_does_not_answer_is_one_line():
    """Where jax's own patience ends, it aborts with a stack trace."""
    with socket.socket() as nobody:
        nobody.bind(("localhost", 0))  # and does not listen
        together = TOGETHER | {"LMTINY_COORDINATOR": f"localhost:{nobody.getsockname()[1]}", "LMTINY_PROCESS_ID": "1"}
        code = "from lmtiny.parallel import mesh; mesh.PATIENCE_S = 0.1; mesh.start_processes()"
        command, env = [sys.executable, "-c", code], os.environ | together
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith("lmtiny: error: process 1 of 2 does not find the others by LMTINY_COORDINATOR=localhost:")


@pytest.mark.parametrize("error", [AssertionError(), RuntimeError("Unable to initialize backend 'cuda'")], ids=repr)
def test_devices_that_are_not_there_are_one_line(error, monkeypatch):
    def devices():
        raise error

    monkeypatch.setattr(mesh.jax, "devices", devices)
    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    with pytest.raises(UserError, match=r"^JAX_PLATFORMS=cuda: jax finds no such device here; unset .*cpu \((Ass|Una)"):
        mesh.all_devices()


KEPT = """
import numpy as np
from lmtiny.parallel import host
def left():
    block = np.ones(8_000_000)
    top = np.ones(1)  # a small one above it
    del block
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmRSS"))
host.keep_freed_memory()
kept = left()
host.give_freed_memory_back()
block = np.ones(20_000_000)
del block
print(kept, left())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's malloc is of Linux")
def test_memory_that_is_given_back_is_not_kept_beside_the_next():
    own = ("GLIBC_TUNABLES", "LD_PRELOAD")
    clean = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_") and name not in own}
    done = subprocess.run([sys.executable, "-c", KEPT], env=clean, capture_output=True, text=True, check=True)
    kept, after = map(int, done.stdout.split())
    assert after < kept + 20_000  # KiB: 160 MB were taken and freed meanwhile
