"""What other people's tests use: assertions, fixtures, reports; and the command line."""

import gc
import json
import re
import subprocess
import sys
import weakref

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="compares with PyTorch")

import torchvision
from flax import nnx
from PIL import Image
from torch import nn

import parity
from parity.commands.check import main
from parity.errors import UsageError
from parity.reports.html import as_html, write_html
from parity.reports.json import as_dict, write_json
from parity.reports.results import Report
from parity.reports.terminal import WIDTH
from parity.sides.flax import FlaxSide
from resnet_flax.data import evaluation_transform
from tests.parity.diagnosis.faults import FAULTS, norm_pair, outcome

pytest_plugins = ["pytester"]


def batch(shape=(16, 6)):
    return np.random.default_rng(0).normal(size=shape)


def right_norm(features, rngs):
    return nnx.BatchNorm(features, momentum=0.9, use_fast_variance=False, rngs=rngs)


def test_assertions_pass_and_say_why_they_fail():
    ours, theirs = norm_pair(6, right_norm)
    assert parity.assert_parity(ours, theirs, batch()).passed
    assert parity.assert_gradient_parity(ours, theirs, batch()).passed
    with pytest.raises(AssertionError) as failure:  # Flax's own BatchNorm has another running variance
        parity.assert_train_parity(ours, theirs, (batch(), np.arange(16) % 5), optimizer="adam", steps=2)
    message = str(failure.value)
    assert message.startswith("running variance of bn1 is biased: ")
    assert re.search(r"\w+ and \w+ differ\n", message)
    assert (
        "running variance of bn1 is biased: PyTorch keeps the unbiased variance, n/(n-1) times that (n = 16)" in message
    )
    assert "bn1.running_var, step 1" in message
    assert "PyTorch's own" in message


def test_fixtures_write_reports(pytester):
    pytester.makepyfile(
        """
        from flax import nnx
        from torch import nn

        def test_right(parity_check, parity_randomize):
            ours, theirs = nnx.Linear(4, 3, rngs=nnx.Rngs(0)), nn.Linear(4, 3)
            inputs = parity_randomize(ours, theirs, (5, 4))
            parity_check(ours, theirs, inputs, checks=("forward", "gradients"))

        def test_wrong(parity_check):
            parity_check(nnx.Linear(4, 3, rngs=nnx.Rngs(0)), nn.Linear(4, 3), [[1.0, 2.0, 3.0, 4.0]])
        """
    )
    result = pytester.runpytest("--parity-report=reports", "-p", "no:cacheprovider")
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(
        [
            "*: Linear and Linear differ",
            "*test_fixtures_write_reports.py:10",
            "report: reports*test_wrong.html",
            "*do NOT agree*",
        ]
    )
    names = {path.name for path in (pytester.path / "reports").iterdir()}
    stem = "test_fixtures_write_reports.py_test_"
    assert names == {f"{stem}{which}.{kind}" for which in ("right", "wrong") for kind in ("json", "html")}
    assert ": Linear and Linear differ</title>" in (pytester.path / "reports" / f"{stem}wrong.html").read_text()
    assert json.loads((pytester.path / "reports" / f"{stem}right.json").read_text())["passed"] is True


def test_what_cannot_be_compared_is_a_line_in_pytest(pytester):
    pytester.makepyfile(
        """
        import parity
        from flax import nnx
        from torch import nn

        def test_fixture(parity_check):
            parity_check(nnx.Linear(4, 3, rngs=nnx.Rngs(0)), nn.Linear(4, 3), parity.random_inputs((2, 5)))

        def test_names(parity_randomize):
            ours = nnx.Sequential(nnx.Linear(4, 4, rngs=nnx.Rngs(0)), nnx.Linear(4, 3, rngs=nnx.Rngs(0)))
            parity_randomize(ours, nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 3)), (2, 4))

        def test_assertion():
            parity.assert_parity(nnx.Linear(4, 3, rngs=nnx.Rngs(0)), nn.Linear(4, 3), parity.random_inputs((2, 5)))
        """
    )
    result = pytester.runpytest("-p", "no:cacheprovider")
    result.assert_outcomes(failed=3)
    assert len(result.outlines) < 70
    result.stdout.fnmatch_lines(["*neither network runs on these inputs*", "*names={Flax path: PyTorch path}*"])


def test_a_report_that_cannot_be_written_says_so(tmp_path):
    report = Report({"flax network": "a", "torch network": "b", "precision": "float64", "inputs": [2, 4]})
    for write in (write_json, write_html):
        with pytest.raises(parity.ParityError, match="cannot write .*: Is a directory"):
            write(report, tmp_path)


def test_the_plugin_costs_other_runs_nothing():
    heavy = "[name for name in ('jax', 'flax', 'torch', 'numpy', 'rich') if name in sys.modules]"
    code = f"import sys, parity, parity.pytest_plugin; print({heavy})"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


