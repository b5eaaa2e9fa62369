"""Twenty-nine narrow layers at 38 M parameters: d4_38m's rival in depth.

Command:     python -m lmtiny.train --config configs/d29_38m.py --config.corpus.kind=files --config.corpus.path=FOLDER
Hardware:    one GPU or TPU chip, bfloat16
Fits:        from v5e-1 on --config.train.accumulation=8: 9.73 of 15.75 GiB a chip, says the TPU compiler
Tokens:      786 million: 6,000 steps of 128 rows x 1,024
Time:        not yet run
Expected:    not yet run
Parameters:  38.0 M (embedding and head 12.6 M each, blocks 12.8 M)
"""

import ml_collections

from lmtiny.config import defaults


def get_config() -> ml_collections.ConfigDict:
    config = defaults()
    config.tokenizer.vocab_size = 65_536
    config.model.update(
        {
            "num_layers": 29, "width": 192, "num_heads": 3, "context_length": 1024, "compute_dtype": "bfloat16",
            "scan_layers": True,
        }
    )
    config.optimizer.update(
        {
            "name": "muon", "learning_rate": 3e-3, "embedding_learning_rate": 1e-2, "schedule": "linear", "warmup_steps": 200,
            "warmdown_fraction": 0.6, "final_fraction": 0.0,
        }
    )
    config.train.update({"num_steps": 6000, "batch_size": 128, "loss_chunk": 8192})
    config.evaluation.update({"every": 250, "rows": 1024})
    config.checkpoint.every = 1000
    return config
