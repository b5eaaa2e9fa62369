"""The optimizer's share of a training step: Muon's and AdamW's updates beside the gradients of the config's whole batch.

    python benchmarks/muon.py
    python benchmarks/muon.py --config configs/d20.py --rows 1 --repeats 1

The gradients of a few rows and the updates of all parameters are timed in turns.  A step of the config's batch has as many
rows' gradients, and one update; that is computed, not run.  On a mesh both are shared out (docs/parallelism.md).
"""

import flags
import jax
import steps

from lmtiny import config as config_lib
from lmtiny import console
from lmtiny.model import size
from lmtiny.training.optimizer import make_optimizer
from lmtiny.training.step import make_gradients


def update(config, params, optimizer_name):
    """Returns a function that makes the update of all parameters by an optimizer of the config, from gradients like them."""
    config_lib.set_knob(config, "optimizer.name", optimizer_name)
    optimizer = make_optimizer(config, size.abstract(config)[2])
    state = jax.jit(optimizer.init)(params)
    run = jax.jit(optimizer.update)
    return lambda: run(params, state, params)


def gradients(config, params, rows):
    run = jax.jit(make_gradients(config, config.tokenizer.vocab_size))
    shape = (rows, config.model.context_length + 1)
    tokens = jax.random.randint(jax.random.key(0), shape, 0, config.tokenizer.vocab_size)
    return lambda: run(params, tokens, jax.random.key(0), 1.0)


def main():
    parser = steps.flags(__doc__, draws=False)
    parser.add_argument("--rows", type=flags.at_least(1), default=2, help="whose gradients are timed together")
    parser.set_defaults(config=str(steps.ROOT / "configs" / "d12.py"), repeats=3)
    arguments = parser.parse_args()
    config = config_lib.load(arguments.config, flags.overrides(arguments) | {"train.accumulation": "1"})
    batch = config.train.batch_size
    config_lib.set_knob(config, "train.batch_size", arguments.rows)
    params = size.init_params(config)
    runs = {"gradients": gradients(config, params, arguments.rows)}
    runs |= {name: update(config.copy_and_resolve_references(), params, name) for name in ("muon", "adamw")}
    found = steps.medians_in_turns(runs, arguments.repeats)
    row = found.pop("gradients") / arguments.rows
    print(f"gradients of a row: {row:.2f} s; of the batch of {batch} rows: {batch * row:,.0f} s")
    shares = {name: seconds / (seconds + batch * row) for name, seconds in found.items()}
    for name, seconds in found.items():
        print(f"update by {name:5}: {seconds:6.2f} s, {shares[name]:.2%} of a step of {batch} rows")
    steps.finish({"what": "the optimizer's share of a step", "units": "seconds, shares", "config": arguments.config, "rows": batch,
                  "row_seconds": row, "update_seconds": found, "shares": shares})  # fmt: skip


if __name__ == "__main__":
    console.run_main(main)
