"""The kinds of kernels in a compiled program, the operations of each, and how near a card's peak each may come.

No figure here was measured by this project. A share of a peak is a pair, slow and fast; where no public measurement of
a kind was found, a bound stands in its place, and `source` says so. Read in November 2026:

- XLA's tables of measurements on H100 SXM (github.com/openxla/xla, xla/service/gpu/model): matrix products
  (default_matmul_perf_table.txtpb) and collectives (default_collective_perf_table.txtpb), whose all-reduce "over one
  device" is a copy. The large and the narrow product, the copies and the all-reduces below are rows of these.
- GH200: reads at 3,615 and writes at 3,705 of 4,000 GB/s (github.com/mredenti/PowerCapping,
  configuration/OpenCL_benchmark.md).
- CUTLASS's profiler documentation: a 3x3 convolution of 128 channels, 16-bit, NHWC, on a card of compute capability
  8.0: 166.5 TFLOP/s, 0.53 of an A100's peak. No measurement of cuDNN's convolutions by layer was found for these cards.
- XLA's cost model (gpu_performance_model_base.h): 1 microsecond for a launch, 5 for one of NCCL. NVIDIA, "Getting
  Started with CUDA Graphs": 0.5 microseconds between the kernels of a graph, 0.9 between those of a stream (V100).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from resnet_flax.compiled.cards import Card
from resnet_flax.compiled.program import CompiledProgram, Instruction, Kernel

Kind = Literal["convolution", "product", "pixel product", "reduction", "elementwise", "collective"]
Pair = tuple[float, float]  # slow, fast

# Shares of an H100's peaks stand for every card's: its bfloat16 products reach 0.82, an A100's 0.87, a B200's 0.78
# (github.com/stas00/ml-engineering, compute/accelerator, "MAMF").


@dataclass(frozen=True)
class Efficiency:
    """What a kind of kernel reaches: shares of the memory's bandwidth and of the matrix units' peak rate."""

    bandwidth: Pair
    rate: Pair
    source: str


_COPIES = "XLA's copies of 268 MB on an H100: 2.56 of 3.35 TB/s; fast: GH200"
EFFICIENCIES: dict[Kind, Efficiency] = {
    "elementwise": Efficiency((0.76, 0.92), (1, 1), _COPIES),
    "reduction": Efficiency((0.59, 0.92), (1, 1), "slow: XLA's copy of 34 MB, as no reduction's figure was found"),
    "convolution": Efficiency(
        (0.59, 0.92), (0.34, 0.82), "bounds: XLA's products 4096 x 512 x 512 and 4096 x 4096 x 4096; CUTLASS: 0.53"
    ),
    "product": Efficiency(
        (0.61, 0.92), (0.47, 0.82), "XLA's 4096 x 256 x 4096 (slow) and 4096 x 4096 x 4096 (fast), bfloat16, H100"
    ),
    "pixel product": Efficiency(
        (0.59, 0.92), (0.30, 0.57), "XLA's 512 x 4096 x 256 (slow) and 2048 x 4096 x 256 (fast), 4 at once, H100"
    ),
}
LAUNCH: Pair = (1e-6, 0.5e-6)  # seconds

# Matrix units multiply these; float32 takes TF32 unless the program asks for more.
_SIXTEEN_BITS = {"bf16", "f16"}


def kind_of(program: CompiledProgram, kernel: Kernel) -> Kind:
    """A "pixel product" is summed over more numbers than either side of its result: a second moment, or a gradient."""
    instruction = kernel.instruction
    if instruction.collective:
        return "collective"
    inside = list(_inside(program, instruction))
    if instruction.is_convolution or any(one.opcode == "convolution" for one, _ in inside):
        return "convolution"
    products = [(one, body) for one, body in inside if _is_product(one)]
    if products:
        contracted = max(_contracted(one, body) for one, body in products)
        *_, rows, columns = (1, *products[-1][0].results[0].shape)[-2:]
        return "pixel product" if contracted > max(rows, columns) else "product"
    if any(one.opcode in ("reduce", "reduce-window", "select-and-scatter") for one, _ in inside):
        return "reduction"
    return "elementwise"


def operations(program: CompiledProgram, kernel: Kernel) -> int:
    """Operations of one launch on the matrix units, a multiply-add being two; 0 for kernels that use none."""
    return sum(_operations(one, body) for one, body in _inside(program, kernel.instruction))


def peak_rate(program: CompiledProgram, kernel: Kernel, card: Card) -> float:
    """The card's peak for what the kernel multiplies, operations per second."""
    for one, body in _inside(program, kernel.instruction):
        if _operations(one, body):
            if body[one.operands[0]].results[0].dtype in _SIXTEEN_BITS:
                return card.bfloat16
            return card.float32 if "highest" in one.rest else card.tf32
    return card.bfloat16


def _inside(program: CompiledProgram, instruction: Instruction) -> Iterator[tuple[Instruction, dict[str, Instruction]]]:
    """The instruction, or those that it fuses, each with the computation that it is in."""
    if instruction.opcode == "fusion":
        body = program.computations[instruction.attribute("calls")]
        for one in body.values():
            yield from _inside(program, one) if one.opcode == "fusion" else [(one, body)]
    else:
        yield instruction, program.computation_of(instruction)


def _is_product(instruction: Instruction) -> bool:
    return instruction.opcode == "dot" or instruction.target.startswith("__cublas$")


def _operations(instruction: Instruction, body: dict[str, Instruction]) -> int:
    if _is_product(instruction):
        return 2 * instruction.results[0].size * _contracted(instruction, body)
    if not (instruction.is_convolution or instruction.opcode == "convolution"):
        return 0
    # One multiply-add for each pixel and channel of the output and each weight that leads there.
    first, second = (body[name].results[0] for name in instruction.operands[:2])
    output, weights = instruction.results[0], second
    if instruction.target == "__cudnn$convBackwardInput":
        output = first
    elif instruction.target == "__cudnn$convBackwardFilter":
        output, weights = second, instruction.results[0]
    labels = instruction.attribute("dim_labels").split("_")[1].split("->")[0]
    return 2 * output.size * weights.size // weights.shape[labels.index("o")]


def _contracted(instruction: Instruction, body: dict[str, Instruction]) -> int:
    """The number of products that a number of the result is the sum of."""
    axes = re.search(r'lhs_contracting_dim(?:s=\{|ensions":\[)([^\]}]*)', instruction.rest)
    shape = body[instruction.operands[0]].results[0].shape
    return math.prod(shape[int(axis)] for axis in re.findall(r"\d+", axes.group(1) if axes else ""))
