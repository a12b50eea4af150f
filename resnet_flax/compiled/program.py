"""What an optimised XLA program for a GPU will do: its kernels, the bytes they move, its collectives.

Parsed from the text of a compiled and scheduled program (`compiled.as_text()`), so nothing has to run. Every figure is
a property of that program, not a measurement: a cache may serve a read, and a kernel of cuDNN may read more than once.

The text is not a documented interface. It is parsed here and nowhere else, in the form that jaxlib 0.10.2 writes;
`test_the_text_of_this_jaxlib` compiles a program and fails first if that changes.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property

# Instructions that launch nothing: they name, group or await what others computed.
_FREE = {
    "parameter",
    "constant",
    "get-tuple-element",
    "tuple",
    "bitcast",
    "after-all",
    "partition-id",
    "replica-id",
    "add-dependency",
    "opt-barrier",
}
_COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
_SLICES = {"slice", "dynamic-slice", "gather"}
_ARRAY = re.compile(r"\b([a-z]+[0-9]*(?:e[0-9]m[0-9][a-z]*)?)\[([0-9,]*)\]")


@dataclass(frozen=True)
class Array:
    """One array of an instruction's result."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        bits = 8 if self.dtype == "pred" else int("".join(re.findall(r"[0-9]+", self.dtype)[:1]) or 0)
        return self.size * max(bits, 8) // 8

    def __str__(self) -> str:
        return f"{self.dtype}[{','.join(map(str, self.shape))}]"


@dataclass(frozen=True)
class Instruction:
    """One line of a computation."""

    name: str
    opcode: str
    results: tuple[Array, ...]
    operands: tuple[str, ...]
    rest: str  # the text after the opening parenthesis: operands, attributes and metadata

    def attribute(self, name: str) -> str:
        match = re.search(rf'\b{name}="?%?([^\s,"}}]+)', self.rest)
        return match.group(1) if match else ""

    @property
    def target(self) -> str:
        """Of a custom call, such as the kernels of cuDNN and cuBLAS."""
        return self.attribute("custom_call_target")

    @property
    def collective(self) -> str:
        """The collective that this is or starts; "" for none."""
        return next((kind for kind in _COLLECTIVES if self.opcode in (kind, f"{kind}-start")), "")

    @property
    def is_convolution(self) -> bool:
        return self.target.startswith("__cudnn$conv")


@dataclass(frozen=True)
class Kernel:
    """One launch, or `times` of them inside a loop.

    Attributes:
        read, written: bytes per launch, of its operands and results (slices at the size of the slice).
        workspace: bytes of scratch memory, not included in these.
        source: "file.py:line" of the Python code it comes from; "" if the program does not have it.
    """

    instruction: Instruction
    read: int
    written: int
    workspace: int
    times: int
    source: str

    @property
    def bytes(self) -> int:
        return (self.read + self.written) * self.times


