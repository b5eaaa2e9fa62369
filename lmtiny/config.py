"""Configs: complete, typed, checked sets of the knobs that `lmtiny.knobs` declares.

A config file (`configs/X.py`) starts from `defaults()`, sets what it wants, and returns the whole.  The command line
changes single knobs: `--config.optimizer.learning_rate=3e-4`.  `check` refuses what cannot work before anything is
compiled; an unknown key or a wrong type is refused with the nearest valid name.
"""

import difflib
import hashlib
import importlib.util
import json
import math
import pathlib
import re
from typing import Any

import ml_collections

from lmtiny import values as values_lib
from lmtiny.errors import UserError, cut, shown
from lmtiny.knobs import KNOBS, knobs, text

LONGEST_FILE = 1 << 20  # bytes of a config file: what is longer is something else
MOST_PARAMETERS, MOST_TOKENS = 10**13, 2**36  # of a model; of a step: products of knobs of which each may be as large as it is

# Outermost first: neighbours on the last axes talk most, and `parallel.mesh` lays those along the fastest links.
MESH_AXES = ("pipeline", "data", "fsdp", "expert", "context", "tensor")

# What a resumed run may change: nothing here alters what a step computes, but for rounding (num_steps only moves the
# schedule's end).
MAY_CHANGE_ON_RESUME = frozenset({"name", "corpus.download_dir", "data.dir", "data.num_processes", "data.read_threads", "data.prefetch",
                                  "train.num_steps", "train.loss_chunk", "model.attention", "model.attention_chunk", "model.remat",
                                  "model.remat_names", "model.scan_layers"})  # fmt: skip
SECTIONS_THAT_MAY_CHANGE = frozenset({"parallel", "evaluation", "checkpoint", "log"})


def defaults() -> ml_collections.ConfigDict:
    """Returns a complete config of default values: the start of every `configs/*.py`."""
    return ml_collections.ConfigDict(
        {
            **{knob.name: knob.default for knob in KNOBS[""]},
            **{section: {knob.name: knob.default for knob in members} for section, members in KNOBS.items() if section},
        }
    )


def set_knob(config: ml_collections.ConfigDict, name: str, value: Any) -> None:
    """Sets the knob of the dotted `name`; raises UserError for an unknown name or a wrong type."""
    known = dict(knobs())
    if name not in known:
        raise UserError(f"config has no {shown(name)}{values_lib.nearest(name, list(known))}")
    *path, last = name.split(".")
    (config[path[0]] if path else config)[last] = values_lib.converted(name, known[name], value)


def get_knob(config: ml_collections.ConfigDict, name: str) -> Any:
    """Returns the value of the knob of the dotted `name`."""
    for part in name.split("."):
        config = config[part]
    return config


# What ml_collections says of a value of another type than the knob's.
_OTHER_TYPE = re.compile(
    r"override field '(?P<name>\w+)'.* of original type <class '(?:.*\.)?(?P<given>\w+)'> .* type <class '(?:.*\.)?(?P<wanted>\w+)'>", re.S
)


