"""Causal self-attention behind one function: which cores there are, what each honours, and which one a run takes.

B batch, T time, H query heads, K key/value heads, N head size.  docs/attention.md is the text to this file.
"""

import copy
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
from jax.sharding import Mesh

from lmtiny import config as config_lib
from lmtiny.errors import UserError
from lmtiny.model.attend_chunked import attend_chunked
from lmtiny.model.attend_local import attend_local, is_local
from lmtiny.model.attend_reference import attend_reference, attend_with_mask, causal_mask
from lmtiny.model.attend_splash import LANES, attend_splash
from lmtiny.parallel import axes

__all__ = ["FACTS", "attend", "attend_with_mask", "causal_mask", "choose", "cudnn_arguments", "fact_sheet"]

# Where no fused kernel will do, `auto` takes chunks: on a CPU always, since they are faster (docs/attention.md), elsewhere
# from this T on, to save memory.
CHUNKED_FROM = 512


@dataclasses.dataclass(frozen=True)
class Facts:
    """What one core honours exactly. All have grouped heads (H a multiple of K), float32 softmax and any window."""

    what: str
    memory: str  # how it grows with T
    backends: tuple[str, ...]
    dtypes: tuple[str, ...]
    documents: bool  # packed documents are kept apart (segments)
    soft_cap: bool
    row_multiple: int  # T must be a multiple of it
    head_multiple: int  # N must be a multiple of it
    head_max: tuple[int, int]  # N at most: NVIDIA GPUs before Hopper, all else; 0: any


_ALL_BACKENDS, _ALL_DTYPES = ("cpu", "gpu", "tpu"), ("float32", "bfloat16", "float16")
FACTS = {
    "reference": Facts("all scores at once, plain JAX", "T²", _ALL_BACKENDS, _ALL_DTYPES, True, True, 1, 1, (0, 0)),
    "chunked": Facts("a chunk of queries at a time, plain JAX", "T", _ALL_BACKENDS, _ALL_DTYPES, True, True, 1, 1, (0, 0)),
    # jax/_src/cudnn/fused_attention_stablehlo.py, check_layout and check_is_flash_attention, of jax 0.10 to 0.12.
    "cudnn": Facts("cuDNN flash attention, NVIDIA", "T", ("gpu",), ("bfloat16", "float16"), False, False, 1, 8, (128, 256)),
    # On a CPU the kernel is interpreted: for tests. The TPU compiler (libtpu 0.0.42) refuses its float16.
    "splash": Facts("Pallas splash attention", "T", ("tpu", "cpu"), ("float32", "bfloat16"), True, True, LANES, 1, (0, 0)),
}
IMPLEMENTATIONS = ("auto", *FACTS)
# cuDNN flash attention came with Ampere. `device_kind` names the older ones so.
_BEFORE_AMPERE = ("p100", "p40", "v100", "titan", "t4", "gtx", "rtx 2060", "rtx 2070", "rtx 2080", "quadro")
_HOPPER_AND_NEWER = ("h100", "h200", "h20", "h800", "b100", "b200", "b300")


