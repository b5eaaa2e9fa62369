"""Random damage and malice to a folder that a stranger made, and a guard that sees what is read and written outside of it."""

import contextlib
import json
import os
import pathlib
import shutil
import sys

# Where a link or a name in the folder may lead: a file that nobody may read.
OUTSIDE = "outside/secret"
NESTED = json.loads("[" * 200 + "]" * 200)


def hostile(outside):
    """Returns values that stand where others belong."""
    ways_out = [str(outside), os.path.relpath(outside), f"../../{OUTSIDE}", f"file://{outside}", "http://127.0.0.1:9/x"]
    odd = ["", "a\0b", "x" * 5000, "²", "\ud800", "../", ".", "nan", "9" * 5000]
    numbers = [0, -1, 1, 2, 10**9, 10**18, 10**400, 1e308, -1e308, 0.5, True]
    return [*ways_out, *odd, *numbers, None, [], {}, NESTED, [[]], {"": {}}, ["a"], {"format": 1}]


def mutate(folder: pathlib.Path, choose, outside: pathlib.Path, seal):
    """Changes something in `folder`; returns what.

    Args:
      choose: a random.Random.
      outside: what hostile names lead to.
      seal: f(path, value) -> bytes or None: the file with a hash of its own that is right, as its maker could write it.
    """
    files = sorted(path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    path = choose.choice(files)
    texts = [file for file in files if file.name.endswith((".json", ".jsonl")) or file.name.startswith("_")]
    kind = choose.choice(["value", "value", "value", "bytes", "bytes", "digit", "digit", "kind", "name", "doubled"])
    if kind == "value":
        path = choose.choice(texts)
        raw = path.read_bytes()
        lines = raw.splitlines() if path.suffix == ".jsonl" else [raw]
        number = choose.randrange(len(lines))
        value = json.loads(lines[number])
        what = _change(value, choose, hostile(outside))
        new = json.dumps(value).encode(errors="replace") + b"\n"
        sealed = seal(path, value) if choose.random() < 0.7 and path.suffix != ".jsonl" else None
        lines[number] = sealed or new
        path.write_bytes(b"\n".join(lines))
        return f"{path.relative_to(folder)}: {what}{' (sealed)' if sealed else ''}"
    if kind == "bytes":
        raw = bytearray(path.read_bytes())
        place = choose.randrange(len(raw) + 1)
        what = choose.choice(["flip", "cut", "insert", "empty", "append"])
        if what == "flip" and place < len(raw):
            raw[place] ^= 1 << choose.randrange(8)
        elif what == "cut":
            del raw[place:]
        elif what == "insert":
            raw[place:place] = choose.choice([b"\0", b"\xff\xfe", b"[" * 100_000, b"}", b"1e999", b'"', b"\n"])
        elif what == "empty":
            raw = b""
        else:
            raw += b"\n{}"
        path.write_bytes(raw)
    elif kind == "digit":  # as 0.003 becomes 0.007: of the right shape
        path = choose.choice([file for file in texts if file.name == "manifest.json"] or texts)
        raw = bytearray(path.read_bytes())
        place = choose.choice([number for number, byte in enumerate(raw) if chr(byte).isdigit()])
        what, raw[place] = f"at {place}", ord(choose.choice([one for one in "123456789" if ord(one) != raw[place]]))
        path.write_bytes(raw)
    elif kind == "kind":
        path = choose.choice([*files, *(one for one in folder.rglob("*") if one.is_dir())])
        what = choose.choice(["a folder", "a link", "a dead link", "a pipe", "gone"])
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        if what == "a folder":
            path.mkdir()
        elif what == "a pipe":
            os.mkfifo(path)
        elif what != "gone":
            path.symlink_to(outside if what == "a link" else outside.with_name("nowhere"))
    elif kind == "name":
        path = choose.choice([one for one in folder.rglob("*") if one != folder])
        what = choose.choice(["²", "7", "-1", "00", "x" * 200, "manifest.json", "4.saving", "4.orbax-checkpoint-tmp", "a\nb"])
        target = path.with_name(what)
        if not target.exists():
            path.rename(target)
    else:
        path, what = choose.choice(texts), "a key twice"
        path.write_bytes(path.read_bytes().replace(b"{", b'{"format": 1, "step": 2, ', 1))
    return f"{path.relative_to(folder)}: {kind}, {what}"


def _change(value, choose, odd):
    """Changes one place in a JSON value, in place; returns what."""
    holder, where = value, ""
    while isinstance(holder, dict | list) and len(holder):
        key = choose.choice(list(holder)) if isinstance(holder, dict) else choose.randrange(len(holder))
        where += f"/{str(key)[:60]}"
        if isinstance(holder[key], dict | list) and len(holder[key]) and choose.random() < 0.8:
            holder = holder[key]
            continue
        new = choose.choice(odd)
        if choose.random() < 0.2:
            del holder[key]
            return f"{where} gone"
        if isinstance(holder, dict) and choose.random() < 0.2:
            holder[str(new)[:300]] = holder.pop(key)
            return f"{where} renamed to {str(new)[:40]!r}"
        holder[key] = new
        return f"{where} = {str(new)[:40]!r}"
    return "nothing"


_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
_watched = []


def _audit(event, args):
    if not _watched:
        return
    inside, seen = _watched[-1]
    if event == "open" and isinstance(args[0], str | bytes | os.PathLike):
        path = os.path.realpath(os.fsdecode(args[0]))
        secret = OUTSIDE.split("/")[0] in path.split("/")
        if secret or ((args[2] or 0) & _WRITES and not any(path.startswith(one) for one in inside)):
            seen.append(f"{event} {path}")
    elif event in ("os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.symlink", "os.truncate", "shutil.rmtree"):
        path = os.path.realpath(os.path.dirname(os.path.abspath(os.fsdecode(args[0])))) if not isinstance(args[0], int) else ""
        made_before = event == "os.mkdir" and os.path.isdir(args[0])
        if path and not made_before and not any(path.startswith(one) for one in inside):
            seen.append(f"{event} {os.fsdecode(args[0])}")
    elif event in ("socket.connect", "socket.getaddrinfo", "subprocess.Popen", "os.exec", "os.system"):
        seen.append(f"{event} {args}")


sys.addaudithook(_audit)


@contextlib.contextmanager
def nothing_outside(*inside):
    """Asserts that nothing is written but below the folders `inside`, nothing read of what is OUTSIDE, nothing fetched or started."""
    seen = []
    _watched.append(([os.path.realpath(one) for one in (*inside, "/dev", "/proc")], seen))
    try:
        yield
    finally:
        _watched.pop()
    assert not seen, seen
