"""Cross-entropy of the next token with the vocabulary split over devices (Megatron-LM, arXiv 1909.08053, section 3).

Each device holds some columns of the head.  It computes its slice of the logits; the maximum, the sum of exponentials and
the target's logit are then reduced over devices, so no device ever holds a whole row of logits.

B batch, T time, D width, V vocabulary; v columns here; n tokens, c tokens in a chunk.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from lmtiny.parallel import collectives, mesh
from lmtiny.parallel.matmul import Matrix, gradient_of, matmul, product_with_rows
from lmtiny.parallel.soft_cap import slope, soft_capped


class Mixture(NamedTuple):
    """A share of the probability that comes from elsewhere than the logits, for each target.

    log_kept: of the share of the probability that is left to the logits. log_other: of the probability that the target has elsewhere,
    times its share.  Both are the same on all devices that hold the vocabulary.
    """

    log_kept: jax.Array
    log_other: jax.Array

    def nll(self, nll: jax.Array) -> jax.Array:
        """Returns -log p(target) in nats, of that by the logits alone."""
        return -jnp.logaddexp(self.log_kept - nll, self.log_other)


def cross_entropy(
    x_BTD: jax.Array, head_Dv: Matrix, targets_BT: jax.Array, *, vocab_size: int, soft_cap: float = 0.0, chunk: int = 0
) -> jax.Array:
    """Returns -log p(target) in nats, float32 [B, T], the same on all devices that hold the vocabulary.

    Args:
      x_BTD: what the head reads, in the compute type.
      head_Dv: the columns of the head that are here, in the compute type; those from `vocab_size` on are padding and get
        no probability.
      targets_BT: token ids.
      soft_cap: logits = cap * tanh(logits / cap); 0: none.
      chunk: tokens whose logits exist at one time on a device (recomputed in the backward pass); 0: all of them.
    """
    x_nD, targets_n = x_BTD.reshape(-1, x_BTD.shape[-1]), targets_BT.reshape(-1)
    nll = functools.partial(_nll, vocab_size=vocab_size, soft_cap=soft_cap)
    num_tokens = targets_n.shape[0]
    if not chunk or chunk >= num_tokens:
        return nll(x_nD, targets_n, head_Dv=head_Dv).reshape(targets_BT.shape)
    padding = -num_tokens % chunk
    x_kcD = jnp.pad(x_nD, ((0, padding), (0, 0))).reshape(-1, chunk, x_nD.shape[-1])
    targets_kc = jnp.pad(targets_n, (0, padding)).reshape(-1, chunk)
    # The chunks' gradients of the head add up in its type: float32, whatever the matmul's.
    wide = head_Dv.astype(jnp.float32)
    nll_kc = jax.lax.map(jax.checkpoint(lambda pair: nll(*pair, head_Dv=wide.astype(head_Dv.dtype))), (x_kcD, targets_kc))
    return nll_kc.reshape(-1)[:num_tokens].reshape(targets_BT.shape)


def summed_cross_entropy(
    x_BTD: jax.Array, head_Dv: Matrix, targets_BT: jax.Array, weights_BT: jax.Array,
    *, vocab_size: int, soft_cap: float, chunk: int, mixture: Mixture | None = None,
) -> tuple[jax.Array, jax.Array]:  # fmt: skip
    """Returns (sum of weights x nll, the nll of `cross_entropy`, which has no gradient here); of the mixture, where there is one.

    With chunks the gradients are made in the forward pass, beside a chunk's logits, so that those are not computed twice: the
    gradient of a sum is known up to one factor.  Under float16 it is not, since that factor is the loss's scale.
    """
    if not 0 < chunk < targets_BT.size or x_BTD.dtype == jnp.float16:
        nll_BT = cross_entropy(x_BTD, head_Dv, targets_BT, vocab_size=vocab_size, soft_cap=soft_cap, chunk=chunk)
        nll_BT = nll_BT if mixture is None else mixture.nll(nll_BT)
        return jnp.sum(nll_BT * weights_BT), jax.lax.stop_gradient(nll_BT)
    tokens = x_BTD.reshape(-1, x_BTD.shape[-1]), targets_BT.reshape(-1), weights_BT.reshape(-1)
    mixture_n = jax.tree.map(lambda of_BT: of_BT.reshape(-1), mixture)
    total, nll_n = _summed_in_chunks(tokens[0], head_Dv, tokens[1], tokens[2], mixture_n, (vocab_size, soft_cap, chunk))
    return total, jax.lax.stop_gradient(nll_n).reshape(targets_BT.shape)


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def _summed_in_chunks(
    x_nD: jax.Array, head_Dv: Matrix, targets_n: jax.Array, weights_n: jax.Array, mixture_n: Mixture | None,
    request: tuple[int, float, int],
) -> tuple[jax.Array, jax.Array]:  # fmt: skip
    vocab_size, soft_cap, chunk = request
    nll_n = cross_entropy(x_nD[None], head_Dv, targets_n[None], vocab_size=vocab_size, soft_cap=soft_cap, chunk=chunk)[0]
    nll_n = nll_n if mixture_n is None else mixture_n.nll(nll_n)
    return jnp.sum(nll_n * weights_n), nll_n


def _summed_forward(
    x_nD: jax.Array, head_Dv: Matrix, targets_n: jax.Array, weights_n: jax.Array, mixture_n: Mixture | None,
    request: tuple[int, float, int],
) -> tuple[tuple[jax.Array, jax.Array], tuple[jax.Array, jax.Array, Mixture | None]]:  # fmt: skip
    vocab_size, soft_cap, chunk = request
    num_tokens = targets_n.shape[0]

    def in_chunks(one: jax.Array) -> jax.Array:
        padded = jnp.pad(one, [(0, -num_tokens % chunk)] + [(0, 0)] * (one.ndim - 1))  # added tokens have no weight
        return padded.reshape(-1, chunk, *one.shape[1:])

    def of_chunk(dhead_Dv: Matrix, piece: tuple[Any, ...]) -> tuple[Matrix, tuple[jax.Array, jax.Array, Mixture | None]]:
        x_cD, targets_c, weights_c, mixture_c = piece
        logits_cv, columns = _logits(x_cD, head_Dv, soft_cap)
        nll_c, exponentials_cv, sums_c = _nll_of_logits(logits_cv, columns, targets_c, vocab_size)
        dmixture_c = None
        if mixture_c is not None:
            # The logits answer for their share of the probability of the mixture, others for the rest.
            own_c = mixture_c.log_kept - nll_c
            nll_c = mixture_c.nll(nll_c)
            share_c = jnp.exp(own_c + nll_c)
            dmixture_c = Mixture(-weights_c * share_c, -weights_c * (1 - share_c))
            weights_c *= share_c
        dlogits_cv = exponentials_cv * (weights_c / sums_c)[:, None] - jnp.where(columns == targets_c[:, None], weights_c[:, None], 0.0)
        dlogits_cv = (dlogits_cv * slope(logits_cv, soft_cap)).astype(x_cD.dtype)
        dx_cD = product_with_rows(dlogits_cv, head_Dv, x_cD.dtype)
        return jax.tree.map(jnp.add, dhead_Dv, gradient_of(head_Dv, x_cD, dlogits_cv)), (nll_c, dx_cD, dmixture_c)

    pieces = jax.tree.map(in_chunks, (x_nD, targets_n, weights_n, mixture_n))
    dhead_Dv, each = jax.lax.scan(of_chunk, jax.tree.map(lambda w: jnp.zeros(w.shape, jnp.float32), head_Dv), pieces)
    nll_n, dx_nD, dmixture_n = jax.tree.map(lambda of_kc: of_kc.reshape(-1, *of_kc.shape[2:])[:num_tokens], each)
    return (jnp.sum(nll_n * weights_n), nll_n), (dx_nD, dhead_Dv.astype(head_Dv.dtype), dmixture_n)


def _summed_backward(
    request: tuple[int, float, int], saved: tuple[jax.Array, jax.Array, Mixture | None], grads: tuple[jax.Array, jax.Array]
) -> tuple[jax.Array, jax.Array, None, None, Mixture | None]:
    dx_nD, dhead_Dv, dmixture_n = saved
    factor = collectives.total(grads[0], "vocab")  # each device that holds a part of the vocabulary contributes its share
    own = jax.tree.map(lambda of_n: grads[0] * of_n, dmixture_n)  # which all of them have whole
    return (factor * dx_nD).astype(dx_nD.dtype), jax.tree.map(lambda dw: (factor * dw).astype(dw.dtype), dhead_Dv), None, None, own


_summed_in_chunks.defvjp(_summed_forward, _summed_backward)


def _nll(x_nD: jax.Array, targets_n: jax.Array, *, head_Dv: Matrix, vocab_size: int, soft_cap: float) -> jax.Array:
    return _nll_of_logits(*_logits(x_nD, head_Dv, soft_cap), targets_n, vocab_size)[0]


def _logits(x_nD: jax.Array, head_Dv: Matrix, soft_cap: float) -> tuple[jax.Array, jax.Array]:
    """Returns (logits of the columns that are here, float32, the numbers of these columns), both [n, v]."""
    logits_nv = soft_capped(matmul(x_nD, head_Dv, jnp.float32), soft_cap)
    return logits_nv, jax.lax.broadcasted_iota(jnp.int32, logits_nv.shape, 1) + collectives.part("vocab") * head_Dv.shape[1]


def _nll_of_logits(
    logits_nv: jax.Array, columns: jax.Array, targets_n: jax.Array, vocab_size: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns (-log p(target), exponentials of the logits that are here up to a factor of the row's, their sum over the vocabulary)."""
    if vocab_size < logits_nv.shape[1] * collectives.parts("vocab"):
        logits_nv = jnp.where(columns < vocab_size, logits_nv, -1e30)
    max_n = collectives.largest(jnp.max(logits_nv, axis=1), "vocab")
    exponentials_nv = jnp.exp(logits_nv - max_n[:, None])
    sums_n = jnp.sum(exponentials_nv, axis=1)
    target_n = _of_targets(logits_nv, columns, targets_n)
    sums_n, target_n = collectives.total((sums_n, target_n), "vocab")
    return jnp.log(sums_n) + max_n - target_n, exponentials_nv, sums_n


