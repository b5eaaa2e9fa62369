"""Token by token: one pass over the prompt fills the cache, then each step reads one token and yields the next."""

import copy
import functools
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
from flax import nnx

from lmtiny.errors import UserError, shown
from lmtiny.knobs import MAX_TOKENS, SEED, TEMPERATURE, TOP_K, TOP_P
from lmtiny.model import size
from lmtiny.model.attention import Cache
from lmtiny.model.transformer import init_cache
from lmtiny.sampling.sample import sample


class Decoder:
    """The compiled functions of one model; weights are arguments, so one decoder serves all of a training run."""

    def __init__(self, config: ml_collections.ConfigDict):
        # An expert that takes the first tokens of a row only would make a token depend on how the row is cut into calls.
        self.config, self.context = copy.deepcopy(config), config.model.context_length
        self.config.model.expert_capacity = 0.0
        self.graph, _, _ = size.abstract(self.config)
        self._run = jax.jit(self._next, donate_argnames="cache")

    def _next(
        self, params: Any, tokens_1T: jax.Array, start: jax.Array, count: jax.Array, cache: Cache, key: jax.Array, cut: Any
    ) -> tuple[jax.Array, Cache]:
        """Returns (the token after the first `count` of tokens_1T, which stand at `start` and on, and the cache)."""
        model = nnx.merge(self.graph, params)
        positions_1T = start + jnp.arange(tokens_1T.shape[1])[None]
        x_1TD, cache, _ = model.hidden(tokens_1T, positions_1T, None, cache)
        last_11D = jax.lax.dynamic_slice_in_dim(x_1TD, count - 1, 1, axis=1)
        logits_V = model.logits(last_11D, cache.get("token"), (start + count - 1)[None, None])[0, 0]
        return sample(logits_V, jax.random.fold_in(key, start + count), *cut), cache

    def generate(
        self,
        params: Any,
        prompt: Sequence[int],
        *,
        max_tokens: int,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        seed: int = 0,
        stop: Collection[int] = (),
        keep: int = 0,
    ) -> Iterator[int]:
        """Yields up to `max_tokens` token ids that go on from `prompt`, ending before the first id in `stop`.

        A text longer than the context is not read whole, but for its first `keep` tokens (a `<|bos|>`, say, behind which
        the model has always read) and the newest that `room` leaves: of a long prompt at once, and each time the context
        is full. What stands between is forgotten.

        Raises:
          UserError: an empty prompt, or a setting out of its range (`lmtiny.knobs`).
        """
        for name, value, check in (
            ("max_tokens", max_tokens, MAX_TOKENS), ("temperature", temperature, TEMPERATURE),
            ("top_k", top_k, TOP_K), ("top_p", top_p, TOP_P), ("seed", seed, SEED),
        ):  # fmt: skip
            if problem := check(value):
                raise UserError(f"{name} = {shown(value)} {problem}")
        if not prompt:
            raise UserError("the prompt is empty")
        cut = (jnp.float32(temperature), jnp.int32(top_k), jnp.float32(top_p))
        run = functools.partial(self._run, params, cut=cut)
        history, key = list(prompt), jax.random.key(seed)
        cache, read = None, 0  # `read`: how many tokens of the history stand in the cache
        for index in range(max_tokens):
            if cache is None or read == self.context:
                if len(history) > self.context:
                    newest = room(self.context, max_tokens - index) - keep
                    history = history[:keep] + history[-max(1, newest) :]
                cache, read = init_cache(self.config, 1, self.context), 0
            new = history[read:]
            padded = new + [0] * (_bucket(len(new), self.context) - len(new))
            token, cache = run(
                jnp.array([padded], jnp.int32), jnp.int32(read), jnp.int32(len(new)), cache=cache, key=jax.random.fold_in(key, index)
            )
            read = len(history)
            history.append(int(token))
            if history[-1] in stop:
                return
            yield history[-1]


def room(context: int, max_tokens: int) -> int:
    """Returns how many tokens of a text longer than the context are read, so that up to `max_tokens` more have room in it.

    At least half of it is read: of an answer as long as that, what is read again would be little else.
    """
    return context - min(max_tokens - 1, context // 2)  # the last token of an answer is not read


def _bucket(length: int, limit: int) -> int:
    """Returns the next power of two, so that prompts of all lengths share a few compiled programs."""
    return 1 if length == 1 else min(limit, 1 << max(3, (length - 1).bit_length()))