@dataclass
class CompiledProgram:
    """A program, parsed from `text`.

    Raises:
        ValueError: if the text is not an optimised program.
    """

    text: str = field(repr=False)
    computations: dict[str, dict[str, Instruction]] = field(init=False, repr=False)
    entry: str = field(init=False)

    def __post_init__(self) -> None:
        self.computations, self.entry = {}, ""
        current: dict[str, Instruction] = {}
        for line in self.text.splitlines():
            if header := re.match(r"(ENTRY )?%?([\w.-]+) \(.*\{$", line):
                current = self.computations[header.group(2)] = {}
                self.entry = header.group(2) if header.group(1) else self.entry
            elif line.startswith("  ") and (instruction := _parse_line(line)):
                current[instruction.name] = instruction
        if not self.entry or "is_scheduled=true" not in self.text.split("\n", 1)[0]:
            raise ValueError(
                "expected the text of an optimised, scheduled XLA program, as `compiled.as_text()` gives it"
            )

    @cached_property
    def kernels(self) -> list[Kernel]:
        """All launches in order; the body of a loop once, with its trip count in `times`."""
        return list(self._kernels(self.entry, 1))

    @property
    def launches(self) -> int:
        return sum(kernel.times for kernel in self.kernels)

    @property
    def traffic(self) -> int:
        """Bytes read and written by all kernels, without the workspace of convolutions."""
        return sum(kernel.bytes for kernel in self.kernels)

    @property
    def convolutions(self) -> list[Kernel]:
        return [kernel for kernel in self.kernels if kernel.instruction.is_convolution]

    @property
    def collectives(self) -> list[Kernel]:
        return [kernel for kernel in self.kernels if kernel.instruction.collective]

    def computation_of(self, instruction: Instruction) -> dict[str, Instruction]:
        """The computation that an instruction is in; a program has each name once."""
        return self._homes[instruction.name]

    @cached_property
    def _homes(self) -> dict[str, dict[str, Instruction]]:
        return {name: body for body in self.computations.values() for name in body}

    def overlapped(self, collective: Kernel) -> set[str]:
        """Names of the instructions that launch kernels between its start and its end."""
        start = collective.instruction
        body = list(self.computation_of(start).values())
        if not start.opcode.endswith("-start") or '"is_sync":true' in start.rest:
            return set()
        first = body.index(start)
        end = next(i for i, other in enumerate(body) if other.opcode.endswith("-done") and start.name in other.operands)
        return {between.name for between in body[first + 1 : end] if self._launches(between)}

    def is_asynchronous(self, collective: Kernel) -> bool:
        """Whether other kernels are launched between its start and its end."""
        return bool(self.overlapped(collective))

    def convolutions_after(self, kernel: Kernel) -> int:
        """The number of convolutions launched after `kernel`."""
        position = self.kernels.index(kernel)
        return sum(later.times for later in self.kernels[position:] if later.instruction.is_convolution)

    def relayouts(self, larger_than: int) -> list[Kernel]:
        """Copies and transposes, also inside fusions, of arrays with more than `larger_than` elements."""

        def moves(instruction: Instruction) -> bool:
            inside = [instruction]
            if instruction.opcode == "fusion":
                inside = list(self.computations[instruction.attribute("calls")].values())
            return any(
                one.opcode in ("copy", "copy-start", "transpose") and one.results[0].size > larger_than
                for one in inside
            )

        return [kernel for kernel in self.kernels if moves(kernel.instruction)]

    @cached_property
    def parameters(self) -> list[Array]:
        """The program's inputs, in order."""
        arrays = {}
        for instruction in self.computations[self.entry].values():
            if instruction.opcode == "parameter":
                arrays[int(instruction.rest.split(")", 1)[0])] = instruction.results[0]
        return [arrays[index] for index in sorted(arrays)]

    @cached_property
    def aliased(self) -> set[int]:
        """Indices of the parameters whose buffers an output reuses."""
        header = self.text.split("\n", 1)[0]
        return {int(index) for index in re.findall(r"\{\d*\}: \((\d+), \{", header)}

    # -- the bytes that a kernel moves ---------------------------------------------------------------------------------

    def _launches(self, instruction: Instruction) -> bool:
        return instruction.opcode not in _FREE and not instruction.opcode.endswith("-done")

    def _kernels(self, computation: str, times: int) -> Iterator[Kernel]:
        body = self.computations[computation]
        for instruction in body.values():
            if not self._launches(instruction):
                continue
            match instruction.opcode:
                case "while":
                    known = re.search(r'"known_trip_count":\{"n":"(\d+)"', instruction.rest)
                    trips = int(known.group(1)) if known else 1
                    yield from self._kernels(instruction.attribute("condition"), times * (trips + 1))
                    yield from self._kernels(instruction.attribute("body"), times * trips)
                case "conditional":
                    yield from max(
                        (list(self._kernels(branch, times)) for branch in self._branches(instruction)),
                        key=lambda kernels: sum(kernel.bytes for kernel in kernels),
                    )
                case "call" | "async-start":
                    yield from self._kernels(instruction.attribute("to_apply") or instruction.attribute("calls"), times)
                case _:
                    yield self._kernel(instruction, body, times)

    def _branches(self, instruction: Instruction) -> list[str]:
        if listed := re.search(r"branch_computations=\{([^}]*)\}", instruction.rest):
            return [name.strip(" %") for name in listed.group(1).split(",")]
        return [instruction.attribute("true_computation"), instruction.attribute("false_computation")]

    def _kernel(self, instruction: Instruction, body: dict[str, Instruction], times: int) -> Kernel:
        operands = [sum(array.nbytes for array in body[name].results) for name in instruction.operands]
        results = list(instruction.results)
        workspace = 0
        if (
            instruction.target.startswith(("__cudnn$", "__cublas$"))
            and len(results) > 1
            and results[-1].dtype in ("u8", "s8")
        ):
            workspace = results.pop().nbytes
        written = sum(array.nbytes for array in results)
        if instruction.opcode == "fusion":
            operands, written = self._fusion(instruction, operands, written)
        elif instruction.opcode in _SLICES:
            operands[0] = written
        elif instruction.opcode == "dynamic-update-slice":
            operands[0], written = 0, operands[1]
        elif instruction.collective:
            # The result of an asynchronous start contains operands and results; each is moved once in both cases.
            written = sum(operands) if instruction.collective == "all-reduce" else written
        reads: dict[str, int] = {}  # an array that is an operand twice, or in two shapes, is read once
        for name, size in zip(instruction.operands, operands, strict=True):
            name = _origin(body, name)
            reads[name] = max(size, reads.get(name, 0))
        return Kernel(instruction, sum(reads.values()), written, workspace, times, self._source(instruction))

    def _fusion(self, instruction: Instruction, operands: list[int], written: int) -> tuple[list[int], int]:
        """Operands of which a fusion reads only slices, and in-place updates, count at the size of the slice."""
        inside = self.computations[instruction.attribute("calls")]
        read = dict.fromkeys(inside, 1.0)  # the fraction of each array that is read, from the root backwards
        users = _users(inside)
        for name in reversed(inside):
            if users[name]:
                read[name] = min(1.0, sum(_share(inside[name], user, read[user.name]) for user in users[name]))
        operands = list(operands)
        for one in inside.values():
            if one.opcode == "parameter":
                index = int(one.rest.split(")", 1)[0])
                operands[index] = round(operands[index] * read[one.name])
            elif one.opcode == "dynamic-update-slice":
                written -= one.results[0].nbytes - inside[one.operands[1]].results[0].nbytes
        return operands, max(written, 0)

    # -- where a kernel comes from ------------------------------------------------------------------------------------

    @cached_property
    def _tables(self) -> dict[str, dict[int, str]]:
        tables: dict[str, dict[int, str]] = {}
        for name in ("FileNames", "FileLocations", "StackFrames"):
            block = re.search(rf"^{name}\n((?:\d+ .*\n)*)", self.text, re.MULTILINE)
            rows = block.group(1).splitlines() if block else []
            tables[name] = {int(row.split(" ", 1)[0]): row.split(" ", 1)[1] for row in rows}
        return tables

    def _source(self, instruction: Instruction) -> str:
        tables, frame = self._tables, instruction.attribute("stack_frame_id")
        if not frame or int(frame) not in tables["StackFrames"]:
            return ""
        number = re.search(r"file_location_id=(\d+)", tables["StackFrames"][int(frame)])
        location = tables["FileLocations"][int(number.group(1))] if number else ""
        match = re.search(r"file_name_id=(\d+).* line=(\d+)", location)
        if not match:
            return ""
        path = json.loads(tables["FileNames"][int(match.group(1))])
        return f"{path.rsplit('/', 1)[-1]}:{match.group(2)}"


