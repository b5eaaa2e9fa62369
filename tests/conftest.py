"""What every test stands on: eight emulated CPU devices, no rank promotion, and nothing written at home."""

import importlib
import os
import pathlib
import signal
import sys
import types
from collections.abc import Callable, Iterator

import pytest

from lmtiny.parallel import host

# All of this must stand before jax is imported, and reaches the programs that tests start. jax itself is not imported
# here: the tests of the ground need none of it.
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["JAX_NUMPY_RANK_PROMOTION"] = "raise"  # adding [T] to [B, T] by accident is an error
if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
    # Five minutes for devices that wait for each other, not a run's hour: a test that stands still is to end.
    devices = "--xla_force_host_platform_device_count=8 --xla_cpu_collective_call_terminate_timeout_seconds=300"
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {devices}".strip()
host.let_emulated_devices_wait()
# A third of the suite's processor time was LLVM, making programs fast that run once; XLA's own passes stay the same.
RUN_ONCE = "--xla_backend_optimization_level=0"
if "xla_backend_optimization_level" not in os.environ["XLA_FLAGS"]:
    os.environ["XLA_FLAGS"] += f" {RUN_ONCE}"

# Nothing compiled is kept: a program over several CPU devices does not come back from jax's cache as it was (docs/log.md).
os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"

# A test run in the background (`pytest &`) has Ctrl-C ignored, and so would have the programs that tests interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def isolated_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[pathlib.Path]:
    """Returns an empty home folder, that of all tests and of the programs they start."""
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(home))
        patch.setenv("XDG_CACHE_HOME", str(home / ".cache"))
        patch.setenv("XDG_CONFIG_HOME", str(home / ".config"))
        yield home


@pytest.fixture(autouse=True)
def plain_surroundings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Takes away what would make a test's output depend on where it runs."""
    for name in ("CI", "NO_COLOR", "FORCE_COLOR", "COLUMNS", "LMTINY_COORDINATOR", "LMTINY_NUM_PROCESSES", "LMTINY_PROCESS_ID"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], types.ModuleType]]:
    """Returns f(name) -> that file of benchmarks/, imported."""
    folder = pathlib.Path(__file__).parents[1] / "benchmarks"
    monkeypatch.syspath_prepend(str(folder))
    yield importlib.import_module
    for path in folder.glob("*.py"):  # which stand under plain names
        sys.modules.pop(path.stem, None)


@pytest.fixture(scope="session")
def test_data() -> pathlib.Path:
    """Returns the folder that LMTINY_TEST_DATA names (texts and benchmarks too large for the repository), or skips the test."""
    named = os.environ.get("LMTINY_TEST_DATA")
    if not named:
        pytest.skip("LMTINY_TEST_DATA is not set: it names a folder of texts that are not in the repository")
    folder = pathlib.Path(named)
    assert folder.is_dir(), f"LMTINY_TEST_DATA={named} is no folder"
    return folder
