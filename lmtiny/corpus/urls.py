"""Files behind an fsspec URL (gs://, s3://, hf://, https://, ...), copied to this machine and then read like any other.

What a URL named at the first start is written down beside the copies; the next start asks nobody.
"""

import pathlib
import posixpath
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from lmtiny.corpus import download
from lmtiny.corpus.backoff import Backoff, Interrupted
from lmtiny.corpus.documents import digest
from lmtiny.corpus.paths import EXTENSIONS, extension, named, spelt
from lmtiny.errors import UserError

PIECE_BYTES = 1 << 20
_LISTING = {"url": str, "parent": str, "files": [{"name": str, "size": int, "version": {str: str}}]}
# What file systems tell a version by.
VERSION_KEYS = ("etag", "ETag", "md5Hash", "crc32c", "generation", "blob_id", "mtime", "created", "Last-Modified")


def copies(url: str, folder: pathlib.Path, backoff: Backoff | None = None) -> tuple[pathlib.Path, list[pathlib.Path]]:
    """Returns (root, files): what the URL names (a file, a folder or a glob of supported files), in `folder` under `root`.

    Raises:
      UserError: the file system's package is missing, nothing is there, or what `download` refuses.
    """
    system, path = _opened(url)
    home = folder / "url" / digest(url)[:16]
    listing = download.listing(home / "listing.json", lambda: _listed(url, system, path), _LISTING)
    if listing["url"] != url or not all(
        _is_named(f"{listing['parent']}{file['name']}", path) for file in listing["files"]
    ):
        what_to_do = "remove it, and it is asked for again"
        raise UserError(f"{home / 'listing.json'} is damaged: it lists what {url} does not name; {what_to_do}")
    changed = f"{url} has changed since it was listed; remove {home} to have it anew"
    remotes = [
        download.Remote(file["name"], file["size"], "", _reader(system, f"{listing['parent']}{file['name']}", file["version"], changed))
        for file in listing["files"]
    ]
    root = home / "files"
    return root, download.download(remotes, root, url, backoff or Backoff())


def _is_named(one: str, path: str) -> bool:
    """Returns whether the file system's `path`, a file, a folder or a glob, can have named the file `one`."""
    one, path = one.lstrip("/"), path.strip("/")
    if ".." in one.split("/"):
        return False
    fixed = re.split(r"[*?\[]", path)[0]
    return one.startswith(fixed) if fixed != path else one == path or one.startswith(f"{path}/")


def _opened(url: str) -> tuple[Any, str]:
    try:
        import fsspec.core

        system, path = fsspec.core.url_to_fs(url)
    except ImportError as error:
        package = getattr(error.__cause__, "name", None)  # fsspec's own words stand for the import that failed
        raise UserError(f"{url}: {' '.join(str(error).split())}{f': pip install {package}' if package else ''}") from None
    except ValueError as error:
        raise UserError(f"{url}: {error}; known are gs://, s3://, hf:// and the other protocols of fsspec") from None
    except Exception as error:  # some connect here; the class of the error is the file system's own
        raise UserError(f"{url}: cannot be opened ({_words(error)})") from None
    return system, path


def _listed(url: str, system: Any, path: str) -> dict[str, Any]:
    """Returns {"parent", "files": [{"name", "size", "version"}]}; parent + name is a path of the file system."""
    try:
        if any(mark in path for mark in "*?["):
            there = system.glob(path)
        else:
            there = system.find(path) if system.isdir(path) else [path] if system.exists(path) else []
        wanted = [one for one in there if extension(file := pathlib.PurePosixPath(one)) or named(file, path)]
        found = sorted(one for one in wanted if not posixpath.basename(one).startswith("."))
        infos = [system.info(one) for one in found]
    except Exception as error:  # the class of the error is the file system's own
        raise UserError(f"{url}: cannot be listed ({_words(error)})") from None
    if not there:
        raise UserError(f"{url}: nothing is there")
    if not found:
        raise UserError(f"{url} names no {spelt(EXTENSIONS)} file")
    # Not posixpath's: a path of https is the whole URL, of which it makes "https:/" and one character less.
    parent = "".join(f"{part}/" for part in posixpath.commonprefix([one.split("/")[:-1] for one in found]))
    for info in infos:
        if not isinstance(info.get("size"), int):
            raise UserError(f"{url}: the server does not tell the size of {info['name']}: copy it to this machine first")
    described = [
        {"name": one[len(parent) :], "size": info["size"], "version": _version(info)} for one, info in zip(found, infos, strict=True)
    ]
    return {"url": url, "parent": parent, "files": described}


def _version(info: dict[str, Any]) -> dict[str, str]:
    return {key: str(info[key]) for key in VERSION_KEYS if info.get(key) is not None}


def _reader(system: Any, path: str, version: dict[str, str], changed: str) -> Callable[[int], Any]:
    """Returns the `Remote.read` of a file: refuses one of another version than the listing's."""

    @contextmanager
    def read(start: int) -> Iterator[tuple[int, Iterator[bytes]]]:
        with _broken():
            now = _version(system.info(path))
            first, stream = _stream(system, path, start)
        with stream:
            if any(now.get(key, value) != value for key, value in version.items()):
                raise UserError(changed)
            yield first, iter(lambda: _piece(stream), b"")

    return read


def _stream(system: Any, path: str, start: int) -> tuple[int, Any]:
    """Returns (first byte, stream): from `start` on, or from the beginning where a web server knows nothing but whole files."""
    web = "https" in system.protocol
    if web and not start:
        return 0, system.open(path, "rb", block_size=0)  # as one answer, not as ranges of which it may refuse the second
    stream = system.open(path, "rb")
    stream.seek(start)
    if web:
        try:
            stream.read(1)  # fsspec has not asked before
        except ValueError:
            stream.close()
            return _stream(system, path, 0)
        stream.seek(start)
    return start, stream


def _piece(stream: Any) -> bytes:
    with _broken():
        return bytes(stream.read(PIECE_BYTES))


@contextmanager
def _broken() -> Iterator[None]:
    try:
        yield
    except Exception as error:  # the class is the file system's own; it is asked again, a few times
        raise Interrupted(_words(error)) from None


def _words(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
