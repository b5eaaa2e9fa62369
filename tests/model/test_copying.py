"""Copying: counts by looking, the mixture by hand, and that what is trained is what is sampled from."""

import collections

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lmtiny import config as config_lib
from lmtiny.errors import UserError
from lmtiny.model import copying, size
from lmtiny.model.copying import seen
from lmtiny.parallel.vocab_cross_entropy import Mixture, cross_entropy, summed_cross_entropy
from lmtiny.sampling.generate import Decoder
from lmtiny.training.step import token_losses

BOS = 299
LENGTHS = 3  # contexts of 0, 1 and 2 tokens


def small_config(**changes):
    config = config_lib.defaults()
    config.tokenizer.vocab_size = 300
    config.model.update({"num_layers": 1, "width": 16, "num_heads": 2, "context_length": 24, "induction": LENGTHS - 1, "copying": True})
    for name, value in changes.items():
        config_lib.set_knob(config, name, value)
    config_lib.check(config)
    return config


def trained(config):
    """Weights as after some training: the gates' start at zero."""
    params = size.init_params(config)
    random = np.random.default_rng(5)
    return jax.tree.map(lambda x: x + 0.3 * random.normal(size=x.shape).astype(np.float32), params)


def losses_BT(graph, params, tokens, config):
    return jax.jit(lambda params: token_losses(graph, params, jnp.array(tokens), BOS, config)[1])(params)


def documents(seed=0, rows=2, length=25):
    """Rows of two documents of few words, each with `<|bos|>` first, the second cut off by the row's end."""
    tokens = np.random.default_rng(seed).integers(0, 4, (rows, length)).astype(np.int32)
    tokens[:, 0] = tokens[0, 10] = tokens[1, 14] = BOS
    return tokens, np.cumsum(tokens == BOS, axis=1).astype(np.int32)


def followers_by_looking(tokens, start, here, length):
    """Counter of what came after the last `length` tokens in the document that starts at `start`, whose first token is like no other."""
    context = list(tokens[here - length + 1 : here + 1])
    there = range(start + length, here)
    return collections.Counter(tokens[at + 1] for at in there if list(tokens[at - length + 1 : at + 1]) == context)


def test_counts_are_those_found_by_looking():
    tokens, segments = documents(length=40)
    found, kinds = seen(jnp.array(tokens), jnp.array(segments), LENGTHS + 1)
    assert int(found.max()) > 5  # there is something to count
    for row in range(2):
        for here in range(40):
            start = int(np.argmax(segments[row] == segments[row, here]))
            for length in range(LENGTHS):
                counted = followers_by_looking(tokens[row], start, here, length)
                assert found[row, here, length] == counted.total(), (row, here, length)
                assert kinds[row, here, length] == len(counted)


def test_the_mixture_by_hand():
    """Gates, counts and softmax of each place one after the other in NumPy, against the loss that is trained on."""
    config = small_config()
    params = jax.device_get(trained(config))
    tokens, segments = documents()
    graph, _, _ = size.abstract(config)
    nll_BT = losses_BT(graph, params, tokens, config)
    hidden = jax.jit(lambda params, *args: nnx.merge(graph, params).hidden(*args)[0])
    inputs = tokens[:, :-1]
    positions = np.concatenate([np.arange(part) for part in (10, 14, 14, 10)]).reshape(2, 24).astype(np.int32)
    x_BTD = np.array(hidden(params, inputs, positions, segments[:, :-1]))
    gates = params["copying"]
    for row in range(2):
        for here in range(24):
            start, target = int(np.argmax(segments[row] == segments[row, here])), tokens[row, here + 1]
            counted = [followers_by_looking(tokens[row], start, here, length) for length in range(LENGTHS)]
            scores = x_BTD[row, here] @ gates["kernel"] + gates["bias"]
            scores += np.log1p([one.total() for one in counted] + [len(one) for one in counted]) @ gates["counts"]
            shares = np.exp(scores) * np.array([1] + [one.total() > 0 for one in counted])
            logits = x_BTD[row, here] @ params["head"]["kernel"]
            expected = shares[0] * np.exp(logits[target]) / np.exp(logits).sum()
            new_document = target == BOS  # which nothing in a document has been followed by
            expected += sum(
                share * one[target] / one.total() for share, one in zip(shares[1:], counted, strict=True) if one and not new_document
            )
            np.testing.assert_allclose(np.exp(-nll_BT[row, here]), expected / shares.sum(), rtol=2e-5, err_msg=f"{row} {here}")


