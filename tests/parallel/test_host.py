"""What a process tells jax and malloc about its machine before it computes."""

import importlib.util
import os
import subprocess
import sys
import types

import pytest

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
        (True, ("nvidia[0-9]*",), None, "cuda,cpu"),
        (True, ("accel*",), None, None),
        (False, (), None, None),
        (True, (), "tpu,cpu", "tpu,cpu"),
    ],
)
def test_jax_looks_for_a_tpu_only_where_libtpu_may_find_one(libtpu, files, own, expected, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object() if libtpu and name == "libtpu" else None)
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
    monkeypatch.setattr(mesh.jax, "default_backend", lambda: backend)
    monkeypatch.setattr(mesh.jax, "device_count", lambda: devices)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    mesh.use_compile_cache()
    assert told["jax_enable_compilation_cache"] == kept
    assert told.get("jax_compilation_cache_dir") == (str(tmp_path / "lmtiny" / "compiled") if kept else None)
