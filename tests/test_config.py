"""Knobs: declared once, strict in names and types, refused in one line where they cannot work."""

import json
import time

import pytest

from lmtiny import config as config_lib
from lmtiny import knobs, values
from lmtiny.errors import UserError

FILE = "import ml_collections\nfrom lmtiny.config import defaults\ndef get_config():\n    config = defaults()\n    {}\n    return config\n"


def load(tmp_path, body="pass", overrides=None):
    path = tmp_path / "mine.py"
    path.write_text(FILE.format(body))
    return config_lib.load(str(path), overrides)


def test_overrides_and_the_name(tmp_path):
    overrides = {"optimizer.learning_rate": "3e-4", "train.num_steps": "1_000", "model.qk_norm": "false"}
    config = load(tmp_path, "config.model.width = 128", overrides)
    assert (config.name, config.model.width, config.optimizer.learning_rate) == ("mine", 128, 3e-4)
    assert config.train.num_steps == 1000 and type(config.train.num_steps) is int
    assert config.model.qk_norm is False
    assert load(tmp_path, overrides={"evaluation.prompts": '["a", "b"]'}).evaluation.prompts == ("a", "b")
    assert load(tmp_path, overrides={"optimizer.learning_rate": "1"}).optimizer.learning_rate == 1.0


