"""Shards from a Hub that fails in every way: whole and right in the end, or one clear line and nothing half-written."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import pytest

from lmtiny import console, ownership
from lmtiny.corpus import download, hugging_face
from lmtiny.corpus.backoff import Backoff
from lmtiny.errors import UserError
from tests.corpus import hub_server

huggingface_hub = pytest.importorskip("huggingface_hub")
pytest.importorskip("pyarrow")

ROOT = pathlib.Path(__file__).parents[2]
NAMES = [f"shard_{number:05d}.parquet" for number in range(5)]


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[hub_server.Hub]:
    texts = {name: [f"Shard {name}, text {number}. " + "word " * 200 for number in range(40)] for name in NAMES}
    server = hub_server.Hub({name: hub_server.parquet(own) for name, own in texts.items()} | {"README.md": b"no shard"})
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_ENDPOINT", f"{server.url}/")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    yield server
    huggingface_hub.close_session()
    server.close()


@pytest.fixture
def slept() -> list[float]:
    return []


@pytest.fixture
def get(hub: hub_server.Hub, tmp_path: pathlib.Path, slept: list[float]) -> Callable[..., list[pathlib.Path]]:
    """Returns a function that downloads to `tmp_path`, and does not sleep but notes for how long it would."""

    def shards(count: int = 1, subset: str = "", revision: str = "main", dataset: str = "owner/set") -> list[pathlib.Path]:
        backoff = Backoff(tries=5, sleep=slept.append, now=lambda: 1_000_000_000.0, jitter=lambda: 1.0)
        return hugging_face.shards(dataset, subset, revision, count, tmp_path, backoff)[1]

    return shards


def of_first(hub: hub_server.Hub) -> list[str]:
    """Returns the Range headers of the requests for the first shard."""
    return [asked for path, asked in hub.asked if path == NAMES[0]]


def only_whole_files(folder: pathlib.Path, hub: hub_server.Hub) -> bool:
    return all(file.read_bytes() == hub.files[file.name] for file in folder.rglob("*.parquet"))


def test_the_first_shards_and_the_last_one_held_out(hub: hub_server.Hub, tmp_path: pathlib.Path) -> None:
    root, paths, held_out = hugging_face.shards("owner/set", "", "main", 2, tmp_path)
    assert [path.relative_to(root).as_posix() for path in paths] == [NAMES[0], NAMES[1], NAMES[4]]
    assert held_out == {paths[2]} and root == tmp_path / "hf" / "owner" / "set" / hub_server.COMMIT
    assert [path.read_bytes() for path in paths] == [hub.files[name] for name in (NAMES[0], NAMES[1], NAMES[4])]
    everything = hugging_face.shards("owner/set", "", "main", 0, tmp_path)
    assert [path.name for path in everything[1]] == NAMES and everything[2] == held_out
    assert [path.name for path in hugging_face.shards("owner/set", "", "main", 99, tmp_path)[1]] == NAMES
    asked = [path for path, _ in hub.asked]
    assert all(asked.count(name) == 1 for name in NAMES)  # what is there is not asked for again
    assert sorted(file.name for file in root.iterdir()) == [".lock", *NAMES]


def test_a_second_start_needs_no_network(hub: hub_server.Hub, get: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    first = get(2)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    asked = len(hub.asked)
    assert get(2) == first and len(hub.asked) == asked
    with pytest.raises(UserError, match="not all of it is downloaded, and HF_HUB_OFFLINE is set"):
        get(3)
    with pytest.raises(UserError, match="HF_HUB_OFFLINE is set"):
        get(2, revision="v2")


@pytest.mark.parametrize(
    ("faults", "ranges", "waits"),
    [
        ([("drop", 10_000)], ["", "bytes=10000-"], [1]),
        ([("drop", 10_000), ("drop", 5_000), ("drop", 0)], ["", "bytes=10000-", "bytes=15000-", "bytes=15000-"], [1, 1, 2]),
        ([("status", 429, {"Retry-After": "7"})], ["", ""], [8]),
        ([("status", 429, {"RateLimit": '"resolvers";r=0;t=55', "Retry-After": "1"})], ["", ""], [56]),
        ([("status", 429, {"Retry-After": "Sun, 09 Sep 2001 01:47:00 GMT"})], ["", ""], [21]),
        ([("status", 503, {}), ("status", 500, {"Retry-After": "soon"}), ("status", 408, {})], ["", "", "", ""], [1, 2, 4]),
        ([("drop", 10_000), ("status", 503, {"Retry-After": "3"})], ["", "bytes=10000-", "bytes=10000-"], [1, 4]),
        ([("drop", 10_000), ("whole",)], ["", "bytes=10000-"], [1]),
        ([("drop", 10_000), ("elsewhere",)], ["", "bytes=10000-", "bytes=10000-"], [1, 2]),
        ([("short", 10_000)], ["", "bytes=10000-"], [1]),
        ([("long",)], ["", ""], [1]),
        ([("corrupt",)], ["", ""], []),
        ([("drop", 10_000), ("corrupt",)], ["", "bytes=10000-", ""], [1]),
    ],
    ids=str,
)  # fmt: skip
def test_what_passes_is_waited_out(hub, get, tmp_path, slept, faults, ranges, waits) -> None:
    hub.faults[NAMES[0]] = faults
    assert [path.name for path in get()] == [NAMES[0], NAMES[4]]
    assert only_whole_files(tmp_path, hub)
    assert of_first(hub) == ranges
    assert slept == waits
    assert not list(tmp_path.rglob("*.partial"))


@pytest.mark.parametrize(
    ("fault", "message", "kept"),
    [
        (("drop", 0), "ended after|RemoteProtocolError.*given up after 5 tries.*the same command goes on", 0),
        (("status", 503, {}), "HTTP 503; given up after 5 tries", 0),
        (("status", 429, {"Retry-After": "7200"}), "HTTP 429; the server asks to come back in 2 h 00 min", 0),
        (("status", 403, {}), "no access; accept its terms on the Hub .* set HF_TOKEN", 0),
        (("status", 404, {"X-Error-Code": "EntryNotFound"}), "no such subset or file", 0),
        (("status", 418, {}), "HTTP 418", 0),
        (("short", 0), "ended after 0 of", 0),
        (("long",), "more than the announced", 0),
        (("corrupt",), "its hash is not the one that was announced, twice; it is not kept", None),
    ],
    ids=str,
)  # fmt: skip
def test_what_does_not_pass_is_told_in_one_line(hub, get, tmp_path, fault, message, kept) -> None:
    hub.faults[NAMES[0]] = [fault] * 20
    with pytest.raises(UserError, match=message) as error:
        get()
    assert NAMES[0] in str(error.value) and "\n" not in str(error.value)
    assert not list(tmp_path.rglob("*.parquet"))
    assert [file.stat().st_size for file in tmp_path.rglob("*.partial")] == ([] if kept is None else [kept])
    hub.faults.clear()
    get()
    assert only_whole_files(tmp_path, hub)


def test_a_shard_that_is_always_cut_short_is_given_up(hub, get, tmp_path, slept) -> None:
    """The listing announces more than the server ever has: it answers 416, or the same bytes again and again."""
    whole = hub.files[NAMES[0]]
    get(2)
    (tmp_path / "hf" / "owner" / "set" / hub_server.COMMIT / NAMES[0]).unlink()
    hub.files[NAMES[0]] = whole[:9000]
    with pytest.raises(UserError, match=f"ended after [0-9,]+ of {len(whole):,} bytes; given up after 5 tries"):
        get(2)
    hub.files[NAMES[0]] = whole
    get(2)
    assert only_whole_files(tmp_path, hub)


def test_a_server_that_always_starts_over_does_not_keep_us_for_ever(hub, get, monkeypatch) -> None:
    """It ignores Range and drops at the same byte: there are always bytes, and never progress."""
    hub.faults[NAMES[0]] = [("drop", 9000)] * 30
    monkeypatch.setattr(hub_server.Handler, "headers", property(lambda _: {}, lambda *_: None), raising=False)
    with pytest.raises(UserError, match="given up after 5 tries"):
        get()
    assert len(of_first(hub)) == 5


@pytest.mark.parametrize("rest", [b"", b"x" * 5_000, b"y" * 10_000_000])
def test_a_partial_file_of_something_else_is_found_out(hub, get, tmp_path, rest) -> None:
    partial = tmp_path / "hf" / "owner" / "set" / hub_server.COMMIT / f"{NAMES[0]}.partial"
    ownership.claim(partial.parents[1], download.PURPOSE, "")
    partial.parent.mkdir()
    partial.write_bytes(rest)
    get()
    assert only_whole_files(tmp_path, hub) and not partial.exists()


def test_a_killed_download_goes_on_at_its_byte(hub: hub_server.Hub, get: Callable, tmp_path: pathlib.Path) -> None:
    hub.faults[NAMES[0]] = [("stall", 20_000)]
    code = (
        "import pathlib, sys; from lmtiny.corpus import hugging_face\n"
        "hugging_face.shards('owner/set', '', 'main', 1, pathlib.Path(sys.argv[1]))"
    )
    child = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)})
    partial = tmp_path / "hf" / "owner" / "set" / hub_server.COMMIT / f"{NAMES[0]}.partial"
    deadline = time.monotonic() + 60
    while not (partial.exists() and partial.stat().st_size == 20_000) and time.monotonic() < deadline and child.poll() is None:
        time.sleep(0.01)
    child.send_signal(signal.SIGKILL)
    child.wait()
    hub.go_on.set()
    assert partial.stat().st_size == 20_000 and not list(tmp_path.rglob("*.parquet"))
    get()
    assert of_first(hub) == ["", "bytes=20000-"]
    assert only_whole_files(tmp_path, hub) and not partial.exists()


def test_the_listing_is_asked_for_patiently(hub, get, slept, monkeypatch) -> None:
    monkeypatch.setattr(huggingface_hub.utils._http.time, "sleep", slept.append)  # its pages are waited for by huggingface_hub
    hub.faults |= {"info": [("status", 429, {"Retry-After": "7"}), ("status", 503, {})], "tree": [("status", 503, {})]}
    assert [path.name for path in get()] == [NAMES[0], NAMES[4]]
    assert slept[:2] == [8, 2] and len(slept) == 3
    assert [path for path, _ in hub.asked].count("tree") == 4  # three pages


EVIL = ["../evil.parquet", "/etc/evil.parquet", "a/../../evil.parquet", "a//b.parquet", "a\\b.parquet", "a\nb.parquet"]


@pytest.mark.parametrize("name", EVIL)
def test_no_name_leads_out_of_the_folder(hub, get, tmp_path, name) -> None:
    hub.files[name], hub.announced[name] = b"PAR1 evil PAR1", "git"
    with pytest.raises(UserError, match="leads out of .* or is no file's: nothing is written there"):
        get(0)
    assert {file.name for file in tmp_path.rglob("*") if file.is_file()} == {
        ".lmtiny",
        next(tmp_path.rglob("listing-*")).name,
    }
    assert not list(tmp_path.parent.glob("evil*"))


def test_a_commit_from_the_server_is_no_way_out_either(get, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", lambda *_, **__: type("Info", (), {"sha": "../../up"}))
    monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_tree", lambda *_, **__: iter(()))
    with pytest.raises(UserError, match="is not a commit"):
        get()
    assert not list(tmp_path.rglob("*"))


HUGE = 10**4000
HOSTILE = [
    [], None, {"commit": "../../up"}, {"commit": None}, {"shards": []}, {"shards": {}}, {"shards": [{}]}, {"shards": [1]},
    *({"shards": [{"path": "a.parquet", "size": 1, "hash": "", **one}]} for one in (
        {"size": -1}, {"size": HUGE}, {"size": "1"}, {"size": True}, {"path": 1}, {"path": "../a"}, {"hash": None}, {"hash": "md5:0"},
    )),
]  # fmt: skip


@pytest.mark.parametrize("change", HOSTILE, ids=lambda change: str(change)[:60])
def test_a_listing_of_anyones_is_told_in_one_line_and_leads_nowhere(hub, get, tmp_path, change) -> None:
    get()
    file = next(tmp_path.rglob("listing-*"))
    listing = json.loads(file.read_text())
    file.write_text(json.dumps({**listing, **change} if isinstance(change, dict) else change))
    before = {path: path.read_bytes() for path in tmp_path.parent.rglob("*") if path.is_file()}
    with pytest.raises(UserError, match="is damaged|leads out of") as error:
        get()
    assert "\n" not in str(error.value) and len(str(error.value)) < 500
    assert {path: path.read_bytes() for path in tmp_path.parent.rglob("*") if path.is_file()} == before


def test_a_listing_that_is_nested_deep_or_no_json_is_told_in_one_line(hub, get, tmp_path) -> None:
    get()
    file = next(tmp_path.rglob("listing-*"))
    for text in ("[" * 100_000, '{"commit": NaN}', "\xff", "", "9" * 5000):
        file.write_text(text)
        with pytest.raises(UserError, match="is damaged; remove it, and what it lists is asked for again"):
            get()


def test_a_strangers_files_where_shards_would_go_stay(hub, get, tmp_path) -> None:
    home = tmp_path / "hf" / "owner" / "set"
    mine = [
        home / hub_server.COMMIT / NAMES[0],
        home / hub_server.COMMIT / f"{NAMES[4]}.partial",
        home / "listing-x.json",
    ]
    for file in mine:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("mine")
        with pytest.raises(
            UserError, match=r"^corpus.download_dir: .* holds files that lmtiny did not write \("
        ):
            get()
    assert (
        [file.read_text() for file in mine] == ["mine"] * 3
        and len(list(home.rglob("*"))) == 4
        and not hub.asked
    )


def test_nothing_is_written_through_a_link(hub, get, tmp_path) -> None:
    root, elsewhere = tmp_path / "hf" / "owner" / "set" / hub_server.COMMIT, tmp_path / "elsewhere"
    ownership.claim(root.parent, download.PURPOSE, "")
    elsewhere.mkdir()
    (elsewhere / "mine").write_text("mine")
    root.symlink_to(elsewhere)
    get()  # a whole folder may lie on another disk
    assert only_whole_files(tmp_path, hub)
    (elsewhere / NAMES[0]).unlink()
    (elsewhere / f"{NAMES[0]}.partial").symlink_to(elsewhere / "mine")
    with pytest.raises(UserError, match="leads out of .* through a link"):
        get()
    assert (elsewhere / "mine").read_text() == "mine"


def test_what_an_older_lmtiny_downloaded_is_used_without_a_mark(hub, get, tmp_path) -> None:
    first = get()
    mark = next(tmp_path.rglob(".lmtiny"))
    mark.unlink()
    asked = len(hub.asked)
    assert get() == first and len(hub.asked) == asked and not mark.exists()
    assert len(get(revision=hub_server.COMMIT)) == 2 and mark.exists()


def test_small_files_are_checked_by_their_git_hash(hub, get, tmp_path) -> None:
    hub.announced[NAMES[0]] = "git"
    hub.faults[NAMES[0]] = [("corrupt",)]
    get()
    assert of_first(hub) == ["", ""] and only_whole_files(tmp_path, hub)


@pytest.mark.parametrize("data", [b"PAR1 no footer PAR1", b"<html>not here</html>", b"PA", b"PAR1"])
def test_what_is_no_parquet_is_refused_though_its_hash_is_right(hub, get, tmp_path, data) -> None:
    hub.files[NAMES[0]], hub.announced[NAMES[0]] = data, "git"
    with pytest.raises(UserError, match="begin and end as a .parquet file does|its parquet footer cannot be read"):
        get()
    assert not list(tmp_path.rglob(f"{NAMES[0]}*"))


def test_the_token_goes_to_the_hub_and_no_further(hub, get, monkeypatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    elsewhere = hub_server.Hub(hub.files)
    hub.faults[NAMES[0]] = [("redirect", elsewhere.url)]
    try:
        get()
    finally:
        elsewhere.close()
    assert {token for _, token in hub.authorizations} == {"Bearer hf_secret"}
    assert elsewhere.authorizations == [(NAMES[0], "")]


def test_subsets(hub, get, tmp_path) -> None:
    for name in ("en/test-0", "en/train-0", "en/train-1", "en/validation-0", "de/train-0", "x/y"):
        path = f"{name}.parquet" if name != "x/y" else "x/y.txt"
        hub.files[path] = hub.files[NAMES[0]]
        hub.announced[path] = hub.announced[NAMES[0]]
    assert [path.name for path in get(0, "en/train-*")] == ["train-0.parquet", "train-1.parquet"]
    assert [path.parent.name for path in get(0, "de")] == [path.parent.name for path in get(0, "de/train-0.parquet")] == ["de"]
    assert [path.parent.name for path in get(0, "*/train-0*")] == ["de", "en"]
    with pytest.raises(UserError, match=r'has shards of test, train, validation; say which are to be read, as in "subset": "en/train-\*"'):
        get(0, "en")
    with pytest.raises(UserError, match='subset x.* has no .parquet; many datasets have them under "revision": "refs/convert/parquet"'):
        get(0, "x")
    with pytest.raises(UserError, match="no such subset"):
        get(0, "fr")


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"dataset": "owner/sets"}, "hf:owner/sets: no such dataset, or it is private: then set HF_TOKEN"),
        ({"revision": "v2"}, "no such revision"),
        ({"dataset": "owner/set/data"}, "is not hf:OWNER/DATASET"),
        ({"dataset": "karpathy"}, "is not hf:OWNER/DATASET"),
        ({"dataset": "../set"}, "is not hf:OWNER/DATASET"),
        ({"dataset": "owner/a--b"}, "Cannot have -- or .. in repo_id"),
    ],
)
def test_what_the_hub_does_not_have(get, asked, message) -> None:
    with pytest.raises(UserError, match=message):
        get(**asked)


def test_no_room_is_told_before_a_byte_is_asked_for(hub, get, monkeypatch) -> None:
    monkeypatch.setattr(download.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 1000}))
    with pytest.raises(UserError, match=r"the download needs .* but 1 kB are free; ask for fewer shards"):
        get()
    assert not of_first(hub)


def test_a_disk_that_fills_up_is_told_and_what_came_is_kept(hub, get, tmp_path, monkeypatch) -> None:
    succeeds = iter([False, True, False])  # the listing is not written; it is, but the shard is not
    flush = os.fsync

    def full(file: int) -> None:
        if not next(succeeds):
            raise OSError(28, "No space left on device")
        flush(file)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        for folder in ("set", hub_server.COMMIT):
            with pytest.raises(UserError, match=f"{folder} cannot be written: No space left on device"):
                get()
    get()
    assert of_first(hub) == [""] and only_whole_files(tmp_path, hub)


def test_without_the_extra_one_line_names_it(get, monkeypatch) -> None:
    for missing in ("pyarrow", "huggingface_hub"):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, missing, None)
            with pytest.raises(UserError, match=rf"hf: sources need {missing}: pip install 'lmtiny\[hub\]'"):
                get()


def test_two_processes_do_not_write_the_same_shard(get, tmp_path, monkeypatch, capsys) -> None:
    from lmtiny import files

    root = tmp_path / "hf" / "owner" / "set" / hub_server.COMMIT
    ownership.claim(root.parent, download.PURPOSE, "")
    root.mkdir()
    with open(root / ".lock", "ab") as held:
        assert files.try_lock(held)
        monkeypatch.setattr(files.time, "sleep", lambda _: held.close())  # the other one ends while we wait
        get()
    assert "is being downloaded to by another process; waiting for it" in capsys.readouterr().out


def test_progress_counts_what_was_there_before_but_not_in_the_rate(hub, get, capsys, monkeypatch) -> None:
    hub.faults[NAMES[0]] = [("drop", 9000), *[("status", 503, {})] * 5]
    with pytest.raises(UserError):
        get()
    starts = []
    finish = console.Progress.finish
    monkeypatch.setattr(console.Progress, "finish", lambda self, completed: (starts.append(self.start), finish(self, completed)))
    capsys.readouterr()
    get()
    sizes = len(hub.files[NAMES[0]]) + len(hub.files[NAMES[4]])
    assert f"downloading hf:owner/set: {sizes:,}/{sizes:,} bytes in " in capsys.readouterr().out
    assert starts == [9000]


def test_the_listing_says_what_was_asked_and_found(hub, get, tmp_path) -> None:
    get(1, revision=hub_server.COMMIT)
    listing = json.loads(next(tmp_path.rglob("listing-*")).read_text())
    assert listing["commit"] == listing["revision"] == hub_server.COMMIT and listing["subset"] == ""
    assert listing["shards"][0] == {"path": NAMES[0], "size": len(hub.files[NAMES[0]]), "hash": f"sha256:{hub.announced[NAMES[0]]}"}
