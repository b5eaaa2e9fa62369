"""Decoding with a cache gives what reading the whole text anew for each token would give."""

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from lmtiny import config as config_lib
from lmtiny.errors import UserError
from lmtiny.model import size
from lmtiny.sampling.generate import Decoder

CONTEXT = 24


def make(**model):
    config = config_lib.defaults()
    config.tokenizer.vocab_size = 300
    config.model.update({"num_layers": 2, "width": 32, "context_length": CONTEXT, "zero_projections": False, "vocab_multiple": 64, **model})
    params = jax.tree.map(lambda x: 8 * x if x.ndim > 1 else x, size.init_params(config))
    return config, params


@pytest.fixture(scope="module", params=["rope", "learned"])
def model(request):
    config, params = make(position=request.param, window=7, window_pattern="SL")
    return config, params, Decoder(config)


def test_greedy_is_the_argmax_of_the_full_forward(model):
    config, params, decoder = model
    forward = jax.jit(lambda tokens: nnx.merge(size.abstract(config)[0], params)(tokens)[0])
    for prompt in ([5], list(range(40, 49)), list(range(100, 100 + CONTEXT - 4))):
        tokens = list(prompt)
        for _ in range(CONTEXT - len(prompt)):
            padded = jnp.array([tokens + [0] * (CONTEXT - len(tokens))])
            tokens.append(int(jnp.argmax(forward(padded)[0, len(tokens) - 1])))
        found = list(decoder.generate(params, prompt, max_tokens=CONTEXT - len(prompt), temperature=0.0))
        assert found == tokens[len(prompt) :]


def test_a_seed_gives_the_same_text_and_another_another(model):
    _, params, decoder = model
    texts = [list(decoder.generate(params, [3], max_tokens=12, temperature=3.0, seed=seed)) for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]


def test_it_stops_before_a_stop_token(model):
    _, params, decoder = model
    text = list(decoder.generate(params, [3], max_tokens=12, temperature=0.0))
    stop = text[5]
    assert list(decoder.generate(params, [3], max_tokens=12, temperature=0.0, stop={stop})) == text[: text.index(stop)]


def test_of_a_text_longer_than_the_context_the_newest_tokens_are_read_that_leave_room_for_the_answer(model):
    _, params, decoder = model
    prompt = list(range(CONTEXT + 10))
    assert len(list(decoder.generate(params, prompt, max_tokens=3 * CONTEXT, temperature=0.0))) == 3 * CONTEXT

    def answers(tokens, max_tokens, **settings):
        return list(decoder.generate(params, tokens, max_tokens=max_tokens, temperature=0.0, **settings))

    assert answers(prompt, 5) == answers(prompt[-(CONTEXT - 4) :], 5)  # the last of the five is not read
    assert answers(prompt, 1) == answers(prompt[-CONTEXT:], 1)
    assert answers(prompt, CONTEXT + 1)[:9] == answers(prompt[-CONTEXT // 2 :], 9)


def test_the_first_tokens_stay_where_the_context_is_full(model):
    config, params, decoder = model
    bos, prompt = 200, list(range(CONTEXT + 10))

    def answers(tokens, max_tokens, **settings):
        return list(decoder.generate(params, tokens, max_tokens=max_tokens, temperature=0.0, **settings))

    long, short = (answers([bos, *tokens], 5, keep=1) for tokens in (prompt, prompt[-(CONTEXT - 5) :]))
    assert long == short
    if config.model.position == "rope":  # the other reads on from the last tokens alone, whatever stands first
        assert long != answers([bos, *prompt], 5)
    *first, last = answers([bos, *prompt], 14, keep=1)  # after 13 the context is full and is read again, bos first
    assert [last] == answers([bos, *[*prompt, *first][-(CONTEXT - 1) :]], 1)


def test_a_context_of_two_tokens_is_enough():
    config, params = make(context_length=2)
    assert len(list(Decoder(config).generate(params, [7, 8, 9, 10], max_tokens=6, keep=1))) == 6


@pytest.mark.parametrize(
    ("prompt", "settings", "message"),
    [([], {}, "prompt is empty"), ([1], {"temperature": -1}, "temperature"), ([1], {"top_k": -2}, "top_k"),
     ([1], {"top_p": 0}, "top_p"), ([1], {"temperature": float("nan")}, "temperature"), ([1], {"temperature": 1e308}, "temperature"),
     ([1], {"top_p": float("nan")}, "top_p"), ([1], {"top_k": 10**12}, "top_k"), ([1], {"seed": 10**20}, "seed"),
     ([1], {"max_tokens": 0}, "max_tokens")],
)  # fmt: skip
def test_settings_that_mean_nothing_are_refused(model, prompt, settings, message):
    _, params, decoder = model
    with pytest.raises(UserError, match=message):
        list(decoder.generate(params, prompt, **{"max_tokens": 1, **settings}))
