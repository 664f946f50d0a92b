"""The data that a compiled program moves between devices, and between a device and its memory.

It is read from the text of the program of one device, after partitioning and fusion. Code under a condition that the
program computes, a `while` without a known trip count or a `conditional`, is counted separately from what every step
does: in an optimizer's step this code is the pruning.
"""

import functools
import math
import re
from dataclasses import dataclass, replace

KINDS = ("all-gather", "all-reduce", "all-to-all", "collective-broadcast", "collective-permute", "reduce-scatter")

# These move nothing, or what they move is counted inside them.
_FREE = {"after-all", "bitcast", "constant", "get-tuple-element", "opt-barrier", "parameter", "partition-id", "tuple"}
_SLICES = {"dynamic-slice", "gather", "slice"}


@dataclass(frozen=True)
class Collective:
    """A collective operation.

    Attributes:
      kind: one of `KINDS`.
      arrays: bytes of each array that a device sends or receives, whichever is more in total.
      group: the number of devices that take part together.
      times: how often it is executed.
      line: its line in the program.
    """

    kind: str
    arrays: tuple[int, ...]
    group: int
    times: int
    line: str

    @property
    def bytes(self) -> int:
        """The bytes of all arrays in one execution."""
        return sum(self.arrays)


@dataclass(frozen=True)
class Work:
    """The data that a part of a program moves.

    Attributes:
      collectives: its collective operations.
      traffic: bytes read from memory and written to it.
      widest: bytes of the largest array that it makes, and its line in the program.
    """

    collectives: tuple[Collective, ...] = ()
    traffic: int = 0
    widest: tuple[int, str] = (0, "")

    def __add__(self, other: "Work") -> "Work":
        widest = max(self.widest, other.widest)
        return Work(self.collectives + other.collectives, self.traffic + other.traffic, widest)

    def __mul__(self, times: int) -> "Work":
        collectives = tuple(replace(one, times=one.times * times) for one in self.collectives)
        return Work(collectives, self.traffic * times, self.widest)

    @property
    def communications(self) -> int:
        """The number of collectives that are executed."""
        return sum(one.times for one in self.collectives)

    @property
    def communicated(self) -> int:
        """The bytes that all collectives move."""
        return sum(one.times * one.bytes for one in self.collectives)

    @property
    def largest(self) -> int:
        """The bytes of the largest array in a collective."""
        return max((size for one in self.collectives for size in one.arrays), default=0)


@dataclass(frozen=True)
class Program:
    """A program: what every step moves, and what is moved only under a condition."""

    always: Work
    sometimes: Work

    @property
    def all(self) -> Work:
        """What a step moves when the condition holds."""
        return self.always + self.sometimes


@dataclass(frozen=True)
class _Instruction:
    name: str
    shape: str
    opcode: str
    operands: tuple[str, ...]
    attributes: str
    is_root: bool

    @property
    def arrays(self) -> tuple[int, ...]:
        return tuple(_array_bytes(dtype, dims) for dtype, dims in re.findall(r"(\w+)\[([^\]]*)\]", self.shape))

    @property
    def bytes(self) -> int:
        return sum(self.arrays)

    @property
    def line(self) -> str:
        return f"{self.name} = {self.shape} {self.opcode}({', '.join(self.operands)})"

    @property
    def widest(self) -> tuple[int, str]:
        return max(self.arrays, default=0), self.line

    def called(self, attribute: str) -> list[str]:
        found = re.search(rf"\b{attribute}=(\{{[^}}]*\}}|%[\w.\-]+)", self.attributes)
        return re.findall(r"%([\w.\-]+)", found[1]) if found else []


_Computations = dict[str, list[_Instruction]]


def read(text: str, devices: int) -> Program:
    """Reads a compiled program.

    Args:
      text: the program, as `compiled.as_text()` gives it.
      devices: the number of devices that it is for.

    Returns:
      What it moves. A `conditional` counts as its branch that moves most. A `while` without a known trip count counts
      as one iteration, since that of `flipout_jax.prune` has one.
    """
    computations: _Computations = {}
    entry = here = ""
    for line in re.sub(r"/\*.*?\*/", "", text).splitlines():
        if header := re.match(r"(ENTRY )?%?([\w.\-]+) (\(.*)?\{$", line):
            here = header[2]
            computations[here] = []
            entry = here if header[1] else entry
        elif here and (instruction := _instruction(line)):
            computations[here].append(instruction)
    if not entry:
        raise ValueError(f"`text` must be a compiled program with an ENTRY, got {text[:80]!r}.")
    return _walk(computations, entry, devices)


