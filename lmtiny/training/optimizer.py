"""Learning-rate schedules, and AdamW, Muon or row-wise Adagrad over groups of parameters.

A parameter's group follows from its name and axes: "matrix" (inside blocks), "embedding" (tables), "ngrams" (their table, which
learns by `row_adagrad` and does not decay), "head", and "scalar" (norms, biases).  Each group has a peak rate and weight decay of its
own under one schedule; that of n-grams stays what it is, since Adagrad lowers each row's as it is read.
"""

from typing import Any

import jax
import ml_collections
import optax

from lmtiny.training.adam import scale_by_adam
from lmtiny.training.muon import scale_by_muon
from lmtiny.training.row_adagrad import scale_by_row_adagrad
from lmtiny.training.state import chosen

GROUPS = ("matrix", "embedding", "ngrams", "head", "scalar")


def group(path: tuple[str, ...]) -> str:
    """Returns the group of the parameter of this path, such as ("blocks", "mlp", "up", "kernel") -> "matrix"."""
    if path[-1] == "table":
        return "ngrams" if path[0] == "ngrams" else "embedding"
    if path[-1] == "kernel":
        return "matrix" if path[0] == "blocks" else "head"
    return "scalar"


def schedule(config: ml_collections.ConfigDict) -> optax.Schedule:
    """Returns the function step -> share of the peak rate: linear warmup, then cosine, linear warmdown, or constant."""
    c, num_steps = config.optimizer, config.train.num_steps
    rest = max(1, num_steps - c.warmup_steps)
    if c.schedule == "cosine":
        after = optax.cosine_decay_schedule(1.0, rest, alpha=c.final_fraction)
    elif c.schedule == "linear":
        warmdown = max(1, min(rest, round(c.warmdown_fraction * num_steps)))
        after = optax.linear_schedule(1.0, c.final_fraction, warmdown, transition_begin=rest - warmdown)
    else:
        after = optax.constant_schedule(1.0)
    if not c.warmup_steps:
        return after
    # From 1/n, not 0: the first step should move something.
    warmup = optax.linear_schedule(1 / c.warmup_steps, 1.0, max(1, c.warmup_steps - 1))
    return optax.join_schedules([warmup, after], [c.warmup_steps])


def peak_rates(config: ml_collections.ConfigDict) -> dict[str, float]:
    """Returns group -> peak learning rate; a rate of 0 in the config stands for optimizer.learning_rate."""
    c = config.optimizer
    own = {"embedding": c.embedding_learning_rate, "head": c.head_learning_rate, "scalar": c.scalar_learning_rate}
    rates = {"matrix": c.learning_rate, "ngrams": c.ngram_learning_rate}
    return rates | {name: rate or c.learning_rate for name, rate in own.items()}


def make_optimizer(
    config: ml_collections.ConfigDict, axes: Any, rate_schedule: optax.Schedule | None = None
) -> optax.GradientTransformationExtraArgs:
    """Returns the optax optimizer of the config.

    Its update is told `rows`, of the gradients of the table of n-grams, and `take`: if not, its state stays as it was.

    Args:
      axes: tree of logical axes of the parameters (`model.size.abstract`).
      rate_schedule: takes the place of `schedule(config)`, for n-grams too (the learning-rate finder's sweep).
    """
    c = config.optimizer
    share = rate_schedule or schedule(config)
    tables = ("matrix", "embedding", "head")
    decayed = {"matrices": ("matrix",), "tables": tables, "all": (*tables, "scalar")}[c.decay]
    by_path = {_keys(path): value for path, value in jax.tree_util.tree_leaves_with_path(axes, is_leaf=_is_axes)}

    def optimizer(name: str) -> optax.GradientTransformation:
        direction: optax.GradientTransformation
        if name == "ngrams":
            direction = scale_by_row_adagrad(c.ngram_prior)
        elif c.name == "muon" and name == "matrix":
            direction = scale_by_muon(by_path, c.momentum, "bfloat16" if config.model.compute_dtype == "bfloat16" else "float32")
        else:
            direction = scale_by_adam(c.b1, c.b2, c.epsilon)
        decay = optax.add_decayed_weights(c.weight_decay) if c.weight_decay and name in decayed else optax.identity()
        peak = peak_rates(config)[name]
        own_share = optax.constant_schedule(1.0) if name == "ngrams" and not rate_schedule else share
        return optax.chain(direction, decay, _scale_by_rate(lambda step: peak * own_share(step)))

    labels = jax.tree_util.tree_map_with_path(lambda path, _: group(_keys(path)), axes, is_leaf=_is_axes)
    clip = optax.clip_by_global_norm(c.clip_norm) if c.clip_norm else optax.identity()
    # Where there are no n-grams, the state has no place for them: checkpoints from before there were any can be read.
    groups = [name for name in GROUPS if name != "ngrams" or "ngrams" in axes]
    return optax.chain(clip, optax.partition({name: optimizer(name) for name in groups}, labels))


def _scale_by_rate(rate: optax.Schedule) -> optax.GradientTransformationExtraArgs:
    """Returns optax.scale_by_learning_rate, which counts the steps that are taken."""
    scale = optax.scale_by_learning_rate(rate)

    def update(updates: Any, state: Any, params: Any = None, *, take: Any = True, **_: Any) -> tuple[Any, Any]:
        updates, new = scale.update(updates, state, params)
        return updates, chosen(take, new, state)

    return optax.GradientTransformationExtraArgs(scale.init, update)


def _keys(path: Any) -> tuple[str, ...]:
    return tuple(entry.key for entry in path)


def _is_axes(node: Any) -> bool:
    return isinstance(node, tuple)
