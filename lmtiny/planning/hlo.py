"""What a compiled program sends between devices, read from its HLO text (`compiled.as_text()`), of CPU, GPU and TPU.

The text is a list of computations; loops, calls, fusions and conditionals name the computations they run.  A collective
counts as often as the loops around it turn.  TPU has four ways of its own, all understood here: an all-gather spread over
several fusions, an all-reduce and slice fused to what is a reduce-scatter, loops without a trip count written down, where
it follows from the loop's condition, and sums over several slices, which are sent from host to host.
"""

import dataclasses
import functools
import math
import re

SEND = "send"  # to another slice, over the network (TPU)
KINDS = ("all-gather", "reduce-scatter", "all-reduce", "collective-permute", "all-to-all", "ragged-all-to-all", "collective-broadcast")

_BITS = {"pred": 8, "token": 0, "opaque": 0}  # the others carry their number


@dataclasses.dataclass(frozen=True)
class Collective:
    """One collective of a program.

    operand_bytes: what a device puts in, result_bytes: what it gets.  times: how often a step runs it.  counted: whether
    `times` is sure (all loops around it had a trip count).  groups: which devices (numbers in the mesh's order) talk; empty
    where the text has them in short form.  name: of the operation in the model's code, "" where the compiler made it up.
    """

    kind: str
    group_size: int
    dtype: str
    operand_bytes: int
    result_bytes: int
    times: int
    counted: bool
    name: str = ""
    groups: tuple[tuple[int, ...], ...] = ()

    @property
    def sent_bytes(self) -> float:
        """Bytes a device sends in a step, by the ring algorithm of each kind."""
        g = self.group_size
        share = (g - 1) / g if g else 0.0
        once = {
            "all-gather": share * self.result_bytes,
            "reduce-scatter": share * self.operand_bytes,
            "all-reduce": 2 * share * self.operand_bytes,
            "collective-permute": float(self.operand_bytes) if g > 1 else 0.0,
            SEND: float(self.operand_bytes),
            "collective-broadcast": share * self.operand_bytes,
        }.get(self.kind, share * self.operand_bytes)
        return once * self.times


@dataclasses.dataclass
class _Instruction:
    name: str
    type: str
    opcode: str
    operands: list[str]
    attributes: str
    root: bool


@dataclasses.dataclass
class _Computation:
    name: str
    instructions: dict[str, _Instruction]

    @functools.cached_property
    def root(self) -> _Instruction:
        return next((one for one in self.instructions.values() if one.root), list(self.instructions.values())[-1])

    @functools.cached_property
    def parameters(self) -> list[str]:
        numbered = [(int(one.operands[0]), one.name) for one in self.instructions.values() if one.opcode == "parameter"]
        return [name for _, name in sorted(numbered)]


def collectives(text: str) -> list[Collective]:
    """Returns the collectives of a compiled program; of a conditional's branches those of the one that sends most."""
    computations, entry = _parsed(text)
    match = re.search(r"num_partitions=(\d+)", text[: text.find("\n")]) or re.search(r"replica_count=(\d+)", text[: text.find("\n")])
    program = _Program(computations, int(match[1]) if match else 1)
    return program.walk(entry, 1, True) if entry else []


def total_by_kind(found: list[Collective]) -> dict[str, dict[str, float]]:
    """Returns kind -> {"count": runs in a step, "sent_bytes": by a device in a step}; kinds that do not occur are left out."""
    totals: dict[str, dict[str, float]] = {}
    for one in found:
        if one.group_size > 1:
            entry = totals.setdefault(one.kind, {"count": 0, "sent_bytes": 0.0})
            entry["count"] += one.times
            entry["sent_bytes"] += one.sent_bytes
    return dict(sorted(totals.items(), key=lambda item: -item[1]["sent_bytes"]))


