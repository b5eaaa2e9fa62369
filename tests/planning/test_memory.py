"""The formula for memory against what jax itself holds, and the advice that follows from it."""

import dataclasses
import math
import os
import pathlib
import types

import jax
import numpy as np
import pytest

from lmtiny import config as config_lib
from lmtiny.errors import UserError
from lmtiny.model import size
from lmtiny.parallel import chips
from lmtiny.parallel import mesh as mesh_lib
from lmtiny.planning import fit, memory, meshes, roofline, shapes, slices, survey, traffic
from lmtiny.training.optimizer import make_optimizer
from lmtiny.training.state import abstract_state

CONFIGS = pathlib.Path(__file__).parents[2] / "configs"
ONE = dict.fromkeys(config_lib.MESH_AXES, 1)


def small_config(**changes):
    config = config_lib.defaults()
    config.tokenizer.vocab_size = 512
    config.model.update({"num_layers": 4, "width": 64, "num_heads": 8, "context_length": 64, "scan_layers": True, "remat": "block"})
    config.train.batch_size = 16
    for name, value in changes.items():
        config_lib.set_knob(config, name, value)
    return config


@pytest.mark.parametrize(
    ("mesh", "zero"),
    [({"data": 8}, 3), ({"fsdp": 8}, 1), ({"data": 2, "fsdp": 2, "tensor": 2}, 3), ({"pipeline": 2, "fsdp": 4}, 3)],
    ids=str,
)
def test_the_state_is_what_a_device_holds(mesh, zero):
    config = small_config(**{"parallel.zero": zero, **{f"parallel.{name}": count for name, count in mesh.items()}})
    devices = mesh_lib.make_mesh(config)
    with jax.set_mesh(devices):
        there = abstract_state(config, make_optimizer(config, size.abstract(config)[2]), devices)
        state = jax.tree.map(lambda leaf: jax.device_put(np.zeros(leaf.shape, leaf.dtype), leaf.sharding), there)

    def held(tree):
        return sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(tree))

    found = memory.memory(config, dict(devices.shape), tiled=False)
    assert found.parts["weights"] == held(state.params)
    assert found.parts["optimizer state"] == held(state.optimizer)
    assert found.parts["batch"] == 16 * 65 * 4 / (devices.shape["data"] * devices.shape["fsdp"])


def test_saved_activations_are_the_blocks_inputs_under_remat():
    leaves = shapes.saved_leaves(small_config(), ONE)
    stacked = [leaf for leaf in leaves if leaf[0][0] == 4]
    assert [leaf for leaf in stacked if math.prod(leaf[0]) > 64] == [((4, 16, 64, 64), 4)]
    without = shapes.saved_leaves(small_config(**{"model.remat": "none"}), ONE)

    def elements(leaves):
        return sum(math.prod(shape) for shape, _ in leaves)

    assert elements(without) > 10 * elements(leaves)


def test_weights_are_not_counted_as_saved():
    small = small_config(**{"train.batch_size": 1, "model.context_length": 8})
    counted = sum(math.prod(leaf) for leaf, _ in shapes.saved_leaves(small, ONE))
    assert counted < 0.5 * size.count_parameters(small_config())["total"]


@pytest.mark.parametrize(
    ("shape", "itemsize", "tiled"),
    [((8, 128), 4, 4096), ((3, 128), 4, 2048), ((12, 96, 12, 64), 4, 144 * 128 * 64 * 4), ((1000,), 4, 4000), ((9, 100), 2, 4096)],
)
def test_tiles_pad(shape, itemsize, tiled):
    assert memory.tiled_bytes(shape, itemsize) == tiled


def test_less_of_everything_takes_less():
    needed = memory.memory(small_config(), ONE).needed
    for changes in ({"train.accumulation": 4}, {"train.batch_size": 8}, {"model.num_layers": 2}, {"model.compute_dtype": "bfloat16"}):
        assert memory.memory(small_config(**changes), ONE).needed < needed, changes
    assert memory.memory(small_config(**{"parallel.fsdp": 8}), ONE | {"fsdp": 8}).needed < needed / 4


