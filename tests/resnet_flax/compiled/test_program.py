"""Reading compiled programs, on small ones written out here in XLA's own form; and the report built on them."""

import importlib.util
import re
import sys
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest

from resnet_flax.compiled import absent_gpu
from resnet_flax.compiled.cards import CARDS
from resnet_flax.compiled.program import CompiledProgram
from resnet_flax.errors import UserError
from tests import ROOT

HEADER = (
    "HloModule jit_step, is_scheduled=true, input_output_alias={ {0}: (0, {}, may-alias), {1}: (2, {}, may-alias) }"
)
TABLES = """
FileNames
1 "/home/me/resnet.py"
2 "/home/me/step.py"

FunctionNames
1 "Bottleneck.__call__"

FileLocations
1 {file_name_id=1 function_name_id=1 line=93 end_line=93 column=8 end_column=30}
2 {file_name_id=2 function_name_id=1 line=7 end_line=7 column=0 end_column=0}

StackFrames
1 {file_location_id=2 parent_frame_id=1}
2 {file_location_id=1 parent_frame_id=1}

"""
CONVOLUTION = """\
  %cudnn-conv.{n} = (bf16[8,4,4,16]{{3,2,1,0}}, u8[1024]{{0}}) custom-call(%images, %weights), window={{size=1x1}}, \
dim_labels=b01f_o01i->b01f, custom_call_target="__cudnn$convForward", \
metadata={{op_name="jit(step)/conv_general_dilated" stack_frame_id=2}}, backend_config={{"activation_mode":"kNone"}}
  %output.{n} = bf16[8,4,4,16]{{3,2,1,0}} get-tuple-element(%cudnn-conv.{n}), index=0"""
IMAGES, WEIGHTS, OUTPUT = 8 * 4 * 4 * 32 * 2, 16 * 32 * 2, 8 * 4 * 4 * 16 * 2

COMPUTATIONS = """\
%fused_relu (p0: bf16[8,4,4,16], p1: f32[64]) -> bf16[8,4,4,16] {
  %p0 = bf16[8,4,4,16]{3,2,1,0} parameter(0)
  %p1 = f32[64]{0} parameter(1)
  %doubled = f32[64]{0} add(%p1, %p1)
  %slice.1 = f32[16]{0} slice(%doubled), slice={[16:32]}
  %convert.1 = bf16[16]{0} convert(%slice.1)
  %broadcast.1 = bf16[8,4,4,16]{3,2,1,0} broadcast(%convert.1), dimensions={3}
  ROOT %maximum.1 = bf16[8,4,4,16]{3,2,1,0} maximum(%p0, %broadcast.1)
}

%fused_update (p0.1: f32[10,100], p1.1: f32[1,100], p2.1: s32[]) -> f32[10,100] {
  %p0.1 = f32[10,100]{1,0} parameter(0)
  %p1.1 = f32[1,100]{1,0} parameter(1)
  %p2.1 = s32[] parameter(2)
  %zero.1 = s32[] constant(0)
  ROOT %dus = f32[10,100]{1,0} dynamic-update-slice(%p0.1, %p1.1, %p2.1, %zero.1)
}

%fused_turn (p0.2: bf16[8,4,4,16]) -> bf16[8,16,4,4] {
  %p0.2 = bf16[8,4,4,16]{3,2,1,0} parameter(0)
  ROOT %transpose.1 = bf16[8,16,4,4]{3,2,1,0} transpose(%p0.2), dimensions={0,3,1,2}
}

%body (carry: (s32[], f32[10,100])) -> (s32[], f32[10,100]) {
  %carry = (s32[], f32[10,100]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%carry), index=0
  %rows = f32[10,100]{1,0} get-tuple-element(%carry), index=1
  %row = f32[1,100]{1,0} constant({...})
  %loop_fusion = f32[10,100]{1,0} fusion(%rows, %row, %i), kind=kLoop, calls=%fused_update
  ROOT %next = (s32[], f32[10,100]{1,0}) tuple(%i, %loop_fusion)
}

%condition (carry.1: (s32[], f32[10,100])) -> pred[] {
  %carry.1 = (s32[], f32[10,100]{1,0}) parameter(0)
  %i.1 = s32[] get-tuple-element(%carry.1), index=0
  %limit = s32[] constant(10)
  ROOT %less = pred[] compare(%i.1, %limit), direction=LT
}
"""