def test_json_gives_the_config_back(tmp_path):
    config = load(tmp_path, "config.model.mlp_ratio = 8960 / 1536")
    again = config_lib.from_dict(json.loads(config_lib.to_json(config)), "config.json")
    assert again.to_dict() == config.to_dict()
    assert config_lib.digest(config, "model") == config_lib.digest(again, "model")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"optimizer.learning_rat": "1"}, "no 'optimizer.learning_rat'; did you mean optimizer.learning_rate?"),
        ({"learning_rate": "1"}, "did you mean optimizer.learning_rate?"),
        ({"model": "1"}, "config has no 'model'"),
        ({"train.num_steps": "many"}, "train.num_steps: 'many' is not a whole number"),
        ({"train.num_steps": "1.5"}, "train.num_steps: '1.5' is not a whole number"),
        ({"train.num_steps": "nan"}, "train.num_steps: 'nan' is not a whole number"),
        ({"model.qk_norm": "1"}, "model.qk_norm: '1' is not true or false"),
        ({"optimizer.learning_rate": "inf"}, "optimizer.learning_rate: 'inf' is not a number"),
        ({"evaluation.prompts": "[1]"}, "is not a list of texts"),
        ({"optimizer.name": "sgd"}, "optimizer.name = 'sgd' must be one of adamw, muon"),
        ({"model.dropout": "0.95"}, "model.dropout = 0.95 must lie within 0 and 0.9"),
        ({"model.num_heads": "3"}, "model.width = 256 is not divisible by model.num_heads = 3"),
        ({"model.num_kv_heads": "3"}, "model.num_heads = 4 is not divisible by model.num_kv_heads = 3"),
        ({"model.head_dim": "7"}, "rotary positions need an even head size, not 7"),
        ({"train.accumulation": "5"}, "train.batch_size = 32 is not divisible by train.accumulation = 5"),
        ({"data.row_length": "128"}, "model.context_length = 256 is longer than the rows, data.row_length = 128"),
        ({"data.row_length": "300"}, "data.row_length = 300 is not a multiple of model.context_length = 256"),
        ({"model.width": "190", "model.num_heads": "2"}, "not 95: set model.head_dim = 96, or model.width = 192: it is model.width /"),
        ({"model.width": "190"}, "set model.head_dim, or another width, such as 192"),
        ({"optimizer.warmup_steps": "40", "train.num_steps": "30"}, "lower it too, as with --config.optimizer.warmup_steps=3"),
        ({"tokenizer.vocab_size": "4000000000"}, "tokenizer.vocab_size = 4000000000 must lie within 266 and 16,777,216"),
        ({"train.num_steps": "1e308"}, "must lie within 1 and 2,147,483,647"),
        ({"train.num_steps": "9007199254740993"}, "train.num_steps = 9007199254740993 must lie"),
        ({"seed": "4294967296"}, "seed = 4294967296 must lie within 0 and 2,147,483,647"),
        ({"seed": "1" * 5000}, "is not a whole number"),
        ({"data.prefetch": "1000000000"}, "data.prefetch = 1000000000 must lie within 1 and 1,024"),
        ({"model.num_layers": "1024", "model.width": "262144"}, "this model has 8.4e+14 parameters in its matrices; there may be 1e+13"),
        ({"train.batch_size": "16777216", "model.context_length": "16777216"}, "tokens a step; there may be"),
        ({"model.width": "8", "model.mlp_ratio": "0.01"}, "makes an MLP of size 0"),
        ({"name": "../other"}, "name = '../other' must be the name of a folder, without a path before it"),
        ({"name": "x" * 100_000}, "xxx' must be printable, and have at most 200 bytes"),
        ({"name": ".."}, "must be the name of a folder"),
        ({"data.dir": "x" * 5000}, "has 5,000 letters; there may be 4,096"),
        ({"data.dir": "x" * 300}, "has a name of more than 255 bytes in it"),
        ({"corpus.kind": "files", "corpus.path": "a,b\0"}, "has a zero byte in it"),
        ({"data.dir": "\ud800"}, "has half of a surrogate pair in it"),
        ({"corpus.sources": "[" * 100_000}, "is not JSON"),
        ({"corpus.sources": '[{"path": "x", "shards": ' + "1" * 5000 + "}]"}, "is not JSON"),
        ({"evaluation.prompts": "[" * 100_000}, "is not a list of texts"),
        ({"optimizer.learning_rate": "1" * 100_000}, "optimizer.learning_rate: '111"),
        ({"corpus.kind": "files"}, "corpus.kind = 'files' needs corpus.path"),
        ({"corpus.path": "x"}, "add --config.corpus.kind=files"),
        ({"corpus.sources": '{"path": "x"}'}, "add --config.corpus.kind=sources"),
        ({"corpus.kind": "sources", "corpus.sources": '{"path": "x"}', "corpus.path": "y"}, "but corpus.kind is 'sources'"),
        ({"corpus.kind": "sources", "corpus.sources": '{"path": "x"}', "corpus.validation_path": "y"}, "needs corpus.kind = 'files'"),
        ({"model.window_pattern": "SSL"}, "has an S but model.window is 0"),
        ({"model.window_pattern": "XL"}, "must be made of the letters SL"),
        ({"optimizer.warmup_steps": "2000"}, "is more than train.num_steps = 1000"),
        ({"model.num_experts": "1"}, "model.experts_per_token = 2 is more than model.num_experts = 1"),
        ({"model.num_experts": "4", "model.bias": "all"}, "model.bias = 'all' is not built for experts"),
        ({"model.expert_capacity": "1"}, "model.expert_capacity = 1 needs model.num_experts"),
        ({"model.num_experts": "4", "model.expert_capacity": "1", "parallel.context": "2"}, "set model.expert_capacity = 0"),
        ({"parallel.zero": "2"}, "parallel.zero = 2 must be 1 or 3"),
        ({"corpus.quality_good": "x"}, "does nothing while corpus.quality = 'none'; set it to 'filter' or 'weight', or leave it out"),
        ({"corpus.language_threshold": "0.9"}, "language_threshold does nothing while corpus.language = ''; set it, or leave it out"),
        ({"corpus.quality": "weight", "corpus.quality_threshold": "0.9"}, "does nothing while corpus.quality = 'weight'; set it to"),
        ({"corpus.minhash_words": "3", "corpus.minhash_hashes": "4"}, "corpus.minhash_hashes do nothing while corpus.deduplicate = False"),
        ({"corpus.filters": "c4,fineweb"}, 'fineweb (a list: ["gopher_quality", "gopher_repetition"]), or empty'),
        ({"corpus.decontaminate_words": "5"}, "does nothing while corpus.decontaminate = ''"),
        ({"corpus.text_key": "body"}, "corpus.text_key = 'body' does nothing with corpus.kind = 'builtin'; leave it out"),
        ({"corpus.kind": "sources", "corpus.sources": '[{"path": "x"}]', "corpus.text_key": "b"}, "whose sources have their own"),
        ({"corpus.download_dir": "x"}, "corpus.download_dir = 'x' does nothing with corpus.kind = 'builtin'"),
        ({"corpus.kind": "files", "corpus.path": "x", "corpus.installed_packages": "true"}, "does nothing with corpus.kind = 'files'"),
        ({"corpus.kind": "sources", "corpus.sources": '[{"path": "x"}, {"path": "y", "language_threshold": 0.9}]'},
         "corpus.sources[1].language_threshold does nothing while its language = ''; set language, or leave it out"),
        ({"corpus.kind": "files", "corpus.path": "hf:a/b"}, "but a source: --config.corpus.kind=sources --config.corpus.sources="),
        ({"corpus.slurm_time": "a day"}, "corpus.slurm_time = 'a day' is no time of Slurm's: minutes, HH:MM:SS, DAYS-HH or UNLIMITED"),
        ({"corpus.slurm_partition": "x"}, "does nothing while corpus.executor = 'local'; set it to 'slurm'"),
        ({"tokenizer.word_share": "0.7"}, "word_share = 0.7 does nothing with tokenizer.kind = 'bpe'; set tokenizer.kind = 'superword'"),
        ({"model.remat_names": "attend"}, "must be one or more of query, key, value, attended, mlp_hidden"),
    ],
    ids=lambda one: str(one)[:80],
)
def test_what_cannot_work_is_refused_in_one_line(tmp_path, overrides, message):
    with pytest.raises(UserError) as error:
        load(tmp_path, overrides=overrides)
    assert message in str(error.value)
    assert "\n" not in str(error.value) and len(str(error.value)) < 400