@pytest.mark.parametrize(
    ("name", "slice_name", "gib"),
    [
        ("d12", "v5e-8", 3.93), ("d12", "v6e-8", 4.93), ("d20", "v5e-8", 7.45), ("d20", "v6e-8", 7.76),
        ("gpt2_124m", "v5e-8", 14.54), ("gpt2_124m", "v6e-8", 15.31), ("d4_38m", "v5e-1", 8.90), ("d4_38m", "v6e-1", 9.29),
        ("d4_38m", "v6e-8", 3.17), ("d7_38m", "v5e-1", 11.89), ("d7_38m", "v6e-8", 4.12),
        ("tiny", "v5e-1", 0.155),
    ],
)  # fmt: skip
def test_it_is_what_the_tpu_compiler_says(name, slice_name, gib):
    """Rows of docs/performance.md: sizes and two chips, of which the larger spends memory on the logits' gradient; one chip alone."""
    one = slices.parse(slice_name)
    chip = chips.by_name(one.chip)
    shape = dict.fromkeys(config_lib.MESH_AXES, 1) | {"fsdp": one.num_chips}
    config = meshes.with_mesh(config_lib.load(str(CONFIGS / f"{name}.py")), shape)
    config = shapes.with_attention(config, shape, chip)
    needed = memory.memory_on(chip, config, shape).needed
    if config.model.activation == "gelu":
        # The table was compiled with jax 0.10, which keeps six arrays of the MLP's width for the backward pass, a later one fewer.
        leaves, mlp = memory.saved_leaves(config, shape), 4 * config.model.width
        wide = [math.prod(dims) * itemsize for dims, itemsize in leaves if dims[-1:] == (mlp,)]
        needed += (6 - len(wide)) * wide[0]
    assert needed / 2**30 == pytest.approx(gib, rel=0.05)


@pytest.mark.parametrize(
    ("changes", "gib"),
    [({}, 1.803), ({"train.batch_size": 256}, 4.218), ({"model.width": 256}, 1.160), ({"model.width": 128}, 0.615)],
    ids=str,
)
def test_a_table_of_a_million_rows_is_what_the_tpu_compiler_says(changes, gib):
    """configs/tiny.py on one v5e, which copies the table where the width does not fill the lanes."""
    config = config_lib.load(str(CONFIGS / "tiny.py"), {"model.ngram_rows": 1 << 20, "model.longest_ngram": 3, **changes})
    chip = chips.by_name("v5e")
    assert memory.memory_on(chip, shapes.with_attention(config, ONE, chip), ONE).needed / 2**30 == pytest.approx(gib, rel=0.08)


def test_the_gradient_of_a_chunk_of_logits_counts_where_there_is_room_for_it():
    config = small_config(**{"train.loss_chunk": 512, "tokenizer.vocab_size": 16384, "model.compute_dtype": "bfloat16"})
    dlogits = 512 * 16384 * 2
    with_room, without = (memory.memory(config, ONE, available=dlogits / 0.04 + more) for more in (1, 0))
    assert with_room.parts["gradient of the logits"] == dlogits and with_room.needed == without.needed + dlogits
    assert "gradient of the logits" not in without.parts
    config.model.scan_layers = False
    assert "gradient of the logits" not in memory.memory(config, ONE).parts
    assert "gradient of the logits" in memory.memory(config, ONE, tiled=False).parts


def test_the_cache_of_a_chat_is_what_init_cache_makes():
    from lmtiny.model.transformer import init_cache

    config = small_config(**{"model.num_kv_heads": 2, "model.compute_dtype": "bfloat16"})
    made = jax.eval_shape(lambda: init_cache(config, 3, 40))
    assert memory.cache_bytes(config, 3, 40) == sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(made))


def chip_of(memory_bytes):
    return chips.Chip("test", ("test",), 1e12, int(memory_bytes), 1e11, 1e10, 4, 1e9)


def test_a_step_that_is_clearly_too_large_is_refused_with_a_remedy_that_works(capsys):
    config = small_config(**{"model.remat": "none"})
    needed = memory.memory(config, ONE).needed
    fit.refuse_if_too_large(config, ONE, chip_of(needed * 1.2))
    fit.refuse_if_too_large(config, ONE, None)
    assert capsys.readouterr().err == ""
    fit.refuse_if_too_large(config, ONE, chip_of(needed / 1.02))
    assert "may not fit" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"on each device, which has .*; try --config\.model\.remat=block"):
        fit.refuse_if_too_large(config, ONE, chip_of(needed / 1.5))
    for one in fit.advice(config, ONE, chip_of(needed / 3)):
        changed = small_config(**{"model.remat": "none", **one.overrides})
        assert memory.memory(changed, ONE).needed <= needed / 3