def test_reports_fit_the_terminal_and_hold_everything():
    report = outcome(FAULTS[0])
    text = str(report)
    assert max(map(len, text.splitlines())) <= WIDTH
    assert "padding of layer2.0.conv2 is SAME" in text
    data = json.loads(json.dumps(as_dict(report), allow_nan=False))
    assert data["schema"] == 1
    assert data["passed"] is False
    assert len(data["comparisons"]) == len(report.comparisons)
    assert data["settings"]["jax_enable_x64"] is True
    page = as_html(report)
    assert "padding of layer2.0.conv2 is SAME" in page
    assert page.count("<svg") == 1
    assert "http" not in page.replace("http://www.w3.org", "").replace("http://purl.org", "").replace(
        "http://creativecommons.org", ""
    ).replace("https://matplotlib.org", "")


def pictures():
    """Noise, so that resizing without a filter shows, and shapes that show how sizes are rounded."""
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (h, w, 3), np.uint8)) for h, w in ((91, 140), (143, 97), (100, 100))]


def test_preprocessing_is_torchvisions():
    transform = evaluation_transform(resize_size=47, crop_size=32)
    report = parity.check_preprocessing(transform, pictures(), resize_size=47, crop_size=32)
    assert report.passed, str(report)
    assert max(row.error.max_abs for row in report.comparisons) == 0
    assert "preprocessing in Flax" in as_html(report)


def test_preprocessing_of_grey_images():
    grey = [image.convert("L") for image in pictures()]
    for resize_size, passes in ((47, True), (50, False)):
        transform = evaluation_transform(resize_size=resize_size, crop_size=32)
        report = parity.check_preprocessing(transform, grey, resize_size=47, crop_size=32)
        assert report.passed == passes
    assert "resizes to 50 instead of 47" in str(report.findings[0])


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("antialias", "resizes without antialiasing"),
        ("size", "resizes to 50 instead of 47"),
        ("offset", "the crop's offset is rounded down"),
    ],
)
def test_faults_of_preprocessing_are_named(fault, words):
    def transform(image):
        if fault == "size":
            return evaluation_transform(resize_size=50, crop_size=32)(image)
        long = int(47 * max(image.size) / min(image.size))
        height, width = (47, long) if image.height <= image.width else (long, 47)
        if fault == "antialias":
            pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float()
            pixels = nn.functional.interpolate(pixels, (height, width), mode="bilinear")[0].permute(1, 2, 0)
            resized = np.asarray(pixels.round().byte())
        else:
            resized = np.asarray(image.resize((width, height), Image.Resampling.BILINEAR))
        middle = round if fault == "antialias" else int
        top, left = middle((height - 32) / 2), middle((width - 32) / 2)
        return resized[top : top + 32, left : left + 32]

    report = parity.check_preprocessing(transform, pictures(), resize_size=47, crop_size=32)
    assert not report.passed
    assert words in str(report.findings[0]), str(report)


def test_class_numbers():
    names = [str(number) for number in range(1, 12)]
    assert parity.check_classes(sorted(names), sorted(names)).passed
    report = parity.check_classes(names, sorted(names))
    assert not report.passed
    assert 'sorted naturally ("2" before "10")' in str(report)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["resnet19"], "no network named 'resnet19'"),
        (["two.pth"], "it is a file: give a network's name, and the file with --weights two.pth"),
        (["resnet18", "--batch", "0"], "--batch must be at least 1; got 0"),
        (["resnet18", "--checks", "forwards"], "no check named forwards"),
        (["resnet18", "--json", "/nowhere/report.json"], "is not a directory"),
        (["resnet18", "--html", "."], "cannot write .: it is a directory"),
        (["resnet18", "--json", "sealed/report.json"], "cannot write sealed/report.json: it is not permitted"),
        (["resnet18", "--weights", "/nowhere/weights.pth"], "does not exist"),
        (["resnet18", "--image", "/nowhere/cat.jpg"], "cannot be read: No such file"),
        (["resnet18", "--device", "gpu"], "finds no GPU"),
        (["resnet18", "--weights", "two.pth", "--checks", "trajectory"], "ten digits, and the weights have 2 classes"),
    ],
)
def test_the_command_refuses_in_one_sentence(arguments, message, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    torch.save(torchvision.models.resnet18(num_classes=2).state_dict(), "two.pth")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    (tmp_path / "sealed").mkdir()
    monkeypatch.setattr("os.access", lambda path, mode: "sealed" not in str(path))  # root may write anywhere
    with pytest.raises(UsageError, match=message):
        main(arguments)


def test_the_command_checks_and_writes(tmp_path, capsys):
    report = tmp_path / "report.json"
    status = main(
        ["resnet18", "--small-images", "--size", "9", "--batch", "2", "--checks", "weights", "--json", str(report)]
    )
    assert status == 0
    assert capsys.readouterr().out.startswith("resnet18 in Flax and resnet18 in PyTorch agree")
    assert json.loads(report.read_text())["settings"]["architecture"] == "resnet18"


def test_a_side_is_freed_with_its_last_reference():
    side = FlaxSide(nnx.Linear(3, 2, rngs=nnx.Rngs(0)), "float32")
    side.run(batch((2, 3)), train=True)
    left = weakref.ref(side)
    gc.disable()  # what is left to the cycle collector keeps its arrays until it comes
    try:
        del side
        assert left() is None
    finally:
        gc.enable()
