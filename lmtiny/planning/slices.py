"""Names of TPU slices: "v5e-16", "v5litepod-16", "v5e:4x4" and "v5e:4x4*2" (two slices) -> what libtpu calls them.

v5e and v6e are counted in chips; v4 and v5p in TensorCores, two a chip: a v5p-16 is 8 chips.  `slices.txt` has them all.
"""

import dataclasses
import difflib
import math
import pathlib
import re
from typing import Any

from lmtiny.errors import UserError

# chip -> (forms, what is counted of each chip, gcloud's name of it)
_FORMS = {
    chip: (forms, int(cores), prefix)
    for line in (pathlib.Path(__file__).parent / "slices.txt").read_text().splitlines()
    if not line.startswith("#")
    for chip, prefix, _, cores, *forms in [line.split()]
    if forms
}


def _size(form: str) -> int:
    return math.prod(int(side) for side in form.split("x"))


# "v5e-16" -> ("v5e", "4x4")
NAMED = {f"{chip}-{_size(form) * cores}": (chip, form) for chip, (forms, cores, _) in _FORMS.items() for form in forms}


@dataclasses.dataclass(frozen=True)
class Slice:
    """`num_slices` equal TPU slices of `form` ("4x4") of a chip ("v5e")."""

    chip: str
    form: str
    num_slices: int = 1

    @property
    def num_chips(self) -> int:
        """Chips, which are jax's devices, of all slices together."""
        return _size(self.form) * self.num_slices

    @property
    def name(self) -> str:
        """The slice in words, such as "v5e-16 (4x4)" or "2 x v5e-16 (4x4)"."""
        count = f"{self.num_slices} x " if self.num_slices > 1 else ""
        return f"{count}{self.chip}-{_size(self.form) * _FORMS[self.chip][1]} ({self.form})"

    @property
    def accelerator_type(self) -> str:
        """What libtpu finds in TPU_ACCELERATOR_TYPE on such a slice."""
        _, cores, prefix = _FORMS[self.chip]
        return f"{prefix}-{_size(self.form) * cores}"

    @property
    def topology(self) -> dict[str, Any]:
        """The arguments of `jax.experimental.topologies.get_topology_desc`."""
        more: dict[str, Any] = {"num_slices": self.num_slices} if self.num_slices > 1 else {}
        if self.form == "1x1":
            more["chips_per_host_bounds"] = [1, 1, 1]
        if self.chip == "v4":
            more["chip_config_name"] = "megacore"  # else each TensorCore is a device of its own, with half of the memory
        return {"platform": "tpu", "topology_name": f"{self.chip}:{self.form}", **more}


def plain(text: str) -> str:
    """Returns a name of a chip or a slice as this project writes it: v5e-16 for gcloud's v5litepod-16."""
    name = text.lower().strip()
    for chip, (_, _, prefix) in _FORMS.items():
        name = re.sub(rf"^{prefix}(?=-|:|\*|$)", chip, name)
    return name


def parse(text: str, num_slices: int = 0) -> Slice:
    """Returns the slice of a name; `num_slices`, where not 0, counts the slices.

    Raises:
      UserError: no such slice; the line names the nearest one.
    """
    if len(text) > 40:  # no name is that long, and digits without end take time to read
        raise UserError(f"there is no TPU slice {text[:40] + '...'!r}")
    name, star, count = plain(text).partition("*")
    if star and (not count.isdecimal() or int(count) < 1):
        raise UserError(f"{text!r}: after the * stands the number of slices, as in v5e:4x4*2")
    number = num_slices or int(count or 1)
    if name in NAMED:
        return Slice(*NAMED[name], number)
    chip, colon, form = name.partition(":")
    if colon and chip in _FORMS and re.fullmatch(r"\d+(x\d+)+", form):
        known = _FORMS[chip][0]
        if sorted(form.split("x")) in [sorted(one.split("x")) for one in known] and len(form.split("x")) == len(known[0].split("x")):
            return Slice(chip, form, number)
    raise UserError(f"there is no TPU slice {text!r}{_nearest(name)}")


def _nearest(name: str) -> str:
    chip, separator, rest = (name.partition(":") if ":" in name else name.partition("-"))
    if chip in _FORMS and separator == "-" and rest.isdecimal():
        close = min((one for one in NAMED if one.startswith(f"{chip}-")), key=lambda one: abs(int(one.split("-")[1]) - int(rest)))
        return f"; the nearest is {close}"
    if chip in _FORMS and separator == ":" and re.fullmatch(r"\d+(x\d+)+", rest):
        return f"; did you mean {chip}:{min(_FORMS[chip][0], key=lambda form: abs(_size(form) - _size(rest)))}?"
    everything = [*NAMED, *(f"{one}:{form}" for one, form in NAMED.values())]
    if chip in _FORMS:
        everything = [one for one in everything if one.startswith(chip)]
    close_ones = difflib.get_close_matches(name, everything, 1, 0.5)
    return f"; did you mean {close_ones[0]}?" if close_ones else f"; there are, for example, {', '.join(list(NAMED)[2:5])} and v5p-16"
