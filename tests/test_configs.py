"""Every config file loads, says what it claims, and has the size that was published or can be computed by hand."""

import pathlib
import re

import pytest

from lmtiny import config as config_lib
from lmtiny.model import size
from lmtiny.parallel import chips
from lmtiny.planning import survey

README = pathlib.Path(__file__).parents[1] / "README.md"
CONFIGS = sorted((README.parent / "configs").glob("*.py"))

# Their survey takes 5 to 20 s each: pytest -m exhaustive.
LARGE = ("d20", "d26", "d32", "qwen2_5_small", "qwen2_5_1_5b", "qwen2_5_7b")

# Published counts less the padding of their vocabularies; else blocks of 12 D^2 (4 D^2 attention, 8 D^2 MLP) and 2 V D.
TOTALS = {
    "d4_38m": 3 * 24_576 * 512,
    "d7_38m": 2 * 32_768 * 384 + 7 * 12 * 384**2,
    "d29_38m": 2 * 65_536 * 192 + 29 * 12 * 192**2,
    "gpt2_124m": 124_439_808,  # Hugging Face's gpt2, of 50,257 tokens
    "d12": 2 * 65_536 * 768 + 12 * 12 * 768**2,
    "d20": 560_988_160,  # nanochat's report of its d20
    "d26": 2 * 65_536 * 1664 + 26 * 12 * 1664**2,
    "d32": 1_879_048_192,  # nanochat's report of its d32
    "qwen2_5_small": 2 * 151_646 * 1280 + 20 * (1280 * (10 + 2 + 2 + 10) * 128 + 14 * 128 + 3 * 1280 * 3456 + 2 * 1280) + 1280,
    "qwen2_5_1_5b": 1_543_714_304 - (151_936 - 151_646) * 1536,
    "qwen2_5_7b": 7_615_616_512 - 2 * (152_064 - 151_646) * 3584,
}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_config_is_complete_and_a_claim(path):
    config = config_lib.load(str(path))
    assert set(config.to_dict()) == set(config_lib.defaults().to_dict())
    doc = path.read_text().split('"""')[1]
    assert f"python -m lmtiny.train --config configs/{path.name}" in doc
    for claim in ("Command", "Hardware", "Tokens", "Time", "Expected", "Parameters"):
        assert re.search(rf"^{claim}: +\S", doc, re.MULTILINE), claim
    tokens = config.train.num_steps * config.train.batch_size * config.model.context_length
    number, unit = re.search(r"Tokens: +([\d.]+) (million|billion)", doc).groups()
    assert float(number) * {"million": 1e6, "billion": 1e9}[unit] == pytest.approx(tokens, rel=0.02)
    counted = size.count_parameters(config)["total"]
    number, unit = re.search(r"Parameters: +([\d.]+) ([MB])", doc).groups()
    assert float(number) * {"M": 1e6, "B": 1e9}[unit] == pytest.approx(counted, rel=0.006)


def test_the_readme_lists_every_config_with_its_parameters():
    """A row `| `a`, `b` | 0.7 B to 7.6 B | ... |`: the smallest and the largest of the row's configs, as far as its digits say."""
    listed = {}
    for names, text in re.findall(r"^\| (`[^|]+`) \| ([\d.]+ [MB](?: to [\d.]+ [MB])?) \|", README.read_text(), re.MULTILINE):
        row = re.findall(r"`(\w+)`", names)
        counts = [size.count_parameters(config_lib.load(str(CONFIGS[0].with_name(f"{name}.py"))))["total"] for name in row]
        expected = [min(counts), max(counts)] if " to " in text else counts
        claims = re.findall(r"([\d.]+) ([MB])", text) * (1 if " to " in text else len(counts))
        for (number, unit), count in zip(claims, expected, strict=True):
            digits = len(number.partition(".")[2])
            assert f"{count / {'M': 1e6, 'B': 1e9}[unit]:.{digits}f}" == number, row
        listed |= dict.fromkeys(row)
    assert sorted(listed) == [path.stem for path in CONFIGS]


@pytest.mark.parametrize("name", TOTALS)
def test_sizes(name):
    (path,) = [path for path in CONFIGS if path.stem == name]
    assert size.count_parameters(config_lib.load(str(path)))["total"] == TOTALS[name]


def test_the_38_million_are_exactly_thirds():
    (path,) = [path for path in CONFIGS if path.stem == "d4_38m"]
    counts = size.count_parameters(config_lib.load(str(path)))
    assert counts["embedding"] == counts["head"] == counts["blocks"] == 12_582_912


@pytest.mark.parametrize(
    "path", [pytest.param(path, id=path.stem, marks=pytest.mark.exhaustive if path.stem in LARGE else ()) for path in CONFIGS]
)
def test_a_config_names_the_smallest_slice_it_fits_on(path):
    """The figure is the TPU compiler's (docs/performance.md); the formula must agree, and not promise less memory."""
    claim = r"Fits: +from (v5e-\d+) on((?: --config\.\S+=\d+)*): ([\d.]+) of 15\.75 GiB a chip"
    name, flags, figure = re.search(claim, path.read_text()).groups()
    flags = {knob: int(value) for knob, value in re.findall(r"--config\.(\S+?)=(\d+)", flags)}
    memory = chips.by_name("v5e").memory
    smaller = []
    for option in survey.survey(config_lib.load(str(path)), chips.by_name("v5e")):
        if option.name == name:
            break
        smaller.append(option)
    assert option.overrides == flags
    # The compiler has the last word: it may find room where the formula, which keeps 5% free, is not sure.
    assert 0.9 * float(figure) <= option.needed / 2**30 <= 1.05 * 15.75 and float(figure) <= 15.75
    assert all(option.needed > 1.05 * memory for option in smaller)


def test_the_step_that_chat_shows_is_one_that_the_first_run_saves():
    doc = (README.parent / "lmtiny" / "chat.py").read_text().split('"""')[1]
    assert f"--checkpoint runs/tiny/{config_lib.load(str(README.parent / 'configs' / 'tiny.py')).train.num_steps}\n" in doc
