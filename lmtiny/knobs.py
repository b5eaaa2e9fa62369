"""Every knob of lmtiny, declared once: name, type, default, unit, meaning, check.

`lmtiny.config` makes configs of them; `--help` prints them.
"""

import dataclasses
import json
import re
from collections.abc import Callable, Iterator
from typing import Any

Check = Callable[[Any], str]  # returns what is wrong, or ""
TEXT_KEY = "text"  # the field that holds the text where none is named
LONGEST_TEXT, LONGEST_NAME = 4096, 255  # Linux's longest path, in letters, and name in it, in bytes
LONGEST_LIST = 1_000_000  # of paths, in letters; of a prompt
STEPS, DEVICES, TOKENS = 2**31 - 1, 2**20, 2**24  # steps: an int32 counts them; tokens: of a row, or of a vocabulary


@dataclasses.dataclass(frozen=True)
class Range:
    """A check of a number: from `low`, or from just above it, to `high`."""

    low: float
    high: float
    above_low: bool = False

    def __call__(self, value: float) -> str:
        if (self.low < value if self.above_low else self.low <= value) and value <= self.high:
            return ""
        low, high = (f"{end:,}" if isinstance(end, int) else f"{end:g}" for end in (self.low, self.high))
        return f"must be above {low} and at most {high}" if self.above_low else f"must lie within {low} and {high}"


def within(low: float, high: float) -> Check:
    return Range(low, high)


def above(low: float, high: float) -> Check:
    return Range(low, high, above_low=True)


SEEDS = 2**31  # jax takes an int32
SEED = within(0, SEEDS - 1)
TEMPERATURE, TOP_K, TOP_P, MAX_TOKENS = within(0, 1000), within(0, 2**31 - 1), above(0, 1), within(1, 10**9)  # of sampling


def one_of(*choices: str) -> Check:
    return lambda value: "" if value in choices else f"must be one of {', '.join(choices)}"


def of(*choices: int) -> Check:
    return lambda value: "" if value in choices else f"must be {' or '.join(map(str, choices))}"


def letters(allowed: str, most: int) -> Check:
    return lambda value: "" if value and set(value) <= set(allowed) and len(value) <= most else f"must be made of the letters {allowed}, {most} at most"


def each_of(*choices: str) -> Check:
    return lambda values: "" if values and _are(values, choices) else f"must be one or more of {', '.join(choices)}"


def any_of(*choices: str) -> Check:
    return lambda values: "" if _are(values, choices) else f"must be some of {', '.join(choices)} (a list: {json.dumps(choices[:2])}), or empty"


def _are(values: tuple[str, ...], choices: tuple[str, ...]) -> bool:
    return len(values) <= len(choices) and set(values) <= set(choices)


def weight(value: float) -> str:
    return "means none: leave the source out, or give it a weight above 0" if value <= 0 else within(1e-9, 10**18)(value)


def slurm_time(text: str) -> str:
    right = re.fullmatch(r"[0-9]{1,9}(:[0-9]{2}){0,2}|[0-9]{1,9}-[0-9]{1,2}(:[0-9]{2}){0,2}|infinite|unlimited", text, re.IGNORECASE)
    return "" if right else "is no time of Slurm's: minutes, HH:MM:SS, DAYS-HH or UNLIMITED"


def at_most(letters: int) -> Check:
    return lambda value: "" if len(value) <= letters else f"has {len(value):,} letters; there may be {letters:,}"


def few(most: int, each: Check) -> Check:
    def check(values: tuple[Any, ...]) -> str:
        if len(values) > most:
            return f"has {len(values):,} items; there may be {most:,}"
        return next(filter(None, map(each, values)), "")

    return check


def text(value: str) -> str:
    """Refuses what no file can be called: looking for it would be an error of its own, elsewhere."""
    if problem := at_most(LONGEST_TEXT)(value):
        return problem
    try:
        names = value.encode(errors="surrogateescape").split(b"/")
    except UnicodeEncodeError:
        return "has half of a surrogate pair in it, which is no letter"
    if "\0" in value:
        return "has a zero byte in it"
    return "" if max(map(len, names)) <= LONGEST_NAME else f"has a name of more than {LONGEST_NAME} bytes in it"