def _origin(body: dict[str, Instruction], name: str) -> str:
    """The array of which `name` is another view."""
    while body[name].opcode == "bitcast":
        name = body[name].operands[0]
    return name


def _users(body: dict[str, Instruction]) -> dict[str, list[Instruction]]:
    users: dict[str, list[Instruction]] = {name: [] for name in body}
    for instruction in body.values():
        for name in set(instruction.operands):
            users[name].append(instruction)
    return users


def _share(array: Instruction, user: Instruction, needed: float) -> float:
    """The fraction of `array` that its user reads to compute the fraction `needed` of its own result."""
    if user.opcode == "dynamic-update-slice" and user.operands[0] == array.name:
        return 0.0  # in place: the rest is not touched
    if user.opcode in _SLICES and user.operands[0] != array.name:
        return 1.0  # indices
    if user.opcode in _SLICES or (user.opcode != "reduce" and user.results[0].size == array.results[0].size):
        return needed * user.results[0].size / max(array.results[0].size, 1)
    return 1.0


def _balanced(text: str, start: int) -> int:
    """The position after the parenthesis that closes the one at `start`."""
    depth = 0
    for position in range(start, len(text)):
        depth += {"(": 1, ")": -1}.get(text[position], 0)
        if depth == 0:
            return position + 1
    raise ValueError(f"unbalanced parentheses in {text[:80]!r}")


def _parse_line(line: str) -> Instruction | None:
    head = re.match(r"\s+(?:ROOT )?%?([\w.-]+) = ", line)
    if not head:
        return None
    start = head.end()
    end = _balanced(line, start) if line[start] == "(" else line.index(" ", start)
    results = tuple(
        Array(dtype, tuple(int(size) for size in shape.split(",") if size))
        for dtype, shape in _ARRAY.findall(line[start:end])
    )
    call = re.match(r"\s*([\w-]+)\(", line[end:])
    if not call:
        return None
    opens = end + call.end() - 1
    closes = _balanced(line, opens)
    inside = line[opens + 1 : closes - 1]
    operands = tuple(re.findall(r"%([\w.-]+)", inside)) if call.group(1) != "constant" else ()
    return Instruction(head.group(1), call.group(1), results, operands, line[opens + 1 :])
