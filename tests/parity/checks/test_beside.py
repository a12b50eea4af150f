"""Passes in threads give what passes one after another give, and leave PyTorch as it was."""

import threading

import numpy as np
import pytest
import torch

from parity.checks.beside import WORKERS, reference_passes
from parity.sides.base import ARRANGEMENTS
from parity.sides.flax import FlaxSide
from parity.sides.torch import TorchSide

INPUTS = np.random.default_rng(0).normal(size=(4, 3, 6, 5))
OTHERS = ARRANGEMENTS[1:]


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def network():
    torch.manual_seed(0)
    layers = torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.ReLU(inplace=True), torch.nn.Flatten()
    return torch.nn.Sequential(*layers)


def floors(side, reference=None):
    def run(one, arrangement):
        return one.run(INPUTS, train=True, arrangement=arrangement)

    with reference_passes(side, reference or side, run, OTHERS, share=1.0) as begun:
        oracle, _ = begun.oracle.result()
        distances = {one: begun.distances[one].result() for one in OTHERS}
        return oracle, begun.plain.result(), distances


def same(run, other):
    groups, others = run.groups(), other.groups()
    return all(np.array_equal(array, others[group][name]) for group in groups for name, array in groups[group].items())


def test_threads_give_what_one_after_another_gives(two_threads):
    side = TorchSide(network(), "float64")
    before = side.state()
    oracle, plain, distances = floors(side)
    torch.set_num_threads(1)
    alone, _, others = floors(side)
    assert same(oracle, alone)
    assert same(plain, alone)
    assert distances == others
    assert any(distances[OTHERS[-1]]["activations"].values())
    assert all(np.array_equal(array, before[name]) for name, array in side.state().items())


def test_the_reference_may_have_another_precision(two_threads):
    side = TorchSide(network(), "float64")
    oracle, plain, _ = floors(side, side.at("float32"))
    assert 0 < np.abs(oracle.outputs["output"] - plain.outputs["output"]).max() < 1e-5


def test_passes_run_on_the_side_and_on_its_twin_at_the_same_time(two_threads):
    meeting, seen = threading.Barrier(WORKERS, timeout=60), []

    def run(one, arrangement):
        if arrangement in OTHERS[:2]:
            meeting.wait()  # a single worker would wait in vain
        seen.append((arrangement, one, torch.get_num_threads()))
        return one.run(INPUTS, train=False)

    side = TorchSide(network(), "float64")
    with reference_passes(side, side, run, OTHERS, share=1.0) as begun:
        for task in begun.distances.values():
            task.result()
    assert len({id(one) for _, one, _ in seen}) == WORKERS
    assert {threads for *_, threads in seen} == {1}
    assert torch.get_num_threads() == 2
    later = []
    thread = threading.Thread(target=lambda: later.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert later == [2]


def test_a_twin_shares_the_parameters_and_nothing_else():
    side = TorchSide(network(), "float64")
    twin = side.twin()
    for (name, parameter), other in zip(side.module.named_parameters(), twin.module.parameters(), strict=True):
        assert parameter.data_ptr() == other.data_ptr(), name
        assert parameter is not other, name
    for buffer, other in zip(side.module.buffers(), twin.module.buffers(), strict=True):
        assert buffer.data_ptr() != other.data_ptr()
    twin.run(INPUTS, INPUTS.sum((2, 3)), train=True, arrangement=ARRANGEMENTS[1])
    assert all(parameter.is_contiguous() for parameter in side.module.parameters())


def test_a_network_that_keeps_what_a_pass_gave_has_no_twin(two_threads):
    class Keeps(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.kept = network(), None

        def forward(self, inputs):
            self.kept = self.inner(inputs)
            return self.kept * 1

    side = TorchSide(Keeps(), "float64")
    side.module(side.array(INPUTS))
    with pytest.raises(RuntimeError, match="deepcopy"):
        side.twin()
    oracle, _, distances = floors(side)
    assert oracle.outputs["output"].shape == (4, 48)
    assert len(distances) == len(OTHERS)


def test_what_a_pass_raises_is_given_to_who_asks(two_threads):
    def run(one, arrangement):
        if arrangement is OTHERS[1]:
            raise RuntimeError("no such layout")
        return one.run(INPUTS, train=False)

    side = TorchSide(network(), "float64")
    with reference_passes(side, side, run, OTHERS, share=1.0) as begun:
        assert begun.distances[OTHERS[0]].result()
        with pytest.raises(RuntimeError, match="no such layout"):
            begun.distances[OTHERS[1]].result()
        assert begun.distances[OTHERS[2]].result()


def test_nothing_runs_on_after_an_error(two_threads):
    started = threading.Event()

    def run(one, arrangement):
        started.set()
        return one.run(INPUTS, train=False)

    def fails(side):
        with reference_passes(side, side, run, OTHERS, share=1.0):
            assert started.wait(60)
            raise ValueError("of the candidate")

    with pytest.raises(ValueError, match="candidate"):
        fails(TorchSide(network(), "float64"))
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("ThreadPoolExecutor")]


def test_a_network_in_jax_runs_where_its_result_is_asked_for():
    import jax.numpy as jnp
    from flax import nnx

    with_threads = []

    def run(one, arrangement):
        with_threads.append(threading.current_thread())
        return one.run(np.zeros((2, 3)), train=False, arrangement=arrangement)

    side = FlaxSide(nnx.Linear(3, 2, rngs=nnx.Rngs(0), dtype=jnp.float32), "float32")
    with reference_passes(side, side, run, side.arrangements, share=1.0) as begun:
        assert not with_threads
        begun.distances[side.arrangements[0]].result()
    assert with_threads == [threading.main_thread()] * 2