def paths(value: str) -> str:
    return at_most(LONGEST_LIST)(value) or next(filter(None, map(text, value.split(","))), "")


def given_paths(value: str) -> str:
    return paths(value) if value else "must be given"


def folder_name(value: str) -> str:
    if value in (".", "..") or re.search(r"[/\\]", value):
        return "must be the name of a folder, without a path before it"
    return "" if value.isprintable() and len(value.encode()) <= 200 else "must be printable, and have at most 200 bytes"


def ordinary(value: Any) -> str:
    return text(value) if isinstance(value, str) else ""


@dataclasses.dataclass(frozen=True)
class Knob:
    """One setting. `type` is int, float, bool, str or tuple (of str); `unit` is "" where there is none.

    `check` says what is wrong with a value of the type: it has both ends of a number's range, a text's longest, a tuple's most.
    A tuple with `keys` holds dicts instead, each with exactly these keys; one with the default None need not have a value.
    """

    name: str
    type: type
    default: Any
    unit: str
    meaning: str
    check: Check = ordinary
    keys: tuple["Knob", ...] = ()


# What is done to documents before they are split and counted; a source may have its own.
REFINING = (
    Knob("cleaning", tuple, (), "", "unicode: broken encodings repaired (ftfy); gutenberg: its header and licence cut off; unwrap: hard-wrapped prose joined", any_of("unicode", "gutenberg", "unwrap")),
    Knob("filters", tuple, (), "", "rules for web text with their published thresholds (docs/refining.md): gopher_repetition, gopher_quality, c4, c4_paragraphs, fineweb", any_of("gopher_quality", "gopher_repetition", "c4", "c4_paragraphs", "fineweb")),
    Knob("language", str, "", "ISO 639-1", "documents in other languages are dropped; empty: all stay"),
    Knob("language_threshold", float, 0.65, "probability", "below it the language counts as another", within(0, 1)),
    Knob("quality", str, "none", "", "what a document's likeness to quality_good decides: nothing; below quality_threshold it is dropped; how likely it stays", one_of("none", "filter", "weight")),
    Knob("quality_threshold", float, 0.5, "probability", "filter: of being like quality_good", within(0, 1)),
    Knob("quality_exponent", float, 9.0, "", "weight: a document of score s stays with probability (2 - s)^-exponent", above(0, 1000)),
    Knob("deduplicate", bool, False, "", "near-duplicates are dropped from the training documents of all sources (MinHash)"),
    Knob("decontaminate", str, "", "", "evaluation sets: a folder, a file or a glob of texts, .jsonl or .csv, each [.gz|.zst]; training documents that share words in a row with them are dropped", paths),
)

# What is said of one source; docs/corpus.md has an example of each kind.
SOURCE = (
    Knob("path", str, "", "", "builtin; a folder, a file or a glob; an fsspec URL (gs://, s3://, hf://); hf:OWNER/DATASET; tfds:NAME", given_paths),
    Knob("name", str, "", "", "what the source is counted and mixed under; empty: made of the path"),
    Knob("weight", float, None, "", "its share of the tokens that are trained on is this over the sum of all; no source has one: by their sizes", weight),
    Knob("text_key", str, TEXT_KEY, "", "the field of a record that holds the text"),
    Knob("cut", str, "sections", "", "texts: documents of about corpus.section_bytes; whole files; paragraphs; each line; chapters", one_of("sections", "file", "blank lines", "lines", "chapters")),
    Knob("validation", str, "", "", "files: those held out, as corpus.validation_path says it; tfds: the split held out; empty: documents chosen by hash (hf: the last shard)", paths),
    Knob("subset", str, "", "", "hf: a folder or a glob of the dataset's shards, empty: all; tfds: the split to train on, empty: train"),
    Knob("revision", str, "main", "", "hf: branch, tag or commit of the dataset"),
    Knob("shards", int, 0, "shards", "hf: the first so many, beside the one held out; 0: all", within(0, 2**20)),
    Knob("data_dir", str, "", "", "tfds: the folder of prepared datasets; empty: TFDS's own"),
    *(dataclasses.replace(knob, default=None, meaning=f"of this source; not given: corpus.{knob.name}") for knob in REFINING),
)

