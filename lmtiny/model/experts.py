"""A mixture of experts in the place of the MLP: every token is computed by k of E MLPs.

B rows, T time, D width, E experts, k choices of a token, F hidden size, P = B T k pairs of token and choice, S slots.

Both ways of running it give every pair a slot, move the tokens into their slots, multiply whatever lies there by the
weights of the expert it lies with, and move the results back:

- dropless (`expert_capacity` 0): slots in the order of the experts, as many for each as chose it.  With the experts split
  over devices, all tokens go to all of those and each computes what its own experts were chosen for.
- capacity: C slots for each row and expert; who comes later in the row than that goes without.  A token travels only to
  the devices of its experts.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from lmtiny import config as config_lib
from lmtiny.errors import UserError
from lmtiny.model.activation import activated
from lmtiny.model.layers import Dense
from lmtiny.parallel.collectives import exchange, gather, gather_weight, part, parts, scatter_total, total

Matmul = Callable[[jax.Array, jax.Array], jax.Array]


class Matrices(nnx.Module):
    """One matrix for each expert, each starting as a Dense of that shape would."""

    def __init__(self, rngs: nnx.Rngs, num_experts: int, inputs: dict[str, int], outputs: dict[str, int], **start: Any):
        def one(key: jax.Array) -> jax.Array:
            return Dense(nnx.Rngs(key), inputs, outputs, **start).kernel[...]

        self.axes, self.shape = ("experts", *inputs, *outputs), (num_experts, *inputs.values(), *outputs.values())
        self.kernel = nnx.Param(jax.vmap(one)(jax.random.split(rngs.params(), num_experts)), axes=self.axes)

    def weights(self, dtype: Any) -> jax.Array:
        """Returns the matrices [E here, inputs, outputs] in `dtype`, gathered over fsdp."""
        return gather_weight(self.kernel[...], self.axes, self.shape, dtype)


class Router(nnx.Module):
    """Which experts compute a token, and with which weight; in float32, since top-k turns rounding into another choice."""

    def __init__(self, config: ml_collections.ConfigDict, rngs: nnx.Rngs):
        self.num_experts, self.num_choices = config.num_experts, config.experts_per_token
        start = Dense(rngs, {"embed": config.width}, {"experts": config.num_experts}, init=config.init).kernel[...]
        self.axes, self.shape = ("embed", None), start.shape  # a device scores all experts for its tokens
        self.kernel = nnx.Param(start, axes=self.axes)

    def __call__(self, x_BTD: jax.Array) -> tuple[jax.Array, jax.Array, dict[str, jax.Array]]:
        """Returns (gates [B, T, k] in float32, choices [B, T, k] best first, losses as in `Experts`).

        With k > 1 the gates are the softmax over the chosen logits and sum to 1 (Mixtral, arXiv 2401.04088, section 2.1).
        With k = 1 that would be the constant 1, and the loss would not reach the router: there the gate is the chosen
        expert's share of the softmax over all of them (Switch, arXiv 2101.03961, eq. 1 and 2).
        """
        kernel_DE = gather_weight(self.kernel[...], self.axes, self.shape, jnp.float32)
        # "highest": by default float32 is multiplied as bfloat16 on TPU and as TF32 on GPU.
        logits_BTE = jnp.matmul(x_BTD.astype(jnp.float32), kernel_DE[None], precision="highest")
        log_sum_BT = jax.nn.logsumexp(logits_BTE, axis=-1)
        best_BTk, choices_BTk = jax.lax.top_k(logits_BTE, self.num_choices)
        if self.num_choices == 1:
            gates_BTk = jnp.exp(best_BTk - log_sum_BT[:, :, None])
        else:
            gates_BTk = jax.nn.softmax(best_BTk, axis=-1)

        length = x_BTD.shape[1] * parts("time", "sequence")
        chosen_BE = jnp.sum(jax.nn.one_hot(choices_BTk, self.num_experts), axis=(1, 2))
        share_BE = jnp.sum(jax.nn.softmax(logits_BTE, axis=-1), axis=1)
        chosen_BE, share_BE = total((chosen_BE, share_BE), "time", "sequence")
        balance_B = jnp.sum(chosen_BE * share_BE, axis=-1) * (self.num_experts / (self.num_choices * length**2))
        # Every device of a row holds its whole balance and contributes one part of it; of z each holds its own tokens'.
        losses = {"balance": jnp.sum(balance_B) / parts("time", "sequence"), "z": jnp.sum(jnp.square(log_sum_BT)) / length}
        return gates_BTk, choices_BTk, losses


class Experts(nnx.Module):
    """y = sum over a token's k choices of gate * MLP of that expert; each MLP as `layers.Mlp`, without biases."""

    def __init__(self, config: ml_collections.ConfigDict, rngs: nnx.Rngs, out_scale: float):
        experts, hidden, width = config.num_experts, {"mlp": config_lib.mlp_size(config)}, {"embed": config.width}
        self.num_experts, self.num_choices, self.capacity = experts, config.experts_per_token, config.expert_capacity
        self.activation = config.activation
        self.router = Router(config, rngs)
        self.up = Matrices(rngs, experts, width, hidden, init=config.init)
        gated = config.activation in ("swiglu", "geglu")
        self.gate = nnx.data(Matrices(rngs, experts, width, hidden, init=config.init) if gated else None)
        self.down = Matrices(rngs, experts, hidden, width, init=config.init, scale=out_scale)

    def __call__(self, x_BTD: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Returns (y_BTD, {"balance", "z"}: float32 scalars without their coefficients, summed over the rows).

        What a device returns is its share: the sum over all devices is the loss of all rows.  A row adds to
        - "balance": sum_e f_e P_e, f_e being E/k times the share of tokens that chose expert e, and P_e the mean
          of its softmax: 1 where all experts are used alike, up to E/k where k of them are all that is used
          (DeepSeek-V3, arXiv 2412.19437, eq. 17-20);
        - "z": the mean over its tokens of logsumexp(logits)^2 (ST-MoE, arXiv 2202.08906, eq. 5).

        Raises:
          UserError: a capacity where rows are split over devices (parallel.context).
        """
        gates_BTk, choices_BTk, losses = self.router(x_BTD)
        x_BTD, gates_BTk, choices_BTk = (gather(one, "sequence", 1) for one in (x_BTD, gates_BTk, choices_BTk))
        run = self._with_capacity if self.capacity else self._dropless
        return scatter_total(run(x_BTD, gates_BTk, choices_BTk), "sequence", 1), losses

    def _dropless(self, x_BTD: jax.Array, gates_BTk: jax.Array, choices_BTk: jax.Array) -> jax.Array:
        x_BTD, gates_BTk, choices_BTk = (gather(one, "experts", 0) for one in (x_BTD, gates_BTk, choices_BTk))
        here = self.num_experts // parts("experts")
        expert_P = choices_BTk.reshape(-1) - part("experts") * here
        expert_P = jnp.where((expert_P >= 0) & (expert_P < here), expert_P, here)
        rank_P, sizes_E = ranks(expert_P, here)
        # Each expert's slots are filled up to whole blocks: about an eighth more than the tokens if they spread evenly.
        block = min(512, 8 * -(-expert_P.size // (32 * self.num_experts)))
        num_slots = (expert_P.size // block + here) * block
        sizes_E = -(-sizes_E // block) * block
        starts_E = jnp.cumsum(sizes_E) - sizes_E
        slot_P = jnp.where(expert_P < here, jnp.take(starts_E, expert_P, mode="clip") + rank_P, num_slots)
        pair_S = pair_of_slot(slot_P, num_slots)
        y_SD = self._mlp(dispatch(x_BTD, slot_P, pair_S), lambda x, weights: grouped_matmul(x, weights, sizes_E, block))
        return scatter_total(combine(y_SD, slot_P, pair_S, gates_BTk), "experts", 0)

    def _with_capacity(self, x_BTD: jax.Array, gates_BTk: jax.Array, choices_BTk: jax.Array) -> jax.Array:
        if parts("time") > 1:
            raise UserError(
                f"model.expert_capacity = {self.capacity:g} counts the tokens of whole rows, but parallel.context = {parts('time')} "
                "splits them; set model.expert_capacity = 0 (no token is dropped) or parallel.context = 1"
            )
        rows, length, width = x_BTD.shape
        capacity = min(length, math.ceil(self.capacity * self.num_choices * length / self.num_experts))
        expert_BP = choices_BTk.reshape(rows, -1)
        # In the order of positions, and a token's choices in their own: with all first choices before all second ones
        # (GShard, arXiv 2006.16668, algorithm 1) a token's second expert would depend on the tokens after it.
        rank_BP, _ = jax.vmap(lambda expert_P: ranks(expert_P, self.num_experts))(expert_BP)
        slot_BP = (expert_BP * rows + jnp.arange(rows)[:, None]) * capacity + rank_BP
        num_slots = self.num_experts * rows * capacity
        slot_P = jnp.where(rank_BP < capacity, slot_BP, num_slots).reshape(-1)
        pair_S = pair_of_slot(slot_P, num_slots)
        x_ESD = exchange(dispatch(x_BTD, slot_P, pair_S).reshape(self.num_experts, rows * capacity, width), "experts", 0, 1)
        y_ESD = self._mlp(x_ESD, lambda x, weights: jnp.einsum("ESD,EDF->ESF", x, weights))
        y_SD = exchange(y_ESD, "experts", 1, 0).reshape(num_slots, width)
        return combine(y_SD, slot_P, pair_S, gates_BTk)

    def _mlp(self, x: jax.Array, matmul: Matmul) -> jax.Array:
        up = matmul(x, self.up.weights(x.dtype))
        gate = matmul(x, self.gate.weights(x.dtype)) if self.gate is not None else None
        hidden = checkpoint_name(activated(self.activation, up, gate), "mlp_hidden")
        return matmul(hidden, self.down.weights(x.dtype))


def ranks(expert_P: jax.Array, num_experts: int) -> tuple[jax.Array, jax.Array]:
    """Returns (how many earlier pairs have the same expert [P], how many pairs each expert has [E]).

    Pairs of the number `num_experts` belong to none.
    """
    order_P = jnp.argsort(expert_P, stable=True)
    sorted_P = jnp.take(expert_P, order_P)
    starts = jnp.searchsorted(sorted_P, jnp.arange(num_experts + 1))
    rank_P = jnp.arange(expert_P.size) - jnp.take(starts, sorted_P)
    return jnp.zeros_like(rank_P).at[order_P].set(rank_P, unique_indices=True), jnp.diff(starts)


def pair_of_slot(slot_P: jax.Array, num_slots: int) -> jax.Array:
    """Returns the inverse of `slot_P`: the pair in each slot [S], or P where there is none."""
    num_pairs = slot_P.size
    return jnp.full((num_slots,), num_pairs, slot_P.dtype).at[slot_P].set(jnp.arange(num_pairs, dtype=slot_P.dtype), mode="drop")


def dispatch(x_BTD: jax.Array, slot_P: jax.Array, pair_S: jax.Array) -> jax.Array:
    """Returns x_SD: in each slot its pair's token, zeros in an empty one."""
    num_choices, width = slot_P.size // (x_BTD.shape[0] * x_BTD.shape[1]), x_BTD.shape[2]
    x_PD = jnp.broadcast_to(x_BTD[:, :, None], (*x_BTD.shape[:2], num_choices, width)).reshape(-1, width)
    return moved(x_PD, pair_S, slot_P)


def combine(y_SD: jax.Array, slot_P: jax.Array, pair_S: jax.Array, gates_BTk: jax.Array) -> jax.Array:
    """Returns y_BTD, the gated sum of what lies in each token's slots; a choice without a slot adds nothing."""
    y_BTkD = moved(y_SD, slot_P, pair_S).reshape(*gates_BTk.shape, -1)
    return jnp.sum(y_BTkD * gates_BTk[..., None], axis=2).astype(y_SD.dtype)


@jax.custom_vjp
def moved(x: jax.Array, source: jax.Array, target: jax.Array) -> jax.Array:
    """Returns the rows `source` of x, zeros where that is beyond its end; `target` is the inverse of `source`.

    With it the gradient is a gather too, where jax's own is a scattered sum: slow on CPU, and on GPU in no fixed order.
    """
    return x.at[source].get(mode="fill", fill_value=0)


def _moved_forward(x: jax.Array, source: jax.Array, target: jax.Array) -> tuple[jax.Array, jax.Array]:
    return moved(x, source, target), target


def _moved_backward(target: jax.Array, grad: jax.Array) -> tuple[jax.Array, None, None]:
    return grad.at[target].get(mode="fill", fill_value=0), None, None


moved.defvjp(_moved_forward, _moved_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def grouped_matmul(x_SD: jax.Array, weights_EDF: jax.Array, sizes_E: jax.Array, block: int) -> jax.Array:
    """Returns y_SF: the first sizes[0] rows of x times weights[0], the next sizes[1] times weights[1], ...

    Sizes are multiples of `block`, as is S; what stands in the rows after the last group is not defined.  `jax.lax.ragged_dot`
    has a kernel on TPU only, and there not for the gradient of the weights; elsewhere it multiplies every row by every
    expert.  So a loop goes over the blocks that are filled, each of one expert (as in MegaBlocks, arXiv 2211.15841).
    """
    multiply = functools.partial(_multiply_blocks, block=block)
    return jax.lax.platform_dependent(x_SD, weights_EDF, sizes_E, tpu=jax.lax.ragged_dot, default=multiply)


def _multiply_blocks(x_SD: jax.Array, weights_EDF: jax.Array, sizes_E: jax.Array, *, block: int) -> jax.Array:
    ends_E = jnp.cumsum(sizes_E) // block

    def one(index: jax.Array, y_SF: jax.Array) -> jax.Array:
        x_bD, weight_DF = jax.lax.dynamic_slice_in_dim(x_SD, index * block, block), weights_EDF[jnp.sum(ends_E <= index)]
        y_bF = jnp.matmul(x_bD, weight_DF, preferred_element_type=jnp.float32).astype(y_SF.dtype)
        return jax.lax.dynamic_update_slice_in_dim(y_SF, y_bF, index * block, 0)

    return jax.lax.fori_loop(0, ends_E[-1], one, jnp.zeros((x_SD.shape[0], weights_EDF.shape[2]), x_SD.dtype))


def _grouped_matmul_forward(x_SD: jax.Array, weights_EDF: jax.Array, sizes_E: jax.Array, block: int) -> tuple[jax.Array, Any]:
    return grouped_matmul(x_SD, weights_EDF, sizes_E, block), (x_SD, weights_EDF, sizes_E)


def _grouped_matmul_backward(block: int, saved: Any, grad_SF: jax.Array) -> tuple[jax.Array, jax.Array, None]:
    x_SD, weights_EDF, sizes_E = saved
    ends_E = jnp.cumsum(sizes_E) // block

    def add(index: jax.Array, grad_EDF: jax.Array) -> jax.Array:
        x_bD, grad_bF = (jax.lax.dynamic_slice_in_dim(rows, index * block, block) for rows in (x_SD, grad_SF))
        grad_DF = jnp.matmul(x_bD.T, grad_bF, preferred_element_type=jnp.float32)
        return grad_EDF.at[jnp.sum(ends_E <= index)].add(grad_DF)

    grad_EDF = jax.lax.fori_loop(0, ends_E[-1], add, jnp.zeros(weights_EDF.shape, jnp.float32))
    return grouped_matmul(grad_SF, weights_EDF.swapaxes(1, 2), sizes_E, block), grad_EDF.astype(weights_EDF.dtype), None


grouped_matmul.defvjp(_grouped_matmul_forward, _grouped_matmul_backward)
