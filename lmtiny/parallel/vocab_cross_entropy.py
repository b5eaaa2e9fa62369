"""Cross-entropy of the next token with the vocabulary split over devices (Megatron-LM, arXiv 1909.08053, section 3).

Each device holds some columns of the head.  It computes its slice of the logits; the maximum, the sum of exponentials and
the target's logit are then reduced over devices, so no device ever holds a whole row of logits.

B batch, T time, D width, V vocabulary; v columns here; n tokens, c tokens in a chunk.
"""

import functools

import jax
import jax.numpy as jnp

from lmtiny.parallel import collectives
from lmtiny.parallel.matmul import matmul


def cross_entropy(
    x_BTD: jax.Array, head_Dv: jax.Array, targets_BT: jax.Array, *, vocab_size: int, soft_cap: float = 0.0, chunk: int = 0
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


def _nll(x_nD: jax.Array, targets_n: jax.Array, *, head_Dv: jax.Array, vocab_size: int, soft_cap: float) -> jax.Array:
    logits_nv = soft_capped(matmul(x_nD, head_Dv, jnp.float32), soft_cap)
    columns = jax.lax.broadcasted_iota(jnp.int32, logits_nv.shape, 1) + collectives.part("vocab") * head_Dv.shape[1]
    logits_nv = jnp.where(columns < vocab_size, logits_nv, -1e30)
    max_n = collectives.largest(jnp.max(logits_nv, axis=1), "vocab")
    sums_n = jnp.sum(jnp.exp(logits_nv - max_n[:, None]), axis=1)
    target_n = jnp.sum(jnp.where(columns == targets_n[:, None], logits_nv, 0.0), axis=1)
    sums_n, target_n = collectives.total((sums_n, target_n), "vocab")
    return jnp.log(sums_n) + max_n - target_n


def soft_capped(logits: jax.Array, cap: float) -> jax.Array:
    """Returns cap * tanh(logits / cap), or the logits for a cap of 0 (Gemma 2, arXiv 2408.00118, section 2)."""
    return cap * jnp.tanh(logits / cap) if cap else logits
