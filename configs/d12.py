"""Depth 12, width 64 a layer, heads of 128, squared ReLU: the smallest of the speed-run family.

Command:     python -m lmtiny.train --config configs/d12.py --config.corpus.kind=files --config.corpus.path=FOLDER
Hardware:    one host of accelerators, bfloat16; on fewer devices raise train.accumulation
Fits:        from v5e-1 on --config.train.accumulation=4: 8.80 of 15.75 GiB a chip, says the TPU compiler
Tokens:      3.7 billion (20 a parameter): 7,100 steps of 256 rows x 2,048
Time:        not yet run
Expected:    not yet run
Parameters:  186 M (embedding and head 50 M each, blocks 85 M)
"""

import ml_collections

from lmtiny.config import defaults


def get_config() -> ml_collections.ConfigDict:
    config = defaults()
    config.tokenizer.vocab_size = 65_536
    config.model.update(
        {
            "num_layers": 12, "width": 768, "num_heads": 6, "context_length": 2048, "logit_soft_cap": 15.0,
            "compute_dtype": "bfloat16", "scan_layers": True, "remat": "block",
        }
    )
    config.optimizer.update(
        {
            "name": "muon", "learning_rate": 0.1 / config.model.width**0.5,  # docs/log.md, "Muon's rate in d12 to d32"
            "embedding_learning_rate": 0.01, "head_learning_rate": 0.002,
            "schedule": "linear", "warmup_steps": 100, "weight_decay": 0.0,
        }
    )
    config.train.update({"num_steps": 7100, "batch_size": 256, "loss_chunk": 8192})
    config.evaluation.update({"every": 250, "rows": 2048})
    config.checkpoint.every = 1000
    return config
