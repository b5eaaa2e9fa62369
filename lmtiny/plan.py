"""Says what a training run needs before it runs: memory, traffic and time by formula, or by the real TPU compiler.

    python -m lmtiny.plan --config configs/d12.py --device v5e-16
    python -m lmtiny.plan --config configs/d12.py --device h100 --devices 8 --mesh fsdp=8
    python -m lmtiny.plan --config configs/d12.py --survey v5e
    python -m lmtiny.plan --config configs/d12.py --compile v5e-8
    python -m lmtiny.plan --config configs/d12.py --compile v5e:4x4 --slices 2 --json plan.json

Without --compile nothing is compiled and no device is needed. With it, the very train step is compiled for a TPU slice
by libtpu, which needs no TPU either: pip install -e ".[tpu]". Where no mesh is given, by --mesh or by the config, one
is chosen. The exit status is 0 if the step fits, 3 if it does not, 1 if the command is wrong.
"""

from lmtiny import ctrl_c

if __name__ == "__main__":
    ctrl_c.end_at_once()  # before the imports below, which take their time

import argparse
import dataclasses
import json
import math
import os
import pathlib
from typing import TYPE_CHECKING, Any

from lmtiny import command_line, console, files, json_data
from lmtiny.config import MESH_AXES
from lmtiny.errors import UserError
from lmtiny.knobs import within
from lmtiny.parallel import chips, host
from lmtiny.parallel.chips import GIB, Chip
from lmtiny.values import nearest

if TYPE_CHECKING:
    import ml_collections

    from lmtiny.planning.memory import Memory
    from lmtiny.planning.roofline import Roofline
    from lmtiny.planning.slices import Slice
    from lmtiny.planning.tpu_compiler import Compiled
    from lmtiny.planning.traffic import Line

DOES_NOT_FIT = 3  # exit status: not that of a wrong command, so that a script can tell
MOST_DEVICES = 16_384  # larger than any slice; what they are tried on is listed one by one


def flags(parser: argparse.ArgumentParser) -> None:
    known = ", ".join(chips.names())
    parser.add_argument("--device", metavar="CHIP", help=f"{known}, or a TPU slice such as v5e-16 (default: this machine's)")
    count = command_line.number(int, within(1, MOST_DEVICES))
    parser.add_argument("--devices", metavar="N", type=count, help="how many (default: all of the slice or of this machine)")
    parser.add_argument("--mesh", metavar="AXIS=N,...", help="as in --mesh data=2,fsdp=4; in place of the config's parallel.*")
    parser.add_argument("--compile", metavar="SLICE", help="compile for a TPU slice, such as v5e-16, v5e:4x4, v5e:4x4*2 (two slices)")
    parser.add_argument("--survey", metavar="CHIP", help="on how many of these it fits, and with which mesh, instead of one plan")
    parser.add_argument("--slices", metavar="N", type=count, help="so many slices")
    parser.add_argument("--json", metavar="FILE", type=pathlib.Path, help="write all of it to a file")


def main() -> int:
    config, args = command_line.parse(__doc__, flags)
    from lmtiny.planning import slices, tpu_compiler

    host.leave_out_missing_tpu()
    args.slices, args.devices = args.slices or 0, args.devices or 0
    if args.json:
        refuse_to_write(args.json)  # before minutes of compiling, not after
    if args.survey:
        return survey(config, args)
    target: Slice | None = None
    if args.compile:
        if args.device:
            raise UserError("--compile names the slice: leave --device out")
        target = slices.parse(args.compile, args.slices)
        tpu_compiler.prepare(target)
    chip, num_devices, num_slices = devices_of(args, target)
    chip = chips.for_jax(chip)

    from lmtiny import config as config_lib
    from lmtiny.planning import fit, meshes, shapes, traffic
    from lmtiny.planning.memory import memory_on
    from lmtiny.planning.roofline import roofline

    if args.mesh or meshes.is_default(config):
        config = meshes.with_mesh(config, meshes.parse(args.mesh) if args.mesh else meshes.suggest(config, num_devices, num_slices))
    shape = config_lib.mesh_shape(config, num_devices)
    config = shapes.with_attention(config, shape, chip)
    fit.refuse_rows_too_long(config, shape, chip)
    console.say(f"{config.name} on {target.name if target else f'{num_devices} x {chip.name}'}, mesh: {meshes.name(shape)}")
    z = shapes.sizes(config, shape)
    each = f"{console.counted(z.b, 'row')} of {z.T:,} tokens on each device"
    console.say(f"a step of {console.counted(z.A, 'microbatch', 'microbatches')}, {each}\n")
    lines, needs = traffic.traffic(config, shape), memory_on(chip, config, shape)
    bounds = roofline(config, shape, chip, lines, num_slices)
    report: dict[str, Any] = {
        "config": config.to_dict(), "chip": dataclasses.asdict(chip), "devices": num_devices, "slices": num_slices, "mesh": dict(shape),
        "memory": {**needs.parts, "needed": needs.needed}, "traffic": [dataclasses.asdict(line) for line in lines],
        "roofline": dataclasses.asdict(bounds) if bounds else None,
    }  # fmt: skip
    report["parameters"] = say_parameters(config)
    say_memory(config, needs, chip, "ring" if shape["context"] > 1 else config.model.attention)
    say_traffic(lines)
    say_time(config, bounds, chip, shape)
    fits = needs.needed <= chip.memory or not chip.memory
    if not fits:
        report["advice"] = say_advice(config, shape, chip)
    if target:
        console.say(f"\ncompiling for {target.name} ...")
        with tpu_compiler.told_meanwhile(f"compiling {config.name} for {target.name}"):
            compiled, _ = tpu_compiler.compile_train_step(config, target)
        report["compiled"] = dataclasses.asdict(compiled)
        say_compiled(compiled, needs, lines)
        fits = compiled.fits
    if args.json:
        write_json(args.json, report)
    return 0 if fits else DOES_NOT_FIT