def program(*lines: str) -> CompiledProgram:
    """A program of these instructions, over three parameters."""
    parameters = [
        "  %weights = bf16[16,1,1,32]{3,2,1,0} parameter(0)",
        "  %images = bf16[8,4,4,32]{3,2,1,0} parameter(1)",
        "  %vector = f32[64]{0} parameter(2)",
        "  %rows.1 = f32[10,100]{1,0} parameter(3)",
    ]
    signature = "ENTRY %main.1 (weights: bf16[16,1,1,32], images: bf16[8,4,4,32], vector: f32[64], rows: f32[10,100])"
    body = [*parameters, *lines]
    return CompiledProgram("\n".join([HEADER, TABLES, COMPUTATIONS, f"{signature} -> f32[64] {{", *body, "}", ""]))


def test_a_convolution_reads_its_operands_and_writes_its_result_with_the_workspace_apart():
    (kernel,) = program(CONVOLUTION.format(n=1)).kernels
    assert kernel.instruction.is_convolution
    assert (kernel.read, kernel.written, kernel.workspace) == (IMAGES + WEIGHTS, OUTPUT, 1024)
    assert kernel.instruction.attribute("dim_labels") == "b01f_o01i->b01f"
    assert kernel.source == "resnet.py:93"


def test_a_fusion_reads_the_slice_that_it_takes_of_an_operand():
    fusion = "  %f = bf16[8,4,4,16]{3,2,1,0} fusion(%output.1, %vector), kind=kLoop, calls=%fused_relu"
    kernel = program(CONVOLUTION.format(n=1), fusion).kernels[1]
    assert (kernel.read, kernel.written) == (OUTPUT + 16 * 4, OUTPUT)


def test_a_loop_counts_times_its_trips_and_an_update_in_place_at_its_own_size():
    loop = [
        "  %start = s32[] constant(0)",
        "  %first = (s32[], f32[10,100]{1,0}) tuple(%start, %rows.1)",
        "  %while.1 = (s32[], f32[10,100]{1,0}) while(%first), condition=%condition, body=%body, "
        'backend_config={"known_trip_count":{"n":"10"}}',
    ]
    read = program(*loop)
    update = next(kernel for kernel in read.kernels if kernel.instruction.opcode == "fusion")
    assert (update.times, update.read, update.written) == (10, 400 + 4, 400)
    assert read.launches == 10 + 11  # the body, and the condition once more


def test_what_launches_nothing_is_no_kernel_and_one_array_in_two_shapes_is_read_once():
    read = program(
        "  %flat = bf16[128,32]{1,0} bitcast(%images)",
        "  %turned = bf16[32,128]{0,1} bitcast(%images)",
        "  %gram = (f32[32,32]{1,0}, s8[4194304]{0}) custom-call(%turned, %flat), "
        'custom_call_target="__cublas$lt$matmul"',
        "  %result = f32[32,32]{1,0} get-tuple-element(%gram), index=0",
        "  ROOT %out = (f32[32,32]{1,0}) tuple(%result)",
    )
    (kernel,) = read.kernels
    assert (kernel.read, kernel.written, kernel.workspace) == (IMAGES, 32 * 32 * 4, 4194304)


def test_copies_and_transposes_of_large_arrays_are_found_inside_fusions_too():
    read = program(
        CONVOLUTION.format(n=1),
        "  %turned = bf16[8,16,4,4]{3,2,1,0} fusion(%output.1), kind=kInput, calls=%fused_turn",
        "  %again = f32[64]{0} copy(%vector)",
    )
    assert [kernel.instruction.name for kernel in read.relayouts(larger_than=100)] == ["turned"]
    assert len(read.relayouts(larger_than=10)) == 2


REDUCE = """\
  %all-reduce-start = f32[64]{0} all-reduce-start(%vector), channel_id=1, replica_groups={{0,1}}, to_apply=%sum, \
backend_config={"collective_backend_config":{"is_sync":false}}"""
DONE = "  %all-reduce-done = f32[64]{0} all-reduce-done(%all-reduce-start)"


def test_collectives_their_bytes_and_what_they_overlap():
    read = program(CONVOLUTION.format(n=1), REDUCE, CONVOLUTION.format(n=2), CONVOLUTION.format(n=3), DONE)
    (reduce,) = read.collectives
    assert (reduce.read, reduce.written) == (256, 256)
    assert read.is_asynchronous(reduce)
    assert read.convolutions_after(reduce) == 2


@pytest.mark.parametrize("lines", [[REDUCE, DONE], [REDUCE.replace("false", "true"), CONVOLUTION.format(n=1), DONE]])
def test_a_collective_that_overlaps_nothing_is_not_asynchronous(lines):
    read = program(*lines)
    assert not read.is_asynchronous(read.collectives[0])


def test_aliased_parameters():
    read = program()
    assert read.aliased == {0, 2}
    assert [str(array) for array in read.parameters][1:3] == ["bf16[8,4,4,32]", "f32[64]"]


def test_a_text_that_is_no_optimised_program_is_refused():
    with pytest.raises(ValueError, match="optimised, scheduled XLA program"):
        CompiledProgram("module @jit_step {\n}\n")


