"""The loss by hand, steps that are not finite, and float16's loss scale."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from lmtiny import config as config_lib
from lmtiny.model import size
from lmtiny.parallel import mesh as mesh_lib
from lmtiny.parallel.matmul import Transposed
from lmtiny.parallel.vocab_cross_entropy import cross_entropy, summed_cross_entropy
from lmtiny.training.evaluation import score
from lmtiny.training.optimizer import make_optimizer
from lmtiny.training.state import init_state
from lmtiny.training.step import SCALE_GROWTH_STEPS, make_eval_step, make_gradients, make_train_step

BOS = 291


def small_config(**changes):
    config = config_lib.defaults()
    config.tokenizer.vocab_size = 300
    config.model.update({"num_layers": 1, "width": 16, "num_heads": 2, "context_length": 8, "zero_projections": False, "scan_layers": True})
    config.train.batch_size = 4
    config.optimizer.warmup_steps = 0
    for name, value in changes.items():
        config_lib.set_knob(config, name, value)
    return config


TOKENS = np.array(
    [
        [BOS, 5, 6, 7, BOS, 8, 9, 10, 11],
        [BOS, 1, 2, 3, BOS, BOS, BOS, BOS, BOS],  # one document, its end, padding
        [40, 41, 42, 43, 44, 45, 46, 47, 48],  # goes on with a document of the row before
        [BOS] * 9,  # all padding
    ],
    np.int32,
)


@pytest.mark.parametrize("lies_transposed", [False, True])
@pytest.mark.parametrize("summed", [False, True])
@pytest.mark.parametrize(("soft_cap", "padding", "chunk"), [(0.0, 0, 0), (3.0, 20, 0), (0.0, 20, 5), (3.0, 20, 5), (3.0, 0, 14)])
def test_cross_entropy_is_optax_on_the_same_logits(soft_cap, padding, chunk, summed, lies_transposed):
    keys = jax.random.split(jax.random.key(0), 3)
    x, head = jax.random.normal(keys[0], (2, 7, 16)), jax.random.normal(keys[1], (16, 40 + padding))
    targets = jax.random.randint(keys[2], (2, 7), 0, 40)

    weights, request = jnp.arange(14.0).reshape(2, 7), {"vocab_size": 40, "soft_cap": soft_cap, "chunk": chunk}

    def ours(x, head):
        head = Transposed(head.T) if lies_transposed else head
        if summed:
            return 3.0 * summed_cross_entropy(x, head, targets, weights / 3, **request)[0]
        return jnp.sum(cross_entropy(x, head, targets, **request) * weights)

    def theirs(x, head):
        logits = (x @ head)[..., :40]
        logits = soft_cap * jnp.tanh(logits / soft_cap) if soft_cap else logits
        return jnp.sum(optax.softmax_cross_entropy_with_integer_labels(logits, targets) * jnp.arange(14.0).reshape(2, 7))

    found, expected = (jax.value_and_grad(loss, argnums=(0, 1))(x, head) for loss in (ours, theirs))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), found, expected)
    nll = summed_cross_entropy(x, head, targets, weights, **request)[1]
    np.testing.assert_allclose(nll, cross_entropy(x, head, targets, **request), rtol=1e-5)


def test_the_mean_is_over_target_tokens_by_hand():
    config = small_config()
    params = size.init_params(config)
    model = jax.jit(lambda tokens: jax.nn.log_softmax(nnx.merge(size.abstract(config)[0], params)(tokens)[0][0]))
    nll, count = 0.0, 0
    # Each document alone, as a text of its own: (tokens, targets).
    for text, targets in (
        ([BOS, 5, 6, 7], [5, 6, 7, BOS]),
        ([BOS, 8, 9, 10], [8, 9, 10, 11]),
        ([BOS, 1, 2, 3], [1, 2, 3, BOS]),
        ([40, 41, 42, 43, 44, 45, 46, 47], [41, 42, 43, 44, 45, 46, 47, 48]),
    ):
        log_p = np.array(model(jnp.array([text])))
        nll -= log_p[np.arange(len(targets)), targets].sum()
        count += len(targets)
    loss, _, weight, *_ = jax.jit(make_gradients(config, BOS))(params, TOKENS, jax.random.key(0), jnp.float32(1))
    assert float(weight) == count == 20
    assert float(loss) == pytest.approx(nll / count, rel=1e-5)


def run(config):
    mesh = mesh_lib.make_mesh(config, jax.devices()[:1])
    optimizer = make_optimizer(config, size.abstract(config)[2])
    return mesh, optimizer


def test_bits_per_byte_by_hand():
    """Special tokens count for nothing; the rest is nats / (ln 2 x bytes)."""
    config = small_config()
    mesh, _ = run(config)
    params = size.init_params(config)
    token_bytes = np.where(np.arange(300) < BOS, np.arange(300) % 5 + 1, 0).astype(np.int32)
    with jax.set_mesh(mesh):
        found = score(make_eval_step(config, mesh, BOS), params, [TOKENS, TOKENS], token_bytes, mesh, 4)
    ordinary, *_ = jax.jit(make_gradients(config, BOS))(params, TOKENS[2:3], jax.random.key(0), jnp.float32(1))
    targets = [5, 6, 7, 8, 9, 10, 11, 1, 2, 3, *range(41, 49)]
    assert found.tokens == 2 * len(targets)
    assert found.bytes == 2 * int(token_bytes[targets].sum())
    assert found.bits_per_byte == pytest.approx(found.loss * found.tokens / np.log(2) / found.bytes)
    assert found.loss == pytest.approx(float(ordinary), rel=0.05)


def test_a_bad_step_changes_nothing_and_is_remembered():
    config = small_config()
    mesh, optimizer = run(config)
    with jax.set_mesh(mesh):
        state = init_state(config, optimizer, mesh)
        step = make_train_step(config, optimizer, mesh, BOS)
        state, metrics = step(state, TOKENS)
        assert int(metrics["bad_step"]) == -1 and int(state.step) == 1
        # A weight that is infinite for token 42 only: the loss of row 2 alone is not finite.
        table = state.params["embedding"]["table"].at[42].set(jnp.inf)
        state = state.replace(params=state.params | {"embedding": {"table": table}})
        before = jax.device_get(state)
        for _ in range(3):
            state, metrics = step(state, TOKENS)
        after = jax.device_get(state)
    assert (int(after.bad_step), int(after.bad_row), int(after.step)) == (1, 2, 1)
    for part in ("params", "optimizer"):
        jax.tree.map(np.testing.assert_array_equal, getattr(after, part), getattr(before, part))


def test_float16_leaves_out_a_step_that_overflows_and_halves_its_scale():
    config = small_config(**{"model.compute_dtype": "float16"})
    mesh, optimizer = run(config)
    with jax.set_mesh(mesh):
        state = init_state(config, optimizer, mesh)
        assert float(state.loss_scale) == 2.0**15
        step = make_train_step(config, optimizer, mesh, BOS)
        state = state.replace(loss_scale=jnp.float32(2.0**30))
        before = jax.device_get(state.params)
        state, metrics = step(state, TOKENS)
        jax.tree.map(np.testing.assert_array_equal, jax.device_get(state.params), before)
        assert float(state.loss_scale) == 2.0**29 and int(metrics["bad_step"]) == -1 and int(state.step) == 1
        while float(state.loss_scale) > 2.0**14:
            state, metrics = step(state, TOKENS)
            if np.isfinite(float(metrics["grad_norm"])):
                break
        assert any((a != b).any() for a, b in zip(jax.tree.leaves(jax.device_get(state.params)), jax.tree.leaves(before), strict=True))
        scale = float(state.loss_scale)
        state = state.replace(steps_since_scaled=jnp.int32(SCALE_GROWTH_STEPS - 1))
        state, _ = step(state, TOKENS)
        assert float(state.loss_scale) in (2 * scale, scale / 2)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_low_precision_gradients_are_those_of_float32(dtype):
    """The loss scale is divided out again: gradients have the right size, not only the right direction."""
    params = size.init_params(small_config())
    full, low = (
        jax.jit(make_gradients(config, BOS))(params, TOKENS, jax.random.key(0), jnp.float32(scale))[1]
        for config, scale in ((small_config(), 1.0), (small_config(**{"model.compute_dtype": dtype}), 256.0))
    )
    for one, other in zip(jax.tree.leaves(low), jax.tree.leaves(full), strict=True):
        assert np.linalg.norm(one - other) < 0.05 * np.linalg.norm(other)
