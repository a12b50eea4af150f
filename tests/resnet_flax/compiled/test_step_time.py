"""The time model: kinds of kernels, their operations, their time on a card, and collectives beside them."""

import re
from dataclasses import replace

import pytest

from resnet_flax.compiled.absent_gpu import card_of, hosts_of
from resnet_flax.compiled.cards import CARDS
from resnet_flax.compiled.kernels import EFFICIENCIES, LAUNCH, kind_of, operations, peak_rate
from resnet_flax.compiled.step_time import StepTime, all_reduce, duration, shares_in_words
from resnet_flax.errors import UserError
from tests.resnet_flax.compiled.test_program import CONVOLUTION, DONE, REDUCE, program

H100 = CARDS["h100"]
FORWARD = CONVOLUTION.format(n=1)
PRODUCTS = 8 * 4 * 4 * 16 * 32  # of the convolution from 32 to 16 channels over 8 images of 4 x 4 pixels

# The gradients of the same convolution, as XLA writes them for cuDNN.
OF_THE_INPUT = FORWARD.replace("%images, %weights", "%output.0, %weights").replace("bf16[8,4,4,16]", "bf16[8,4,4,32]")
OF_THE_INPUT = OF_THE_INPUT.replace("convForward", "convBackwardInput")
OF_THE_WEIGHTS = FORWARD.replace("%images, %weights", "%images, %output.0").replace("bf16[8,4,4,16]", "bf16[16,1,1,32]")
OF_THE_WEIGHTS = OF_THE_WEIGHTS.replace("convForward", "convBackwardFilter")
GRADIENT = "  %output.0 = bf16[8,4,4,16]{3,2,1,0} parameter(4)"

FLAT = "  %flat = bf16[128,32]{1,0} bitcast(%images)"
KERNEL = "  %kernel = bf16[32,16]{0,1} bitcast(%weights)"
WIDE = "  %product = bf16[128,16]{1,0} dot(%flat, %kernel), lhs_contracting_dims={1}, rhs_contracting_dims={0}"
MOMENTS = (
    "  %moments = (f32[32,32]{1,0}, s8[64]{0}) custom-call(%flat, %flat), "
    'custom_call_target="__cublas$gemm", backend_config={"gemm_backend_config":{"dot_dimension_numbers":'
    '{"lhs_contracting_dimensions":["0"],"rhs_contracting_dimensions":["0"]}}}'
)
EXACT = (
    "  %exact = f32[10,10]{1,0} dot(%rows.1, %rows.1), lhs_contracting_dims={1}, rhs_contracting_dims={1}, "
    "operand_precision={highest,highest}"
)
FUSION = "  %f = bf16[8,4,4,16]{3,2,1,0} fusion(%output.1, %vector), kind=kLoop, calls=%fused_relu"


@pytest.mark.parametrize("line", [FORWARD, OF_THE_INPUT, OF_THE_WEIGHTS], ids=["forward", "input", "weights"])
def test_a_convolution_and_both_its_gradients_take_the_same_operations(line):
    read = program(GRADIENT, line)
    (kernel,) = read.kernels
    assert kind_of(read, kernel) == "convolution"
    assert operations(read, kernel) == 2 * PRODUCTS


@pytest.mark.parametrize(
    ("lines", "kind", "products", "rate"),
    [
        ([FLAT, KERNEL, WIDE], "product", 128 * 16 * 32, H100.bfloat16),
        ([FLAT, MOMENTS], "pixel product", 32 * 32 * 128, H100.bfloat16),
        ([EXACT], "pixel product", 10 * 10 * 100, H100.float32),
        ([EXACT.replace("highest,highest", "default,default")], "pixel product", 10 * 10 * 100, H100.tf32),
        ([FORWARD, FUSION], "elementwise", 0, H100.bfloat16),
    ],
)
def test_kinds_and_operations_of_other_kernels(lines, kind, products, rate):
    read = program(*lines)
    kernel = read.kernels[-1]
    assert (kind_of(read, kernel), operations(read, kernel)) == (kind, 2 * products)
    assert peak_rate(read, kernel, H100) == rate


def test_the_longer_of_memory_and_arithmetic_counts_and_a_launch_is_added():
    shares = EFFICIENCIES["product"]
    (slow, fast), bound = duration("product", 3e9, 1, H100)
    assert bound == "memory"
    assert (slow, fast) == pytest.approx([3e9 / H100.bandwidth / shares.bandwidth[i] + LAUNCH[i] for i in (0, 1)])
    (slow, fast), bound = duration("product", 1, 5e12, H100)
    assert bound == "arithmetic"
    assert (slow, fast) == pytest.approx([5e12 / H100.bfloat16 / shares.rate[i] + LAUNCH[i] for i in (0, 1)])
    assert duration("elementwise", 10, 0, H100)[1] == "launch"


