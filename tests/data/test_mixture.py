"""Sources mixed by weight: their shares of the batches and of the tokenizer's text, and what stays as it is without weights."""

import json
import pathlib
import re
from typing import Any

import grain
import ml_collections
import numpy as np
import pytest

from lmtiny import tokenizer
from lmtiny.data import Prepared, loader, mixture, prepare
from lmtiny.errors import UserError

LETTERS = {"books": "abcdefgh", "wiki": "ijklmnop"}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, pathlib.Path]:
    """Returns a folder of texts for each source; their letters tell them apart, and wiki has four times as much."""
    random = np.random.default_rng(0)
    found = {}
    for name, (letters, files) in {"books": (LETTERS["books"], 2), "wiki": (LETTERS["wiki"], 8)}.items():
        found[name] = tmp_path_factory.mktemp(name)
        for number in range(files):
            words = ["".join(random.choice(list(letters), random.integers(2, 6))) for _ in range(1500)]
            (found[name] / f"{number}.txt").write_text("\n\n".join(" ".join(words[at : at + 50]) for at in range(0, 1500, 50)))
    return found


def sources(folders: dict[str, pathlib.Path], **weights: float) -> tuple[dict[str, Any], ...]:
    return tuple({"name": name, "path": str(folder), "weight": weights.get(name)} for name, folder in folders.items())


def mixed(config_of: Any, folder: str, listed: tuple[dict[str, Any], ...], **more: Any) -> tuple[Prepared, ml_collections.ConfigDict]:
    config = config_of(folder, **{"corpus.kind": "sources", "corpus.path": "", "corpus.sources": listed, **more})
    return prepare(config), config


def share_of_books(prepared: Prepared, config: ml_collections.ConfigDict, num_batches: int) -> float:
    """Returns the share of the rows of so many batches that are of books."""
    batches = loader.batches(prepared, config, "train", 16)
    rows = np.concatenate([next(batches) for _ in range(num_batches)])
    batches.close()
    texts = [prepared.tokenizer.decode([token for token in row.tolist() if token != prepared.bos_id]) for row in rows]
    of_books = [any(letter in text for letter in LETTERS["books"]) for text in texts]
    of_wiki = [any(letter in text for letter in LETTERS["wiki"]) for text in texts]
    assert not any(books and wiki for books, wiki in zip(of_books, of_wiki, strict=True)), "a row holds two sources"
    return float(np.mean(of_books))


def test_batches_have_the_shares_that_the_weights_ask_for(config_of: Any, folders: dict[str, pathlib.Path]) -> None:
    prepared, config = mixed(config_of, "even", sources(folders, books=3.0, wiki=1.0))
    described = {one["source"]: one["rows"] for one in prepared.manifest["splits"]["train"]["mixture"]}
    assert described["wiki"] > 3 * described["books"]
    assert share_of_books(prepared, config, 40) == pytest.approx(0.75, abs=0.01)


def test_a_row_of_every_source_comes_once_before_any_comes_twice(config_of: Any, folders: dict[str, pathlib.Path]) -> None:
    prepared, config = mixed(config_of, "once", sources(folders, books=1.0, wiki=4.0))
    parts = prepared.manifest["splits"]["train"]["mixture"]
    order = mixture.order(parts, prepared.num_rows("train"), 1, config)
    first = order(np.arange(prepared.num_rows("train"))).tolist()
    for begin, rows in zip((0, parts[0]["rows"]), (one["rows"] for one in parts), strict=True):
        own = [row for row in first if begin <= row < begin + rows]
        assert len(set(own)) == min(len(own), rows)