def test_a_cpu_takes_more_and_undoes_remat_of_unrolled_layers():
    cpu, unrolled = chips.cpu(), {"model.scan_layers": False}
    plain = memory.memory(small_config(**unrolled, **{"model.remat": "none"}), ONE, tiled=False, available=cpu.memory)
    found = memory.memory_on(cpu, small_config(**unrolled), ONE)
    assert found.needed == pytest.approx(plain.arguments + memory.ON_CPU * plain.temporaries)
    scanned = memory.memory(small_config(), ONE, tiled=False, available=cpu.memory)
    assert memory.memory_on(cpu, small_config(), ONE).temporaries == pytest.approx(memory.ON_CPU * scanned.temporaries)


def test_a_cpu_that_would_run_out_is_refused_and_one_without_room_for_two_keeps_nothing(monkeypatch):
    given_back = []
    monkeypatch.setattr(fit.host, "give_freed_memory_back", lambda: given_back.append(True))

    def with_room(share):
        needs = memory.memory_on(chips.cpu(), config, ONE)
        room = dataclasses.replace(chips.cpu(), memory=int(needs.needed * share))
        fit.refuse_if_too_large(config, ONE, room)
        return len(given_back)

    config = small_config(**{"train.loss_chunk": 64})
    assert with_room(2.0) == 0 and with_room(1.2) == 1
    with pytest.raises(UserError, match="a train step needs about .* GiB on each device, which has"):
        with_room(0.99)


def test_a_containers_limit_is_the_memory_of_a_cpu(monkeypatch):
    own = chips.cpu().memory
    assert 0 < own <= os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    files = {"/proc/meminfo": "MemTotal: 9 kB\nMemAvailable:    4096 kB\n", "/sys/fs/cgroup/memory.max": "max\n"}
    monkeypatch.setattr(chips.pathlib.Path, "read_text", lambda path: files.get(str(path), ""))
    assert chips.cpu(2).memory == 2048 * 1024
    files["/sys/fs/cgroup/memory.max"] = "1000000\n"
    assert chips.cpu().memory == 1_000_000


@pytest.mark.parametrize(("asked", "share"), [({}, 0.75), ({chips.FRACTION: ".5"}, 0.5), ({"XLA_CLIENT_MEM_FRACTION": "0.9"}, 0.9),
                                              ({"XLA_PYTHON_CLIENT_ALLOCATOR": "platform"}, 1.0)])  # fmt: skip