def attend(
    q_BTHN: jax.Array,
    k_BTKN: jax.Array,
    v_BTKN: jax.Array,
    segments_BT: jax.Array | None,
    *,
    window: int,
    soft_cap: float,
    implementation: str,
    chunk: int = 0,
) -> jax.Array:
    """Returns softmax(q k / sqrt(N)) v, [B, T, H, N], in the type of q; the softmax is in float32.

    Query head h reads key/value head h // (H/K).  It runs anywhere: under jit, shard_map, scan, checkpoint and grad.

    Args:
      segments_BT: numbers of documents; a token sees only its own. None: one document a row.
      window: how many keys back along the row a query sees, itself included; of T and more: all.
      soft_cap: scores = cap * tanh(scores / cap) (Gemma 2, arXiv 2408.00118, section 2); 0: none.
      implementation: a name of FACTS (`choose` turns "auto" into one).
      chunk: "chunked": queries whose scores exist at one time, at most; 0: `default_chunk`.

    Raises:
      ValueError: what the core cannot honour. Nothing is left out silently; `choose` says it in a person's words.
    """
    if window < 1 or chunk < 0 or q_BTHN.shape[2] % k_BTKN.shape[2]:
        heads = f"heads {q_BTHN.shape[2]} a multiple of {k_BTKN.shape[2]}"
        raise ValueError(f"window {window} and chunk {chunk} must be at least 1 and 0, {heads}")
    if implementation == "reference":
        return attend_reference(q_BTHN, k_BTKN, v_BTKN, segments_BT, window=window, soft_cap=soft_cap)
    if implementation == "chunked":
        chunk = chunk or default_chunk(q_BTHN.shape[1], window)
        if is_local(q_BTHN.shape[1], window, chunk):
            return attend_local(q_BTHN, k_BTKN, v_BTKN, segments_BT, window=window, soft_cap=soft_cap, chunk=chunk)
        return attend_chunked(q_BTHN, k_BTKN, v_BTKN, segments_BT, window=window, soft_cap=soft_cap, chunk=chunk)
    if implementation == "splash":
        return attend_splash(q_BTHN, k_BTKN, v_BTKN, segments_BT, window=window, soft_cap=soft_cap)
    if implementation == "cudnn":
        if segments_BT is not None or soft_cap:
            raise ValueError("cudnn has neither segments nor a soft cap")
        return jax.nn.dot_product_attention(q_BTHN, k_BTKN, v_BTKN, **cudnn_arguments(q_BTHN.shape[1], window))
    raise ValueError(f"implementation {implementation!r} is none of {', '.join(FACTS)}")


