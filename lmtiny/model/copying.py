"""What the document itself has said, mixed into the probability of the next token.

    p(y) = g softmax(logits)[y] + sum over n = 0..N of g_n count(the last n tokens, then y) / count(the last n tokens)

The counts are of the document so far: a cache of it (Kuhn & De Mori 1990, IEEE PAMI 12(6)), for contexts of 0 to N tokens.  The
gates are a softmax over what the hidden state says (as the sentinel of arXiv 1609.07843, eq. 5) and how often each context has
stood before and with how many different followers, from which PPM takes its escapes (Moffat 1990, IEEE Trans. Comm. 38(11)).

B batch, T time, S time of the whole document, D width, V vocabulary, C = N + 1 contexts, G = C + 1 gates.
"""

import jax
import jax.numpy as jnp
import ml_collections
from flax import nnx

from lmtiny.model.induction import in_order, ngram_hashes
from lmtiny.parallel.matmul import matmul
from lmtiny.parallel.vocab_cross_entropy import Mixture
from lmtiny.parallel.zigzag import own_time

NONE = -1e9  # the logarithm of no probability, of which a gradient is not NaN


class Copying(nnx.Module):
    """The gates; their weights start at zero, so that a token's first gates depend on which of its contexts have stood before alone."""

    def __init__(self, model: ml_collections.ConfigDict):
        self.num_contexts = contexts = model.induction + 1
        self.kernel = nnx.Param(jnp.zeros((model.width, contexts + 1)), axes=("residual", None))
        self.counts = nnx.Param(jnp.zeros((2 * contexts, contexts + 1)), axes=(None, None))
        self.bias = nnx.Param(jnp.zeros(contexts + 1).at[0].set(3.0), axes=(None,))  # at first the logits keep at least 0.8

    def of_targets(self, x_BTD: jax.Array, tokens: jax.Array, segments: jax.Array) -> Mixture:
        """Returns the mixture for the tokens after each; `tokens` and the `segments` of their documents are [B, T+1].

        Inside shard_map these are whole in time, and x and the result are of the time steps here (`parallel.zigzag`).
        """
        seen_BSC, kinds_BSC = seen(tokens, segments, self.num_contexts + 1)
        before_BTC, then_BTC, kinds_BTC = map(own_time, (seen_BSC[:, :-1, :-1], seen_BSC[:, 1:, 1:], kinds_BSC[:, :-1]))
        log_gates_BTG = self._log_gates(x_BTD, before_BTC, kinds_BTC)
        # No more than all: two n-grams of one hash, of half a million tokens about 30 pairs a length, could make it two of one.
        share_BTC = jnp.minimum(then_BTC / jnp.maximum(before_BTC, 1), 1.0)
        logs_BTC = jnp.where(then_BTC > 0, log_gates_BTG[..., 1:] + jnp.log(jnp.where(then_BTC > 0, share_BTC, 1.0)), NONE)
        return Mixture(log_gates_BTG[..., 0], jax.nn.logsumexp(logs_BTC, axis=-1))

    def of_all(
        self, logits_BTV: jax.Array, x_BTD: jax.Array, tokens_BS: jax.Array, segments_BS: jax.Array, places_BT: jax.Array
    ) -> jax.Array:
        """Returns the mixture's log-probabilities [B, T, V] after the tokens at `places_BT`, of which later ones are not read."""
        seen_BSC, kinds_BSC = seen(tokens_BS, segments_BS, self.num_contexts + 1)
        at = lambda x_BSC: jnp.take_along_axis(x_BSC, places_BT[..., None], axis=1)  # noqa: E731
        before_BTC = at(seen_BSC[..., :-1])
        log_gates_BTG = self._log_gates(x_BTD, before_BTC, at(kinds_BSC))
        keys_BSC = jnp.stack(_hashes(tokens_BS, segments_BS, self.num_contexts), axis=-1)
        weights_BTC = jnp.exp(log_gates_BTG[..., 1:]) / jnp.maximum(before_BTC, 1)

        def copied(tokens_S: jax.Array, keys_SC: jax.Array, place: jax.Array, weights_C: jax.Array) -> jax.Array:
            same_SC = (keys_SC == keys_SC[place][None]) & (jnp.arange(keys_SC.shape[0]) < place)[:, None]
            followed_S = jnp.sum(jnp.where(same_SC, weights_C[None], 0.0), axis=1)
            return jnp.zeros(logits_BTV.shape[-1]).at[tokens_S[1:]].add(followed_S[:-1])

        of_row = lambda tokens_S, keys_SC, *each: jax.lax.map(lambda one: copied(tokens_S, keys_SC, *one), each)  # noqa: E731
        copied_BTV = jax.vmap(of_row)(tokens_BS, keys_BSC, places_BT, weights_BTC)
        log_copied_BTV = jnp.where(copied_BTV > 0, jnp.log(jnp.where(copied_BTV > 0, copied_BTV, 1.0)), NONE)
        return jnp.logaddexp(log_gates_BTG[..., :1] + jax.nn.log_softmax(logits_BTV, axis=-1), log_copied_BTV)

    def _log_gates(self, x_BTD: jax.Array, before_BTC: jax.Array, kinds_BTC: jax.Array) -> jax.Array:
        """Returns the logarithms of the gates [B, T, G], float32, the logits' first; a context that has not stood before has none."""
        x_nD = x_BTD.reshape(-1, x_BTD.shape[-1])
        gates_BTG = matmul(x_nD, self.kernel[...].astype(x_nD.dtype), jnp.float32).reshape(*x_BTD.shape[:-1], -1)
        counts_BTF = jnp.log1p(jnp.concatenate([before_BTC, kinds_BTC], axis=-1).astype(jnp.float32))
        gates_BTG += counts_BTF @ self.counts[...] + self.bias[...][None, None]
        there_BTG = jnp.pad(before_BTC > 0, ((0, 0), (0, 0), (1, 0)), constant_values=True)
        return jax.nn.log_softmax(jnp.where(there_BTG, gates_BTG, NONE), axis=-1)


