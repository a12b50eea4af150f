"""Progressive sizes: the plan, one compilation a size, resuming, and what is refused."""

import signal
from pathlib import Path

import pytest

from resnet_flax.errors import UserError
from resnet_flax.training.progressive import described, stages
from resnet_flax.training.setup import Setup
from tests.resnet_flax.training.small import OPTIONS, run, use_small_network
from tests.resnet_flax.training.test_loop import assert_same_state, final_state

SIZES = ["--progressive-sizes", "6", "7", "8"]


@pytest.mark.parametrize("epochs", [3, 4, 5, 90])
@pytest.mark.parametrize("sizes", [(6,), (6, 7), (6, 7, 8)])
def test_every_size_has_its_share_and_the_last_one_the_end(epochs, sizes):
    plan = list(stages(sizes, epochs))
    lengths = [
        end - begin for begin, end in zip([0, *(end for _, end in plan)], (end for _, end in plan), strict=False)
    ]
    assert [size for size, _ in plan] == list(sizes)
    assert plan[-1][1] == epochs == sum(lengths)
    assert min(lengths) >= 1
    assert max(lengths) - min(lengths) <= 1


def test_a_later_start_leaves_out_what_is_done():
    assert list(stages((6, 7, 8), 6, 3)) == [(7, 4), (8, 6)]
    assert list(stages((6, 7, 8), 6, 4)) == [(8, 6)]
    assert list(stages((6, 7, 8), 6, 6)) == []
    assert list(stages((), 6)) == []


def test_the_plan_in_words():
    assert described((6, 7, 8), 4) == "6 pixels in epoch 1, 7 pixels in epoch 2, 8 pixels in epochs 3 to 4"


@pytest.fixture
def shapes(monkeypatch, tmp_path):
    """The images' height at every step taken."""
    use_small_network(monkeypatch, tmp_path)
    taken, batches = [], Setup.training_batches

    def watched(self, source, start_step):
        for batch in batches(self, source, start_step):
            taken.append(batch["image"].shape[1])
            yield batch

    monkeypatch.setattr(Setup, "training_batches", watched)
    return taken


def stopping_after(steps):
    """`Setup.training_batches` of a process that is told to stop during that step."""
    batches = Setup.training_batches

    def stopping(self, source, start_step):
        for step, batch in enumerate(batches(self, source, start_step), start_step + 1):
            if step == steps:
                signal.raise_signal(signal.SIGTERM)
            yield batch

    return stopping


def test_each_epoch_has_its_size_and_a_resumed_run_continues(shapes, capsys, monkeypatch):
    options = [*OPTIONS, "--schedule", "constant", *SIZES]
    assert run("digits", *options, "--workdir", "whole") == 0
    assert shapes == [6] * 4 + [7] * 4 + [8] * 4
    text = capsys.readouterr().out
    assert "sizes: 6 pixels in epoch 1, 7 pixels in epoch 2, 8 pixels in epoch 3\n" in text
    assert [line for line in text.splitlines() if line.startswith("compiling")] == [
        f"compiling the training step on inputs of {size}x{size}x1 ..." for size in (6, 7, 8)
    ]
    shapes.clear()
    with monkeypatch.context() as patch:
        patch.setattr(Setup, "training_batches", stopping_after(6))
        assert run("digits", *options, "--workdir", "parts") == 143
    assert shapes == [6] * 4 + [7] * 2
    assert run("--resume", "--workdir", "parts") == 0
    assert shapes == [6] * 4 + [7] * 4 + [8] * 4
    assert_same_state(final_state(Path("parts")), final_state(Path("whole")))


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--epochs", "2"], r"^--progressive-sizes has 3 sizes for 2 epochs; each needs at least one$"),
        (["--image-size", "9"], r"^--image-size 9 is not the last of --progressive-sizes, 8; make them the same$"),
        (["--cache-features", "--train-transform.padding", "0"], r"cannot be used with --progressive-sizes; remove it"),
    ],
)
def test_settings_that_contradict_it(shapes, options, sentence):
    with pytest.raises(UserError, match=sentence):
        run("digits", *OPTIONS, *SIZES, *options)
