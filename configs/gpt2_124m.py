"""GPT-2 small (Radford et al. 2019), the shape nanoGPT reproduces.

Command:     python -m lmtiny.train --config configs/gpt2_124m.py --config.corpus.kind=files --config.corpus.path=FOLDER
Hardware:    one host of accelerators, bfloat16
Fits:        from v5e-1 on --config.train.accumulation=40: 13.99 of 15.75 GiB a chip, says the TPU compiler
Tokens:      9.8 billion: 20,000 steps of 480 rows x 1,024
Time:        not yet run
Expected:    not yet run
Parameters:  124.4 M (published: 124,439,808; the vocabulary's padding to 50,304 not counted)
"""

import ml_collections

from lmtiny.config import defaults


def get_config() -> ml_collections.ConfigDict:
    config = defaults()
    config.tokenizer.vocab_size = 50_257
    config.model.update(
        {
            "num_layers": 12, "width": 768, "num_heads": 12, "context_length": 1024, "activation": "gelu", "norm": "layernorm",
            "norm_scale": True, "norm_epsilon": 1e-05, "position": "learned", "bias": "all", "qk_norm": False,
            "tied_embeddings": True, "zero_projections": False, "vocab_multiple": 128, "compute_dtype": "bfloat16",
            "scan_layers": True,
        }
    )
    config.optimizer.update({"name": "adamw", "learning_rate": 0.0006, "warmup_steps": 700, "decay": "tables"})
    config.train.update({"num_steps": 20000, "batch_size": 480, "accumulation": 4, "loss_chunk": 8192})
    config.evaluation.update({"every": 250, "rows": 1024})
    config.checkpoint.every = 1000
    return config
