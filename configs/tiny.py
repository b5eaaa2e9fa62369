"""A first model, on two CPU cores, in minutes, from text that every Python installation carries.

Command:     python -m lmtiny.train --config configs/tiny.py
Hardware:    2 CPU cores (AMD EPYC, AVX-512), float32
Fits:        from v5e-1 on: 0.15 of 15.75 GiB a chip, says the TPU compiler
Tokens:      1.31 million: 640 steps of 8 rows x 256, about twice through the corpus
Time:        1 min 26 s from the start of the command to its end, 12 s to the first step (nothing cached)
Expected:    1.496 bits per byte on the held-out documents (Python 3.11.7's; other versions carry other text)
Parameters:  6.39 M (blocks 0.88 M; tables: n-grams 3.15 M, embedding, followers and head 0.79 M each)
"""

import ml_collections

from lmtiny.config import defaults


def get_config() -> ml_collections.ConfigDict:
    config = defaults()
    config.tokenizer.vocab_size = 4096
    config.model.update({"num_layers": 2, "width": 192, "num_heads": 2, "context_length": 256})
    config.model.update({"ngram_rows": 16_384, "induction": 2, "induction_places": 2, "copying": True})
    config.optimizer.update(
        {
            "name": "muon", "learning_rate": 3e-3, "embedding_learning_rate": 1e-2, "schedule": "linear", "warmup_steps": 20,
            "warmdown_fraction": 0.6, "final_fraction": 0.0, "b2": 0.99,
        }
    )
    config.train.update({"num_steps": 640, "batch_size": 8})
    config.evaluation.update({"every": 160, "sample_every": 320})
    config.checkpoint.every = 160
    config.log.every = 10
    return config