def test_a_knob_that_a_source_uses_does_something(tmp_path):
    of_a_source = {"corpus.kind": "sources", "corpus.sources": '{"path": "x", "quality": "filter"}', "corpus.quality_good": "good.txt"}
    assert load(tmp_path, overrides=of_a_source).corpus.quality_good == "good.txt"
    assert load(tmp_path, overrides={"tokenizer.word_share": "0.7", "tokenizer.kind": "superword"}).tokenizer.word_share == 0.7


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("config.model.widht = 3", "widht"),
        ("config.model.width = 'wide'", "width is of the type str, not int"),
        ("config.corpus.sources = ({'path': 'x'})", "sources is of the type ConfigDict, not tuple; a list of one wants a comma"),
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("return 7", "get_config() must return a config, not int"),
        ("return {'model': {'widht': 3}}", "no 'model.widht'; did you mean model.width?"),
        ("return {3: 4}", "the key 3 is not text"),
        ("return {'model': {10**5000: 4}}", "the key a huge int is not text"),
        ("return {'optimizer': {'learning_rate': 10**5000}}", "optimizer.learning_rate: a huge int is not a number"),
        ("return {'model': {'width': float('nan')}}", "model.width: nan is not a whole number"),
        ("import sys; sys.exit(0)", "calls exit; a config file only returns a config"),
        ("raise ValueError('x' * 100_000)", "ValueError: xxx"),
        ("return 3 +", "SyntaxError"),
        ("return '\0'", "null bytes"),
    ],
)
def test_mistakes_in_a_config_file_are_told_with_its_name(tmp_path, body, message):
    with pytest.raises(UserError) as error:
        load(tmp_path, body)
    assert message in str(error.value) and "mine.py" in str(error.value)
    assert "\n" not in str(error.value) and len(str(error.value)) < 600


SOURCES = '[{"path": "books/*.txt", "cut": "chapters", "weight": 2}, {"path": "hf:a/b", "shards": "4", "name": "web", "weight": 1}]'


