"""fsspec URLs: listed once, copied whole, resumed, and read like local files."""

import functools
import http.server
import json
import pathlib
import re
import sys
import threading
from collections.abc import Iterator
from typing import Any, ClassVar

import fsspec
import pytest

from lmtiny.corpus import urls
from lmtiny.corpus.backoff import Backoff
from lmtiny.errors import UserError

FILES = {"/bucket/a.txt": b"text a", "/bucket/deep/b.jsonl": b'{"text": "one"}\n' * 3, "/bucket/deep/c.py": b"no", "/bucket/.d.txt": b"no",
         "/bucket/c.json": b"no"}  # fmt: skip


@pytest.fixture
def memory() -> Iterator[Any]:
    system = fsspec.filesystem("memory")
    for path, data in FILES.items():
        system.pipe(path, data)
    yield system
    system.rm("/", recursive=True)


def copies(url: str, folder: pathlib.Path) -> dict[str, bytes]:
    root, files = urls.copies(url, folder, Backoff(tries=3, sleep=lambda _: None))
    return {file.relative_to(root).as_posix(): file.read_bytes() for file in files}


def test_a_folder_a_glob_and_a_file(memory: Any, tmp_path: pathlib.Path) -> None:
    assert copies("memory://bucket", tmp_path) == {"a.txt": FILES["/bucket/a.txt"], "deep/b.jsonl": FILES["/bucket/deep/b.jsonl"]}
    assert copies("memory://bucket/*/*.jsonl", tmp_path) == {"b.jsonl": FILES["/bucket/deep/b.jsonl"]}
    assert copies("memory://bucket/a.txt", tmp_path) == {"a.txt": b"text a"}
    assert copies("memory://bucket/deep/c.py", tmp_path) == copies("memory://bucket/*/*.py", tmp_path) == {"c.py": b"no"}
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "local.txt").write_text("here")
    assert copies(f"file://{tmp_path}/x", tmp_path / "y") == {"local.txt": b"here"}


def test_a_second_start_asks_nobody(memory: Any, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = copies("memory://bucket", tmp_path)
    with monkeypatch.context() as patch:
        for name in ("open", "info", "find", "isdir", "exists", "ls"):
            patch.setattr(type(memory), name, None)
        assert copies("memory://bucket", tmp_path) == first


def test_a_broken_copy_goes_on_where_it_broke(memory: Any, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = bytes(range(256)) * 40
    memory.pipe("/bucket/a.txt", data)
    begun: ClassVar[list[int]] = []
    opened, broken = type(memory).open, iter([True, False])

    class Breaking:
        def __init__(self, stream: Any) -> None:
            self.stream, self.breaks = stream, next(broken)

        def __enter__(self) -> "Breaking":
            return self

        def __exit__(self, *_: Any) -> None:
            self.stream.close()

        def seek(self, place: int) -> None:
            begun.append(place)
            self.stream.seek(place)

        def read(self, size: int) -> bytes:
            if self.breaks and self.stream.tell() >= 3000:
                raise ConnectionResetError("gone")
            return bytes(self.stream.read(min(size, 1000)))

    monkeypatch.setattr(type(memory), "open", lambda *args, **options: Breaking(opened(*args, **options)))
    assert copies("memory://bucket/a.txt", tmp_path) == {"a.txt": data}
    assert begun == [0, 3000]


def test_what_changed_since_it_was_listed_is_refused(memory: Any, tmp_path: pathlib.Path) -> None:
    copies("memory://bucket", tmp_path)
    (listing_file,) = tmp_path.rglob("listing.json")
    (copy,) = tmp_path.rglob("a.txt")
    copy.unlink()
    memory.pipe("/bucket/a.txt", b"text A")  # of the same size
    with pytest.raises(UserError, match="memory://bucket has changed since it was listed; remove .* to have it anew"):
        copies("memory://bucket", tmp_path)
    assert not copy.exists()
    listing_file.write_text("{")
    with pytest.raises(UserError, match="listing.json is damaged; remove it"):
        copies("memory://bucket", tmp_path)


def test_a_name_that_leads_out_is_refused(memory: Any, tmp_path: pathlib.Path) -> None:
    copies("memory://bucket", tmp_path)
    (listing_file,) = tmp_path.rglob("listing.json")
    listing = json.loads(listing_file.read_text())
    listing["files"][0]["name"] = "deep//evil.txt"
    listing_file.write_text(json.dumps(listing))
    with pytest.raises(UserError, match="leads out of"):
        copies("memory://bucket", tmp_path)


@pytest.mark.parametrize(
    "change",
    [{"url": "memory://other"}, {"parent": "/secret/"}, {"parent": "/bucket/../secret/"}, {"parent": "/bucket-of-others/"},
     {"parent": None}, {"files": None}, {"files": [{}]}, *({"files": [{"name": "a.txt", "size": 6, "version": {}, **one}]} for one in (
        {"name": "../../../evil.txt"}, {"size": -1}, {"size": 10**4000}, {"size": "6"}, {"version": None}, {"version": {"etag": 1}},
    ))],
    ids=lambda change: str(change)[:50],
)  # fmt: skip
def test_a_listing_of_anyones_reads_nothing_that_the_url_does_not_name(
    memory: Any, tmp_path: pathlib.Path, change: dict
) -> None:
    memory.pipe("/secret/a.txt", b"secret")
    copies("memory://bucket", tmp_path)
    (listing_file,) = tmp_path.rglob("listing.json")
    listing_file.write_text(json.dumps({**json.loads(listing_file.read_text()), **change}))
    (next(tmp_path.rglob("a.txt"))).unlink()
    with pytest.raises(UserError, match="is damaged") as error:
        copies("memory://bucket", tmp_path)
    assert "\n" not in str(error.value) and not list(tmp_path.rglob("a.txt"))


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("memory://nothing/here", "nothing is there"),
        ("memory://bucket/c.json", "names no .txt, .md, .*.parquet .* file"),
        ("nope://x/y.txt", "known are gs://, s3://, hf://"),
        ("zip://x.txt::file:///nothing.zip", r"cannot be opened \(FileNotFoundError"),
    ],
)
def test_what_a_url_does_not_name(memory: Any, tmp_path: pathlib.Path, url: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        copies(url, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("url", "package"), [("gs://b/x.txt", "gcsfs"), ("s3://b/x.txt", "s3fs")])
def test_a_missing_package_is_named(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, url: str, package: str) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=rf"pip install {package}"):
        copies(url, tmp_path)


