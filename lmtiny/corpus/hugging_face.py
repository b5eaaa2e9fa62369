"""Hugging Face datasets by their parquet shards: the first N to train on, the last one held out, as nanochat does.

huggingface_hub lists the shards, makes the addresses, sends the token (HF_TOKEN), honours HF_ENDPOINT and HF_HUB_OFFLINE.
The transfer is our own (`lmtiny.corpus.download`), since `hf_hub_download` (2.4.0) cannot do what a long download needs:
it begins anew after a kill (its partial file has a random name and is removed), a GET waits for 408 and 429 but not for
5xx, and the hash of what came by HTTP is not looked at.

What a revision stood for, and the shards it had, is written down at the first start; the next one asks nobody.
"""

import fnmatch
import importlib.util
import os
import pathlib
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from lmtiny.corpus import download
from lmtiny.corpus.backoff import Backoff, Interrupted
from lmtiny.corpus.documents import digest
from lmtiny.errors import UserError

TIMEOUT_S = 60.0  # without a byte
_SPLIT = re.compile(r"(?:^|[/_.-])(train|validation|valid|dev|test)(?=[/_.-])")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_LISTING = {"commit": str, "shards": [{"path": str, "size": int, "hash": str}]}
T = TypeVar("T")


def shards(
    dataset: str, subset: str, revision: str, count: int, folder: pathlib.Path, backoff: Backoff | None = None
) -> tuple[pathlib.Path, list[pathlib.Path], set[pathlib.Path]]:
    """Returns (root, shards, those held out): the first `count` (0: all) and the last of the dataset, in `folder` under `root`.

    `subset` is a folder of the dataset or a glob of its shards ("" for all), `revision` a branch, tag or commit. The
    order is that of the names. Of a dataset of one shard nothing is held out.

    Raises:
      UserError: no such dataset, subset or revision, no access, shards of several splits, or what `download` refuses.
    """
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", dataset):
        raise UserError(f"hf:{dataset} is not hf:OWNER/DATASET; folders and files of it are named by subset")
    _import_or_refuse()
    backoff = backoff or Backoff()
    home = folder / "hf" / dataset
    file = home / f"listing-{digest(revision, subset)[:16]}.json"
    listing = download.listing(file, lambda: _listed(dataset, subset, revision, backoff), _LISTING)
    commit, found = listing["commit"], listing["shards"]
    if not _COMMIT.fullmatch(commit) or not found:  # the commit becomes the name of a folder
        raise UserError(f"{file} is damaged; remove it, and what it lists is asked for again")
    chosen = found[:-1] if len(found) > 1 else found
    chosen = (chosen[:count] if count else chosen) + (found[-1:] if len(found) > 1 else [])
    root = home / commit
    remotes = [download.Remote(shard["path"], shard["size"], shard["hash"], _reader(dataset, commit, shard["path"])) for shard in chosen]
    paths = download.download(remotes, root, f"hf:{dataset}", backoff)
    return root, paths, set(paths[-1:]) if len(found) > 1 else set()


def _import_or_refuse() -> None:
    if missing := [name for name in ("huggingface_hub", "pyarrow") if importlib.util.find_spec(name) is None]:
        raise UserError(f"hf: sources need {', '.join(missing)}: pip install 'lmtiny[hub]'")


def _endpoint() -> str | None:
    return os.environ.get("HF_ENDPOINT", "").rstrip("/") or None


def _listed(dataset: str, subset: str, revision: str, backoff: Backoff) -> dict[str, Any]:
    """Returns {"commit", "shards": [{"path", "size", "hash"}]} of what the Hub has, sorted by path."""
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoFile

    what = f"hf:{dataset}"
    api = HfApi(endpoint=_endpoint())
    commit = _patiently(what, backoff, lambda: api.dataset_info(dataset, revision=revision, timeout=TIMEOUT_S).sha)
    if not _COMMIT.fullmatch(commit or ""):
        raise UserError(f"{what}: {commit!r} is not a commit")
    is_pattern = subset.endswith(".parquet") or any(mark in subset for mark in "*?[")
    folder = re.split(r"[*?\[]", subset)[0].rpartition("/")[0] if is_pattern else subset.strip("/")
    entries = _patiently(
        what, backoff, lambda: list(api.list_repo_tree(dataset, folder or None, recursive=True, revision=commit, repo_type="dataset"))
    )
    files = [entry for entry in entries if isinstance(entry, RepoFile) and entry.path.endswith(".parquet")]
    if is_pattern:
        files = [file for file in files if fnmatch.fnmatchcase(file.path, subset)]
    files.sort(key=lambda file: file.path)
    where = f"{what} (revision {revision}{f', subset {subset}' if subset else ''})"
    if not files:
        raise UserError(f'{where} has no .parquet; many datasets have them under "revision": "refs/convert/parquet"')
    splits = sorted({match for file in files for match in _SPLIT.findall(file.path)})
    if len(splits) > 1:
        training = next((file.path for file in files if "train" in _SPLIT.findall(file.path)), files[0].path)
        glob = re.sub(r"(train[-_.]?).*", r"\1*", training)
        raise UserError(f'{where} has shards of {", ".join(splits)}; say which are to be read, as in "subset": "{glob}"')
    described = [
        {"path": file.path, "size": file.lfs.size if file.lfs else file.size,
         "hash": f"sha256:{file.lfs.sha256}" if file.lfs else f"git:{file.blob_id}"}
        for file in files
    ]  # fmt: skip
    return {"dataset": dataset, "revision": revision, "subset": subset, "commit": commit, "shards": described}