def test_sources_are_complete_however_they_were_written(tmp_path):
    body = f"config.corpus.kind = 'sources'; config.corpus.sources = {SOURCES}"
    config = load(tmp_path, body)
    given = load(tmp_path, overrides={"corpus.kind": "sources", "corpus.sources": SOURCES})
    assert config.to_dict() == given.to_dict()
    first, second = config.corpus.sources
    assert [key.name for key in knobs.SOURCE] == list(first) == list(second)
    assert (first["cut"], first["weight"], type(first["weight"]), first["name"]) == ("chapters", 2.0, float, "")
    assert (second["shards"], second["name"], second["weight"], second["revision"]) == (4, "web", 1.0, "main")
    again = config_lib.from_dict(json.loads(config_lib.to_json(config)), "config.json")
    assert again.to_dict() == config.to_dict()
    assert config_lib.digest(config, "corpus") == config_lib.digest(again, "corpus") != config_lib.digest(config_lib.defaults(), "corpus")
    assert config_lib.changed_on_resume(config, again) == []
    one = load(tmp_path, overrides={"corpus.kind": "sources", "corpus.sources": '{"path": "builtin"}'})
    assert [source["path"] for source in one.corpus.sources] == ["builtin"]


@pytest.mark.parametrize(
    ("sources", "message"),
    [
        ('[{"path": "x", "wieght": 1}]', "corpus.sources[0] has no 'wieght'; did you mean weight?"),
        ('[{"path": "x"}, {"path": "x", "qqq": 1}]', "corpus.sources[1] has no 'qqq'; there are path, name, weight,"),
        ('[{"path": "x", "weight": "much"}]', "corpus.sources[0].weight: 'much' is not a number"),
        ('[{"path": "x", "weight": true}]', "corpus.sources[0].weight: True is not a number"),
        ('[{"path": "x", "weight": -1}]', "corpus.sources[0].weight = -1.0 means none: leave the source out, or give it a weight above 0"),
        ('[{"path": 3}]', "corpus.sources[0].path: 3 is not text"),
        ('[{"name": "x"}]', "corpus.sources[0].path = '' must be given"),
        ('[{"path": "x", "cut": "line"}]', "corpus.sources[0].cut = 'line' must be one of sections, file, blank lines, lines, chapters"),
        ('[{"path": "x"', "is not JSON (Expecting ',' delimiter"),
        ('["x"]', "corpus.sources: ['x'] is not a list of objects, [{\"path\": ...}]"),
        ('{"path": "x", "path": "y"}', "corpus.sources: an object has 'path' twice; leave one out"),
        ("3", "corpus.sources: 3 is not a list of objects"),
        ("[]", "corpus.kind = 'sources' needs corpus.sources"),
    ],
)
def test_a_source_is_refused_as_a_knob_is(tmp_path, sources, message):
    with pytest.raises(UserError) as error:
        load(tmp_path, overrides={"corpus.kind": "sources", "corpus.sources": sources})
    assert message in str(error.value) and "\n" not in str(error.value)


def test_a_missing_file_names_its_neighbour(tmp_path):
    load(tmp_path)
    with pytest.raises(UserError, match=r"no config file .*did you mean .*mine\.py"):
        config_lib.load(str(tmp_path / "mime.py"))


def test_what_a_resumed_run_may_change(tmp_path):
    config = load(tmp_path)
    same = load(tmp_path, overrides={"log.every": "3", "parallel.fsdp": "2", "data.dir": "x", "train.num_steps": "2000", "name": "other"})
    assert config_lib.changed_on_resume(config, same) == []
    other = load(tmp_path, overrides={"seed": "3", "model.width": "128"})
    assert config_lib.changed_on_resume(config, other) == ["seed: 0 -> 3", "model.width: 256 -> 128"]


