"""A trained model, as sampling needs it: weights, config and tokenizer of a run's checkpoint."""

import dataclasses
import pathlib
from typing import Any

import jax
import ml_collections

from lmtiny import tokenizer as tokenizer_lib
from lmtiny.errors import UserError
from lmtiny.model import size
from lmtiny.training import checkpoint, manifests


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
    for _ in range(manifests.LISTINGS):
        found = manifests.opened(where, "--checkpoint")
        with manifests.kept(found.path):
            try:
                return _loaded(found)
            except Exception:
                # A run that trains beside may have discarded what was the newest.
                if found.step is not None or (found.path / manifests.MANIFEST).is_file():
                    raise
    raise UserError(f"no checkpoint at {where} stays long enough to be read: copy one, and name the copy")


def _loaded(found: manifests.Opened) -> LoadedModel:
    path, config = found.path, found.config
    tokenizer = tokenizer_lib.load(found.run / "tokenizer")
    if tokenizer.hash != found.manifest["tokenizer_hash"]:
        raise UserError(f"{found.run / 'tokenizer'} is not the tokenizer that {path} was trained with")
    _, shapes, _ = size.abstract(config)
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    wanted = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device), shapes)
    params = checkpoint.restore_params(path, wanted)
    manifests.warn_if_unsealed(found.manifest, path)
    return LoadedModel(config, params, tokenizer, path, found.manifest["step"])