def load(path: str, overrides: dict[str, str] | None = None) -> ml_collections.ConfigDict:
    """Returns the checked config of a `configs/X.py` with `overrides` (dotted name -> text) applied.

    Raises:
      UserError: no such file, no `get_config()`, an unknown or mistyped knob, or a value that `check` refuses.
    """
    file = _found(path)
    spec = importlib.util.spec_from_file_location(f"lmtiny_config_{file.stem}", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        if not hasattr(module, "get_config"):
            raise UserError(f"{path} has no get_config(); a config file defines one that returns the config")
        config = module.get_config()
        if isinstance(config, ml_collections.ConfigDict):
            config = config.to_dict()
    except UserError:
        raise
    except SystemExit:  # it would end the program, with success perhaps and without a word
        raise UserError(f"{path} calls exit; a config file only returns a config") from None
    except Exception as error:  # a config file is the person's own code: whatever it raises is told in one line
        if isinstance(error, TypeError) and (found := _OTHER_TYPE.search(str(error))):
            comma = "; a list of one wants a comma behind it: ({...},)" if found["wanted"] == "tuple" else ""
            raise UserError(f"{path}: {found['name']} is of the type {found['given']}, not {found['wanted']}{comma}") from None
        raise UserError(f"{path}: {type(error).__name__}: {cut(' '.join(str(error).split()), 300)}") from error
    config = from_dict(config, path)
    for name, value in (overrides or {}).items():
        set_knob(config, name, value)
    if not config.name:
        config.name = file.stem
    check(config)
    return config


def _found(path: str) -> pathlib.Path:
    """Returns the config file of a path; raises UserError, which names those that may be meant, where there is none."""
    if problem := text(path):
        raise UserError(f"--config {shown(path)} {problem}")
    file = pathlib.Path(path)
    try:
        size = file.stat().st_size if file.is_file() else None
    except OSError as error:
        raise UserError(f"--config {path} cannot be read: {error.strerror}") from None
    if size is None:
        beside = sorted(file.parent.glob("[!_]*.py")) if file.parent.is_dir() else []
        there = {other.stem: str(other) for other in (*files_there(), *beside)}
        close = difflib.get_close_matches(file.stem, there, 1, 0.6)
        listed = map(str, beside if beside and file.parent.name else files_there())
        others = f"; did you mean {there[close[0]]}?" if close else f"; there are {', '.join(listed)}" if there else ""
        raise UserError(f"no config file {path!r}{others}")
    if file.suffix != ".py":
        raise UserError(f"{path} is no config file: its name must end in .py")
    if size > LONGEST_FILE:
        raise UserError(f"{path} is no config file: it has {size:,} bytes")
    return file


def files_there() -> list[pathlib.Path]:
    """Returns the config files that can be named from here: those of configs/, or else those beside the code."""
    beside_the_code = pathlib.Path(__file__).parent.parent
    found = (sorted(root.glob("configs/[!_]*.py")) for root in (pathlib.Path(), beside_the_code))
    return next(filter(None, found), [])


def from_dict(values: Any, where: str) -> ml_collections.ConfigDict:
    """Returns the config of a nested dict (a config file's or a `config.json`'s), strict in keys and types."""
    if not isinstance(values, dict):
        raise UserError(f"{where}: get_config() must return a config, not {type(values).__name__}")
    config = defaults()
    for key in (*values, *(inner for value in values.values() if isinstance(value, dict) for inner in value)):
        if not isinstance(key, str):
            raise UserError(f"{where}: the key {shown(key)} is not text, which the names of knobs are")
    for key, value in values.items():
        items = {f"{key}.{inner}": inner_value for inner, inner_value in value.items()} if isinstance(value, dict) else {key: value}
        for name, one in items.items():
            try:
                set_knob(config, name, one)
            except UserError as error:
                raise UserError(f"{where}: {error}") from None
    return config


def to_json(config: ml_collections.ConfigDict) -> str:
    """Returns the config as indented JSON; `from_dict(json.loads(...))` gives it back."""
    return json.dumps(config.to_dict(), indent=1) + "\n"


def digest(config: ml_collections.ConfigDict, *sections: str) -> str:
    """Returns a hash (hex) of the values in `sections`."""
    chosen = {section: config[section].to_dict() for section in sections}
    return hashlib.sha256(json.dumps(chosen, sort_keys=True).encode()).hexdigest()


def changed_on_resume(old: ml_collections.ConfigDict, new: ml_collections.ConfigDict) -> list[str]:
    """Returns a text "name: old -> new" for each knob that differs and that a resumed run must not change."""
    return [
        f"{name}: {get_knob(old, name)!r} -> {get_knob(new, name)!r}"
        for name, _ in knobs()
        if get_knob(old, name) != get_knob(new, name)
        and name not in MAY_CHANGE_ON_RESUME
        and name.split(".")[0] not in SECTIONS_THAT_MAY_CHANGE
    ]


def check(config: ml_collections.ConfigDict) -> None:
    """Raises UserError naming the first knob, or combination of knobs, that cannot work."""
    for name, knob in knobs():
        value = get_knob(config, name)
        if problem := knob.check(value):
            raise UserError(f"{name} = {shown(value)} {problem}")
    model, train = config.model, config.train
    parameters, tokens = matrix_parameters(config), train.batch_size * max(model.context_length, validation_length(config))
    for problem, is_so in (
        (f"model.width = {model.width} is not divisible by model.num_heads = {model.num_heads}; set model.head_dim, or another width, "
         f"such as {_width_that_works(model)}",
         not model.head_dim and model.width % model.num_heads),
        (f"model.num_heads = {model.num_heads} is not divisible by model.num_kv_heads = {model.num_kv_heads}",
         model.num_kv_heads and model.num_heads % model.num_kv_heads),
        (f"rotary positions need an even head size, not {head_dim(model)}: set model.head_dim = {head_dim(model) + 1}"
         + ("" if model.head_dim else f", or model.width = {_width_that_works(model)}: it is model.width / model.num_heads"),
         model.position == "rope" and head_dim(model) % 2),
        (f"model.mlp_ratio = {model.mlp_ratio:g} times model.width = {model.width} makes an MLP of size 0; raise it", mlp_size(model) < 1),
        (f"this model has {parameters:.2g} parameters in its matrices; there may be {MOST_PARAMETERS:.0e}: lower model.width, "
         "model.num_layers or what else is large", parameters > MOST_PARAMETERS),
        (f"train.batch_size x model.context_length = {tokens:,} tokens a step; there may be {MOST_TOKENS:,}", tokens > MOST_TOKENS),
        (f"model.experts_per_token = {model.experts_per_token} is more than model.num_experts = {model.num_experts}",
         0 < model.num_experts < model.experts_per_token),
        ("model.bias = 'all' is not built for experts; set model.bias = 'qkv' or 'none'", model.num_experts and model.bias == "all"),
        ("model.matmul_dtype is not built for experts; set model.matmul_dtype = 'compute'",
         model.num_experts and model.matmul_dtype != "compute"),
        (f"model.expert_capacity = {model.expert_capacity:g} needs model.num_experts", model.expert_capacity and not model.num_experts),
        (f"model.expert_capacity = {model.expert_capacity:g} counts the tokens of whole rows, but parallel.context = "
         f"{config.parallel.context} splits them; set model.expert_capacity = 0 (no token is dropped) or parallel.context = 1",
         model.expert_capacity and config.parallel.context > 1),
        (f"train.batch_size = {train.batch_size} is not divisible by train.accumulation = {train.accumulation}",
         train.batch_size % train.accumulation),
        (f"model.context_length = {model.context_length} is longer than the rows, data.row_length = {config.data.row_length}",
         0 < config.data.row_length < model.context_length),
        (f"data.row_length = {config.data.row_length} is not a multiple of model.context_length = {model.context_length}",
         config.data.row_length % model.context_length),
        ("model.copying needs model.induction: up to how many of the last tokens it looks for in the document; 4 is a good start",
         model.copying and not model.induction),
        (f"evaluation.context_length = {config.evaluation.context_length} needs model.position = 'rope': learned positions end at "
         f"model.context_length = {model.context_length}",
         model.position == "learned" and validation_length(config) > model.context_length),
        ("corpus.kind = 'files' needs corpus.path: a folder, a file or a glob of .txt[.gz|.zst], .jsonl[.gz|.zst] or .parquet",
         config.corpus.kind == "files" and not config.corpus.path),
        (f"corpus.path = {shown(config.corpus.path)} is no file here, but a source: --config.corpus.kind=sources "
         f"--config.corpus.sources='[{{\"path\": \"{cut(config.corpus.path)}\"}}]'",
         config.corpus.kind == "files" and re.match(r"(hf|tfds):|[A-Za-z][\w+.-]+://", config.corpus.path)),
        (f"corpus.path = {shown(config.corpus.path)} is given but corpus.kind is {config.corpus.kind!r}; add --config.corpus.kind=files",
         config.corpus.kind != "files" and config.corpus.path),
        ("corpus.validation_path needs corpus.kind = 'files'", config.corpus.kind != "files" and config.corpus.validation_path),
        ("corpus.kind = 'sources' needs corpus.sources, as in [{\"path\": \"my_texts/\"}]; docs/corpus.md lists what may stand there",
         config.corpus.kind == "sources" and not config.corpus.sources),
        ("corpus.sources is given but corpus.kind is not 'sources'; add --config.corpus.kind=sources",
         config.corpus.kind != "sources" and config.corpus.sources),
        ("corpus.sources: some have a weight and some have none; give all of them one, or none",
         len({source["weight"] is None for source in config.corpus.sources}) > 1),
        ("corpus.executor = 'slurm' needs corpus.slurm_partition", config.corpus.executor == "slurm" and not config.corpus.slurm_partition),
        (f"optimizer.warmup_steps = {config.optimizer.warmup_steps} is more than train.num_steps = {train.num_steps}; lower it too, "
         f"as with --config.optimizer.warmup_steps={train.num_steps // 10}",
         config.optimizer.warmup_steps > train.num_steps),
        (f"tokenizer.cut = {config.tokenizer.cut} cuts a ready tokenizer: name one with tokenizer.path, or set tokenizer.vocab_size",
         config.tokenizer.cut and not config.tokenizer.path),
        (f"tokenizer.word_share = {config.tokenizer.word_share:g} does nothing with tokenizer.kind = {config.tokenizer.kind!r}; "
         "set tokenizer.kind = 'superword', or leave it out",
         config.tokenizer.kind != "superword" and config.tokenizer.word_share != dict(knobs())["tokenizer.word_share"].default),
        (f"model.window_pattern = {model.window_pattern!r} has an S but model.window is 0",
         "S" in model.window_pattern and not model.window),
    ):
        if is_so:
            raise UserError(problem)
    _refuse_idle_knobs(config.corpus)


# Knobs of the corpus, and the one without which they do nothing: its values, the corpus' own or a source's, with which they do something.
_ONLY_WITH = (
    (("language_threshold",), "language", None),
    (("quality_good", "quality_bad"), "quality", ("filter", "weight")),
    (("quality_threshold",), "quality", ("filter",)),
    (("quality_exponent",), "quality", ("weight",)),
    (("minhash_words", "minhash_buckets", "minhash_hashes"), "deduplicate", None),
    (("decontaminate_words",), "decontaminate", None),
    (("slurm_partition", "slurm_time"), "executor", ("slurm",)),
)


def _refuse_idle_knobs(corpus: ml_collections.ConfigDict) -> None:
    """Raises UserError for a knob of the corpus that is not at its default and would do nothing."""
    defaults = {name: knob.default for name, knob in knobs()}
    kind = f"with corpus.kind = {corpus.kind!r}"
    for name, idle_because in (
        ("text_key", corpus.kind != "files" and kind + (", whose sources have their own" if corpus.kind == "sources" else "")),
        ("download_dir", corpus.kind != "sources" and kind),
        ("installed_packages", corpus.kind == "files" and kind),
    ):
        if idle_because and corpus[name] != defaults[f"corpus.{name}"]:
            raise UserError(f"corpus.{name} = {shown(corpus[name])} does nothing {idle_because}; leave it out")
    for names, needed, values in _ONLY_WITH:
        for number, source in enumerate(corpus.sources):
            its = corpus[needed] if source.get(needed) is None else source[needed]
            idle = [name for name in names if source.get(name) is not None]
            if idle and not (its in values if values else its):
                to = f"set {needed} to {' or '.join(map(repr, values))}" if values else f"set {needed}"
                raise UserError(f"corpus.sources[{number}].{idle[0]} does nothing while its {needed} = {shown(its)}; {to}, or leave it out")
        found = [corpus[needed], *(source.get(needed) for source in corpus.sources)]
        idle = [f"corpus.{name}" for name in names if corpus[name] != defaults[f"corpus.{name}"]]
        if idle and not any(value in values if values else value for value in found):
            do, them = ("do nothing", "them") if len(idle) > 1 else ("does nothing", "it")
            to = f"set it to {' or '.join(map(repr, values))}" if values else "set it"
            raise UserError(f"{' and '.join(idle)} {do} while corpus.{needed} = {shown(corpus[needed])}; {to}, or leave {them} out")


def padded_vocab(config: ml_collections.ConfigDict) -> int:
    """Returns the rows of embedding and head: tokenizer.vocab_size rounded up to model.vocab_multiple."""
    return -(-config.tokenizer.vocab_size // config.model.vocab_multiple) * config.model.vocab_multiple


def head_dim(model: ml_collections.ConfigDict) -> int:
    """Returns N, the size of a head, of the config's model section."""
    return int(model.head_dim or model.width // model.num_heads)


def num_kv_heads(model: ml_collections.ConfigDict) -> int:
    """Returns K, the number of key and value heads, of the config's model section."""
    return int(model.num_kv_heads or model.num_heads)


def mlp_size(model: ml_collections.ConfigDict) -> int:
    """Returns F, the hidden size of the MLP, of the config's model section."""
    return round(model.mlp_ratio * model.width)


def _width_that_works(model: ml_collections.ConfigDict) -> int:
    """Returns the width nearest to the model's that makes heads of a whole, and for rotary positions even, size."""
    step = int(model.num_heads) * (2 if model.position == "rope" else 1)
    return max(1, round(model.width / step)) * step


def matrix_parameters(config: ml_collections.ConfigDict) -> int:
    """Returns the parameters of the matrices, without making the model (`model.size` counts all, and needs jax)."""
    model = config.model
    attention = 2 * head_dim(model) * (model.num_heads + num_kv_heads(model))
    mlp = (3 if model.activation in ("swiglu", "geglu") else 2) * mlp_size(model) * max(1, model.num_experts)
    tables = 1 + bool(model.induction) + (not model.tied_embeddings)
    rows = tables * padded_vocab(config) + model.ngram_rows + (model.context_length if model.position == "learned" else 0)
    return int(model.width * (model.num_layers * (attention + mlp) + rows))


def validation_length(config: ml_collections.ConfigDict) -> int:
    """Returns T of validation rows."""
    return int(config.evaluation.context_length or config.model.context_length)


def pipeline_microbatches(config: ml_collections.ConfigDict) -> int:
    """Returns into how many microbatches the pipeline cuts a device's rows; 1 without a pipeline."""
    stages = config.parallel.pipeline
    return int(config.parallel.pipeline_microbatches or 2 * stages) if stages > 1 else 1


def mesh_shape(config: ml_collections.ConfigDict, num_devices: int) -> dict[str, int]:
    """Returns mesh axis -> devices, and refuses what `num_devices` or the model cannot be split into.

    Raises:
      UserError: the mesh is not the devices, or batch, time, layers, heads, width, MLP, vocabulary or rows of n-grams do not divide by it.
    """
    shape = {name: int(config.parallel[name]) for name in MESH_AXES}
    rest = math.prod(size for name, size in shape.items() if name != "data")
    shape["data"] = shape["data"] or max(1, num_devices // rest)
    if math.prod(shape.values()) != num_devices:
        product = " x ".join(f"{name} {size}" for name, size in shape.items() if size > 1 or name == "data")
        there = f"there {'is' if num_devices == 1 else 'are'} {num_devices}"
        raise UserError(f"parallel: {product} makes {math.prod(shape.values())} devices, but {there}")
    model, microbatch = config.model, config.train.batch_size // config.train.accumulation
    fsdp, tensor, context, pipeline = shape["fsdp"], shape["tensor"], shape["context"], shape["pipeline"]
    pieces = 2 * context if context > 1 else 1
    rows = shape["data"] * fsdp * shape["expert"]
    for what, size, axis, parts in (
        ("train.batch_size / train.accumulation", microbatch, "data x fsdp x expert", rows),
        ("model.num_layers", model.num_layers, "pipeline", pipeline),
        ("rows of a device (train.batch_size / train.accumulation / data / fsdp / expert)", microbatch // rows,
         "parallel.pipeline_microbatches (by default twice the stages; set one that divides them)", pipeline_microbatches(config)),
        ("model.context_length", model.context_length, "2 x context x tensor" if context > 1 else "tensor", pieces * tensor),
        ("evaluation.context_length", validation_length(config), "2 x context x tensor" if context > 1 else "tensor", pieces * tensor),
        ("model.num_experts", model.num_experts, "expert", shape["expert"]),
        ("model.num_heads", model.num_heads, "tensor", tensor),
        ("model.num_kv_heads", num_kv_heads(model), "tensor", tensor),
        ("model.width", model.width, "fsdp", fsdp),
        ("the MLP's hidden size", mlp_size(model), "tensor", tensor),
        ("model.ngram_rows", model.ngram_rows, "tensor x pipeline", tensor * pipeline),
        ("the vocabulary (raise model.vocab_multiple)", padded_vocab(config), "fsdp x tensor x pipeline", fsdp * tensor * pipeline),
    ):
        if size % parts:
            raise UserError(f"parallel: {what} = {size} is not divisible by {axis} = {parts}")
    return shape
