"""Compiles every config for TPU slices and writes the tables of docs/performance.md: what fits, how much it needs, what it sends.

    python benchmarks/tpu_table.py --out tpu_table.jsonl                    all of it; started again, it goes on
    python benchmarks/tpu_table.py --out tpu_table.jsonl --only d12,gpt2_124m --slices v5e-8
    python benchmarks/tpu_table.py --out tpu_table.jsonl --table            the tables of what is there
    python benchmarks/tpu_table.py --out tpu_table.jsonl --formula          the same, after a change of the formulas

No TPU is needed, but its compiler is: pip install -e ".[tpu]". Each compilation is a process of its own.
"""

import json
import pathlib
import subprocess
import sys
import tempfile
import time

import flags

from lmtiny import config as config_lib
from lmtiny import console
from lmtiny.parallel import chips
from lmtiny.planning import meshes, shapes, slices, traffic
from lmtiny.planning.hlo import Collective
from lmtiny.planning.memory import memory_on
from lmtiny.planning.survey import survey

ROOT = pathlib.Path(__file__).parents[1]
SLICES = ("v5e-8", "v5e-16", "v5e-256", "v6e-8", "v5p-16")
WEAK = ("d12", ("v5e-8", "v5e-16", "v5e-32", "v5e-64", "v5e-128", "v5e-256"), 16)  # rows a chip
TWO_SLICES = (("d12", "v5e-16*2"), ("qwen2_5_7b", "v5e-256*2"))
SMALLEST = "v5e"  # of this chip, the fewest that hold a config, and one size less
CONFIGS = [file.stem for file in sorted((ROOT / "configs").glob("[!_]*.py")) if file.stem != "mixture"]  # whose model is tiny's
GIB = 2**30


def jobs(only, names):
    """Yields (table, config, slice, overrides)."""
    for config in CONFIGS:
        if config in only:
            yield from (("configs", config, name, {}) for name in names)
    config, slices_of_chip, rows = WEAK
    if config in only:
        for name in slices_of_chip:
            yield "weak scaling", config, name, {"train.batch_size": rows * slices.parse(name).num_chips, "train.accumulation": 2}
    for config, name in TWO_SLICES:
        if config in only:
            yield "two slices", config, name, {}
    for config in CONFIGS:
        if config in only:
            yield from (("smallest", config, one.name, one.overrides) for one in smallest(config))


def smallest(config):
    """Returns the Options of the smallest slice that holds the config, by formula, and of the next smaller one."""
    tried = []
    for option in survey(config_lib.load(str(ROOT / "configs" / f"{config}.py")), chips.by_name(SMALLEST)):
        tried.append(option)
        if option.fits:
            break
    return tried[-2:]


def key(table, config, name, overrides):
    return json.dumps([table, config, name, overrides])


