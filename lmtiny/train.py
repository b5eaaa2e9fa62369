"""Trains a base model on token shards; prepares tokenizer and shards first where they are missing.

    python -m lmtiny.train --config configs/tiny.py
    python -m lmtiny.train --config configs/tiny.py --config.optimizer.learning_rate=3e-4 --workdir runs/slower
    python -m lmtiny.train --config configs/tiny.py --config.corpus.kind=files --config.corpus.path=my_texts/
    python -m lmtiny.train --config configs/tiny.py --find-lr
    python -m lmtiny.train --resume runs/tiny

A run is a folder (--workdir), marked as lmtiny's: config.json, tokenizer/, checkpoints/, metrics.jsonl, curves.png,
samples.txt, tensorboard/. The same command started again goes on from the newest intact checkpoint.
"""

from lmtiny import ctrl_c

if __name__ == "__main__":
    ctrl_c.end_at_once()  # before the imports below, which take their time

import argparse
import contextlib
import pathlib
import time
from typing import TYPE_CHECKING

from lmtiny import command_line, console
from lmtiny.errors import UserError

if TYPE_CHECKING:
    import jax
    import ml_collections

    from lmtiny.data import Prepared

# jax, and what builds on it, is imported inside the functions: --help and refused command lines answer at once, and the
# processes that prepare the shards, which import this file again, stay light.


def flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--resume", metavar="RUN[/STEP]", help="go on with a run from its checkpoint and its shards, without --config")
    trust = "with --resume: rows not at hand are made by the run's own config, which says what is read, fetched and written"
    parser.add_argument("--trust-run", action="store_true", help=trust)
    parser.add_argument("--find-lr", action="store_true", help="try growing learning rates for a short run, plot the losses, suggest one")
    parser.add_argument("--rebuild", action="store_true", help="make the token shards anew where others lie in data.dir")


def main() -> int:
    started = time.monotonic()
    config, args = command_line.parse(__doc__, flags)
    if args.trust_run and not args.resume:
        raise UserError("--trust-run says nothing without --resume: leave it out")
    if args.rebuild and args.resume and not args.trust_run:
        raise UserError("--resume with --rebuild makes rows as the run's own config says: add --trust-run if you trust it")

    with ctrl_c.imports():
        import jax

        from lmtiny.data import prepare, refuse_another_tokenizer, verify
        from lmtiny.model import attend
        from lmtiny.parallel import cpu_matmul, host
        from lmtiny.parallel import mesh as mesh_lib
        from lmtiny.planning import fit
        from lmtiny.training import reporter, run_folder

    host.leave_out_missing_tpu()
    host.keep_freed_memory()
    host.let_emulated_devices_wait()
    mesh_lib.start_processes()
    mesh_lib.use_compile_cache()
    console.silence(jax.process_index() != 0)
    step, rows, data = None, "", None
    if args.resume:
        config, args.workdir, step, rows = run_folder.config_of_checkpoint(args.resume, args.overrides)
    else:
        refuse_another_tokenizer(config, args.overrides)
    # What cannot work is refused before hours of preparing.
    run_folder.refuse_unusable(args.workdir)
    if not args.find_lr:
        run_folder.refuse_another_config(args.workdir, config)
    mesh = mesh_lib.make_mesh(config)
    cpu_matmul.use(config, mesh)
    fit.refuse_if_too_large(attend.resolved(config, mesh)[0], mesh.shape, mesh_lib.chip_here())
    # A resumed run needs its rows, not the text, which may have changed or gone since.
    if rows and not args.rebuild:
        data = run_folder.rows_at_hand(config, rows, args.workdir, args.overrides, args.trust_run)
    data = data or prepare(config, rebuild=args.rebuild)
    verify(data)  # rows of the same size and in another order would train another model without a word
    config.tokenizer.vocab_size = data.tokenizer.vocab_size
    mesh = mesh_lib.make_mesh(config)
    mesh_lib.refuse_unless_same_everywhere(data.digest, "the prepared data")
    with jax.set_mesh(mesh):
        if args.find_lr:
            return find_learning_rate(config, data, mesh, args.workdir)
        with run_folder.held(args.workdir):
            first_step = run_folder.open_run(args.workdir, config, data, step)
            if first_step >= config.train.num_steps:
                console.say(f"{args.workdir} is trained already: {first_step} steps. To train anew, give another --workdir or delete it.")
                reporter.say_what_next(args.workdir)
                return 0
            return train(config, data, mesh, args.workdir, first_step, started)


