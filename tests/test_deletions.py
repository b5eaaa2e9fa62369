"""What deletes or overwrites files stands in two places, which know what is lmtiny's, and in a list of others with their reasons."""

import ast
import pathlib

import pytest

PACKAGE = pathlib.Path(__file__).parent.parent / "lmtiny"
# These decide: ownership.py by marks, files.py by names that only it gives.
DECIDE = {"ownership.py", "files.py"}
# file -> what it may call, and why nothing of others is lost by it.
ELSEWHERE = {
    "corpus/download.py": {
        "replace",
        "unlink",
        "open",
    },  # NAME.partial in a marked folder grows over days, and gets its name at the end
    "data/publishing.py": {
        "replace"
    },  # a finished shard, from the marked parts/ into the marked folder that it lies in
    "data/shards.py": {"ArrayRecordWriter"},  # at the name that files.written gives
    "refining/decontamination.py": {"write_bytes"},  # in a folder that files.written names
    "tokenizer/compare.py": {"savefig"},  # at the name that files.written gives
    "run_log.py": {"open", "savefig"},  # of a run
    "training/run_folder.py": {"open", "write_bytes", "unlink"},  # the lock and a token of a run that is marked
    "training/find_rate.py": {"savefig"},  # of a run
    "console.py": {"open"},  # /dev/null
}
ALWAYS = {
    "rmtree", "unlink", "rmdir", "removedirs", "rename", "renames", "move", "copyfile", "copy2", "copytree", "write_text", "write_bytes",
    "savefig", "touch", "symlink_to", "hardlink_to", "ArrayRecordWriter",
}  # fmt: skip


def calls(source: str) -> set[str]:
    """Returns the names of the calls in a file that may delete, rename or overwrite a file."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        name = getattr(node.func, "attr", getattr(node.func, "id", ""))
        module = getattr(getattr(node.func, "value", None), "id", "")
        one_argument = (
            len(node.args) == 1 and not node.keywords
        )  # Path.replace; that of a text has two, that of dataclasses keywords
        given = [*node.args, *(keyword.value for keyword in node.keywords)]
        modes = [
            set(one.value) for one in given if isinstance(one, ast.Constant) and isinstance(one.value, str)
        ]
        writes = any(mode <= set("rwaxbt+") and mode & set("wax+") for mode in modes)
        if (
            name in ALWAYS
            or (name == "replace" and (module == "os" or one_argument))
            or (name == "remove" and module == "os")
            or (name in ("save", "savez", "savetxt") and module == "np")
            or (name == "open" and (module == "os" or writes))
        ):
            found.add(name)
    return found


@pytest.mark.parametrize(
    "file", sorted(PACKAGE.rglob("*.py")), ids=lambda file: file.relative_to(PACKAGE).as_posix()
)
def test_nothing_is_deleted_or_overwritten_but_where_it_is_known_to_be_ours(file: pathlib.Path) -> None:
    name = file.relative_to(PACKAGE).as_posix()
    if name not in DECIDE:
        assert calls(file.read_text(encoding="utf-8")) <= ELSEWHERE.get(name, set())


@pytest.mark.parametrize(
    "source",
    ["shutil.rmtree(a)", "a.unlink()", "a.rmdir()", "os.remove(a)", "os.replace(a, b)", "a.replace(b)", "os.rename(a, b)", "a.rename(b)",
     "shutil.move(a, b)", "open(a, 'w')", "a.open('ab')", "open(a, mode='r+b')", "a.write_text('')", "np.save(a, b)",
     "os.open(a, 1)", "from shutil import rmtree\nrmtree(a)"],
)  # fmt: skip
def test_the_check_sees_what_deletes_or_overwrites(source: str) -> None:
    assert calls(source)


@pytest.mark.parametrize(
    "source",
    ["a.replace('x', 'y')", "dataclasses.replace(a, b=1)", "open(a)", "open(a, 'rb')", "found.remove(a)"],
)
def test_the_check_lets_pass_what_does_not(source: str) -> None:
    assert not calls(source)