def _walk(computations: _Computations, name: str, devices: int) -> Program:
    always, sometimes = Work(), Work()
    walk = functools.partial(_walk, computations, devices=devices)
    sizes = {one.name: one.bytes for one in computations[name]}
    for one in computations[name]:
        kind = one.opcode.removesuffix("-start")
        if one.opcode == "while":
            body, condition = (walk(called) for at in ("body", "condition") for called in one.called(at))
            if turns := re.search(r'"known_trip_count":\{"n":"(\d+)"', one.attributes):
                always += (body.always + condition.always) * int(turns[1])
                sometimes += (body.sometimes + condition.sometimes) * int(turns[1])
            else:
                always += condition.always
                sometimes += body.all + condition.sometimes
        elif one.opcode == "conditional":
            branches = [*one.called("branch_computations"), *one.called("true_computation")]
            branches += one.called("false_computation")
            sometimes += max((walk(branch).all for branch in branches), key=_weight)
        elif one.opcode in ("call", "async-start"):
            for called in one.called("to_apply") or one.called("calls"):
                inner = walk(called)
                always, sometimes = always + inner.always, sometimes + inner.sometimes
        elif kind in KINDS:
            given = tuple(sizes.get(operand, 0) for operand in one.operands)
            arrays = one.arrays if one.bytes >= sum(given) else given
            collective = Collective(kind, arrays, _group(one.attributes, devices), 1, one.line)
            always += Work((collective,), one.bytes + sum(given), one.widest)
        elif one.opcode not in _FREE and not one.opcode.endswith("-done"):
            always += Work((), _traffic(one, sizes, computations), one.widest)
    return Program(always, sometimes)


def _weight(work: Work) -> tuple[int, int]:
    return work.communicated, work.traffic


def _traffic(one: _Instruction, sizes: dict[str, int], computations: _Computations) -> int:
    """Returns the bytes that an instruction reads and writes; if it reads or updates a slice, those of the slice."""
    if one.opcode in _SLICES:
        return 2 * one.bytes
    if one.opcode == "dynamic-update-slice":
        return 2 * sizes.get(one.operands[1], 0)
    if one.opcode != "fusion":
        return one.bytes + sum(sizes.get(operand, 0) for operand in one.operands)
    [called] = one.called("calls")
    fused = {each.name: each for each in computations[called]}
    read = sum(_read(each, fused) for each in fused.values() if each.opcode == "parameter")
    root = next(each for each in fused.values() if each.is_root)
    return read + (fused[root.operands[1]].bytes if root.opcode == "dynamic-update-slice" else root.bytes)


def _read(parameter: _Instruction, fused: dict[str, _Instruction]) -> int:
    """Returns the bytes that a fusion reads of one of its inputs."""
    users = [user for user in fused.values() if parameter.name in user.operands]
    if all(user.operands[0] == parameter.name for user in users):
        if users and all(user.opcode in _SLICES for user in users):
            return sum(user.bytes for user in users)
        if users and all(user.opcode == "dynamic-update-slice" for user in users):
            return 0
    return parameter.bytes


def _instruction(line: str) -> _Instruction | None:
    found = re.match(r"\s+(ROOT )?%?([\w.\-]+) = ", line)
    if not found:
        return None
    rest = line[found.end() :]
    end = _closing(rest) if rest.startswith("(") else rest.index(" ")
    shape, rest = rest[:end], rest[end:].lstrip()
    opcode, _, _ = rest.partition("(")
    rest = rest[len(opcode) :]
    end = _closing(rest)
    operands = tuple(re.findall(r"%([\w.\-]+)", rest[:end]))
    return _Instruction(found[2], shape, opcode, operands, rest[end:], bool(found[1]))


def _closing(text: str) -> int:
    """Returns the end of the parenthesis that a text begins with."""
    depth = 0
    for at in re.finditer(r"[()]", text):
        depth += 1 if at[0] == "(" else -1
        if not depth:
            return at.end()
    raise ValueError(f"`text` must close the parenthesis it opens, got {text[:80]!r}.")


def _array_bytes(dtype: str, dims: str) -> int:
    bits = 8 if dtype == "pred" else int((re.findall(r"\d+", dtype) or ["0"])[0])
    return -(-math.prod(int(re.sub(r"\D", "", dim)) for dim in dims.split(",") if dim) * bits // 8)


def _group(attributes: str, devices: int) -> int:
    """Returns how many devices take part together; all of them if the program writes the groups in an unknown form."""
    if listed := re.search(r"replica_groups=\{\{([\d,]*)\}", attributes):
        return len(listed[1].split(","))
    if iota := re.search(r"replica_groups=\[\d+,(\d+)\]", attributes):
        return int(iota[1])
    if mesh := re.search(r"replica_groups=mesh\[([^\]]*)\].*?\{([^}]*)\}", attributes):
        sizes = dict(re.findall(r"('\w+')=(\d+)", mesh[1]))
        axes = mesh[2].replace(" ", "").split(",")
        if all(axis in sizes for axis in axes):
            return math.prod(int(sizes[axis]) for axis in axes)
    return devices