def test_a_gpu_has_what_jax_takes_of_it(asked, share, monkeypatch):
    for name in (chips.FRACTION, "XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_ALLOCATOR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in asked.items():
        monkeypatch.setenv(name, value)
    gpu, tpu = chips.by_name("h100"), chips.by_name("v5e")
    assert chips.for_jax(gpu).memory == int(gpu.memory * share) and chips.for_jax(tpu) == tpu


@pytest.mark.parametrize("value", ["much", "0", "nan", "1.5"])
def test_a_share_that_is_none_is_refused(value, monkeypatch):
    monkeypatch.delenv("XLA_CLIENT_MEM_FRACTION", raising=False)
    monkeypatch.setenv(chips.FRACTION, value)
    with pytest.raises(UserError, match=f"MEM_FRACTION={value} should be the share"):
        chips.for_jax(chips.by_name("h100"))


def test_another_mesh_is_advised_before_a_smaller_batch(monkeypatch):
    def memory_on(chip, config, shape):
        fits = shape["tensor"] == 2 and config.train.accumulation >= 4
        return types.SimpleNamespace(needed=0.0 if fits or config.train.batch_size < 128 else math.inf)

    for room in (fit, survey):
        monkeypatch.setattr(room, "memory_on", memory_on)
    config = meshes.with_mesh(small_config(**{"train.batch_size": 128}), {"fsdp": 16})
    (found,) = fit.advice(config, ONE | {"fsdp": 16}, chip_of(2**30))
    assert found.overrides == {"parallel.fsdp": 8, "parallel.tensor": 2, "train.accumulation": 4}


@pytest.mark.exhaustive
def test_qwen_of_seven_billion_is_led_to_what_fits_a_v5e_16():
    config = config_lib.load(str(CONFIGS / "qwen2_5_7b.py"))
    config = meshes.with_mesh(config, meshes.suggest(config, 16))
    (found,) = fit.advice(config, config_lib.mesh_shape(config, 16), chips.by_name("v5e"))
    assert found.overrides == {"parallel.fsdp": 8, "parallel.tensor": 2, "train.accumulation": 8} and found.fits


def test_advice_is_the_first_value_that_fits():
    large = {"train.batch_size": 48, "model.remat": "none"}
    for expected in (2, 8):  # of 2, 3, 4, 6, 8, 12, 16, 24, 48
        needed = memory.memory(small_config(**large, **{"train.accumulation": expected}), ONE).needed
        room = chip_of(needed / fit.WARNED_ABOVE + 1)
        alone = [one.overrides for one in fit.advice(small_config(**large), ONE, room) if len(one.overrides) == 1]
        assert {"train.accumulation": expected} in alone, (expected, alone)


def test_where_nothing_else_fits_a_smaller_batch_is_advised():
    config = small_config(**{"train.batch_size": 2**40})  # whose divisors are not looked for one by one
    room = chip_of(memory.memory(small_config(**{"train.batch_size": 2**12}), ONE).needed)
    (found,) = fit.advice(config, ONE, room)
    assert list(found.overrides) == ["train.batch_size"] and 2**9 <= found.overrides["train.batch_size"] <= 2**12
    assert found.needed <= room.memory


def test_a_validation_row_that_no_device_holds_is_refused():
    config = small_config(**{"evaluation.context_length": 64 * 10**6})
    with pytest.raises(UserError, match=r"evaluation\.context_length = 64,000,000: a row needs .*, or a train\.loss_chunk$"):
        fit.refuse_if_too_large(config, ONE, chip_of(2**35))
    config.train.loss_chunk = 512
    with pytest.raises(UserError, match=r"a row needs .* GiB or more on each device, which has 32\.0; give a shorter one$"):
        fit.refuse_if_too_large(config, ONE, chip_of(2**35))
    config.evaluation.context_length = 6_400_000
    for config.train.loss_chunk in (0, 512, 2**40):
        fit.refuse_if_too_large(config, ONE, chip_of(2**35))


def test_a_value_that_the_config_cannot_have_is_passed_over():
    narrow = {"model.width": 24, "model.num_heads": 2, "train.batch_size": 16, "optimizer.name": "adamw"}
    with pytest.raises(UserError):
        config_lib.mesh_shape(small_config(**narrow, **{"parallel.fsdp": 16}), 16)
    needed = memory.memory(small_config(**narrow, **{"parallel.fsdp": 8}), ONE | {"data": 2, "fsdp": 8}).needed
    room = chip_of(needed / fit.WARNED_ABOVE + 1)
    assert {"parallel.fsdp": 8} in [one.overrides for one in fit.advice(small_config(**narrow), ONE | {"data": 16}, room)]


@pytest.mark.parametrize(
    ("changes", "devices", "slices", "expected"),
    [
        ({}, 8, 1, {"fsdp": 8}),
        ({}, 16, 2, {"data": 2, "fsdp": 8}),
        ({"train.batch_size": 4}, 8, 1, {"fsdp": 4, "tensor": 2}),
        ({"model.width": 24, "model.num_heads": 2}, 16, 1, {"data": 2, "fsdp": 8}),
        ({"tokenizer.vocab_size": 516}, 8, 1, {"data": 2, "fsdp": 4}),
        ({}, 1, 1, {"data": 1}),
    ],
    ids=str,
)
def test_a_mesh_is_suggested_that_works(changes, devices, slices, expected):
    config = small_config(**changes)
    shape = meshes.suggest(config, devices, slices)
    assert shape == expected
    config_lib.mesh_shape(meshes.with_mesh(config, shape), devices)


def test_no_mesh_is_refused_with_its_reason():
    with pytest.raises(UserError, match="train.batch_size"):
        meshes.suggest(small_config(**{"train.batch_size": 1, "model.num_heads": 1, "model.head_dim": 64}), 8)


@pytest.mark.parametrize(
    ("text", "message"), [("dta=2", "no mesh axis 'dta'; did you mean data"), ("data", "data=NUMBER"), ("data=0", "data=NUMBER")]
)
def test_a_wrong_mesh_is_refused(text, message):
    with pytest.raises(UserError, match=message):
        meshes.parse(text)


def test_the_roofline_is_the_slowest_roof_and_slices_talk_over_the_network():
    config, shape = small_config(), ONE | {"data": 2, "fsdp": 4}
    lines = traffic.traffic(config, shape)
    found = roofline.roofline(config, shape, chips.by_name("v5e"), lines)
    assert found.at_best == max(found.compute, found.memory, found.links) < found.at_worst
    assert 0 < found.mfu(found.at_best) <= 1
    apart = roofline.roofline(config, shape, chips.by_name("v5e"), lines, num_slices=2)
    assert apart.links > found.links
    assert roofline.roofline(config, shape, chips.cpu(), lines) is None
    (line,) = [line for line in lines if line.axes == ("data",)]
    assert roofline.seconds(line, shape, chips.by_name("v5e"), 2) == pytest.approx(line.sent_bytes / chips.by_name("v5e").network_bandwidth)


def test_every_chip_is_known_by_what_jax_calls_it():
    for kind, name in (
        ("TPU v5 lite", "v5e"), ("TPU v5", "v5p"), ("TPU v6 lite", "v6e"), ("TPU v4", "v4"), ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H100 PCIe", "h100-pcie"), ("NVIDIA A100-SXM4-40GB", "a100-40g"), ("NVIDIA A100-SXM4-80GB", "a100"),
        ("NVIDIA L4", "l4"), ("NVIDIA GeForce RTX 4090", "rtx4090"), ("NVIDIA H200", "h200"),
    ):  # fmt: skip
        assert chips.by_kind(kind).name == name
    assert chips.by_kind("something new") is None
    assert {chip.backend for chip in chips.CHIPS} == {"tpu", "gpu"} and chips.cpu().backend == "cpu"


def test_activations_have_their_width_in_lanes():
    """A width of 192 takes 256 lanes, as the TPU compiler lays configs/d29_38m.py out (docs/performance.md)."""
    config = small_config(**{"model.width": 192, "model.num_heads": 3, "model.context_length": 1024, "model.attention": "splash"})
    sizes = shapes.sizes(config, ONE)

    def kept(*size):
        return memory._kept((size, 4), config.model, sizes, memory.tiled_bytes) // 4

    assert kept(8, 1024, 192) == 8 * 1024 * 256
    assert kept(8, 1024, 3, 64) == 8 * 1024 * 256
    assert kept(8, 1024, 768) == 8 * 1024 * 768
    assert kept(8, 3, 1024, 64) == 8 * 3 * 1024 * 128
    config.model.scan_layers = False
    assert kept(8, 1024, 3, 64) == 8 * 1024 * 3 * 128  # each head has lanes of its own


def test_the_head_at_work_is_the_head_whatever_tables_stand_beside_it():
    wide = {"tokenizer.vocab_size": 32768, "train.loss_chunk": 16}

    def head(**changes):
        return memory.memory(small_config(**wide, **changes), ONE).parts["head and its gradient"]

    assert head(**{"model.ngram_rows": 131072}) == head()
    assert head(**{"model.tied_embeddings": True}) == head()


@pytest.mark.parametrize(
    "changes",
    [
        {"model.num_layers": 8},
        {"model.num_layers": 11, "model.window_pattern": "SSL", "model.window": 16, "model.attention": "chunked"},
        {"model.num_layers": 12, "model.window_pattern": "SL", "model.window": 16, "parallel.pipeline": 2},
    ],
    ids=str,
)
def test_many_layers_in_a_row_keep_what_tracing_all_of_them_says(changes):
    config = small_config(**{"model.scan_layers": False, **changes})
    shape = config_lib.mesh_shape(config, config.parallel.pipeline)
    assert sorted(shapes.saved_leaves(config, shape)) == sorted(shapes._saved_leaves(config, shape))


def test_a_thousand_layers_are_not_traced_one_by_one(monkeypatch):
    traced = []
    monkeypatch.setattr(shapes, "_saved_leaves", lambda config, _: traced.append(config.model.num_layers) or [((7,), 4)])
    shapes.saved_leaves(small_config(**{"model.scan_layers": False, "model.num_layers": 1024}), ONE)
    assert traced == [2, 3]


def test_nothing_is_tried_where_weights_alone_are_more_than_there_is(monkeypatch):
    monkeypatch.setattr(fit, "memory_on", lambda *_: pytest.fail("traced"))
    config = small_config(**{"model.width": 65536, "model.num_layers": 1024})
    assert list(fit.advice(config, ONE, chip_of(2**34))) == []


def test_the_flops_of_windows_are_the_sum_over_queries():
    config = small_config(**{"model.window_pattern": "SL", "model.window": 16})
    context = config.model.context_length
    keys = 2 * sum(min(query + 1, 16) + query + 1 for query in range(context)) / context  # two layers of each kind
    found = size.flops_per_token(config)
    assert found["full"] - found["causal"] == pytest.approx(12 * config.model.width * (4 * context - keys))
    assert size.flops_per_token(small_config(**{"model.context_length": 2**24}))["causal"] > 0  # at once
