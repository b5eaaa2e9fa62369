"""The texts a run shows of itself."""

from typing import Any

import ml_collections

from lmtiny.sampling.generate import Decoder
from lmtiny.tokenizer import Tokenizer


def samples(decoder: Decoder, params: Any, tokenizer: Tokenizer, config: ml_collections.ConfigDict) -> list[tuple[str, str]]:
    """Returns (prompt, what the model goes on with) for each of evaluation.prompts; the same seed each time."""
    c, bos = config.evaluation, tokenizer.bos_id

    def goes_on(prompt: str) -> str:
        ids = decoder.generate(
            params, [bos, *tokenizer.encode(prompt)],
            max_tokens=c.sample_tokens, temperature=c.temperature, seed=config.seed, stop=(bos,), keep=1,
        )  # fmt: skip
        return tokenizer.decode(list(ids))

    return [(prompt, goes_on(prompt)) for prompt in c.prompts]
