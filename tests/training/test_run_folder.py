"""What a run says before its first step."""

import pathlib

import jax
import pytest

from lmtiny import config as config_lib
from lmtiny.data import Prepared
from lmtiny.parallel import mesh as mesh_lib
from lmtiny.training import run_folder


@pytest.mark.parametrize(
    ("steps", "mixed", "said", "warned"),
    [
        (20, [], " 0.5 times the text, ", ""),
        (2_000, [], " 50 times the text, ", "reads its text 50 times"),
        (2_000, [{}], " 50 times the text, ", ""),
    ],
)
def test_it_says_how_often_it_reads_its_text(steps, mixed, said, warned, capsys):
    told = what_it_says(steps, mixed, 0, capsys)
    assert said in told.out
    assert told.err.count("\n") == bool(warned) and warned in told.err


@pytest.mark.parametrize(("length", "said"), [(0, False), (8, False), (32, True)])
def test_it_says_where_validation_rows_have_a_length_of_their_own(length, said, capsys):
    assert ("validation: rows of 32 tokens" in what_it_says(20, [], length, capsys).out) == said


def what_it_says(steps, mixed, length, capsys):
    config = config_lib.defaults()
    config.tokenizer.vocab_size = 64
    config.model.update({"num_layers": 1, "width": 16, "num_heads": 2, "context_length": 8})
    config.train.update({"batch_size": 4, "num_steps": steps})
    config.evaluation.context_length = length
    # 80 stored rows of 16 tokens; a row of a batch is half of one.
    data = Prepared(pathlib.Path("nowhere"), {"row_length": 16, "splits": {"train": {"rows": 80, "mixture": mixed}}})
    run_folder.say_what_is_trained(config, data, mesh_lib.make_mesh(config, jax.devices()[:1]), 0)
    return capsys.readouterr()