def default_chunk(num_queries: int, window: int) -> int:
    """Returns how many queries go together: a quarter of the row or half a window, whichever is less, within 64 and 256.

    More than half a window and most of the keys that a chunk reads are outside of its queries' windows; fewer than 64 and the
    matrices are too small (docs/attention.md).
    """
    return min(256, max(64, min(num_queries // 4, window // 2)))


def cudnn_arguments(num_queries: int, window: int) -> dict[str, Any]:
    """Returns the keywords of `jax.nn.dot_product_attention` for a causal window (it counts keys to the left of the query)."""
    return {"is_causal": True, "implementation": "cudnn", "local_window_size": (window - 1, 0) if window < num_queries else None}


def choose(
    implementation: str,
    *,
    backend: str,
    device_kind: str,
    num_queries: int,
    head_dim: int,
    dtype: Any,
    segments: bool,
    window: int,
    soft_cap: float,
) -> tuple[str, str]:
    """Returns (a name of FACTS, why, in one line) for the knob model.attention.

    Args:
      backend, device_kind: `platform` and `device_kind` of the devices that will run it.
      num_queries: T of the attention that one device computes.
      segments: packed documents are to be kept apart.
      window: the smallest one of the layers; every core has any window of at least 1.

    Raises:
      UserError: a window below 1, or the core that is asked for cannot honour the rest of the request exactly.
    """
    backend = "gpu" if backend in ("cuda", "rocm") else backend

    def obstacle(name: str) -> tuple[str, str] | None:
        return _device_obstacle(name, backend, device_kind.lower(), head_dim) or _request_obstacle(
            name, num_queries, jnp.dtype(dtype).name, segments, soft_cap
        )

    if window < 1:
        raise UserError(f"model.window={window} sees nothing: set it to at least 1")
    if implementation != "auto":
        if implementation not in FACTS:
            raise UserError(f"model.attention={implementation} is none of {', '.join(IMPLEMENTATIONS)}")
        if found := obstacle(implementation):
            raise UserError(f"model.attention={implementation} {found[0]}: {found[1]}, or set model.attention=auto")
        slow = ", interpreted: slow, for tests only" if (implementation, backend) == ("splash", "cpu") else ""
        return implementation, f"{implementation}, as model.attention says{slow}"
    fused = {"tpu": "splash", "gpu": "cudnn"}.get(backend)
    found = obstacle(fused) if fused else None
    if fused and not found:
        return fused, f"{fused}: the fused kernel of a {backend.upper()}"
    if backend == "cpu":
        return "chunked", "chunked: the fastest on a CPU"
    name, sign = ("chunked", ">=") if num_queries >= CHUNKED_FROM else ("reference", "<")
    return name, f"{name}: T={num_queries} {sign} {CHUNKED_FROM}" + (f"; {fused} {found[0]} ({found[1]})" if found else "")


def resolved(config: ml_collections.ConfigDict, mesh: Mesh) -> tuple[ml_collections.ConfigDict, str]:
    """Returns (a copy of the whole config whose model.attention is a core of FACTS, why it is that one, in one line).

    Raises:
      UserError: the core that is asked for cannot honour the config exactly.
    """
    model, device, context = config.model, mesh.devices.flat[0], mesh.shape[axes.CONTEXT_AXIS]
    refuse_without_ring(model.attention, context)
    if context > 1:
        return config, f"ring over {context} devices, in chunks"
    choice, why = choose(
        model.attention, backend=device.platform, device_kind=device.device_kind, num_queries=model.context_length,
        head_dim=config_lib.head_dim(model), dtype=model.compute_dtype, segments=model.mask_documents,
        window=model.window or model.context_length, soft_cap=model.attention_soft_cap,
    )  # fmt: skip
    chosen = copy.deepcopy(config)
    chosen.model.attention = choice
    return chosen, why


def refuse_without_ring(attention: str, context: int) -> None:
    """Raises UserError for a core that is asked for by name where a row is split over `context` devices."""
    if context > 1 and attention != "auto":
        raise UserError(f"model.attention={attention} has no ring: with parallel.context = {context} set model.attention=auto")


def _device_obstacle(name: str, backend: str, kind: str, head_dim: int) -> tuple[str, str] | None:
    """Returns (what the core cannot do on this device, what to do), or None."""
    facts = FACTS[name]
    if backend not in facts.backends:
        return f"does not run on {backend}", f"it needs {' or '.join(facts.backends)}"
    if name != "cudnn":
        return None
    if "nvidia" not in kind or any(old in kind for old in _BEFORE_AMPERE):
        return f"does not run on {kind or 'this GPU'}", "it needs an NVIDIA GPU from Ampere (A100, RTX 30) on"
    largest = facts.head_max[1 if any(new in kind for new in _HOPPER_AND_NEWER) else 0]
    if head_dim % facts.head_multiple or head_dim > largest:
        return f"has no head size {head_dim}", f"set model.head_dim to a multiple of {facts.head_multiple}, at most {largest}"
    return None


def _request_obstacle(name: str, num_queries: int, dtype: str, segments: bool, soft_cap: float) -> tuple[str, str] | None:
    """Returns (what the core cannot honour, what to do), or None."""
    facts = FACTS[name]
    if segments and not facts.documents:
        return "cannot keep packed documents apart", "model.mask_documents=False lets tokens see across documents"
    if soft_cap and not facts.soft_cap:
        return "cannot cap its scores", "set model.attention_soft_cap=0"
    if dtype not in facts.dtypes:
        return f"does not compute in {dtype}", f"set model.compute_dtype to {' or '.join(facts.dtypes)}"
    if num_queries % facts.row_multiple:
        return f"needs rows of a multiple of {facts.row_multiple} tokens, not {num_queries}", "change model.context_length"
    return None


def fact_sheet() -> str:
    """Returns FACTS as the table of docs/attention.md."""
    rows = [
        "| `model.attention` | what | memory | runs on | types | keeps packed documents apart | soft cap | T multiple of | N |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, facts in FACTS.items():
        before, newest = facts.head_max
        sizes = f"multiple of {facts.head_multiple}, at most {before} ({newest} from Hopper on)" if newest else "any"
        row_multiple = str(facts.row_multiple) if facts.row_multiple > 1 else "any"
        yes_no = ["yes" if fact else "**no**" for fact in (facts.documents, facts.soft_cap)]
        cells = (f"`{name}`", facts.what, facts.memory, ", ".join(facts.backends), ", ".join(facts.dtypes), *yes_no, row_multiple, sizes)
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows) + "\n"
