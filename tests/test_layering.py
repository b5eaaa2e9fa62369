"""The house keeps its order: a room uses only rooms below it, entry points are never imported, the ground uses no room."""

import ast
import pathlib
import re
import subprocess

import pytest

ROOT = pathlib.Path(__file__).parent.parent
ROOMS = ("planning", "tasks", "interop", "sampling", "training", "model", "data", "refining", "corpus", "tokenizer")  # top to bottom
# The ground uses no room, and only ground below it.
GROUND = (
    "run_log", "parallel", "command_line", "console", "ownership", "files", "json_data", "config", "values", "knobs", "ctrl_c", "errors",
)  # fmt: skip
FORBIDDEN_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve"}
FORBIDDEN_CALLS = {"eval", "exec", "__import__"}


def imports(source: str, package: str) -> set[str]:
    """Returns the dotted names that a file imports anywhere, inside functions too; `package` is the one it lies in."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")
            base = ".".join(parents[: len(parents) - node.level + 1]) if node.level else ""
            module = ".".join(part for part in (base, node.module) if part)
            found |= {f"{module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "import_module":
            found |= {str(argument.value) for argument in node.args[:1] if isinstance(argument, ast.Constant)}
    return found


def violations(part: str, source: str, package: str = "lmtiny") -> list[str]:
    """Returns what a file of `part` (a room, a member of the ground, or the name of an entry point) must not import."""
    wrong = []
    for name in sorted(imports(source, package)):
        if name.split(".")[0] in FORBIDDEN_MODULES:
            wrong.append(f"imports {name}: it runs code from a file")
        if name == "lmtiny" or not name.startswith("lmtiny."):
            continue
        used = name.split(".")[1]
        if used == part or used == "__version__":
            continue
        if used not in ROOMS and used not in GROUND:
            wrong.append(f"imports the entry point {name}")
        elif part in ROOMS and used in ROOMS and ROOMS.index(used) <= ROOMS.index(part):
            wrong.append(f"imports {name}, which is above {part}")
        elif part in GROUND and (used in ROOMS or GROUND.index(used) <= GROUND.index(part)):
            wrong.append(f"imports {name}, on which {part} does not stand")
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in FORBIDDEN_CALLS:
            wrong.append(f"line {node.lineno}: calls {node.func.id}")
    return wrong


PACKAGE = ROOT / "lmtiny"
FILES = [file for file in sorted(PACKAGE.rglob("*.py")) if file != PACKAGE / "__init__.py"]


def part_of(file: pathlib.Path) -> str:
    """Returns the room, the member of the ground or the entry point that a file belongs to."""
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_a_part_uses_only_what_is_below_it(file: pathlib.Path) -> None:
    assert violations(part_of(file), file.read_text(encoding="utf-8"), ".".join(file.relative_to(ROOT).parts[:-1])) == []


def test_every_part_has_its_place() -> None:
    for file in FILES:
        part = part_of(file)
        if part not in ROOMS and part not in GROUND:
            assert file.parent == PACKAGE, f"{file}: the folder {part} is neither a room nor the ground"
            text = file.read_text(encoding="utf-8")
            assert '__name__ == "__main__"' in text, f"{file.name}: a module directly in lmtiny/ is an entry point or of the ground"


@pytest.mark.parametrize(
    ("part", "source"),
    [
        ("model", "from lmtiny.training import step"),
        ("model", "def f():\n    import lmtiny.sampling.generate"),
        ("data", "from ..model import transformer"),
        ("tokenizer", "import importlib\nimportlib.import_module('lmtiny.corpus.sources')"),
        ("sampling", "from lmtiny import train"),
        ("train", "from lmtiny.prepare import main"),
        ("console", "from lmtiny import model"),
        ("errors", "from lmtiny import config"),
        ("console", "from lmtiny.run_log import RunLog"),
        ("data", "import pickle"),
        ("model", "from pickle import loads"),
        ("tasks", "x = eval('1')"),
    ],
)
def test_the_check_sees_a_violation(part: str, source: str) -> None:
    assert len(violations(part, source, f"lmtiny.{part}" if part in ROOMS else "lmtiny")) == 1


@pytest.mark.parametrize(
    ("part", "source"),
    [
        ("training", "from lmtiny.model import transformer\nfrom lmtiny import config, errors, console\nfrom lmtiny.parallel import mesh"),
        ("model", "from . import layers\nfrom lmtiny.model.attention import attend"),
        ("train", "from lmtiny.training import step\nfrom lmtiny import __version__"),
        ("tasks", "import lmtiny\nfrom lmtiny.tokenizer import storage"),
    ],
)
def test_the_check_allows_what_is_in_order(part: str, source: str) -> None:
    assert violations(part, source, f"lmtiny.{part}" if part in ROOMS else "lmtiny") == []


# Split, so that this file does not find itself.
OF_ONE_MACHINE = re.compile("/" + r"work/|shared" + r"/data|/ro" + r"ot/|/ho" + r"me/[a-z]|/Us" + r"ers/[a-z]|/opt/" + "pypi")


def test_no_file_names_a_path_of_one_machine() -> None:
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout")
    found = []
    for name in filter(None, listed.stdout.split("\0")):
        file = ROOT / name
        if not file.is_file() or file.suffix in (".png", ".gz", ".gif", ".svg"):
            continue
        for number, line in enumerate(file.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
            # The one default that CI may look for beside the checkout.
            if OF_ONE_MACHINE.search(line) and not (name == ".ci/run" and "LMTINY_TEST_DATA" in line):
                found.append(f"{name}:{number}: {line.strip()[:100]}")
    assert found == []
