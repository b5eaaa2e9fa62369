"""A trained model, as sampling needs it: weights, config and tokenizer of a run's checkpoint."""

import dataclasses
import pathlib
from typing import Any

import jax
import ml_collections

from lmtiny import tokenizer as tokenizer_lib
from lmtiny.errors import UserError
from lmtiny.model import size
from lmtiny.training import checkpoint


@dataclasses.dataclass(frozen=True)
class LoadedModel:
    """params: float32 tree on the first device; path, step: the checkpoint they come from."""

    config: ml_collections.ConfigDict
    params: Any
    tokenizer: tokenizer_lib.Tokenizer
    path: pathlib.Path
    step: int


def load_model(where: str | pathlib.Path) -> LoadedModel:
    """Returns the model of `RUN` (its newest intact checkpoint) or `RUN/step`, with the tokenizer of RUN/tokenizer.

    Raises:
      UserError: no such checkpoint, a damaged one, or a tokenizer it was not trained with.
    """
    run, step = checkpoint.find(where)
    if step is None:
        step = checkpoint.newest_intact(run)
    if step is None:
        raise UserError(f"no checkpoint at {where}: nothing was saved there yet")
    path = run / "checkpoints" / str(step)
    manifest = checkpoint.read_manifest(path)
    config = checkpoint.load_config(manifest, path)
    tokenizer = tokenizer_lib.load(run / "tokenizer")
    if tokenizer.hash != manifest["tokenizer_hash"]:
        raise UserError(f"{run / 'tokenizer'} is not the tokenizer that {path} was trained with")
    _, shapes, _ = size.abstract(config)
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    wanted = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device), shapes)
    return LoadedModel(config, checkpoint.restore_params(path, wanted), tokenizer, path, step)
