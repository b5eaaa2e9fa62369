"""Validation rows that are longer than those of training: scored whole, as many at a time as memory was planned for."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import sentencepiece
from flax import nnx

from lmtiny import config as config_lib
from lmtiny.data.loader import Rows, validation_batches
from lmtiny.data.preparation import prepare
from lmtiny.model import size
from lmtiny.parallel import mesh as mesh_lib
from lmtiny.training.evaluation import bytes_of_ids, for_validation, score
from lmtiny.training.optimizer import make_optimizer
from lmtiny.training.state import init_state
from lmtiny.training.step import make_eval_step


def config_with(**changes):
    config = config_lib.defaults()
    config.tokenizer.vocab_size = 300
    config.model.update({"num_layers": 2, "width": 16, "num_heads": 2, "context_length": 16, "zero_projections": False})
    config.train.batch_size = 8
    for name, value in changes.items():
        config_lib.set_knob(config, name, value)
    config_lib.check(config)
    return config


@pytest.mark.parametrize(
    ("knobs", "devices", "length", "batch"),
    [
        ({}, 1, 16, 8),
        ({"train.accumulation": 4}, 1, 16, 8),
        ({"evaluation.context_length": 64}, 1, 64, 2),
        ({"evaluation.context_length": 64, "train.accumulation": 4}, 1, 64, 2),
        ({"evaluation.context_length": 1024}, 1, 1024, 1),
        ({"evaluation.context_length": 4}, 1, 4, 32),
        ({"evaluation.context_length": 64}, 4, 64, 4),
        ({"evaluation.context_length": 64, "parallel.pipeline": 2}, 4, 64, 8),  # 2 of data, 4 microbatches
    ],
)
def test_a_batch_holds_the_tokens_of_a_training_batch_or_a_row_for_each_device(knobs, devices, length, batch):
    config = config_with(**knobs)
    mesh = mesh_lib.make_mesh(config, jax.devices()[:devices])
    found = for_validation(config, mesh)
    assert (found.model.context_length, found.train.batch_size) == (length, batch)
    assert found.train.batch_size % found.train.accumulation == 0
    assert config == config_with(**knobs), "the config of training stays as it was"
    config_lib.mesh_shape(found, devices)  # refuses what does not divide


@pytest.mark.parametrize("devices", [1, 2])
@pytest.mark.parametrize("kind", ["full attention", "windows", "induction and n-grams"])
def test_each_token_is_scored_with_its_whole_row_before_it(tmp_path, kind, devices):
    more = {
        "full attention": {},
        "windows": {"model.window": 4, "model.window_pattern": "S"},
        "induction and n-grams": {"model.induction": 2, "model.ngram_rows": 64},
    }[kind]
    random, files = np.random.default_rng(0), tmp_path / "files"
    files.mkdir()
    for number in range(8):
        (files / f"{number}.txt").write_text(" ".join(random.choice(["ka", "tomi", "ren", "sol", "bad"], 120)))
    wanted = {"corpus.kind": "files", "corpus.path": str(files), "corpus.validation_fraction": 0.5, "data.dir": str(tmp_path / "prepared")}
    config = config_with(**wanted, **{"tokenizer.kind": "char", "evaluation.context_length": 64, "train.batch_size": 4}, **more)
    data = prepare(config)
    assert (data.row_length("train"), data.row_length("validation")) == (16, 64)
    config.tokenizer.vocab_size = data.tokenizer.vocab_size
    mesh = mesh_lib.make_mesh(config, jax.devices()[:devices])
    with jax.set_mesh(mesh):
        state = init_state(config, make_optimizer(config, size.abstract(config)[2]), mesh)
        # Tables of induction and n-grams begin at zero, where no context could be told from another.
        params = jax.tree.map(lambda x: x + 0.3 * random.normal(size=x.shape).astype(np.float32), state.params)
        validated = for_validation(config, mesh)
        batches = validation_batches(data, validated, validated.train.batch_size, num_rows=5)
        eval_step = make_eval_step(validated, mesh, data.bos_id)
        found = score(eval_step, params, batches, data.tokenizer.token_bytes, mesh, validated.train.batch_size)
    rows = Rows(data, "validation", 64).batch(np.arange(5))
    nats, num_bytes = by_hand(config, params, rows, data)
    assert found.bytes == num_bytes
    np.testing.assert_allclose(found.bits_per_byte, nats / num_bytes / np.log(2), rtol=2e-5)
    # In pieces the same tokens have less before them.
    pieces, _ = by_hand(config, params, np.stack([row[start : start + 17] for row in rows for start in (0, 16, 32, 48)]), data)
    assert abs(pieces / nats - 1) > 1e-4


def by_hand(config, params, rows, data):
    """Returns (nats, bytes) of the ordinary targets, from whole logits of each row by itself, cut into its documents."""
    graph, nats, num_bytes = size.abstract(config)[0], 0.0, 0
    logits_of = jax.jit(lambda *inputs: nnx.merge(graph, jax.device_get(params))(*inputs)[0])
    for row in rows:
        segments = jnp.asarray(np.cumsum(row[:-1] == data.bos_id))[None]
        starts = np.maximum.accumulate(np.where(row[:-1] == data.bos_id, np.arange(len(row) - 1), 0))
        logits = logits_of(jnp.asarray(row[None, :-1]), jnp.asarray((np.arange(len(row) - 1) - starts)[None]), segments)
        nll = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.asarray(row[None, 1:]))[0]
        bytes_of = np.asarray(data.tokenizer.token_bytes)[row[1:]]
        nats, num_bytes = nats + float(jnp.sum(nll * (bytes_of > 0))), num_bytes + int(bytes_of.sum())
    return nats, num_bytes


HANGUL = ["모든 국민은  인간으로서의 존엄과 가치를 가지며,", "The king of Korea.", "행복을 추구할 \u2581 권리를 가진다. " * 5]


@pytest.mark.parametrize("byte_fallback", [False, True])
def test_all_that_sentencepiece_reads_is_scored_over_the_texts_bytes(tmp_path, byte_fallback, monkeypatch):
    monkeypatch.setattr("lmtiny.tokenizer.tokenizer.warn", lambda _: None)
    english = ["The king said that the queen is not in the garden.", "A man walked to the town, and home."]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(2 * english), model_prefix=str(tmp_path / "english"), model_type="bpe", minloglevel=2,
        byte_fallback=byte_fallback, vocab_size=300 if byte_fallback else 40, hard_vocab_limit=False,
    )  # fmt: skip
    files = tmp_path / "files"
    files.mkdir()
    for number in range(24):
        (files / f"{number}.txt").write_text(f"{number}. {HANGUL[number % 3]}")
    wanted = {"corpus.kind": "files", "corpus.validation_fraction": 0.5, "corpus.near_duplicate": 1.5}
    paths = {"corpus.path": "files", "data.dir": "prepared", "tokenizer.path": "english.model"}
    config = config_with(**wanted, **{name: str(tmp_path / path) for name, path in paths.items()})
    data = prepare(config)
    config.tokenizer.vocab_size = data.tokenizer.vocab_size
    held_out = data.manifest["splits"]["validation"]
    mesh = mesh_lib.make_mesh(config, jax.devices()[:1])
    with jax.set_mesh(mesh):
        batches = list(validation_batches(data, config, 8))
        eval_step, params = make_eval_step(config, mesh, data.bos_id), size.init_params(config)
        found = score(eval_step, params, batches, bytes_of_ids(data), mesh, 8)
    rows = np.concatenate(batches)
    assert found.tokens == held_out["tokens"] == np.sum(rows < data.bos_id)
    assert found.bytes == held_out["bytes"] != data.tokenizer.token_bytes[rows].sum()
    nats = found.loss * found.tokens
    np.testing.assert_allclose(found.bits_per_byte, nats / np.log(2) / held_out["bytes"], rtol=1e-5)


def test_an_id_of_ours_counts_its_own_bytes(tmp_path):
    (tmp_path / "text.txt").write_text("A rather short text, é.\n" * 40)
    wanted = {"corpus.kind": "files", "corpus.path": str(tmp_path / "text.txt"), "corpus.near_duplicate": 1.5}
    data = prepare(config_with(**wanted, **{"data.dir": str(tmp_path / "prepared")}))
    np.testing.assert_array_equal(bytes_of_ids(data), data.tokenizer.token_bytes)


def test_learned_positions_end():
    with pytest.raises(config_lib.UserError, match="learned positions end at model.context_length = 16"):
        config_with(**{"evaluation.context_length": 64, "model.position": "learned"})


def test_a_mesh_that_does_not_divide_it_is_refused():
    config = config_with(**{"evaluation.context_length": 4, "parallel.context": 4, "model.context_length": 16})
    with pytest.raises(config_lib.UserError, match=r"evaluation.context_length = 4 is not divisible by 2 x context x tensor = 8"):
        config_lib.mesh_shape(config, 4)