KNOBS: dict[str, tuple[Knob, ...]] = {
    "": (
        Knob("name", str, "", "", "name of the run and of its folder under runs/; empty: the config file's name", folder_name),
        Knob("seed", int, 0, "", "seed of the initial weights, the shuffles, dropout and the samples", SEED),
    ),
    "corpus": (
        Knob("kind", str, "builtin", "", "builtin: English found in the Python installation; files: your own text; sources: those of `sources`", one_of("builtin", "files", "sources")),
        Knob("path", str, "", "", "files: a folder, a file or a glob of .txt, .md, .rst, .tex or .jsonl, each [.gz|.zst], or .parquet, or of any other text that is named itself or by its ending (*.py); several separated by commas", paths),
        Knob("validation_path", str, "", "", "files: those held out for validation, a file, a folder or a glob; several separated by commas, each as seen from here, or else those of `path` that end in it; empty: documents chosen by hash", paths),
        Knob("text_key", str, TEXT_KEY, "", "files: the field of a .jsonl or .parquet record that holds the text"),
        Knob("sources", tuple, (), "", "sources: a list of objects, one a source, with the keys below (docs/corpus.md)", few(1000, ordinary), keys=SOURCE),
        Knob("download_dir", str, "downloads", "", "sources: folder that shards are downloaded to, and found in again"),
        Knob("installed_packages", bool, False, "", "builtin: also read the installed packages (their text varies with their versions)"),
        Knob("section_bytes", int, 65536, "bytes", "a text longer than this is cut into documents of about this size, at blank lines where there are some, or else at line ends, or else at blanks", within(1024, 2**30)),
        Knob("validation_fraction", float, 0.05, "", "share of the documents held out for validation, where validation_path names none", within(0.0001, 0.5)),
        Knob("near_duplicate", float, 0.5, "Jaccard", "a training document this similar to a held-out one (word 5-grams) is dropped; above 1: never", above(0, 1000)),
        *REFINING,
        Knob("quality_good", str, "", "", "texts to be liked: a folder, a file or a glob, as corpus.path", paths),
        Knob("quality_bad", str, "", "", "texts to be told from them, such as raw web pages", paths),
        Knob("minhash_words", int, 5, "words", "n-grams that are compared", within(1, 1000)),
        Knob("minhash_buckets", int, 14, "", "documents that agree in all hashes of one bucket are duplicates", within(1, 1000)),
        Knob("minhash_hashes", int, 8, "", "hashes in a bucket", within(1, 1000)),
        Knob("decontaminate_words", int, 13, "words", "in a row that must be shared", within(1, 1000)),
        Knob("executor", str, "local", "", "who cleans, filters and deduplicates: processes of this machine, a Slurm cluster or a Ray cluster", one_of("local", "slurm", "ray")),
        Knob("slurm_partition", str, "", "", "slurm: where the jobs run"),
        Knob("slurm_time", str, "24:00:00", "", "slurm: the longest a job may take", slurm_time),
    ),
    "tokenizer": (
        Knob("kind", str, "bpe", "", "bpe: byte-level byte-pair encoding; superword: that, then merges across spaces, for which prompts must not end inside a phrase (docs/tokenizers.md); char: one token a character; byte: one token a byte", one_of("bpe", "superword", "char", "byte")),
        Knob("path", str, "", "", "a ready tokenizer: lmtiny's folder, a tokenizer.json, a sentencepiece .model, a .tiktoken, or a tiktoken name such as cl100k_base; empty: learn one from the corpus"),
        Knob("cut", int, 0, "tokens", "of the ready tokenizer (bpe) only the first so many, special tokens included: the one that learning this size would give; 0: all", within(0, TOKENS)),
        Knob("vocab_size", int, 4096, "tokens", "vocabulary at most, special tokens included (char and byte take what they need)", within(266, TOKENS)),
        Knob("word_share", float, 0.5, "", "superword: share of vocab_size that is plain BPE, before merges across spaces begin", within(0.05, 1)),
        Knob("sample_bytes", int, 2_000_000_000, "bytes", "learn from at most this much text", within(1, 10**13)),
    ),
    "data": (
        Knob("dir", str, "", "", "folder of the token shards; empty: prepared/ and a name made of what they depend on"),
        Knob("row_length", int, 0, "tokens", "T of the stored rows of T+1 tokens, a multiple of model.context_length; 0: model.context_length", within(0, TOKENS)),
        Knob("rows_per_shard", int, 65536, "rows", "rows in one array_record file", within(1, 2**24)),
        Knob("num_processes", int, 0, "", "processes that tokenise; 0: one a core", within(0, 4096)),
        Knob("read_threads", int, 2, "", "threads that read rows while the device computes", within(1, 1024)),
        Knob("prefetch", int, 4, "blocks", "blocks of batches read ahead; a block has one batch, or as many small ones as 65,536 tokens hold", within(1, 1024)),
    ),
    "model": (
        Knob("context_length", int, 256, "tokens", "T: the longest sequence the model is trained on", within(2, TOKENS)),
        Knob("num_layers", int, 4, "", "L: Transformer blocks", within(1, 1024)),
        Knob("width", int, 256, "", "D: size of the residual stream", within(1, 2**18)),
        Knob("num_heads", int, 4, "", "H: query heads", within(1, 2**14)),
        Knob("num_kv_heads", int, 0, "", "K: key and value heads, shared by H/K query heads each (GQA); 0: H", within(0, 2**14)),
        Knob("head_dim", int, 0, "", "N: size of a head; 0: D/H", within(0, 2**14)),
        Knob("mlp_ratio", float, 4.0, "", "F/D: hidden size of the MLP over the width", within(0.01, 256)),
        Knob("activation", str, "relu2", "", "of the MLP; swiglu and geglu are gated (three matrices)", one_of("swiglu", "geglu", "gelu", "silu", "relu2")),
        Knob("num_experts", int, 0, "", "E: MLPs of a block, of which each token uses a few; 0: one MLP for all", within(0, 2**16)),
        Knob("experts_per_token", int, 2, "", "k: experts that compute a token", within(1, 1024)),
        Knob("expert_capacity", float, 0.0, "", "in training an expert takes at most this times k T / E tokens of a row, the first ones; 0: all that chose it", within(0, 2**16)),
        Knob("router_balance_loss", float, 0.01, "", "times the load-balancing loss, summed over the layers", within(0, 1000)),
        Knob("router_z_loss", float, 0.001, "", "times the mean squared logsumexp of the router's logits, summed over the layers", within(0, 1000)),
        Knob("norm", str, "rmsnorm", "", "normalisation before attention, MLP and head", one_of("rmsnorm", "layernorm")),
        Knob("norm_scale", bool, False, "", "learned scale in the norms (LayerNorm: scale and bias)"),
        Knob("norm_epsilon", float, 1e-6, "", "added to the mean square", within(1e-30, 1)),
        Knob("position", str, "rope", "", "rope: rotary; learned: a table added to the embedding", one_of("rope", "learned")),
        Knob("rope_base", float, 10000.0, "", "base of the rotary wavelengths", above(1, 10**12)),
        Knob("bias", str, "none", "", "biases: none; on queries, keys and values; or on every matrix of the blocks", one_of("none", "qkv", "all")),
        Knob("qk_norm", bool, True, "", "RMSNorm without scale on queries and keys"),
        Knob("attention", str, "auto", "", "the core of attention (docs/attention.md); auto: by device and shape", one_of("auto", "reference", "chunked", "cudnn", "splash")),
        Knob("attention_chunk", int, 0, "tokens", "chunked: queries whose scores exist at one time; 0: a quarter of the row or half a window, within 64 and 256", within(0, TOKENS)),
        Knob("attention_soft_cap", float, 0.0, "", "scores = cap * tanh(scores / cap); 0: none", within(0, 10**6)),
        Knob("logit_soft_cap", float, 0.0, "", "logits = cap * tanh(logits / cap); 0: none", within(0, 10**6)),
        Knob("tied_embeddings", bool, False, "", "the head reads the embedding table"),
        Knob("window", int, 0, "tokens", "how far back a layer marked S sees, itself included; 0: as far as L", within(0, TOKENS)),
        Knob("window_pattern", str, "L", "", "repeated over the layers: S slides a window, L sees the whole context", letters("SL", 16)),
        Knob("mask_documents", bool, True, "", "a token sees only its own document in a packed row"),
        Knob("dropout", float, 0.0, "", "share of activations dropped after embedding, attention and MLP", within(0, 0.9)),
        Knob("init", str, "gpt", "", "of the matrices inside blocks: gpt: normal(0.02); xavier; kaiming (embedding and head: always normal(0.02))", one_of("gpt", "xavier", "kaiming")),
        Knob("zero_projections", bool, True, "", "output matrices of attention and MLP start at zero (else scaled by 1/sqrt(2L) under gpt)"),
        Knob("ngram_rows", int, 0, "rows", "of a table of vectors for n-grams, the last 2, 3, .. tokens, added to the embedding; n-grams share rows by hash; 0: none", within(0, 2**31 - 1)),
        Knob("longest_ngram", int, 2, "tokens", "ngram_rows: up to how many tokens; 2: pairs, 3: pairs and triples", within(2, 32)),
        Knob("induction", int, 0, "n-grams", "for n = 1 to this, the vector of the token that followed where the last n tokens stood before is added to the embedding; 0: none", within(0, 16)),
        Knob("induction_places", int, 1, "places", "induction: how many of the last places where they stood are looked at; their tokens' vectors are summed", within(1, 32)),
        Knob("copying", bool, False, "", "mix the next token's probability with how often each token followed the last 0 to `induction` ones in the document so far, by learned gates"),
        Knob("vocab_multiple", int, 1, "tokens", "rows of embedding and head are padded to a multiple, so that a mesh divides them", within(1, 2**20)),
        Knob("scan_layers", bool, False, "", "one compiled block run L times (compiles fast); else L blocks in a row (runs faster on CPU)"),
        Knob("remat", str, "none", "", "recompute in the backward pass: nothing; all but matmul results; all but remat_names; the same, kept in the host's memory; whole blocks", one_of("none", "dots", "names", "offload", "block")),
        Knob("remat_names", tuple, ("attended", "mlp_hidden"), "", "names and offload: what is kept, of query, key, value, attended, mlp_hidden", each_of("query", "key", "value", "attended", "mlp_hidden")),
        Knob("compute_dtype", str, "float32", "", "of activations and matmuls; weights stay float32; float16 scales its loss", one_of("float32", "bfloat16", "float16")),
        Knob("matmul_dtype", str, "compute", "", "of the operands of products inside blocks, in training: compute_dtype, int8 or float8", one_of("compute", "int8", "float8")),
    ),
    "optimizer": (
        Knob("name", str, "muon", "", "adamw; muon: Muon for matrices inside blocks, AdamW for the rest", one_of("adamw", "muon")),
        Knob("learning_rate", float, 3e-4, "", "peak rate of the matrices inside blocks", within(1e-12, 1000)),
        Knob("embedding_learning_rate", float, 0.0, "", "peak rate of the tables: of tokens, followers, positions; 0: learning_rate", within(0, 1000)),
        Knob("ngram_learning_rate", float, 0.025, "", "rate of the table of n-grams (row-wise Adagrad), the same at every step; no weight decay", within(1e-12, 1000)),
        Knob("ngram_prior", float, 8.0, "gradients", "of usual size that each row of n-grams counts before its first; 0: what is seen once moves as far as what is seen often", within(0, 10**9)),
        Knob("head_learning_rate", float, 0.0, "", "peak rate of the head; 0: learning_rate", within(0, 1000)),
        Knob("scalar_learning_rate", float, 0.0, "", "peak rate of norms and biases; 0: learning_rate", within(0, 1000)),
        Knob("schedule", str, "cosine", "", "after the warmup: cosine; linear: constant, then linear warmdown; constant", one_of("cosine", "linear", "constant")),
        Knob("warmup_steps", int, 0, "steps", "linear from zero", within(0, STEPS)),
        Knob("warmdown_fraction", float, 0.4, "", "linear: share of the run that warms down", within(0, 1)),
        Knob("final_fraction", float, 0.1, "", "rate at the end over the peak", within(0, 1)),
        Knob("b1", float, 0.9, "", "AdamW: decay of the mean", within(0, 0.99999)),
        Knob("b2", float, 0.95, "", "AdamW: decay of the square", within(0, 0.999999)),
        Knob("epsilon", float, 1e-8, "", "AdamW: added to the root", within(1e-30, 1)),
        Knob("momentum", float, 0.95, "", "Muon: decay of the Nesterov momentum", within(0, 0.99999)),
        Knob("weight_decay", float, 0.1, "per step, times the rate", "decoupled weight decay", within(0, 1000)),
        Knob("decay", str, "matrices", "", "what decays: matrices inside blocks; those, embedding and head; everything", one_of("matrices", "tables", "all")),
        Knob("clip_norm", float, 1.0, "", "gradients are scaled to at most this global norm; 0: not", within(0, 10**9)),
    ),
    "train": (
        Knob("num_steps", int, 1000, "steps", "optimizer steps", within(1, STEPS)),
        Knob("batch_size", int, 32, "rows", "rows in a step, over all devices and microbatches", within(1, 2**24)),
        Knob("accumulation", int, 1, "microbatches", "a step sums the gradients of this many microbatches", within(1, 2**24)),
        Knob("loss_chunk", int, 0, "tokens", "cross-entropy this many tokens at a time, so that the full logits never exist; 0: all at once", within(0, 2**31 - 1)),
    ),
    "parallel": (
        Knob("data", int, 0, "devices", "copies of the model, each with its share of the batch; 0: the devices that are left", within(0, DEVICES)),
        Knob("fsdp", int, 1, "devices", "devices that share the batch, the weights and the optimizer state", within(1, DEVICES)),
        Knob("tensor", int, 1, "devices", "devices that share heads, MLP, vocabulary and, between the matrices, time", within(1, DEVICES)),
        Knob("context", int, 1, "devices", "devices that share a row's time (ring attention)", within(1, DEVICES)),
        Knob("pipeline", int, 1, "devices", "stages of consecutive layers", within(1, 1024)),
        Knob("expert", int, 1, "devices", "devices that share the batch and the experts", within(1, 2**16)),
        Knob("pipeline_microbatches", int, 0, "microbatches", "a stage works on one while the next stage has the one before; more waste less time; 0: twice the stages", within(0, 2**16)),
        Knob("zero", int, 3, "", "split over fsdp: 3: weights, gradients and optimizer state; 1: gradients and optimizer state", of(1, 3)),
        Knob("cpu_matmul", str, "xla", "", "who multiplies matrices on a CPU, one device: xla; own: lmtiny's C++, faster, for x86 alone (float32 needs AVX2, bfloat16 AVX512-BF16); mkl: Intel's float32 (pip install 'lmtiny[mkl]'); the last two need a C++ compiler", one_of("xla", "own", "mkl")),
    ),
    "evaluation": (
        Knob("every", int, 200, "steps", "validation loss; 0: only at the end", within(0, STEPS)),
        Knob("rows", int, 256, "rows", "validation rows at most", within(1, 10**9)),
        Knob("context_length", int, 0, "tokens", "T of validation rows; 0: model.context_length; more shows what the model makes of longer text than it is trained on", within(0, TOKENS)),
        Knob("sample_every", int, 0, "steps", "samples during training; 0: only at the end", within(0, STEPS)),
        Knob("prompts", tuple, ("The ", "This function returns"), "", "what the samples go on from", few(1000, at_most(LONGEST_LIST))),
        Knob("sample_tokens", int, 64, "tokens", "length of a sample", within(1, 10**6)),
        Knob("temperature", float, 0.8, "", "of the samples; 0: the likeliest token", TEMPERATURE),
    ),
    "checkpoint": (
        Knob("every", int, 250, "steps", "save; 0: only at the end", within(0, STEPS)),
        Knob("keep", int, 2, "checkpoints", "the newest ones to keep", within(1, 10**6)),
        Knob("keep_best", bool, True, "", "also keep the one of the best validation loss"),
    ),
    "log": (
        Knob("every", int, 20, "steps", "read the loss and write a line; the only moments the loop waits for the device", within(1, STEPS)),
        Knob("tensorboard", bool, True, "", "also write TensorBoard events"),
    ),
}


