"""A small Hugging Face Hub on this machine that fails in the ways a real one, and the lines to it, do."""

import hashlib
import http.server
import io
import json
import threading
import urllib.parse
from typing import Any

COMMIT = "0123456789abcdef0123456789abcdef01234567"
PAGE = 2  # entries of a listing sent at once


class Hub(http.server.ThreadingHTTPServer):
    """Serves `files` (path -> bytes) as the dataset owner/set at COMMIT.

    `faults` holds, for a path of the dataset or "info" or "tree", what is to go wrong with its next requests, one each:
    ("status", code, headers), ("drop", n) and ("short", n) send n bytes, the first as if more came; ("whole",) ignores
    Range; ("corrupt",) turns bytes; ("long",) sends more than there is; ("elsewhere",) answers another range;
    ("stall", n) sends n bytes, then waits for `go_on`; ("redirect", url). `asked` is the list of (path, Range header).
    """

    daemon_threads = True

    def __init__(self, files: dict[str, bytes]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files, self.faults = files, dict[str, list[tuple[Any, ...]]]()
        self.asked: list[tuple[str, str]] = []
        self.authorizations: list[tuple[str, str]] = []
        self.announced = {path: hashlib.sha256(data).hexdigest() for path, data in files.items()}
        self.go_on = threading.Event()
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self._thread = threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()

    def close(self) -> None:
        self.go_on.set()
        self.shutdown()
        self._thread.join()
        self.server_close()

    def handle_error(self, *_: Any) -> None:
        """A client that hung up is nothing to talk about."""


class Handler(http.server.BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        parts = urllib.parse.urlsplit(self.path)
        path = urllib.parse.unquote(parts.path)
        for prefix, answer in (
            ("/api/datasets/owner/set/revision/", self.info),
            (f"/api/datasets/owner/set/tree/{COMMIT}", self.tree),
            (f"/datasets/owner/set/resolve/{COMMIT}/", self.file),
        ):
            if path.startswith(prefix):
                answer(path.removeprefix(prefix), urllib.parse.parse_qs(parts.query))
                return
        self.reply(404, b"{}", {"X-Error-Code": "RepoNotFound"})

    def fault(self, what: str) -> tuple[Any, ...]:
        self.server.asked.append((what, self.headers.get("Range", "")))
        self.server.authorizations.append((what, self.headers.get("Authorization", "")))
        waiting = self.server.faults.get(what)
        return waiting.pop(0) if waiting else ("none",)

    def info(self, revision: str, _: dict[str, list[str]]) -> None:
        kind, *details = self.fault("info")
        if kind == "status":
            self.reply(details[0], b"{}", details[1])
        elif revision not in ("main", COMMIT):
            self.reply(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
        else:
            self.reply(200, json.dumps({"id": "owner/set", "sha": COMMIT, "tags": [], "downloads": 0, "likes": 0}).encode())

    def tree(self, folder: str, query: dict[str, list[str]]) -> None:
        kind, *details = self.fault("tree")
        folder = folder.strip("/")
        found = [path for path in sorted(self.server.files, reverse=True) if not folder or path.startswith(f"{folder}/")]
        start = int(query.get("cursor", ["0"])[0])
        if kind == "status" or not found:
            self.reply(details[0] if details else 404, b"{}", {"X-Error-Code": "EntryNotFound"})
            return
        entries = []
        for path in found[start : start + PAGE]:
            data, sha = self.server.files[path], self.server.announced[path]
            entry = {"type": "file", "path": path, "size": len(data), "oid": hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()}
            entries.append(entry if sha == "git" else {**entry, "lfs": {"oid": sha, "size": len(data), "pointerSize": 134}})
        more = {"Link": f'<{self.server.url}{self.path.partition("?")[0]}?recursive=True&cursor={start + PAGE}>; rel="next"'}
        self.reply(200, json.dumps(entries).encode(), more if start + PAGE < len(found) else {})

    def file(self, path: str, _: dict[str, list[str]]) -> None:
        kind, *details = self.fault(path)
        data = self.server.files[path]
        asked = self.headers.get("Range", "")
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked and kind != "whole" else 0
        if kind == "status":
            self.reply(details[0], b"", details[1])
        elif kind == "redirect":
            self.reply(302, b"", {"Location": f"{details[0]}{self.path}"})
        elif asked and start >= len(data):
            self.reply(416, b"")
        else:
            if kind == "corrupt":
                middle = len(data) // 2
                data = data[:middle] + bytes(255 - byte for byte in data[middle : middle + 8]) + data[middle + 8 :]
            shown = start + 1 if kind == "elsewhere" else start
            headers = {"Content-Range": f"bytes {shown}-{len(data) - 1}/{len(data)}"} if asked and kind != "whole" else {}
            body = data[start:] + (b"more" if kind == "long" else b"")
            limit = details[0] if kind in ("drop", "short", "stall") else len(body)
            self.reply(206 if headers else 200, body[:limit], headers, limit if kind == "short" else len(body))
            if kind == "stall":
                self.server.go_on.wait(60)

    def reply(self, status: int, body: bytes, headers: dict[str, str] | None = None, length: int | None = None) -> None:
        self.send_response(status)
        for key, value in {"Content-Length": str(len(body) if length is None else length), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(body)
        self.wfile.flush()


def parquet(texts: list[str], column: str = "text") -> bytes:
    """Returns a parquet file of the texts, uncompressed so that it has a size to speak of."""
    import pyarrow
    import pyarrow.parquet

    out = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table({column: texts}), out, compression="none", use_dictionary=False)
    return out.getvalue()