class _Program:
    def __init__(self, computations: dict[str, _Computation], num_devices: int):
        self.computations, self.num_devices = computations, num_devices

    def walk(self, name: str, times: int, counted: bool) -> list[Collective]:
        """Returns the collectives of a computation that runs `times` times in a step, and of all it runs itself."""
        computation = self.computations[name]
        found: list[Collective] = []
        for instruction in computation.instructions.values():
            opcode, attributes = instruction.opcode, instruction.attributes
            if opcode.removesuffix("-start") in KINDS:
                found.append(self._collective(computation, instruction, times, counted))
            elif opcode == "send" and "megascale" in attributes:
                found.append(dataclasses.replace(self._collective(computation, instruction, times, counted), kind=SEND, group_size=2))
            elif opcode == "while":
                trips = self._trip_count(computation, instruction)
                found += self.walk(_called(attributes, "body")[0], times * (1 if trips is None else trips), counted and trips is not None)
            elif opcode == "conditional":
                branches = _called(attributes, "branch_computations") or (
                    _called(attributes, "true_computation") + _called(attributes, "false_computation")
                )
                found += max((self.walk(branch, times, counted) for branch in branches), key=lambda part: sum(c.sent_bytes for c in part))
            elif opcode in ("fusion", "call", "async-start", "custom-call"):
                for callee in _called(attributes, "calls") + _called(attributes, "to_apply") + _called(attributes, "called_computations"):
                    if not self._goes_on(callee):
                        found += self.walk(callee, times, counted)
        return found

    def _goes_on(self, name: str) -> bool:
        """Returns whether a computation has a later piece of a collective that another one started (TPU)."""
        targets = {
            match[1]
            for one in self.computations[name].instructions.values()
            if (match := re.search(r'custom_call_target="(AsyncCollective\w+)"', one.attributes))
        }
        return "AsyncCollectiveStart" not in targets and ("AsyncCollectiveDone" in targets or name.startswith("async_collective_fusion"))

    def _collective(self, computation: _Computation, instruction: _Instruction, times: int, counted: bool) -> Collective:
        kind = instruction.opcode.removesuffix("-start")
        types = [computation.instructions[name].type for name in instruction.operands if name in computation.instructions]
        operand = sum(_bytes(one) for one in types)
        groups, size = _groups(instruction.attributes, self.num_devices, kind)
        if kind == "all-reduce" and computation.name.startswith("all-reduce-scatter"):  # fused with the slice that follows
            kind = "reduce-scatter"
        result = {"all-gather": operand * size, "reduce-scatter": operand // max(size, 1)}.get(kind, operand)
        dtype = match[1] if (match := re.search(r"([a-z]+\d*)\[", types[0] if types else "")) else ""
        name = match[1] if (match := re.search(r'op_name="([^"]*)"', instruction.attributes)) else ""
        return Collective(kind, size, dtype, operand, result, times, counted, name, groups)

    def _trip_count(self, computation: _Computation, loop: _Instruction) -> int | None:
        if match := re.search(r'known_trip_count"?:\s*\{\s*"?n"?:\s*"?(\d+)', loop.attributes):
            return int(match[1])
        condition, body = (self.computations[_called(loop.attributes, which)[0]] for which in ("condition", "body"))
        compared = self._comparison(condition)
        if compared is None:
            return None
        index, limit, direction = compared
        init = computation.instructions.get(loop.operands[0])
        start = self._constant(computation, init.operands[index]) if init is not None and init.opcode == "tuple" else 0
        step = self._increment(body, index)
        if direction not in ("LT", "LE") or not step or step < 0:
            return None
        return max(0, math.ceil((limit + (direction == "LE") - (start or 0)) / step))

    def _comparison(self, condition: _Computation) -> tuple[int, int, str] | None:
        """Returns (index in the loop's tuple, limit, direction) of a condition `tuple[index] < limit`, or None."""
        root, known = condition.root, condition
        names = {name: name for name in root.operands}
        if root.opcode == "fusion":
            inner = self.computations[_called(root.attributes, "calls")[0]]
            names = dict(zip(inner.parameters, root.operands, strict=True))
            root, known = inner.root, inner
        direction = re.search(r"direction=(\w+)", root.attributes)
        if root.opcode != "compare" or direction is None:
            return None
        sides: list[tuple[int | None, int | None]] = []
        for operand in root.operands:
            constant = self._constant(known, operand)
            outer = names.get(operand, operand)
            index = _tuple_index(condition, outer) if outer in condition.instructions else None
            sides.append((index, constant if constant is not None else self._constant(condition, outer)))
        (index, _), (_, limit) = sides
        return (index, limit, direction[1]) if index is not None and limit is not None else None

    def _increment(self, body: _Computation, index: int) -> int | None:
        """Returns by how much the body moves element `index` of the loop's tuple; 1 where that cannot be read."""
        if body.root.opcode != "tuple" or index >= len(body.root.operands):
            return 1
        instruction = body.instructions.get(body.root.operands[index])
        while instruction is not None and instruction.opcode in ("copy", "bitcast"):
            instruction = body.instructions.get(instruction.operands[0])
        if instruction is not None and instruction.opcode == "add":
            steps = [value for operand in instruction.operands if (value := self._constant(body, operand)) is not None]
            return steps[0] if steps else 1
        return 1

    def _constant(self, computation: _Computation, name: str) -> int | None:
        instruction = computation.instructions.get(name)
        while instruction is not None and instruction.opcode in ("copy", "bitcast", "convert"):
            instruction = computation.instructions.get(instruction.operands[0])
        if instruction is None or instruction.opcode != "constant" or not re.fullmatch(r"-?\d+", instruction.operands[0]):
            return None
        return int(instruction.operands[0])


def _tuple_index(computation: _Computation, name: str) -> int | None:
    instruction = computation.instructions.get(name)
    while instruction is not None and instruction.opcode in ("copy", "bitcast", "convert"):
        instruction = computation.instructions.get(instruction.operands[0])
    if instruction is None or instruction.opcode != "get-tuple-element":
        return None
    return int(match[1]) if (match := re.search(r"index=(\d+)", instruction.attributes)) else None


def _called(attributes: str, which: str) -> list[str]:
    match = re.search(rf"\b{which}=(\{{[^}}]*\}}|%?[\w.\-]+)", attributes)
    return [name.strip().lstrip("%") for name in match[1].strip("{}").split(",") if name.strip()] if match else []


def _groups(attributes: str, num_devices: int, kind: str) -> tuple[tuple[tuple[int, ...], ...], int]:
    """Returns (the groups, where they are listed; how many devices are in one)."""
    if kind == "collective-permute":
        pairs = re.search(r"source_target_pairs=\{(.*?)\}\}", attributes)
        numbers = tuple(tuple(map(int, pair)) for pair in re.findall(r"\{(\d+),(\d+)\}", f"{pairs[1]}}}" if pairs else ""))
        moving = tuple(pair for pair in numbers if pair[0] != pair[1])
        return moving, 2 if moving else 1  # a device that sends, sends its whole operand
    if match := re.search(r"replica_groups=\{(\{.*?\})\}", attributes):
        groups = tuple(tuple(int(number) for number in group.split(",") if number) for group in re.findall(r"\{([\d,]*)\}", match[1]))
        return groups, max(map(len, groups))
    if match := re.search(r"replica_groups=\[(\d+),(\d+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", attributes):
        return _iota_groups(match), int(match[2])
    if match := re.search(r"replica_groups=mesh\[(.*?)\]\s*\{(.*?)\}", attributes):
        sizes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", match[1])}
        # An axis may be cut: 'x':(2)4 is the part of size 4 below a part of size 2.
        chosen = re.findall(r"'([^']+)'(?::\((\d+)\)(\d+))?", match[2])
        return (), math.prod(int(part) if part else sizes[name] for name, _, part in chosen)
    return (), num_devices  # {} stands for all


def _iota_groups(match: re.Match[str]) -> tuple[tuple[int, ...], ...]:
    import numpy as np

    count, size, shape = int(match[1]), int(match[2]), [int(side) for side in match[3].split(",")]
    order = [int(axis) for axis in match[4].split(",")] if match[4] else list(range(len(shape)))
    numbers = np.arange(math.prod(shape)).reshape(shape).transpose(order).reshape(count, size)
    return tuple(tuple(map(int, row)) for row in numbers)


def _bytes(type_text: str) -> int:
    """Returns the bytes of an array type, or of all arrays of a tuple type, without the padding of its layout."""
    total = 0
    for dtype, dims in re.findall(r"\b([a-z]+\d*\w*)\[([\d,]*)\]", type_text):
        digits = re.search(r"\d+", dtype)  # s32, f8e4m3fn: the first number is that of the bits
        bits = _BITS.get(dtype) or (int(digits[0]) if digits else 0)
        total += math.prod(int(side) for side in dims.split(",") if side) * bits // 8
    return total


_HEADER = re.compile(r"^(ENTRY\s+)?%?([\w.\-]+)\s*(?:\(|\{)")
_NAME = re.compile(r"^\s*(ROOT\s+)?%?([\w.\-]+)\s+=\s+")


def _parsed(text: str) -> tuple[dict[str, _Computation], str]:
    """Returns ({name: computation}, name of the entry)."""
    computations: dict[str, _Computation] = {}
    entry, current = "", None
    for line in text.splitlines():
        if line.rstrip() == "}":  # an attribute of a Pallas kernel runs over several lines, which may start with a brace
            current = None
        elif current is not None and (match := _NAME.match(line)):
            instruction = _instruction(line[match.end() :], match[2], bool(match[1]))
            current.instructions[instruction.name] = instruction
        elif line and not line[0].isspace() and line.rstrip().endswith("{") and (match := _HEADER.match(line)):
            current = computations[match[2]] = _Computation(match[2], {})
            entry = match[2] if match[1] else entry
    return computations, entry


def _instruction(rest: str, name: str, root: bool) -> _Instruction:
    end = _balanced(rest, 0) if rest.startswith("(") else rest.index(" ")
    opened = rest.index("(", end)
    closed = _balanced(rest, opened)
    inside = rest[opened + 1 : closed - 1]
    opcode = rest[end:opened].strip()
    operands = [inside] if opcode in ("constant", "parameter") else re.findall(r"%([\w.\-]+)", inside) or inside.replace(",", " ").split()
    return _Instruction(name, rest[:end], opcode, operands, rest[closed:], root)


def _balanced(text: str, start: int) -> int:
    """Returns the place after the parenthesis that closes the one at `start`."""
    depth = 0
    for place in range(start, len(text)):
        if text[place] == "(":
            depth += 1
        elif text[place] == ")":
            depth -= 1
            if not depth:
                return place + 1
    return len(text)