def refuse_to_write(path: pathlib.Path) -> None:
    """Raises UserError where --json cannot be written, as far as that can be told."""
    try:
        if path.is_dir():
            raise UserError(f"--json: {path} is a folder; name a file")
        if not path.parent.is_dir():
            raise UserError(f"--json: {path} is in a folder that is not there")
        if os.path.lexists(path) and not _is_a_plan(path):
            raise UserError(f"--json: {path} is there, and is no plan; name another file, or take it away")
    except OSError as error:  # a name that is too long
        raise UserError(f"--json: {str(path)[:80]} cannot be written: {error.strerror or error}") from error


def _is_a_plan(path: pathlib.Path) -> bool:
    """Returns whether the file is one that `write_json` made: a plan, or a survey."""
    try:
        written = json_data.read(path, {"config": {"model": dict}}) if path.is_file() else {}
    except UserError:
        return False
    return "survey" in written or "roofline" in written


def devices_of(args: argparse.Namespace, target: "Slice | None") -> tuple[Chip, int, int]:
    """Returns (chip, devices in all, slices) of the command line; raises UserError for a chip that is not known."""
    from lmtiny.planning import slices

    if args.device and slices.plain(args.device) in chips.names():
        args.device = slices.plain(args.device)
    if target is None and args.device and args.device not in chips.names():
        name, _, count = args.device.rpartition("-")
        if (chip := chips.by_name(name)) and chip.backend != "tpu" and count.isdecimal():
            raise UserError(f"--device {args.device}: several of them are --device {name} --devices {count}")
        if ("-" not in args.device and ":" not in args.device) or chips.alike(args.device):
            raise no_such_device(args.device)
        target = slices.parse(args.device, args.slices)
    if target is not None:
        if args.devices not in (0, target.num_chips):
            raise UserError(f"{target.name} has {target.num_chips} devices, not {args.devices}")
        chip = chips.by_name(target.chip)
        assert chip is not None
        return chip, target.num_chips, target.num_slices
    if args.device:
        number = args.devices or 1
        chip = chips.by_name(args.device, number)
        assert chip is not None
        if args.slices > 1 and number % args.slices:
            raise UserError(f"{console.counted(number, 'device')} cannot be {args.slices} equal slices")
        return chip, number, args.slices or 1
    from lmtiny.parallel.mesh import all_devices

    here = all_devices()
    number, kind = args.devices or len(here), here[0].device_kind
    chip = chips.cpu(number) if here[0].platform == "cpu" else chips.by_kind(kind)
    if chip is None:
        raise UserError(f"the speed of {kind!r} is not known; name a chip with --device: {', '.join(chips.names())}")
    return chip, number, args.slices or 1


def no_such_device(name: str) -> UserError:
    known = ", ".join(chips.names())
    close = f"; did you mean {chip.name}?" if (chip := chips.alike(name)) else nearest(name, chips.names(), f"; there are {known}")
    return UserError(f"there is no device {name!r}{close}")


