"""Looking for devices without waking a library that would look for them itself."""

import importlib.util

import pytest

from lmtiny.parallel import chips


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
    monkeypatch.setattr(chips, "present", lambda *patterns: bool(set(patterns) & set(files)))
    monkeypatch.setattr(chips.os, "environ", {"JAX_PLATFORMS": own} if own else {})
    chips.leave_out_missing_tpu()
    assert chips.os.environ.get("JAX_PLATFORMS") == expected
