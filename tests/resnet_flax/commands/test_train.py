"""The train command: its options, what it refuses, recipes, and comparing runs."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from parity.errors import UsageError
from resnet_flax.commands.train import parse
from resnet_flax.errors import UserError
from resnet_flax.training import setup
from resnet_flax.training.recipes import RECIPES
from tests.resnet_flax.training.small import OPTIONS, make_folder, run, use_small_network


@pytest.fixture(autouse=True)
def small(monkeypatch, tmp_path):
    use_small_network(monkeypatch, tmp_path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--accumulate", "3"], "a batch of 16 cannot be split evenly over 1 device x 3 micro-batches"),
        (["--warmup-epochs", "3"], "--warmup-epochs 3 must be less than --epochs 3"),
        (["--bce-threshold", "0.2"], "needs --loss binary_cross_entropy"),
        (["--train-frozen-statistics"], "needs --freeze"),
        (["--freeze", "conv2"], "'conv2' matches no parameter; did you mean conv1"),
        (["--std", "0"], "--std must be above 0; got 0.0"),
        (["--learning-rate", "nan"], "--learning-rate must be finite and at least 0; got nan"),
        (["--mean", "0.5", "0.5"], "--mean has 2 values, but the images of .* have 1 channel"),
        (["--batch-size", "65"], "has 64 images, fewer than one batch"),
        (["--evaluate"], "--evaluate needs --weights"),
        (["--target", "h100"], "--target, .* needs --dry-run"),
        (["--mixup", "inf"], "--mixup must be finite and at least 0; got inf"),
        (["--mean", "nan"], "--mean must be finite; got nan"),
        (["--train-transform.flip", "2"], "--train-transform.flip must be between 0 and 1; got 2.0"),
        (["--eval-transform.crop-size", "0"], "--eval-transform.crop-size must be between 1 and 16384; got 0"),
        (["--learning-rate-multipliers", "fc", "-1"], "--learning-rate-multipliers must be at least 0; got -1.0"),
        (["--image-size", "0"], "--image-size must be between 1 and 16384; got 0"),
        (["--seed", "-1"], "--seed must be between 0 and 4294967295; got -1"),
        (["--workers", "-1"], "--workers must be between 0 and 1024; got -1"),
        (["--train-transform.padding", "-1"], "--train-transform.padding must be between 0 and 16384; got -1"),
        *(([f"--{name}", "-1"], f"--{name} must be at least 0; got -1") for name in ("skip-corrupt", "warmup-epochs")),
        *(
            ([f"--{name}", "0"], f"--{name} must be at least 1; got 0")
            for name in ("accumulate", "log-every", "keep", "checkpoint-every", "ema-every", "epochs", "repeats")
        ),
    ],
)
def test_settings_that_cannot_work(arguments, message):
    with pytest.raises(UsageError, match=message):
        run("digits", *OPTIONS, *arguments)
    assert not Path("runs").exists()


def test_recipes_are_listed_and_misspelt_names_answered(capsys):
    assert run("--list") == 0
    text = capsys.readouterr().out
    assert [line.split()[0] for line in text.splitlines()] == list(RECIPES)
    assert run("--show", "imagenet_v2") == 0
    assert "--ema-decay 0.9989" in capsys.readouterr().out
    assert run("--show", "finetune") == 0
    shown = capsys.readouterr().out
    assert "  --freeze all-but-head\n" in shown
    options = " ".join(line for line in shown.splitlines() if line.startswith("  --")).split()
    assert parse(["finetune", *options]) == RECIPES["finetune"].config  # they are what a command line takes
    with pytest.raises(UserError, match="no recipe named 'imagenet_v3'; did you mean imagenet_v2"):
        run("imagenet_v3")
    with pytest.raises(SystemExit) as stop:
        run("digits", "--learnig-rate", "1")
    assert stop.value.code == 2
    assert "--learning-rate" in capsys.readouterr().err


def test_help_is_in_groups_and_shows_no_empty_default(capsys):
    with pytest.raises(SystemExit):
        run("--help")
    text = capsys.readouterr().out
    for group in ("model", "data", "loss", "optimizer", "schedule", "run"):
        assert f" {group} options " in text
    for word in ("--evaluate", "--compare", "--dry-run"):
        assert word in text.partition("options ─")[0]
    assert "(default: )" not in text
    assert "(default: None)" not in text


def test_the_short_names_of_the_field():
    config = parse(["-b", "8", "--lr", "0.3", "--wd", "0.1", "-j", "2"])
    assert (config.batch_size, config.run.workers) == (8, 2)
    assert (config.optimizer.learning_rate, config.optimizer.weight_decay) == (0.3, 0.1)


def test_another_batch_size_reminds_of_the_rule(capsys):
    run("digits", *OPTIONS)
    assert "the batch size is 16, the recipe's 64, and the learning rate is unchanged" in capsys.readouterr().out


def test_comparison(capsys):
    for name in ("runs/one", "runs/../runs//two"):
        run("digits", *OPTIONS, "--workdir", name)
    assert " runs/two/best.safetensors" in capsys.readouterr().out
    assert run("--compare", "runs/one", "runs/two") == 0
    table = capsys.readouterr().out
    assert not any(line.endswith(" ") for line in table.splitlines())
    assert table.endswith("written: runs/compare.png\n")
    assert Path("runs/compare.png").read_bytes().startswith(b"\x89PNG")
    Path("link").symlink_to("runs/one")
    with pytest.raises(UserError, match="--compare got the same run twice: runs/one and link"):
        run("--compare", "runs/one", "runs/two", "link")
    with pytest.raises(UserError, match="three has no run"):
        run("--compare", "runs/one", "three")


def test_weights_for_large_images_where_small_ones_are_asked_for(monkeypatch):
    loaded = SimpleNamespace(model=SimpleNamespace(small_images=False))
    monkeypatch.setattr(setup, "load_pretrained", lambda *args, **options: loaded)
    with pytest.raises(UserError, match="w.pth has the stem for large images; add --no-small-images"):
        run("digits", *OPTIONS, "--weights", "w.pth", "--small-images")


def test_one_class_is_none_to_tell_apart():
    make_folder(classes="a")
    with pytest.raises(UserError, match="images has only one class"):
        run("digits", *OPTIONS, "--data", "folder:images", "--batch-size", "8")