# What the field calls them elsewhere: who types such a name is led to the knob.
SYNONYMS: dict[str, str] = {
    word: name
    for name, words in {
        "seed": "random_seed rng_seed",
        "corpus.path": "data_path dataset train_data train_file",
        "tokenizer.vocab_size": "vocab n_vocab vocabulary_size",
        "data.num_processes": "workers num_workers num_proc",
        "model.context_length": "block_size seq_len seq_length sequence_length max_seq_len max_length n_ctx context_size context_window",
        "model.num_layers": "n_layer n_layers layers depth num_hidden_layers num_blocks n_blocks",
        "model.width": "d_model dim n_embd hidden_size hidden_dim embed_dim embedding_dim model_dim emb_dim",
        "model.num_heads": "heads n_head n_heads nhead num_attention_heads attention_heads",
        "model.num_kv_heads": "kv_heads n_kv_head n_kv_heads num_key_value_heads",
        "model.head_dim": "d_head head_size",
        "model.mlp_ratio": "d_ff ffn_dim ff_mult mlp_dim intermediate_size",
        "model.num_experts": "experts n_experts num_local_experts",
        "model.experts_per_token": "num_experts_per_tok moe_top_k",
        "model.norm_epsilon": "rms_norm_eps layer_norm_eps norm_eps",
        "model.rope_base": "rope_theta",
        "model.window": "sliding_window window_size",
        "model.tied_embeddings": "tie_embeddings tie_word_embeddings weight_tying",
        "model.dropout": "dropout_rate dropout_prob resid_pdrop",
        "model.remat": "gradient_checkpointing activation_checkpointing",
        "model.compute_dtype": "dtype precision",
        "optimizer.name": "optim optimizer_name",
        "optimizer.learning_rate": "lr max_lr peak_lr base_lr",
        "optimizer.schedule": "lr_schedule lr_scheduler scheduler",
        "optimizer.warmup_steps": "warmup warmup_iters num_warmup_steps",
        "optimizer.b1": "beta1 adam_beta1",
        "optimizer.b2": "beta2 adam_beta2",
        "optimizer.epsilon": "eps adam_eps",
        "optimizer.weight_decay": "wd",
        "optimizer.clip_norm": "clip grad_clip max_grad_norm gradient_clipping",
        "train.num_steps": "steps n_steps max_steps train_steps iters max_iters iterations num_iterations",
        "train.batch_size": "bs batch global_batch_size",
        "train.accumulation": "grad_accum accum gradient_accumulation gradient_accumulation_steps",
        "evaluation.every": "eval_every eval_interval eval_steps",
        "checkpoint.every": "save_every save_steps save_interval",
        "log.every": "log_every log_interval logging_steps",
    }.items()
    for word in words.split()
}


def knobs() -> Iterator[tuple[str, Knob]]:
    """Yields (dotted name, knob) for all of them, in the order of declaration."""
    for section, members in KNOBS.items():
        for knob in members:
            yield (f"{section}.{knob.name}" if section else knob.name), knob
