"""JSON of others: the value, or one line that says what is wrong and where."""

import pytest

from lmtiny import json_data
from lmtiny.errors import UserError


@pytest.mark.parametrize(
    "raw",
    [b"", b"{", b"\xff", b'{"a": NaN}', b"[" * 100_000, b'{"a":' * 100_000, b"9" * 5000, "[1,]", b"Infinity"],
)
def test_what_is_no_json_is_refused_in_one_line(raw):
    with pytest.raises(UserError, match="^the listing is not JSON") as refused:
        json_data.parsed(raw, "the listing")
    assert "\n" not in str(refused.value) and len(str(refused.value)) < 200


SHAPE = {"name": str, "rows": int, "share": float, "files": {str: [int]}, "note": (str, type(None))}
RIGHT = {"name": "a", "rows": 1, "share": 1, "files": {"x": [1, 2]}, "note": None, "more": []}


def test_a_value_of_the_shape_is_taken():
    json_data.check(RIGHT, SHAPE, "it")
    json_data.check({**RIGHT, "files": {}, "share": 0.5, "note": "n"}, SHAPE, "it")


@pytest.mark.parametrize(
    ("key", "value"),
    [("name", 1), ("rows", True), ("rows", 1.0), ("share", "1"), ("files", None), ("files", {"x": 1}), ("files", {"x": ["1"]}),
     ("files", {"x": None}), ("note", 3), ("note", {})],
)  # fmt: skip
def test_a_value_of_another_shape_is_refused_by_name(key, value):
    with pytest.raises(UserError, match=f"^it: '{key}'"):
        json_data.check({**RIGHT, key: value}, SHAPE, "it")
    with pytest.raises(UserError, match=f"it lacks '{key}'"):
        json_data.check({name: one for name, one in RIGHT.items() if name != key}, SHAPE, "it")


def test_a_file_that_is_too_large_is_not_parsed(tmp_path):
    (tmp_path / "a.json").write_text("[1, 2]")
    assert json_data.read(tmp_path / "a.json", [int]) == [1, 2]
    with pytest.raises(UserError, match="larger than 5 bytes"):
        json_data.read(tmp_path / "a.json", [int], max_bytes=5)


def test_a_number_too_long_to_print_is_refused_where_text_belongs():
    json_data.check({"a": 10**5000}, {"a": int}, "it")
    with pytest.raises(UserError, match="a huge number, not text"):
        json_data.check({"a": 10**5000}, {"a": str}, "it")
