"""The parts of a block: matrix, norm, rotary positions, MLP, dropout.

B batch, T time, D width, H heads, N head size, F hidden size of the MLP, L layers.
Weights are float32; each layer computes in the type of its input.  On a mesh a device holds part of most matrices: the
sizes below are then those of its part, and `parallel.collectives` says what is sent.
"""

import functools
import math

import jax
import jax.numpy as jnp
import ml_collections
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jax.experimental.xla_metadata import set_xla_metadata

from lmtiny import config as config_lib
from lmtiny.model import low_precision
from lmtiny.model.activation import activated
from lmtiny.parallel import collectives
from lmtiny.parallel.matmul import matmul


class Dense(nnx.Module):
    """y = x W + b over any number of input and output axes, run as one two-dimensional matmul (fast on every backend).

    Where the input axes are split over devices, their parts of y are summed and each keeps its share of the time steps.
    """

    def __init__(
        self,
        rngs: nnx.Rngs,
        inputs: dict[str, int],
        outputs: dict[str, int],
        *,
        init: str = "gpt",
        scale: float = 1.0,
        bias: bool = False,
        matmul_dtype: str = "compute",
    ):
        """Args:
        inputs, outputs: logical axis -> size, in order.
        init: gpt: normal(0.02); xavier: Glorot & Bengio 2010, eq. 16 (normal form); kaiming: He et al. 2015, eq. 10.
        scale: times the initial weights; 0 starts the layer at zero.
        bias: adds a bias that starts at zero.
        matmul_dtype: of the product's operands: compute (that of the input), int8 or float8.
        """
        shape = (*inputs.values(), *outputs.values())
        self.axes, self.shape, self.num_inputs = (*inputs, *outputs), shape, len(inputs)
        self.matmul_dtype = matmul_dtype
        self.sums_parts = bool(set(inputs) & {"heads", "mlp"})
        fan_in, fan_out = math.prod(inputs.values()), math.prod(outputs.values())
        std = {"gpt": 0.02, "xavier": math.sqrt(2 / (fan_in + fan_out)), "kaiming": math.sqrt(2 / fan_in)}[init]
        self.kernel = nnx.Param(scale * std * jax.random.normal(rngs.params(), shape), axes=self.axes)
        # An output on the residual stream is whole on every device, so its bias is too.
        bias_axes = tuple("residual" if name == "embed" else name for name in outputs)
        self.bias = nnx.data(nnx.Param(jnp.zeros(tuple(outputs.values())), axes=bias_axes) if bias else None)

    def __call__(self, x: jax.Array) -> jax.Array:
        kernel = collectives.gather_weight(self.kernel[...], self.axes, self.shape, x.dtype)
        batch_shape = x.shape[: x.ndim - self.num_inputs]
        inputs, outputs = kernel.shape[: self.num_inputs], kernel.shape[self.num_inputs :]
        x_nI, kernel_IO = x.reshape(-1, math.prod(inputs)), kernel.reshape(math.prod(inputs), -1)
        y_nO = matmul(x_nI, kernel_IO) if self.matmul_dtype == "compute" else low_precision.matmul(x_nI, kernel_IO, self.matmul_dtype)
        y = y_nO.reshape(*batch_shape, *outputs)
        if self.sums_parts:
            y = collectives.scatter_total(y, "sequence", 1)
        if self.bias is not None:
            y += self.bias[...].astype(x.dtype).reshape((1,) * len(batch_shape) + outputs)
        return y


class Norm(nnx.Module):
    """RMSNorm (arXiv 1910.07467) or LayerNorm (arXiv 1607.06450) over the width, in float32."""

    def __init__(self, config: ml_collections.ConfigDict):
        self.centred, self.epsilon = config.norm == "layernorm", config.norm_epsilon
        width = (config.width,)
        self.scale = nnx.data(nnx.Param(jnp.ones(width), axes=("residual",)) if config.norm_scale else None)
        with_bias = config.norm_scale and self.centred
        self.bias = nnx.data(nnx.Param(jnp.zeros(width), axes=("residual",)) if with_bias else None)

    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        x = x_BTD.astype(jnp.float32)
        if self.centred:
            x -= jnp.mean(x, axis=-1, keepdims=True)
        x = rms_norm(x, self.epsilon)
        if self.scale is not None:
            x *= self.scale[...][None, None]
        if self.bias is not None:
            x += self.bias[...][None, None]
        return x.astype(x_BTD.dtype)


def rms_norm(x: jax.Array, epsilon: float) -> jax.Array:
    """Returns x / root(mean square over the last axis + epsilon), computed in float32, in the type of x."""
    x32 = x.astype(jnp.float32)
    return (x32 * jax.lax.rsqrt(jnp.mean(jnp.square(x32), axis=-1, keepdims=True) + epsilon)).astype(x.dtype)


def rope_angles(positions_BT: jax.Array, head_dim: int, base: float) -> tuple[jax.Array, jax.Array]:
    """Returns (cos, sin) [B, T, 1, N/2] of position * base^(-2i/N) (RoFormer, arXiv 2104.09864, eq. 15), float32."""

    def make(positions_BT: jax.Array) -> tuple[jax.Array, jax.Array]:
        frequencies = base ** (-jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim)
        angles = positions_BT[:, :, None, None].astype(jnp.float32) * frequencies[None, None, None]
        return jnp.cos(angles), jnp.sin(angles)

    def make_once(positions_BT: jax.Array) -> tuple[jax.Array, jax.Array]:
        with set_xla_metadata(inlineable="false"):
            return jax.jit(make)(positions_BT)

    # XLA's CPU backend would make cosines again in each layer's fusions, a tenth of a step; it does not look into a call.
    return jax.lax.platform_dependent(positions_BT, cpu=make_once, default=make)


def rotate(x_BTHN: jax.Array, angles: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Returns x with its pairs (i, i + N/2) turned by `angles`: the pairing of GPT-NeoX, Llama and Qwen."""
    cos, sin = angles
    first, second = jnp.split(x_BTHN.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x_BTHN.dtype)


def dropout(x: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
    """Returns x with a share `rate` of it set to zero and the rest scaled up; x itself without a key."""
    if key is None or not rate:
        return x
    return jnp.where(jax.random.bernoulli(key, 1 - rate, x.shape), x / (1 - rate), 0).astype(x.dtype)


class Mlp(nnx.Module):
    """down(activation(up(x))), or the gated form down(activation(gate(x)) * up(x)) (arXiv 2002.05202)."""

    def __init__(self, config: ml_collections.ConfigDict, rngs: nnx.Rngs, out_scale: float):
        hidden = {"mlp": config_lib.mlp_size(config)}
        width, self.activation = {"embed": config.width}, config.activation
        dense = functools.partial(Dense, rngs, init=config.init, bias=config.bias == "all", matmul_dtype=config.matmul_dtype)
        self.up = dense(width, hidden)
        gated = config.activation in ("swiglu", "geglu")
        self.gate = nnx.data(dense(width, hidden) if gated else None)
        self.down = dense(hidden, width, scale=out_scale)

    def __call__(self, x_BTD: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Returns (y_BTD, losses of its own: none; those of `experts.Experts` are some)."""
        x_BTD = collectives.gather(x_BTD, "sequence", 1)
        up_BTF, gate_BTF = self.up(x_BTD), self.gate(x_BTD) if self.gate is not None else None
        hidden_BTF = activated(self.activation, up_BTF, gate_BTF)
        return self.down(checkpoint_name(hidden_BTF, "mlp_hidden")), {}