@pytest.mark.parametrize("mask_documents", [True, False])
def test_what_is_trained_is_what_is_sampled_from(mask_documents):
    config = small_config(**{"model.mask_documents": mask_documents})
    params = trained(config)
    graph, _, _ = size.abstract(config)
    tokens, segments = documents()
    if not mask_documents:
        tokens = np.where(tokens == BOS, 3, tokens)
        segments = np.zeros_like(tokens)
    nll_BT = losses_BT(graph, params, tokens, config)
    starts = np.maximum.accumulate(np.where(np.diff(segments, axis=1, prepend=-1) != 0, np.arange(25), 0), axis=1)
    positions = (np.arange(25) - starts)[:, :-1].astype(np.int32)
    model = jax.jit(lambda params, *args: nnx.merge(graph, params)(*args)[0])
    logits_BTV = model(params, tokens[:, :-1], positions, segments[:, :-1])
    np.testing.assert_allclose(jax.nn.logsumexp(logits_BTV, axis=-1), 0, atol=1e-5)
    np.testing.assert_allclose(np.take_along_axis(logits_BTV, tokens[:, 1:, None], axis=2)[..., 0], -nll_BT, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("chunk", [5, 14])
def test_gradients_made_in_the_forward_pass_are_those_of_the_whole(chunk):
    keys = jax.random.split(jax.random.key(0), 5)
    x, head = jax.random.normal(keys[0], (2, 7, 16)), jax.random.normal(keys[1], (16, 40))
    targets = jax.random.randint(keys[2], (2, 7), 0, 40)
    kept, other = (jax.nn.log_sigmoid(jax.random.normal(key, (2, 7))) for key in keys[3:])
    other = other.at[0, :3].set(-1e9)
    weights = jnp.arange(14.0).reshape(2, 7)
    request = {"vocab_size": 40, "soft_cap": 3.0}

    def ours(x, head, *mixture):
        return 2.0 * summed_cross_entropy(x, head, targets, weights, chunk=chunk, mixture=Mixture(*mixture), **request)[0]

    def whole(x, head, kept, other):
        p = jnp.exp(kept) * jnp.exp(-cross_entropy(x, head, targets, **request)) + jnp.exp(other)
        return -2.0 * jnp.sum(jnp.log(p) * weights)

    found, expected = (jax.value_and_grad(loss, argnums=(0, 1, 2, 3))(x, head, kept, other) for loss in (ours, whole))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), found, expected)


def test_two_that_have_one_hash_make_no_probability_above_one(monkeypatch):
    """Here all pairs of tokens have the same: each has stood before more often than its own first token."""
    params, (tokens, segments) = trained(small_config()), documents()
    x_BTD = jax.random.normal(jax.random.key(1), (2, 24, 16))
    nothing = np.zeros(tokens.shape, np.uint32)
    monkeypatch.setattr(copying, "ngram_hashes", lambda tokens_BT, _, n: [nothing, tokens_BT.astype(jnp.uint32), nothing, nothing][:n])
    module = nnx.merge(*nnx.split(copying.Copying(small_config().model)))
    nnx.update(module, params["copying"])
    found, _ = seen(jnp.array(tokens), jnp.array(segments), LENGTHS + 1)
    assert (found[:, 1:, 2] > found[:, :-1, 1]).any()
    made = module.of_targets(x_BTD, jnp.array(tokens), jnp.array(segments))
    np.testing.assert_array_less(jnp.logaddexp(made.log_kept, made.log_other), 1e-6)


def test_a_chat_repeats_what_was_said():
    """Gates that trust the last two tokens alone make greedy decoding go round in what the prompt said twice."""
    config = small_config()
    params = jax.device_get(size.init_params(config))
    params["copying"]["bias"] = np.array([0, -20, -20, 20], np.float32)
    said = [7, 21, 30, 11]
    assert list(Decoder(config).generate(params, [BOS, *said, *said[:2]], max_tokens=8, temperature=0.0)) == (said[2:] + said[:2]) * 2


def test_copying_needs_something_to_look_for():
    with pytest.raises(UserError, match="model.copying needs model.induction"):
        small_config(**{"model.induction": 0})
