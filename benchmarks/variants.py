"""What benchmarks/recipe.py tries: what is changed of its base, by the knob; "x2" is twice the base's value."""

BASE = "base"

NONE = {  # of what configs/tiny.py has beyond GPT-2's recipe
    "model.activation": "gelu", "model.qk_norm": False, "model.zero_projections": False, "model.ngram_rows": 0, "model.induction": 0,
    "optimizer.name": "adamw", "optimizer.schedule": "cosine", "optimizer.b2": 0.95,
}  # fmt: skip

# One choice of configs/tiny.py after the other: which of them buy something in minutes of training?
RECIPE = {
    BASE: {},
    "GELU": {"model.activation": "gelu"},
    "SwiGLU, same parameters": {"model.activation": "swiglu", "model.mlp_ratio": 8 / 3},
    "no QK-norm": {"model.qk_norm": False},
    "projections not from zero": {"model.zero_projections": False},
    "no pairs of tokens": {"model.ngram_rows": 0},
    "pairs of tokens, 65,536 rows": {"model.ngram_rows": 65536},
    "no followers": {"model.induction": 0},
    "followers of 1 to 3 tokens": {"model.induction": 3},
    "followers of the last place alone": {"model.induction_places": 1},
    "pairs of tokens without a prior, twice the rate": {"optimizer.ngram_prior": 0.0, "optimizer.ngram_learning_rate": "x2"},
    "AdamW's b2 0.95": {"optimizer.b2": 0.95},
    "n-grams to 3 tokens, 65,536 rows": {"model.ngram_rows": 65536, "model.longest_ngram": 3},
    "n-grams to 3 tokens, 2^20 rows": {"model.ngram_rows": 2**20, "model.longest_ngram": 3},
    "pairs of tokens, 65,536 rows, 1 layer": {"model.ngram_rows": 65536, "model.num_layers": 1},
    "logit soft cap 15": {"model.logit_soft_cap": 15.0},
    "windows of 64, SL": {"model.window": 64, "model.window_pattern": "SL"},
    "documents not masked": {"model.mask_documents": False},
    "cosine": {"optimizer.schedule": "cosine"},
    "warmdown 0.4": {"optimizer.warmdown_fraction": 0.4},
    "warmdown 1.0": {"optimizer.warmdown_fraction": 1.0},
    "AdamW": {"optimizer.name": "adamw"},
    "AdamW, rate x 0.5": {"optimizer.name": "adamw", "optimizer.learning_rate": "x0.5"},
    "AdamW, rate x 0.25": {"optimizer.name": "adamw", "optimizer.learning_rate": "x0.25"},
    "none of them": NONE,
    "none of them, rate x 0.5": NONE | {"optimizer.learning_rate": "x0.5"},
    "half the batch": {"train.batch_size": "x0.5"},
    "twice the batch": {"train.batch_size": "x2"},
    "rate x 0.5": {"optimizer.learning_rate": "x0.5"},
    "rate x 2": {"optimizer.learning_rate": "x2"},
    "rate x 4": {"optimizer.learning_rate": "x4"},
    "embedding rate x 3": {"optimizer.embedding_learning_rate": "x3"},
    "no weight decay": {"optimizer.weight_decay": 0.0},
    "1 layer": {"model.num_layers": 1},
    "3 layers": {"model.num_layers": 3},
    "4 layers": {"model.num_layers": 4},
    "128 wide": {"model.width": 128, "model.num_heads": 1},
    "256 wide": {"model.width": 256, "model.num_heads": 2},
    "twice the batch, rate x 2": {"train.batch_size": "x2", "optimizer.learning_rate": "x2"},
    "twice the batch, rate x 0.5": {"train.batch_size": "x2", "optimizer.learning_rate": "x0.5"},
    "4 layers, rate x 0.5": {"model.num_layers": 4, "optimizer.learning_rate": "x0.5"},
    "4 layers, rate x 2": {"model.num_layers": 4, "optimizer.learning_rate": "x2"},
    "MLP ratio 3": {"model.mlp_ratio": 3.0},
    "tied embeddings": {"model.tied_embeddings": True},
    "half the context": {"model.context_length": "x0.5", "train.batch_size": "x2"},
    "twice the context": {"model.context_length": "x2", "train.batch_size": "x0.5"},
    "vocabulary 2,048": {"tokenizer.vocab_size": 2048},
    "vocabulary 8,192": {"tokenizer.vocab_size": 8192},
}

# Shrunk twins of configs/d4_38m.py, d7_38m.py and d29_38m.py (a quarter of width and context, a sixteenth of the parameters,
# split in thirds as there), and what one would ask of the first.
QUESTIONS_BASE = {
    "tokenizer.vocab_size": 6144, "model.num_layers": 4, "model.width": 128, "model.num_heads": 4, "model.context_length": 256,
    "model.ngram_rows": 0, "model.induction": 0, "model.induction_places": 1, "train.batch_size": 8, "optimizer.b2": 0.95,
}  # fmt: skip
QUESTIONS = {
    BASE: {},
    "7 layers of 96, vocabulary 8,192": {"model.num_layers": 7, "model.width": 96, "model.num_heads": 3, "tokenizer.vocab_size": 8192},
    "29 layers of 48, vocabulary 16,384": {
        "model.num_layers": 29, "model.width": 48, "model.num_heads": 1, "tokenizer.vocab_size": 16384, "model.scan_layers": True,
    },
    "2 heads of 64": {"model.num_heads": 2},
    "1 head of 128": {"model.num_heads": 1},
    "tied embeddings": {"model.tied_embeddings": True},
    "GQA by 2": {"model.num_kv_heads": 2},
    "GQA by 4": {"model.num_kv_heads": 1},
    "MLP ratio 3": {"model.mlp_ratio": 3.0},
    "MLP ratio 2.5": {"model.mlp_ratio": 2.5},
    "GELU": {"model.activation": "gelu"},
    "SwiGLU, same parameters": {"model.activation": "swiglu", "model.mlp_ratio": 8 / 3},
    "twice the context": {"model.context_length": 512, "train.batch_size": 4},
    "vocabulary 4,096": {"tokenizer.vocab_size": 4096},
    "vocabulary 16,384": {"tokenizer.vocab_size": 16384},
    "vocabulary 32,768": {"tokenizer.vocab_size": 32768},
    "pairs of tokens, 65,536 rows": {"model.ngram_rows": 65536},
    "followers of 1 and 2 tokens": {"model.induction": 2},
}  # fmt: skip