def _patiently(what: str, backoff: Backoff, ask: Callable[[], T]) -> T:
    """Returns what `ask` returns, asked again where the Hub is busy or out of reach."""
    while True:
        try:
            with _translated(what):
                result = ask()
            backoff.worked()
            return result
        except Interrupted as interrupted:
            backoff.wait(what, interrupted)


def _reader(dataset: str, commit: str, path: str) -> Callable[[int], Any]:
    """Returns the `Remote.read` of a shard: a GET of its bytes from one on."""

    @contextmanager
    def read(start: int) -> Iterator[tuple[int, Iterator[bytes]]]:
        from huggingface_hub import get_session, hf_hub_url
        from huggingface_hub.utils import build_hf_headers, hf_raise_for_status

        url = hf_hub_url(dataset, path, repo_type="dataset", revision=commit, endpoint=_endpoint())
        # As they are stored: ranges of compressed bytes would not be ranges of the file.
        headers = {**build_hf_headers(), "Accept-Encoding": "identity", **({"Range": f"bytes={start}-"} if start else {})}
        with _translated(f"hf:{dataset}: {path}"), get_session().stream("GET", url, headers=headers, timeout=TIMEOUT_S) as response:
            if response.status_code == 416:  # there is nothing from `start` on: what we have is not of this file
                yield 0, iter(())
                return
            if response.status_code not in (200, 206):
                response.read()
                hf_raise_for_status(response)
                raise Interrupted(f"HTTP {response.status_code}")
            begin = 0
            if response.status_code == 206:
                match = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
                begin = int(match[1]) if match else -1
                if begin != start:
                    raise Interrupted(f"asked for the bytes from {start:,} on, the server sent others")
            yield begin, response.iter_raw()

    return read


@contextmanager
def _translated(what: str) -> Iterator[None]:
    """Turns the errors of huggingface_hub into Interrupted (the rate is limited, the server ails, the line broke) or UserError."""
    import httpx2
    from huggingface_hub import errors

    try:
        yield
    except errors.OfflineModeIsEnabled:
        raise UserError(f"{what}: not all of it is downloaded, and HF_HUB_OFFLINE is set; unset it, or ask for fewer shards") from None
    except errors.HfHubHTTPError as error:
        status = error.response.status_code
        if status in (408, 429) or status >= 500:
            raise Interrupted(f"HTTP {status}", _retry_after(status, error.response.headers)) from None
        if isinstance(error, errors.GatedRepoError) or status == 403:
            raise UserError(f"{what}: no access; accept its terms on the Hub with your account, then set HF_TOKEN") from None
        if isinstance(error, errors.RevisionNotFoundError):
            raise UserError(f"{what}: no such revision") from None
        if isinstance(error, errors.RemoteEntryNotFoundError):
            raise UserError(f"{what}: no such subset or file in it") from None
        if isinstance(error, errors.RepositoryNotFoundError):
            raise UserError(f"{what}: no such dataset, or it is private: then set HF_TOKEN") from None
        raise UserError(f"{what}: HTTP {status}") from None
    except errors.HFValidationError as error:
        raise UserError(f"{what}: {' '.join(str(error).split())}") from None
    except httpx2.TransportError as error:
        raise Interrupted(f"{type(error).__name__}{f' ({error})' if str(error) else ''}") from None


def _retry_after(status: int, headers: Any) -> str:
    """Returns the Retry-After header, or ""; of a 429 the seconds that the Hub's own "RateLimit: ...;r=0;t=SECONDS" names."""
    if status == 429 and (named := re.search(r"\bt=(\d+)", headers.get("RateLimit", ""))):
        return named[1]
    return str(headers.get("Retry-After", ""))