def train(
    config: "ml_collections.ConfigDict", data: "Prepared", mesh: "jax.sharding.Mesh", workdir: pathlib.Path, first_step: int, started: float
) -> int:
    with ctrl_c.imports():
        from lmtiny.data import loader
        from lmtiny.model import attend, size
        from lmtiny.parallel.mesh import local_rows, place_batch
        from lmtiny.sampling.generate import Decoder
        from lmtiny.sampling.samples import samples
        from lmtiny.training import checkpoint, evaluation, interrupt, reporter, run_folder
        from lmtiny.training.optimizer import make_optimizer
        from lmtiny.training.state import abstract_state, init_state
        from lmtiny.training.step import make_eval_step, make_train_step

    # ---- model, optimizer, state, data ----
    tokenizer, batch_size, num_steps = data.tokenizer, config.train.batch_size, config.train.num_steps
    optimizer = make_optimizer(config, size.abstract(config)[2])
    computed, attention = attend.resolved(config, mesh)
    train_step = make_train_step(computed, optimizer, mesh, tokenizer.bos_id)
    validated = evaluation.for_validation(config, mesh)
    eval_step, decoder = make_eval_step(validated, mesh, tokenizer.bos_id), Decoder(config)
    id_bytes = evaluation.bytes_of_ids(data)
    if first_step:
        state = checkpoint.restore(workdir / "checkpoints" / str(first_step), abstract_state(config, optimizer, mesh))
    else:
        state = init_state(config, optimizer, mesh)
    rows, held_out_rows = local_rows(mesh, batch_size), local_rows(mesh, validated.train.batch_size)
    run_folder.say_what_is_trained(config, data, mesh, first_step)
    console.say(f"attention: {attention}")

    # ---- the loop: it waits for the device only to log, validate, sample and save ----
    log = run_folder.open_log(workdir, config, first_step)
    tokens_a_step = batch_size * config.model.context_length
    stopped, validation = False, "not measured"
    with (
        contextlib.closing(log) if log is not None else contextlib.nullcontext(),
        contextlib.closing(checkpoint.Saver(workdir / "checkpoints", config, tokenizer.hash, data.digest)) as saver,
        contextlib.closing(loader.batches(data, config, "train", batch_size, first_step, *rows)) as batches,
        interrupt.Interruption() as interruption,
        console.progress("train", num_steps * tokens_a_step, "tokens", first_step * tokens_a_step) as bar,
    ):
        report = reporter.Reporter(config, log, bar, first_step, started, saver.newest)
        for step in range(first_step + 1, num_steps + 1):  # `step` counts the steps that are done
            state, metrics = train_step(state, place_batch(mesh, next(batches), batch_size))
            report.tell(step, metrics)
            if step % config.log.every == 0:
                saver.look()
            stopped = interruption.asked(step) and step < num_steps
            validate, show_samples, save = (
                step == num_steps or (every > 0 and step % every == 0)
                for every in (config.evaluation.every, config.evaluation.sample_every, config.checkpoint.every)
            )
            if not (validate or show_samples or save or stopped):
                continue
            report.catch_up()
            report.refuse_bad(int(state.bad_step), int(state.bad_row))
            measured = {}
            if validate and not stopped:
                held_out = loader.validation_batches(data, validated, validated.train.batch_size, *held_out_rows, config.evaluation.rows)
                score = evaluation.score(eval_step, state.params, held_out, id_bytes, mesh, validated.train.batch_size)
                measured = {"validation_bits_per_byte": score.bits_per_byte, "validation_loss": score.loss}
                validation = f"{score.bits_per_byte:.4f} bits per byte (loss {score.loss:.4f} nats per token)"
                console.say(f"step {step}: validation {validation}")
                if log is not None:
                    log.write(step, **measured)
            if show_samples and not stopped:
                shown = samples(decoder, state.params, tokenizer, config)
                for prompt, text in shown:
                    console.say(f"step {step}: [{prompt}]{text}")
                if log is not None:
                    log.samples(step, shown)
            if save or stopped:
                saver.save(step, state, measured)
            if stopped:
                break
            report.resume(step)
        saver.finish(step, state, measured)

    # ---- what came of it ----
    if log is not None:
        log.finish()
    if stopped:
        to_go_on = run_folder.how_to_go_on(workdir, config)
        console.say(f"stopped as asked; step {step} of {num_steps} is saved. To go on: {to_go_on}")
        return 130
    reporter.say_summary(workdir, config, validation, started)
    return 0


def find_learning_rate(config: "ml_collections.ConfigDict", data: "Prepared", mesh: "jax.sharding.Mesh", workdir: pathlib.Path) -> int:
    with ctrl_c.imports():
        import jax
        import jax.numpy as jnp
        import numpy as np

        from lmtiny.data import loader
        from lmtiny.model import attend, size
        from lmtiny.parallel.mesh import local_rows, place_batch
        from lmtiny.training import find_rate, run_folder
        from lmtiny.training.optimizer import make_optimizer
        from lmtiny.training.state import init_state
        from lmtiny.training.step import make_train_step

    num_steps, batch_size = min(200, config.train.num_steps), config.train.batch_size
    shares = find_rate.sweep(num_steps)
    table = jnp.asarray(shares, jnp.float32)
    optimizer = make_optimizer(config, size.abstract(config)[2], lambda step: table[step])
    train_step = make_train_step(attend.resolved(config, mesh)[0], optimizer, mesh, data.tokenizer.bos_id)
    state = init_state(config, optimizer, mesh)
    batches = loader.batches(data, config, "train", batch_size, 0, *local_rows(mesh, batch_size))
    losses: list[float] = []
    with console.progress("find the learning rate", num_steps, "steps") as bar:
        for step in range(num_steps):
            state, metrics = train_step(state, place_batch(mesh, next(batches), batch_size))
            losses.append(float(metrics["loss"]))
            bar.update(step + 1, rate=f"{shares[step] * config.optimizer.learning_rate:.2g}", loss=f"{losses[-1]:.3f}")
            if not np.isfinite(losses[-1]) or find_rate.diverged(np.array(losses)):
                break
    rates = shares[: len(losses)] * config.optimizer.learning_rate
    suggestion = find_rate.suggest(rates, np.array(losses))
    run_folder.claim(workdir)
    console.say(f"\nsuggested: --config.optimizer.learning_rate={suggestion:.2g} (plot: {workdir / 'learning_rates.png'})")
    if jax.process_index() == 0:
        find_rate.plot(workdir / "learning_rates.png", rates, np.array(losses), suggestion)
    return 0


if __name__ == "__main__":
    console.run_main(main, "the same command goes on from what is finished")