def test_every_knob_is_described_once():
    names = [name for name, _ in knobs.knobs()]
    assert len(names) == len(set(names)) > 60
    for name, knob in knobs.knobs():
        assert knob.meaning and not knob.check(knob.default), name
        assert type(knob.default) is knob.type, name
        for key in knob.keys:
            assert key.meaning and not key.keys, key.name
            if key.default is None and key.name != "weight":  # it is that of the section
                assert dict(knobs.knobs())[f"{name.split('.')[0]}.{key.name}"].type is key.type
            else:
                assert key.name in ("path", "weight") or (type(key.default) is key.type and not key.check(key.default)), key.name


def every_knob():
    """Yields (name, knob), keys of tables too."""
    for name, knob in knobs.knobs():
        yield from [(name, knob), *((f"{name}[0].{key.name}", key) for key in knob.keys)]


def test_every_number_has_both_ends_and_every_text_and_list_a_longest():
    for name, knob in every_knob():
        if knob.type in (int, float):
            assert knob.check(knob.type(-1e30)) and knob.check(knob.type(1e30)), name
        elif knob.type is str:
            assert knob.check("x" * 2_000_000), name
        elif knob.type is tuple:
            assert knob.check(("x",) * 100_000), name


def extremes(knob):
    """Returns values of every kind, those around the ends of the knob's range among them."""
    found = [
        0, -1, 1, 1e308, 2**63, -(2**63), 10**5000, float("nan"), float("inf"), "", "x" * 5000, "\0", "\ud800", "..", None, True,
        [], {}, ["x" * 5000] * 3, [[]], {1: 2}, b"x", "1" * 10**5, "1e999999999", "-1e-999999999", "²", "[" * 5000, object(),
    ]  # fmt: skip
    if isinstance(knob.check, knobs.Range):
        found += [end + step for end in (knob.check.low, knob.check.high) for step in (-1, 0, 1)]
    return found


def test_every_extreme_of_every_knob_is_taken_or_refused_in_one_line():
    for name, knob in every_knob():
        for value in extremes(knob):
            config = config_lib.defaults()
            started = time.monotonic()
            try:
                if "[0]." in name:
                    table, key = name.split("[0].")
                    config_lib.set_knob(config, "corpus.kind", "sources")
                    config_lib.set_knob(config, table, [{"path": "x", key: value}])
                else:
                    config_lib.set_knob(config, name, value)
                config_lib.check(config)
                config_lib.mesh_shape(config, 8)
                assert json.loads(config_lib.to_json(config)) and config_lib.digest(config, "corpus", "model")
            except UserError as error:
                assert "\n" not in str(error) and len(str(error)) < 600, name
            assert time.monotonic() - started < 5, name


def test_whole_numbers_are_exact():
    for text, number in (("2147483647", 2**31 - 1), ("65_536", 65536), ("1e6", 10**6), ("1.5e1", 15), ("9007199254740993", 2**53 + 1)):
        assert values.number(text, int) == number
    for text in ("1.5", "nan", "1e-3", "0x10", "", "٣", "1e999999999"):
        with pytest.raises(ValueError):
            values.number(text, int)


def test_synonyms_lead_to_knobs_that_there_are():
    names = [name for name, _ in knobs.knobs()]
    assert set(knobs.SYNONYMS.values()) <= set(names)
    assert not set(knobs.SYNONYMS) & {name.rpartition(".")[2] for name in names}
    assert values.nearest("optimizer.lr", names) == values.nearest("lr", names) == "; did you mean optimizer.learning_rate?"
    assert values.nearest("n_layer", names) == values.nearest("train.depth", names) == "; did you mean model.num_layers?"


@pytest.mark.parametrize(
    ("name", "message"),
    [("README.md", "must end in .py"), ("x.so", "must end in .py"), ("empty.py", "has no get_config()"),
     ("huge.py", "it has 1,048,577 bytes"), ("folder.py", "no config file")],
)  # fmt: skip
def test_what_is_no_config_file(tmp_path, name, message):
    if name == "folder.py":
        (tmp_path / name).mkdir()
    else:
        (tmp_path / name).write_bytes(b"#" * (1048577 if name == "huge.py" else 0))
    with pytest.raises(UserError, match=message):
        config_lib.load(str(tmp_path / name))