def survey(config: "ml_collections.ConfigDict", args: argparse.Namespace) -> int:
    """Says for each size of slice whether the config fits, the mesh, and how long a step takes at best; 0 if it fits on one."""
    from lmtiny.planning import slices

    name = slices.plain(args.survey)
    chip = chips.by_name(name)
    if chip is None and name.partition("-")[0] in chips.names():
        raise UserError(f"--survey takes a chip and tries all its slices: --survey {name.partition('-')[0]}")
    if chip is None:
        raise no_such_device(args.survey)
    if chip.name == "cpu":
        raise UserError("--survey counts accelerators; what this machine holds says --device cpu")
    chip = chips.for_jax(chip)
    from lmtiny.planning import meshes, traffic

    if args.device or args.compile or args.mesh or args.devices or args.slices or not meshes.is_default(config):
        flags = "--device, --devices, --slices, --mesh, --compile and --config.parallel.*"
        raise UserError(f"--survey chooses devices and meshes by itself: leave {flags} out")
    from lmtiny.planning import survey as survey_lib
    from lmtiny.planning.roofline import roofline

    rows, report = [], []
    for one in survey_lib.survey(config, chip):
        shape = {axis: one.mesh.get(axis, 1) for axis in MESH_AXES}
        bounds = roofline(one.config, shape, chip, traffic.traffic(one.config, shape), 1)
        times = [console.duration(time) for time in (bounds.at_best, bounds.at_best * config.train.num_steps)] if bounds else ["", ""]
        rows.append((one.name, meshes.name(one.mesh), one.accumulation, gib(one.needed), "yes" if one.fits else "no", *times))
        report.append({"name": one.name, "mesh": one.mesh, "accumulation": one.accumulation, "needed": one.needed, "fits": one.fits})
    console.say(f"{config.name} on {chip.name}, {gib(chip.memory)} GiB each{whose(chip)}; by formula, 5% of the memory kept free\n")
    heads = ("devices", "mesh", "accumulation", "GiB on each", "fits", "a step at best", "all steps at best")
    console.say(console.table(heads, rows))
    if args.json:
        write_json(args.json, {"config": config.to_dict(), "survey": report})
    found = [one for one in report if one["fits"]]
    return 0 if found else DOES_NOT_FIT


def write_json(path: pathlib.Path, report: dict[str, Any]) -> None:
    try:
        files.write_aside(path, json.dumps(report, indent=1) + "\n")
    except OSError as error:
        raise UserError(f"--json {path} cannot be written: {error.strerror or error}") from error
    console.say(f"\nwritten: {path}")


def say_parameters(config: "ml_collections.ConfigDict") -> dict[str, int]:
    from lmtiny.model import size

    counts = size.count_parameters(config)
    rows = [(name, f"{count:,}", f"{count / counts['total']:.1%}") for name, count in counts.items() if count]
    console.say(console.table(("parameters", "number", "share"), rows))
    return counts


def say_memory(config: "ml_collections.ConfigDict", needs: "Memory", chip: Chip, attention: str) -> None:
    from lmtiny.planning import fit
    from lmtiny.planning.memory import cache_bytes

    rows = [(name, gib(count)) for name, count in needs.parts.items()]
    rows += [("in all", gib(needs.needed)), (f"one {chip.name} has", gib(chip.memory) if chip.memory else "unknown")]
    console.say(f"\n{console.table(('memory of a device', 'GiB'), rows)}")
    context = config.model.context_length
    console.say(f"a chat of {context:,} tokens keeps {cache_bytes(config) / GIB:.3f} GiB of keys and values")
    if chip.memory:
        share = needs.needed / chip.memory
        fits = "it fits" if share <= 1 else f"IT DOES NOT FIT: {fit.sizes_text(needs.needed, chip)}"
        formula = "by formula" if chip.backend == "tpu" else "by a formula fitted to TPUs"
        if chip.backend == "cpu":
            formula += ", and raised to what XLA for CPUs takes"
        console.say(f"{fits}: {share:.0%} of the memory{whose(chip)}, {formula} (model.remat={config.model.remat}, attention {attention})")


def whose(chip: Chip) -> str:
    """Returns which part of the device's memory is meant, where it is not all of it."""
    published = chips.by_name(chip.name)
    if chip.backend == "gpu" and published:
        share = chip.memory / published.memory
        return f" that jax takes ({share:.0%} of {gib(published.memory)} GiB: {chips.FRACTION})"
    return " that is free now" if chip.backend == "cpu" else ""


def say_traffic(lines: "list[Line]") -> None:
    from lmtiny.planning import traffic

    if not lines:
        return
    rows = [(line.what, line.kind, " x ".join(line.axes), console.human(line.sent_bytes, "B")) for line in lines]
    rows.append(("in all", "", "", console.human(traffic.total(lines), "B")))
    console.say(f"\n{console.table(('a device sends in a step', 'kind', 'over', 'bytes'), rows)}")


