"""Train steps of lmtiny and of nanoGPT as processes that take steps when told, so that they can be timed in turns.

What benchmarks/cpu_step.py and benchmarks/gpu.py share.  A shape is (layers, heads, width, T, batch, vocabulary).
"""

import json
import os
import pathlib
import statistics
import subprocess
import sys
import time

LOSS_EVERY = 10  # steps between two looks at the loss
HOPELESS = 4  # times the time of the fastest of the same side


def lmtiny_config(shape, dtype, overrides):
    """Returns lmtiny's config of nanoGPT's model: LayerNorm, GELU, learned positions, tied, no biases but those of norms, AdamW."""
    from lmtiny import config as config_lib

    layers, heads, width, length, batch, vocabulary = shape
    config = config_lib.defaults()
    for name, value in {
        "model.num_layers": layers, "model.num_heads": heads, "model.width": width, "model.context_length": length,
        "model.norm": "layernorm", "model.norm_scale": True, "model.activation": "gelu", "model.position": "learned",
        "model.qk_norm": False, "model.tied_embeddings": True, "model.mask_documents": False, "model.zero_projections": False,
        "model.compute_dtype": dtype, "train.batch_size": batch, "optimizer.name": "adamw", "optimizer.learning_rate": 1e-3,
        "optimizer.weight_decay": 0.1, "optimizer.clip_norm": 1.0, "train.num_steps": 10**6, **overrides,
    }.items():  # fmt: skip
        config_lib.set_knob(config, name, value)
    config_lib.check(config)
    config.tokenizer.vocab_size = vocabulary  # as lmtiny.train sets it from the tokenizer
    return config


def lmtiny_steps(config):
    """Returns f(n): takes n steps on random tokens and returns the last loss; the optimizer and everything else as lmtiny.train has it."""
    import jax
    import numpy as np
    import steps

    step, random = steps.of(config, jax.devices()[:1]), np.random.default_rng(0)  # as many devices as the peer has
    state, _ = step.start()

    def run(number):
        nonlocal state
        for _ in range(number):
            state, metrics = step.run(state, step.batch(random))
        return float(metrics["loss"])

    run.peak_memory = lambda: (step.mesh.devices.flat[0].memory_stats() or {}).get("peak_bytes_in_use", 0)
    return run


def nanogpt_steps(folder, shape, how, dtype, device="cpu"):
    """The same of nanoGPT: its GPT, its configure_optimizers, the body of its training loop; `how`: eager or compiled."""
    sys.path.insert(0, folder)
    import torch
    from model import GPT, GPTConfig

    layers, heads, width, length, batch, vocabulary = shape
    torch.manual_seed(0)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    sizes = {"n_layer": layers, "n_head": heads, "n_embd": width, "block_size": length, "vocab_size": vocabulary}
    model = GPT(GPTConfig(**sizes, dropout=0.0, bias=False)).to(device)
    optimizer = model.configure_optimizers(0.1, 1e-3, (0.9, 0.95), device)
    model = torch.compile(model) if how == "compiled" else model

    def run(number):
        for _ in range(number):
            rows = torch.randint(0, vocabulary, (batch, length + 1)).to(device, non_blocking=True)
            with torch.autocast(device, torch.bfloat16, enabled=dtype == "bfloat16"):
                _, loss = model(rows[:, :-1].contiguous(), rows[:, 1:].contiguous())
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return loss.item()

    run.peak_memory = torch.cuda.max_memory_allocated if device == "cuda" else lambda: 0
    return run


def serve(make):
    """A contestant: for each number on a line of stdin, takes so many steps of make() and prints seconds, CPU seconds, the
    loss, and the most bytes of the device's memory that were taken."""
    out, sys.stdout = sys.stdout, sys.stderr
    run = make()
    run(2)  # compiles
    print("ready", file=out, flush=True)
    for line in sys.stdin:
        wall, cpu, loss = time.perf_counter(), time.process_time(), 0.0
        for start in range(0, int(line), LOSS_EVERY):
            loss = run(min(LOSS_EVERY, int(line) - start))
        print(json.dumps([time.perf_counter() - wall, time.process_time() - cpu, loss, run.peak_memory()]), file=out, flush=True)


class Contestant:
    """A process that was started with `command` and runs `serve`; times and cpu: seconds of each turn, for one step."""

    def __init__(self, who, kind, command):
        self.who, self.kind, self.times, self.cpu = who, kind, [], []
        environment = os.environ | {"PYTHONPATH": str(pathlib.Path(__file__).parents[1])}
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)

    def wait(self):
        if self.process.stdout.readline().strip() != "ready":
            raise SystemExit(f"{self.who}, {self.kind}: did not start; what it said stands above")
        print(f"{self.who}, {self.kind}: has compiled, and waits for its turns", file=sys.stderr, flush=True)

    def step(self, number):
        self.process.stdin.write(f"{number}\n")
        self.process.stdin.flush()
        seconds, cpu, self.loss, self.peak_memory = json.loads(self.process.stdout.readline())
        self.times.append(seconds / number)
        self.cpu.append(cpu / number)

    @property
    def median(self):
        return statistics.median(self.times)


def contest(contestants, turns, seconds):
    """Lets them run in turns of about `seconds` each, after one that warms up; then ends them, or all where one fails.

    Returns those that had turns.  Left out is whose first step took more than HOPELESS times that of the fastest of its side
    (`who`): a CPU without bfloat16 of its own takes minutes for a few of torch's steps in it.
    """
    try:
        return _contest(contestants, turns, seconds)
    except BaseException:
        for one in contestants:
            one.process.kill()
        raise


def _contest(contestants, turns, seconds):
    for one in contestants:
        one.wait()
    for one in contestants:
        one.step(1)
    running = [one for one in contestants if one.median <= HOPELESS * best(contestants, one.who).median]
    for one in running:
        one.number = max(1, round(seconds / one.median))
        one.step(one.number)
        one.times, one.cpu = [], []
    for _ in range(turns):
        for one in running:
            one.step(one.number)
    for one in contestants:
        one.process.stdin.close()
    return running


def best(contestants, who):
    """Returns the fastest of them by that name, or None."""
    return min((one for one in contestants if one.who == who), key=lambda one: one.median, default=None)
