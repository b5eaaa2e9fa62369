import pytest

from lmtiny.errors import UserError
from lmtiny.planning import slices


@pytest.mark.parametrize(
    ("text", "chip", "form", "chips", "accelerator"),
    [
        ("v5e-8", "v5e", "2x4", 8, "v5litepod-8"), ("v5e-256", "v5e", "16x16", 256, "v5litepod-256"), ("v6e-8", "v6e", "2x4", 8, "v6e-8"),
        ("v5p-8", "v5p", "2x2x1", 4, "v5p-8"), ("v5p-16", "v5p", "2x2x2", 8, "v5p-16"), ("v5p-32", "v5p", "2x2x4", 16, "v5p-32"),
        ("v4-16", "v4", "2x2x2", 8, "v4-16"), ("v5e:4x4", "v5e", "4x4", 16, "v5litepod-16"), ("V5E:4x2", "v5e", "4x2", 8, "v5litepod-8"),
        ("v5litepod-16", "v5e", "4x4", 16, "v5litepod-16"), ("v5litepod:2x4", "v5e", "2x4", 8, "v5litepod-8"),
    ],
)  # fmt: skip
def test_names_stand_for_forms(text, chip, form, chips, accelerator):
    found = slices.parse(text)
    assert (found.chip, found.form, found.num_chips, found.num_slices, found.accelerator_type) == (chip, form, chips, 1, accelerator)


def test_several_slices():
    for found in (slices.parse("v5e:4x4*2"), slices.parse("v5e-16*2"), slices.parse("v5e-16", 2)):
        assert (found.num_chips, found.num_slices, found.topology["num_slices"]) == (32, 2, 2)
        assert found.name == "2 x v5e-16 (4x4)"


@pytest.mark.parametrize(
    ("text", "message"),
    [("v5e-12", "nearest is v5e-8"), ("v5p-4", "nearest is v5p-8"), ("v5litepod-12", "nearest is v5e-8"),
     ("v5e:3x5", "did you mean v5e:4x4"), ("v7e-8", "did you mean v.e-8"),
     ("v5e:2x2x2", "did you mean"), ("h100", "there are, for example"), ("v5e-8*x", "number of slices")],
)  # fmt: skip
def test_wrong_names_are_refused_with_the_nearest(text, message):
    with pytest.raises(UserError, match=message):
        slices.parse(text)