def say_time(config: "ml_collections.ConfigDict", bounds: "Roofline | None", chip: Chip, shape: dict[str, int]) -> None:
    from lmtiny.model import size

    flops = size.flops_per_token(config)
    tokens = config.train.batch_size * config.model.context_length
    console.say(
        f"\nFLOPs a token: {console.human(flops['full'])} (full attention), {console.human(flops['causal'])} (causal); "
        f"a step of {tokens:,} tokens: {console.human(flops['causal'] * tokens)} (causal)"
    )
    if bounds is None:
        console.say(f"the speed of one {chip.name} is not known, so no time is given")
        return
    roofs = (("arithmetic", bounds.compute), ("memory", bounds.memory), ("links", bounds.links))
    console.say(console.table(("roof", "time of a step"), [(name, console.duration(one)) for name, one in roofs]))
    best, worst = bounds.at_best, bounds.at_worst
    whole_run = config.train.num_steps * best
    console.say(
        f"a step takes at least {console.duration(best)} if all overlaps (MFU at most {bounds.mfu(best):.0%}, of causal FLOPs), "
        f"{console.duration(worst)} if nothing is sent meanwhile ({bounds.mfu(worst):.0%}); "
        f"{config.train.num_steps:,} steps at least {console.duration(whole_run)}"
    )
    facts = [f"{console.human(chip.peak_flops, 'FLOP/s')} in bfloat16", f"{console.human(chip.memory_bandwidth, 'B/s')} memory"]
    if math.prod(shape.values()) > 1:
        rings = f" (a mesh axis has two of {chip.links})" if chip.links > 1 else ""
        facts.append(f"{console.human(chip.link_bandwidth, 'B/s')} links one way{rings}")
        facts.append(f"{console.human(chip.network_bandwidth, 'B/s')} network")
    console.say(f"assumed of one {chip.name}: {', '.join(facts)}; published figures, which nothing reaches")


def say_advice(config: "ml_collections.ConfigDict", shape: dict[str, int], chip: Chip) -> list[dict[str, Any]]:
    """Says what would make the step fit, the fastest by formula first; returns it."""
    from lmtiny.planning import fit, traffic
    from lmtiny.planning.roofline import roofline

    found: list[dict[str, Any]] = []
    for advice in fit.advice(config, shape, chip):
        bounds = roofline(advice.config, advice.shape, chip, traffic.traffic(advice.config, advice.shape))
        seconds = bounds.at_best if bounds else None
        found.append({"overrides": advice.overrides, "needed": advice.needed, "text": advice.text, "seconds": seconds})
    found.sort(key=lambda one: one["seconds"] or 0.0)
    if not found:
        more = f"--survey {chip.name} says how many it takes" if chip.name != "cpu" else "or a smaller model"
        console.say(f"no knob makes it fit here: take more devices, {more}")
    for one in found[:3]:
        time = f", a step at least {console.duration(one['seconds'])}" if one["seconds"] else ""
        console.say(f"{'it would fit with' if one is found[0] else 'or with'}  {one['text']}  ({gib(one['needed'])} GiB{time})")
    return found


def say_compiled(compiled: "Compiled", needs: "Memory", lines: "list[Line]") -> None:
    from lmtiny.planning import hlo, traffic

    if not compiled.fits:
        missing = (compiled.needed - compiled.available) / GIB
        console.say(f"the compiler says: IT DOES NOT FIT, {missing:.2f} GiB too much ({compiled.problem})")
        return
    temporaries = compiled.peak - compiled.arguments
    pairs = (("arguments", compiled.arguments, needs.arguments), ("temporaries, at the peak", temporaries, needs.temporaries),
             ("in all", compiled.needed, needs.needed))  # fmt: skip
    rows = [(name, gib(real), gib(formula), f"{formula / real:.2f}") for name, real, formula in pairs]
    if compiled.temporaries:  # a small program's are not counted
        rows.append(("temporaries, with gaps", gib(compiled.temporaries), "", ""))
    rows.append(("outputs", gib(compiled.outputs), "", ""))
    rows.append(("of them in place of arguments", gib(compiled.aliased), "", ""))
    console.say(f"it fits, says the compiler, after {console.duration(compiled.seconds)}\n")
    console.say(console.table(("memory of a device, GiB", "compiler", "formula", "ratio"), rows))
    kinds, formula_kinds = hlo.total_by_kind(list(compiled.collectives)), traffic.by_kind(lines)
    table: list[tuple[object, ...]] = [
        (kind, kinds.get(kind, {}).get("count", 0), console.human(kinds.get(kind, {}).get("sent_bytes", 0.0), "B"),
         console.human(formula_kinds.get(kind, 0.0), "B"))
        for kind in dict.fromkeys([*kinds, *formula_kinds])
    ]  # fmt: skip
    sums = (sum(entry["sent_bytes"] for entry in kinds.values()), traffic.total(lines))
    table.append(("in all", "", console.human(sums[0], "B"), console.human(sums[1], "B")))
    console.say(f"\n{console.table(('a device sends in a step', 'times', 'compiler', 'formula'), table)}")
    if unsure := sum(not one.counted for one in compiled.collectives):
        console.warn(f"{unsure} collectives are in loops whose length the program does not tell; each is counted once")


def gib(count: float) -> str:
    return f"{count / GIB:.3f}"


if __name__ == "__main__":
    console.run_main(main)