class Web(http.server.SimpleHTTPRequestHandler):
    """Serves a folder, and parts of its files if it knows `ranges`; the first answer with a large one breaks off in the middle."""

    ranges = True
    begun: ClassVar[list[int]] = []  # where the requests for the large file begin

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        if not self.path.endswith("/c.txt"):
            super().do_GET()
            return
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        self.begun.append(int(asked[1]) if asked else 0)
        data = pathlib.Path(self.translate_path(self.path)).read_bytes()
        part = data[int(asked[1]) : int(asked[2]) + 1] if asked and self.ranges else data
        self.send_response(206 if part is not data else 200)
        self.send_header("Content-Length", str(len(part)))
        if part is not data and asked:
            self.send_header("Content-Range", f"bytes {asked[1]}-{int(asked[1]) + len(part) - 1}/{len(data)}")
        self.end_headers()
        self.wfile.write(part if len(self.begun) > 1 else part[: len(part) // 2])
        self.close_connection = True


LARGE = bytes(range(256)) * 50_000  # more than fsspec asks for at once


@pytest.fixture(params=[True, False], ids=["ranges", "whole files"])
def web(tmp_path: pathlib.Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    folder = tmp_path / "web"
    (folder / "deep").mkdir(parents=True)
    (folder / "a b.txt").write_bytes(b"text a")
    (folder / "deep" / "c.txt").write_bytes(LARGE)
    monkeypatch.setattr(Web, "ranges", request.param)
    Web.begun.clear()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Web, directory=str(folder))) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def test_a_web_server(web: str, tmp_path: pathlib.Path) -> None:
    assert copies(f"{web}/", tmp_path / "all") == {"a%20b.txt": b"text a", "deep/c.txt": LARGE}
    whole, again, *rest = Web.begun
    assert whole == 0 < again <= len(LARGE) // 2  # broken off in the middle, it is asked for from there
    assert all(start > again for start in rest) if Web.ranges else rest == [0]
    assert copies(f"{web}/a%20b.txt", tmp_path / "one") == {"a%20b.txt": b"text a"}
    assert copies(f"{web}/deep/*.txt", tmp_path / "glob") == {"c.txt": LARGE}
    with pytest.raises(UserError, match="/none.txt: nothing is there"):
        copies(f"{web}/none.txt", tmp_path / "none")
