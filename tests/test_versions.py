"""The Python versions that are tested are the same wherever they are named."""

import pathlib
import re

ROOT = pathlib.Path(__file__).parent.parent
TESTED = ["3.11", "3.12", "3.13"]


def test_setup_readme_and_constraints_name_the_same_python_versions():
    minors = re.search(r"for minor in \((.+?)\)", (ROOT / "setup.py").read_text())[1]
    assert [f"3.{minor}" for minor in minors.split(", ")] == TESTED
    assert "Python 3.11, 3.12 or 3.13" in (ROOT / "README.md").read_text()
    assert sorted(path.stem for path in (ROOT / "constraints").glob("*.txt")) == [f"python{version}" for version in TESTED]
    for version in TESTED:
        assert f"python{version}" in (ROOT / ".ci" / "run").read_text()


def test_each_constraints_file_names_one_version_of_every_package_that_setup_requires():
    setup = (ROOT / "setup.py").read_text()
    required = {re.split(r"[\[<>=]", item)[0] for item in re.findall(r'"([A-Za-z_-]+(?:\[.+?\])?>=[^";]+)"', setup)}
    optional = {"mkl", "ray", "torch", "transformers"}  # extras that the tests do not install
    canonical = {re.sub(r"[-_.]+", "-", name).lower() for name in required - optional - {"python"}}
    assert len(canonical) > 15
    for version in TESTED:
        lines = (ROOT / "constraints" / f"python{version}.txt").read_text().splitlines()
        assert lines[0].startswith(f"# What lmtiny was tested with on Python {version};")
        assert all(re.fullmatch(r"[\w.-]+==[\w.!+]+", line) for line in lines[1:])
        pinned = {re.sub(r"[-_.]+", "-", line.split("==")[0]).lower() for line in lines[1:]}
        assert canonical <= pinned