def test_the_text_of_this_jaxlib():
    """The CPU's programs have the same form: parameters, aliases, loops with their trip counts, fusions, sources."""

    def step(carry, x):
        total = jax.lax.fori_loop(0, 10, lambda i, y: jnp.sin(y) @ x, carry)
        return total + 1, total.sum()

    arrays = jnp.ones((16, 16)), jnp.ones((16, 16))
    compiled = CompiledProgram(jax.jit(step, donate_argnums=0).lower(*arrays).compile().as_text())
    assert [str(array) for array in compiled.parameters] == ["f32[16,16]", "f32[16,16]"]
    assert compiled.aliased == {0}
    assert {10} <= {kernel.times for kernel in compiled.kernels}
    assert any(kernel.instruction.opcode == "fusion" for kernel in compiled.kernels)


@pytest.mark.parametrize("target", ["v100", "h100:8", "h100:1x", ""])
def test_unknown_targets_are_refused_with_what_is_known(target):
    with pytest.raises(UserError, match="hosts x GPUs"):
        absent_gpu.absent_mesh(target)


def test_without_the_plugin_the_error_says_what_to_install(monkeypatch):
    def missing(**_):
        raise RuntimeError("Unknown backend cuda")

    monkeypatch.setattr(absent_gpu.topologies, "get_topology_desc", missing)
    with pytest.raises(UserError, match=r"pip install 'resnet-flax\[cuda13\]' \(Unknown backend cuda\)"):
        absent_gpu.absent_mesh("h100:1x8")


@pytest.fixture
def benchmark(monkeypatch):
    path = ROOT / "benchmarks" / "gpu_compile.py"
    spec = importlib.util.spec_from_file_location("gpu_compile", path)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "gpu_compile", module)
    spec.loader.exec_module(module)
    return module


def test_the_report_marks_the_limits_that_do_not_hold(benchmark, capsys):
    one, two = program(CONVOLUTION.format(n=1)), program(CONVOLUTION.format(n=1), CONVOLUTION.format(n=2))
    card = CARDS["h100"]
    lean, wasteful = benchmark.Compiled(one, 60, 8, card), benchmark.Compiled(two, 101, 8, card)
    report = benchmark.Report("settings", "versions")
    report.compare("train", lean, wasteful, limits=True)
    assert not report.failed
    report.compare("train", wasteful, lean, limits=True)
    assert report.failed == ["train: HBM traffic, MB an image", "train: peak memory, GB"]
    assert "LIMIT MISSED" in capsys.readouterr().out
    assert set(report.rows[0]) == {"what", "ours", "peer", "ratio", "settings", "versions"}


def test_the_report_has_the_predictions_by_kind_and_the_verdict_on_each_layer(benchmark, capsys):
    compiled = benchmark.Compiled(program(CONVOLUTION.format(n=1)), 60, 8, CARDS["h100"])
    low, high = compiled.images_per_second()
    assert compiled.images_per_second(8, 2) == (pytest.approx(16 * low, abs=16), pytest.approx(16 * high, abs=16))
    benchmark.print_predictions(compiled, SimpleNamespace(model="resnet26", batch_size=256, size=64))
    printed = capsys.readouterr().out
    assert re.search(r"convolution +1 launches +100 to 100% of the step", printed)
    assert re.search(r"65536 x +64 -> 256 +3 +-?\d+ +\d+  (gains|open)", printed)


def test_the_report_counts_a_synchronous_collective_and_one_that_comes_too_late(benchmark):
    late = program(CONVOLUTION.format(n=1), REDUCE.replace("false", "true"), DONE)
    report = benchmark.Report("settings", "versions")
    report.collectives("8 GPUs", benchmark.Compiled(late, 100, 8, CARDS["h100"]), needed=256)
    assert [what.split(": ")[1] for what in report.failed] == [
        "collectives that are not asynchronous",
        "convolutions still to come at the first",
    ]
    report.failed.clear()
    report.collectives("8 GPUs", benchmark.Compiled(late, 100, 8, CARDS["h100"]), needed=200)
    assert any("MB sent" in what for what in report.failed)


def test_the_largest_batch_is_found_by_bisection(benchmark, monkeypatch):
    class Compiler:
        card = CARDS["h100"]

        def train(self, batch_size=256):
            self.asked = [*getattr(self, "asked", []), batch_size]
            return benchmark.Compiled(None, 5 * 10**8 + 28 * 10**6 * batch_size, batch_size, self.card)

    compiler = Compiler()
    batch, peak = benchmark.largest_batch(compiler)
    room = CARDS["h100"].memory * 0.92
    assert peak <= room < 5 * 10**8 + 28 * 10**6 * (batch + 32)
    assert len(compiler.asked) < 9