def batch_for(config, name):
    """Returns overrides that spread the config's batch over the slice: few rows a chip at a time, the batch itself kept."""
    loaded, num_chips = config_lib.load(str(ROOT / "configs" / f"{config}.py")), slices.parse(name).num_chips
    rows = loaded.train.batch_size
    if rows % num_chips:
        return {"train.batch_size": -(-rows // num_chips) * num_chips, "train.accumulation": 1}
    return {}


def run(config, name, overrides, limit):
    """Returns the report of one compilation, or {"error": line}."""
    with tempfile.TemporaryDirectory() as folder:
        report = pathlib.Path(folder) / "plan.json"
        flags = [f"--config.{knob}={value}" for knob, value in overrides.items()]
        command = [sys.executable, "-m", "lmtiny.plan", "--config", str(ROOT / "configs" / f"{config}.py"), "--compile", name,
                   "--json", str(report), *flags]  # fmt: skip
        try:
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=limit, check=False)
        except subprocess.TimeoutExpired:
            return {"error": f"not compiled within {limit} s"}
        if not report.is_file():
            return {"error": (done.stderr.strip().splitlines() or ["no report"])[-1]}
        full = json.loads(report.read_text(encoding="utf-8"))
    compiled = full["compiled"]
    by_compiler = sum(sent_bytes(one) for one in compiled.pop("collectives"))
    sent = {"compiler": by_compiler, "formula": sum(one["sent_bytes"] for one in full["traffic"])}
    return {"mesh": full["mesh"], "compiled": compiled, "formula": full["memory"], "sent": sent, "roofline": full["roofline"],
            "advice": full.get("advice", [])[:1]}  # fmt: skip


def with_formula(record):
    """Returns the record with the formulas' figures of today's code; the compiler's are kept."""
    report = record["report"]
    if "error" in report:
        return record
    overrides = {name: str(value) for name, value in record["overrides"].items()}
    config = config_lib.load(str(ROOT / "configs" / f"{record['config']}.py"), overrides)
    chip = chips.by_name(slices.parse(record["slice"]).chip)
    config = shapes.with_attention(meshes.with_mesh(config, report["mesh"]), report["mesh"], chip)
    needs = memory_on(chip, config, report["mesh"])
    report["formula"] = {**needs.parts, "needed": needs.needed}
    report["sent"]["formula"] = traffic.total(traffic.traffic(config, report["mesh"]))
    return record


def sent_bytes(collective):
    collective["groups"] = ()
    return Collective(**collective).sent_bytes


def needed(report):
    """Returns the bytes that the compiler says a step needs."""
    one = report["compiled"]
    return one["peak"] if one["fits"] else one["arguments"] + one["missing_for"]


def row(record):
    report = record["report"]
    changes = "".join(f", {knob.split('.')[1]} {value}" for knob, value in record["overrides"].items())
    start = [record["config"], record["slice"] + changes]
    if "error" in report:
        return [*start, report["error"].removeprefix("lmtiny: error: "), *[""] * 7]
    mesh = " x ".join(f"{axis} {count}" for axis, count in report["mesh"].items() if count > 1)
    real, formula, sent = needed(report), report["formula"]["needed"], report["sent"]
    fits = report["compiled"]["fits"]
    return [*start, mesh, "yes" if fits else "no", f"{real / GIB:.2f}", f"{formula / GIB:.2f}", f"{formula / real:.2f}",
            f"{sent['compiler'] / 1e9:.2f}" if fits else "", f"{sent['formula'] / 1e9:.2f}",
            f"{report['compiled']['seconds']:.0f}"]  # fmt: skip


def table(records):
    head = ["config", "slice", "mesh", "fits", "compiler GiB", "formula GiB", "ratio", "sent GB, compiler", "sent GB, formula", "compile s"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join(lines + ["| " + " | ".join(row(record)) + " |" for record in records])


def write(path, records):
    """Makes the records the file's lines, aside first."""
    aside = path.with_name(f"{path.name}.new")
    aside.write_text("".join(json.dumps(record) + "\n" for record in records))
    aside.replace(path)


def main():
    parser = flags.parser(__doc__)
    parser.add_argument("--out", type=flags.new_file, required=True, help="JSON lines, one a compilation")
    parser.add_argument("--only", type=flags.some_of(*CONFIGS), default=CONFIGS, help="these configs, separated by commas")
    parser.add_argument("--slices", default=",".join(SLICES), help="these slices, separated by commas")
    parser.add_argument("--limit", type=flags.at_least(1), default=3600, help="seconds for one compilation")
    parser.add_argument("--table", action="store_true", help="compile nothing, print the tables")
    parser.add_argument("--formula", action="store_true", help="compile nothing, work out the formulas again for what was compiled")
    args = parser.parse_args()
    try:
        records = [json.loads(line) for line in args.out.read_text().splitlines()] if args.out.is_file() else []
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise SystemExit(f"--out {args.out} is no file of JSON lines: {error}") from None
    if (args.table or args.formula) and not records:
        raise SystemExit(f"--out {args.out} holds nothing yet")
    if not args.table:
        records = [record for record in records if "error" not in record["report"]]  # those are tried again
        write(args.out, records)
    done = {record["key"] for record in records}
    wanted = jobs(args.only, args.slices.split(","))
    if args.formula:
        records = [with_formula(record) for record in records]
        write(args.out, records)
    todo = [] if args.table or args.formula else [job for job in wanted if key(*job) not in done]
    for number, job in enumerate(todo, 1):
        name, config, target, overrides = job
        started = time.monotonic()
        full = batch_for(config, target) if name in ("configs", "two slices") else overrides
        record = {"key": key(*job), "table": name, "config": config, "slice": target, "overrides": full}
        record["report"] = run(config, target, full, args.limit)
        with args.out.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        records.append(record)
        print(f"{number}/{len(todo)} {' '.join(row(record))} ({time.monotonic() - started:.0f} s)", flush=True)
    for name in ("configs", "weak scaling", "two slices", "smallest"):
        if chosen := [record for record in records if record["table"] == name]:
            print(f"\n### {name}\n\n{table(chosen)}")
    if failed := sum("error" in record["report"] for record in records):
        raise SystemExit(f"{failed} of {len(records)} were not compiled; the same command tries them again")


if __name__ == "__main__":
    console.run_main(main)