def test_a_step_is_the_sum_of_its_kernels_and_its_shares_are_the_whole():
    predicted = StepTime(program(FORWARD, FUSION), H100)
    for end in (0, 1):
        assert predicted.seconds[end] == pytest.approx(sum(one.seconds[end] for one in predicted.kernels))
        assert sum(share[end] for _, share, _ in predicted.shares) == pytest.approx(1)
    low, high = predicted.images_per_second(8)
    assert 0 < low < high
    assert {line.split()[0] for line in shares_in_words(predicted)} == {"convolution", "elementwise"}
    slower = StepTime(predicted.program, replace(H100, bandwidth=H100.bandwidth / 1e3))
    assert slower.seconds[1] > predicted.seconds[0]


def test_only_what_a_collective_takes_longer_than_the_kernels_beside_it_counts():
    card = replace(H100, link=1e6)  # 256 bytes take longer than any kernel
    alone = StepTime(program(FORWARD, REDUCE, DONE), card, gpus=8)
    beside = StepTime(program(FORWARD, REDUCE, CONVOLUTION.format(n=2), DONE), card, gpus=8)
    (total, exposed), hidden = alone.collectives[0], beside.kernels[1].seconds
    assert total == exposed == all_reduce(256, card, 8)
    assert beside.collectives[0][1] == pytest.approx([total[i] - hidden[i] for i in (0, 1)])
    assert beside.seconds == pytest.approx(alone.seconds)
    covered = StepTime(beside.program, replace(H100, bandwidth=1e6), gpus=8)
    assert covered.collectives[0][1] == (0, 0)


def test_an_all_reduce_sends_two_shares_of_the_rest_and_slows_with_hosts():
    assert all_reduce(10**9, H100, 1) == (0, 0)
    slow, fast = all_reduce(10**9, H100, 8)
    assert slow == pytest.approx(2 * 1e9 * 7 / 8 / 252e9, rel=0.01)  # the rate of XLA's table
    assert fast < slow
    times = [all_reduce(25 * 10**6, H100, 8, hosts) for hosts in (1, 8, 64)]
    assert sorted(times) == times


# From XLA's own descriptions of these cards, and NVIDIA's data sheets for those that XLA has none of.
@pytest.mark.parametrize(
    ("name", "facts"),
    [
        ("h100", "major: 9 minor: 0, core_count: 132, memory_bandwidth: 3352320000000, l2_cache_size: 52428800"),
        (
            "h200",
            "major: 9 minor: 0, core_count: 132, memory_bandwidth: 4800000000000, device_memory_size: 151397597184",
        ),
        ("a100", "major: 8 minor: 0, core_count: 108, memory_bandwidth: 2039040000000, fpus_per_core: 64"),
        ("b200", "major: 10 minor: 0, core_count: 148, memory_bandwidth: 7672320000000, l2_cache_size: 132644864"),
        ("l4", "major: 8 minor: 9, core_count: 58, memory_bandwidth: 300000000000, shared_memory_per_core: 102400"),
        ("rtx4090", "major: 8 minor: 9, core_count: 128, memory_bandwidth: 1008000000000, l2_cache_size: 75497472"),
    ],
)
def test_the_description_of_a_card_for_xla(name, facts):
    text = " ".join(CARDS[name].target_config.split())
    assert all(fact in text for fact in facts.split(", "))
    assert re.search(r'device_description_str: "NVIDIA ', text)


def test_peak_rates_follow_from_the_cards_units():
    """Multiply-adds of bfloat16 a clock and core; a GeForce card has half of what an L4 has."""
    for name, each in {"a100": 1024, "h100": 2048, "b200": 4096, "rtx4090": 256, "l4": 512}.items():
        card = CARDS[name]
        # Data sheets take a boost clock for products that may differ from the highest one by some percent.
        assert card.bfloat16 == pytest.approx(2 * card.cores * each * card.clock * 1e9, rel=0.09), name
        assert card.tf32 == pytest.approx(card.bfloat16 / 2, rel=0.03), name


def test_targets():
    assert card_of("b200:2x8") is CARDS["b200"]
    assert [hosts_of(target) for target in ("h100", "h100:1x8", "a100:64x8")] == [1, 1, 64]
    for wrong in ("h1000", "h100:8", "h100:0x8", "b200:1x", ""):
        with pytest.raises(UserError, match="no target .*h100, h200, a100, b200, l4, rtx4090"):
            card_of(wrong)