def seen(tokens_BT: jax.Array, segments_BT: jax.Array, num_lengths: int) -> tuple[jax.Array, jax.Array]:
    """Returns (how often the n tokens that end here stood in the document before, of how many kinds their followers there were).

    For n = 0..num_lengths - 1, [B, T, num_lengths]; of kinds one less: [B, T, num_lengths - 1].  What stands at a document's
    first place follows nothing, and is no follower.
    """
    places_BT = jnp.broadcast_to(jnp.arange(tokens_BT.shape[1], dtype=jnp.int32), tokens_BT.shape)
    groups, seen_each = [], []
    for length, hashes_BT in enumerate(_hashes(tokens_BT, segments_BT, num_lengths)):
        sorted_BT, order_BT = hashes_BT, places_BT
        if length > 0:
            sorted_BT, order_BT = jax.lax.sort((hashes_BT, places_BT), dimension=1, num_keys=2)
        is_first_BT = jnp.pad(sorted_BT[:, 1:] != sorted_BT[:, :-1], ((0, 0), (1, 0)), constant_values=True)
        first_BT = jax.lax.cummax(jnp.where(is_first_BT, places_BT, 0), axis=1)
        groups.append((order_BT, first_BT))
        seen_each.append(in_order(order_BT, places_BT - first_BT))
    kinds_each = []
    for (order_BT, first_BT), longer_BT in zip(groups, seen_each[1:], strict=False):
        # The follower of a place is of a new kind where the context and it, one token later, have not been before.
        new_BT = jnp.pad(longer_BT[:, 1:] == 0, ((0, 0), (0, 1))).astype(jnp.int32)
        new_BT = jnp.take_along_axis(new_BT, order_BT, axis=1)
        before_BT = jnp.cumsum(new_BT, axis=1) - new_BT
        kinds_each.append(in_order(order_BT, before_BT - jnp.take_along_axis(before_BT, first_BT, axis=1)))
    return jnp.stack(seen_each, axis=-1), jnp.stack(kinds_each, axis=-1)


def _hashes(tokens_BT: jax.Array, segments_BT: jax.Array, num_lengths: int) -> list[jax.Array]:
    """Returns `ngram_hashes`, where the token at a document's first place is like no other: it follows nothing."""
    is_first_BT = jnp.pad(segments_BT[:, 1:] != segments_BT[:, :-1], ((0, 0), (1, 0)), constant_values=True)
    return ngram_hashes(jnp.where(is_first_BT, -1, tokens_BT), segments_BT, num_lengths)
