"""Qwen2.5-7B (arXiv 2412.15115).

Command:     python -m lmtiny.train --config configs/qwen2_5_7b.py --config.corpus.kind=files --config.corpus.path=FOLDER
Hardware:    a TPU slice or several hosts of GPUs, bfloat16; set parallel.fsdp
Fits:        from v5e-16 on --config.parallel.fsdp=8 --config.parallel.tensor=2 --config.train.accumulation=8: 15.49 of 15.75 GiB a chip,
             says the TPU compiler
Tokens:      26.2 billion: 25,000 steps of 256 rows x 4,096
Time:        not yet run
Expected:    not yet run
Parameters:  7.61 B (published; 6.53 B without embedding and head)
"""

import ml_collections

from lmtiny.config import defaults


def get_config() -> ml_collections.ConfigDict:
    config = defaults()
    config.tokenizer.vocab_size = 151_646
    config.model.update(
        {
            "num_layers": 28, "width": 3584, "num_heads": 28, "num_kv_heads": 4, "head_dim": 128, "mlp_ratio": 18944 / 3584,
            "context_length": 4096, "activation": "swiglu", "norm_scale": True, "bias": "qkv", "qk_norm": False, "rope_base": 1e6,
            "tied_embeddings": False, "zero_projections": False, "vocab_multiple": 128, "compute_dtype": "bfloat16",
            "scan_layers": True, "remat": "block",
        }
    )
    config.optimizer.update({"name": "adamw", "learning_rate": 0.0003, "warmup_steps": 2000})
    config.train.update({"num_steps": 25000, "batch_size": 256, "loss_chunk": 4096})
    config.evaluation.update({"every": 500, "rows": 1024})
    config.checkpoint.every = 1000
    return config