@jax.custom_vjp
def _of_targets(logits_nv: jax.Array, columns: jax.Array, targets_n: jax.Array) -> jax.Array:
    """Returns the logits of the targets, [n], 0 of those whose column is on another device; its gradient compares, and scatters nothing."""
    if mesh.platform() != "cpu":
        return jnp.sum(jnp.where(columns == targets_n[:, None], logits_nv, 0.0), axis=1)
    # XLA's CPU backend would write that sum's terms out, all n x v of them.
    here_n = targets_n - columns[:, 0]
    here_n = jnp.where(here_n >= 0, here_n, logits_nv.shape[1])  # a number below 0 would count from the end
    return jnp.take_along_axis(logits_nv, here_n[:, None], axis=1, mode="fill", fill_value=0)[:, 0]


def _of_targets_forward(logits_nv: jax.Array, columns: jax.Array, targets_n: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _of_targets(logits_nv, columns, targets_n), (columns, targets_n)


def _of_targets_backward(saved: tuple[jax.Array, jax.Array], grad_n: jax.Array) -> tuple[jax.Array, None, None]:
    columns, targets_n = saved
    return jnp.where(columns == targets_n[:, None], grad_n[:, None], 0.0), None, None


_of_targets.defvjp(_of_targets_forward, _of_targets_backward)
