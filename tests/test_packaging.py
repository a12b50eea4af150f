"""What importing costs, and which part may know which."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from tests import ROOT

HEAVY = ("torch", "torchvision", "tensorflow", "tensorflow_datasets", "orbax", "grain", "matplotlib", "huggingface_hub")

CONVERSION = (
    "parity.conversion.naming",
    "parity.conversion.convert",
    "parity.conversion.checkpoints",
    "parity.conversion.orbax",
)
# Everything of this project that the modules under a path may import; the first path that fits counts.
MAY_IMPORT = {
    "parity/commands": ("parity", "resnet_flax"),
    "parity/__main__.py": ("parity", "resnet_flax.errors"),
    "parity/conversion/naming.py": (),
    "parity/conversion/convert.py": ("parity.conversion.naming",),
    "parity/conversion/checkpoints.py": (
        "parity.conversion.naming",
        "parity.conversion.convert",
        "parity.conversion.orbax",
    ),
    "parity/conversion/orbax.py": (),
    "parity": ("parity",),
    "resnet_flax/errors.py": (),
    "resnet_flax/layers": ("resnet_flax.layers",),
    "resnet_flax/models": ("resnet_flax.models", "resnet_flax.layers", "resnet_flax.errors"),
    "resnet_flax/data": ("resnet_flax.data", "resnet_flax.errors", "resnet_flax.options"),
    "resnet_flax/weights.py": (*CONVERSION, "resnet_flax.models"),
    "resnet_flax/weights/hub.py": ("resnet_flax.data", "resnet_flax.errors"),
    "resnet_flax/weights/published.py": ("resnet_flax.data",),
    "resnet_flax/weights/load.py": (
        "parity.conversion.convert",
        *(f"resnet_flax.{part}" for part in ("cache", "data", "errors", "hub", "layers", "models", "weight_table")),
        "resnet_flax.weights",
    ),
    "resnet_flax/inference.py": ("resnet_flax.data", "resnet_flax.errors", "resnet_flax.weights.load"),
    "resnet_flax/export.py": ("parity.conversion.checkpoints", "resnet_flax.models"),
    "resnet_flax/training": (
        *CONVERSION,
        *(f"resnet_flax.{part}" for part in ("cache", "data", "errors", "layers", "models", "options", "training")),
    ),
    "resnet_flax": ("resnet_flax", *CONVERSION, "parity.errors"),
}


def imported_modules(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in found if name.split(".")[0] in ("resnet_flax", "parity")}


@pytest.mark.parametrize(
    "path",
    sorted([*ROOT.glob("resnet_flax/**/*.py"), *ROOT.glob("parity/**/*.py")]),
    ids=lambda path: path.relative_to(ROOT).as_posix(),
)
def test_dependencies_point_one_way(path):
    relative = path.relative_to(ROOT).as_posix()
    allowed = next(names for prefix, names in MAY_IMPORT.items() if relative.startswith(prefix))
    for name in imported_modules(path):
        assert name.startswith(tuple(f"{part}." for part in allowed)) or name in allowed, f"{relative} imports {name}"


@pytest.mark.parametrize("module", ["resnet_flax", "parity", "resnet_flax.__main__", "parity.__main__"])
def test_importing_pulls_in_nothing_heavy(module):
    script = f"import sys, {module}; print([name for name in {HEAVY!r} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


@pytest.mark.parametrize("package", ["resnet_flax", "parity"])
def test_commands_list_themselves_and_refuse_unknown_ones(package):
    help_text = subprocess.run(
        [sys.executable, "-m", package, "--help"], capture_output=True, text=True, check=True
    ).stdout
    assert help_text.startswith(f"usage: python -m {package} COMMAND")
    wrong = subprocess.run([sys.executable, "-m", package, "wrong"], capture_output=True, text=True, check=False)
    assert wrong.returncode == 2
    assert wrong.stderr.startswith("error: no command 'wrong'; the commands are ")


@pytest.mark.parametrize("arguments", [["--list"], ["--help"]])
def test_a_reader_that_has_gone_is_no_traceback(arguments):
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "train.py"), *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    process.stdout.close()
    assert process.stderr.read() == ""
    process.stderr.close()
    assert process.wait() in (1, 141)  # rich's own answer and ours


def test_train_py_is_the_train_command():
    shown = [
        subprocess.run([sys.executable, *command, "--list"], capture_output=True, text=True, check=True).stdout
        for command in ([str(ROOT / "train.py")], ["-m", "resnet_flax", "train"])
    ]
    assert "fashion_mnist_adam" in shown[0]
    assert shown[0] == shown[1]
