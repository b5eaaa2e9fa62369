"""Validation loss in bits per byte: comparable between tokenizers, since bytes are what the text is made of."""

import dataclasses
import math
from collections.abc import Callable, Iterable
from typing import Any

import jax
import ml_collections
import numpy as np
from jax.sharding import Mesh

from lmtiny import config as config_lib
from lmtiny.data.shards import Prepared
from lmtiny.model import attend
from lmtiny.parallel.mesh import place_batch


@dataclasses.dataclass(frozen=True)
class Score:
    """nats per token and bits per byte over ordinary (not special) target tokens; tokens, bytes: how many."""

    loss: float
    bits_per_byte: float
    tokens: int
    bytes: int


def for_validation(config: ml_collections.ConfigDict, mesh: Mesh) -> ml_collections.ConfigDict:
    """Returns the config with rows of evaluation.context_length for those of training, and of them as many as hold a batch's tokens.

    At least as many as the mesh splits a batch into; its attention is resolved.  The weights are the same: none has a row's length.
    """
    config = config.copy_and_resolve_references()
    length = config_lib.validation_length(config)
    if length != config.model.context_length:
        at_least = math.prod(mesh.shape[axis] for axis in ("data", "fsdp", "expert")) * config_lib.pipeline_microbatches(config)
        wanted = config.train.batch_size * config.model.context_length // length
        config.train.update({"batch_size": max(1, wanted // at_least) * at_least, "accumulation": 1})
        config.model.context_length = length
    return attend.resolved(config, mesh)[0]


def bytes_of_ids(data: Prepared) -> np.ndarray:
    """Returns number[vocab_size], the bytes of text that an id counts in `score`; 0 for our special tokens.

    An id of ours always stands for the same bytes. Where it does not (unknown characters, spaces and forms
    that a foreign tokenizer changes) each counts what a token of the validation text has on average: over all
    of its rows that is the text's own bytes.
    """
    tokenizer = data.tokenizer
    if not tokenizer.loses:
        return tokenizer.token_bytes
    text = data.manifest["splits"]["validation"]
    ordinary = np.arange(tokenizer.vocab_size) < tokenizer.bos_id
    return np.where(ordinary, text["bytes"] / text["tokens"], 0).astype(np.float32)


def score(
    eval_step: Callable[..., tuple[jax.Array, jax.Array, jax.Array]],
    params: Any,
    batches: Iterable[np.ndarray],
    id_bytes: np.ndarray,
    mesh: Mesh,
    batch_size: int,
) -> Score:
    """Returns the score of `params` over `batches` of this process's rows.

    eval_step: of step.make_eval_step; batches: of loader.validation_batches; id_bytes: of `bytes_of_ids`, and
    an id that has none is not scored.
    """
    sums = [eval_step(params, place_batch(mesh, rows, batch_size), id_bytes) for rows in batches]
    # Added up on the host in float64: a float32 sum of many bytes loses the last of them.
    nats, num_bytes, num_tokens = np.sum(np.array(jax.device_get(sums), np.float64).reshape(-1, 3), axis=0)
    return Score(
        loss=float(nats / max(num_tokens, 1)),
        bits_per_byte=float(nats / (math.log(2) * max(num_bytes, 1))),
        tokens=int(num_tokens),
        bytes=round(num_bytes),
    )
