"""The Qwen2.5 layout at the width and depth of d20: SwiGLU, GQA, biases on queries, keys and values.

Command:     python -m lmtiny.train --config configs/qwen2_5_small.py --config.corpus.kind=files --config.corpus.path=FOLDER
Hardware:    a TPU slice or several hosts of GPUs, bfloat16; set parallel.fsdp
Fits:        from v5e-1 on --config.train.accumulation=256: 14.29 of 15.75 GiB a chip, says the TPU compiler
Tokens:      13.1 billion: 25,000 steps of 256 rows x 2,048
Time:        not yet run
Expected:    not yet run
Parameters:  732 M
"""

import ml_collections

from lmtiny.config import defaults


def get_config() -> ml_collections.ConfigDict:
    config = defaults()
    config.tokenizer.vocab_size = 151_646
    config.model.update(
        {
            "num_layers": 20, "width": 1280, "num_heads": 10, "num_kv_heads": 2, "head_dim": 128, "mlp_ratio": 3456 / 1280,
            "context_length": 2048, "activation": "swiglu", "norm_scale": True, "bias": "qkv", "qk_norm": False, "rope_base": 1e6,
            "tied_embeddings": False, "zero_projections": False, "vocab_multiple": 128, "compute_dtype": "bfloat16",
            "scan_layers": True, "remat": "block",
        }
    )
    config.optimizer.update({"name": "adamw", "learning_rate": 0.0003, "warmup_steps": 2000})
    config.train.update({"num_steps": 25000, "batch_size": 256, "loss_chunk": 4096})
    config.evaluation.update({"every": 500, "rows": 1024})
    config.checkpoint.every = 1000
    return config