def test_the_order_is_that_of_grains_own_pipeline(config_of: Any) -> None:
    sizes = {"a": 1000, "b": 70_000, "c": 33}
    listed = tuple({"name": name, "path": name, "weight": weight} for name, weight in zip(sizes, (5.0, 3.0, 2.0), strict=True))
    config = config_of("order", **{"corpus.kind": "sources", "corpus.path": "", "corpus.sources": listed, "seed": 2**31 - 2})
    shuffled, first = [], 0
    for number, size in enumerate(sizes.values()):
        rows = grain.MapDataset.range(first, first + 2 * size)
        shuffled.append(rows.seed((config.seed + number) % 2**32).shuffle().repeat())
        first += 2 * size
    of_grain = grain.MapDataset.mix(shuffled, [0.5, 0.3, 0.2])
    places = np.array([*range(500), *range(10**9, 10**9 + 100)])
    order = mixture.order([{"source": name, "rows": size} for name, size in sizes.items()], first // 2, 2, config)
    np.testing.assert_array_equal(order(places), [of_grain[place] for place in places.tolist()])


def test_resuming_a_mixture_is_going_on(config_of: Any, folders: dict[str, pathlib.Path]) -> None:
    prepared, config = mixed(config_of, "resumed", sources(folders, books=1.0, wiki=1.0))
    whole = loader.batches(prepared, config, "train", 4)
    first = [next(whole) for _ in range(9)]
    later = loader.batches(prepared, config, "train", 4, start_step=6)
    np.testing.assert_array_equal(np.stack(first[6:]), np.stack([next(later) for _ in range(3)]))
    whole.close()
    later.close()


def test_without_weights_sources_go_by_their_sizes(config_of: Any, folders: dict[str, pathlib.Path]) -> None:
    prepared, _ = mixed(config_of, "sizes", sources(folders))
    assert "mixture" not in prepared.manifest["splits"]["train"]


def test_the_tokenizer_learns_from_the_mixture(
    config_of: Any, folders: dict[str, pathlib.Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """Of merges within words, those of the source with the larger share are more, though it has a quarter of the text."""
    listed = sources(folders, books=8.0, wiki=1.0)
    prepared, _ = mixed(config_of, "heavy", listed)
    read, total = re.search(r"learning the tokenizer: ([\d,]+)/([\d,]+) bytes in", capsys.readouterr().out).groups()
    assert read == total, "never more than all"
    vocabulary = [prepared.tokenizer.decode([token]) for token in range(256, prepared.tokenizer.vocab_size - 10)]
    of = {name: sum(any(letter in token for letter in letters) for token in vocabulary) for name, letters in LETTERS.items()}
    assert of["books"] > 2 * of["wiki"]
    provenance = json.loads((prepared.folder / "tokenizer" / "lmtiny_tokenizer.json").read_text())["provenance"]
    assert provenance["shares"] == {"books": 8 / 9, "wiki": 1 / 9}


def test_with_a_ready_tokenizer_weights_change_without_another_preparation(
    config_of: Any, folders: dict[str, pathlib.Path], tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer.learn("byte", [], 300, 0).save(tmp_path / "tokenizer")
    ready = {"tokenizer.path": str(tmp_path / "tokenizer")}
    prepared, _ = mixed(config_of, "ready", sources(folders, books=1.0, wiki=1.0), **ready)
    again, config = mixed(config_of, "ready", sources(folders, books=9.0, wiki=1.0), **ready)
    assert again.digest == prepared.digest
    assert share_of_books(again, config, 40) == pytest.approx(0.9, abs=0.02)
    told = json.loads((again.folder / "report.json").read_text())["mixture"]["books"]
    assert told["wanted"] == 0.9 and told["got"] == pytest.approx(0.9, abs=1e-3)
    assert "90.00 %" in (again.folder / "report.html").read_text()
    assert re.search(r"^books +90.0%", capsys.readouterr().out, re.MULTILINE)


def test_a_source_that_is_read_far_too_often_is_told(
    config_of: Any, folders: dict[str, pathlib.Path], capsys: pytest.CaptureFixture[str]
) -> None:
    prepared, config = mixed(config_of, "often", sources(folders, books=3.0, wiki=1.0), **{"train.num_steps": 100})
    assert capsys.readouterr().err == ""
    assert max(mixture.times_read(prepared.manifest, config).values()) < mixture.WORN_OUT
    mixed(config_of, "often", sources(folders, books=3.0, wiki=1.0), **{"train.num_steps": 20_000})
    told, *others = capsys.readouterr().err.splitlines()
    times = mixture.times_read(prepared.manifest, config)["books"] * 200
    assert f"warning: a run of this config reads books {times:,.0f} times, and so learns it by heart" in told and not others[1:]


def test_a_source_without_text_cannot_have_a_share(config_of: Any, folders: dict[str, pathlib.Path], tmp_path: pathlib.Path) -> None:
    (tmp_path / "copy").mkdir()
    (tmp_path / "copy" / "0.txt").write_text((folders["books"] / "0.txt").read_text())
    listed = sources({**folders, "copy": tmp_path / "copy"}, books=1.0, wiki=1.0, copy=1.0)
    with pytest.raises(UserError, match="copy has a weight, but no text to train on"):
        mixed(config_of, "empty", listed)


def test_weights_for_some_are_refused(config_of: Any, folders: dict[str, pathlib.Path]) -> None:
    for weights, message in (({"books": 1.0}, "give all of them one, or none"),
                             ({"books": 1.0, "wiki": 0.0}, r"sources\[1\].weight = 0.0 means none: leave the source out, or give it"),
                             ({"books": 0.0, "wiki": 0.0}, r"sources\[0\].weight = 0.0 means none")):  # fmt: skip
        with pytest.raises(UserError, match=message):
            config_of("some", **{"corpus.kind": "sources", "corpus.path": "", "corpus.sources": sources(folders, **weights)})


def test_the_report_says_what_was_wanted_and_got(config_of: Any, folders: dict[str, pathlib.Path]) -> None:
    prepared, _ = mixed(config_of, "told", sources(folders, books=3.0, wiki=1.0))
    told = json.loads((prepared.folder / "report.json").read_text())["mixture"]["books"]
    assert told["wanted"] == 0.75
    assert told["got"] == pytest.approx(0.75, abs=1e-3)
    assert told["by_size"] < 0.3


def test_a_source_is_refined_by_its_own_settings(config_of: Any, folders: dict[str, pathlib.Path], tmp_path: pathlib.Path) -> None:
    pytest.importorskip("datatrove", reason="pip install 'lmtiny[corpus]'")
    (tmp_path / "pages").mkdir()
    for number in range(2):
        pages = "\n\n".join(f"No full stop on page {page} of {number}" for page in range(40))
        (tmp_path / "pages" / f"{number}.txt").write_text(pages)
    listed = list(sources({**folders, "pages": tmp_path / "pages"}))
    listed[0] |= {"filters": ["c4"]}
    prepared, _ = mixed(config_of, "refined", tuple(listed))
    report = json.loads((prepared.folder / "report.json").read_text())
    assert set(report["dropped"]["c4"]) == {"books"}, "only books asked for it"
    assert prepared.manifest["sources"]["pages"]["train"][0] > 0
    others_not = (listed[0], *({**one, "filters": []} for one in listed[1:]))
    everywhere, _ = mixed(config_of, "all", others_not, **{"corpus.filters": ("c4",)})
    assert everywhere.digest == prepared.digest


def test_a_source_with_a_wrong_setting_is_refused(config_of: Any, folders: dict[str, pathlib.Path]) -> None:
    listed = list(sources(folders))
    listed[1] |= {"filters": ["c5"]}
    with pytest.raises(UserError, match=r"corpus.sources\[1\].filters = \('c5',\) must be some of gopher_quality"):
        mixed(config_of, "wrong", tuple(listed))
