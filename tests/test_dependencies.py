"""What is imported is declared, and an installation without extras works and names the extra of what it lacks."""

import ast
import json
import os
import re
import subprocess
import sys
import tomllib
from functools import cache
from importlib.metadata import packages_distributions

import numpy as np
import pytest
from PIL import Image

import parity
import parity.__main__
import resnet_flax
import resnet_flax.__main__
from parity.conversion.checkpoints import write_checkpoint
from parity.errors import MissingPackageError, needs_extra
from resnet_flax.cache import cache_directory
from resnet_flax.data import EvaluationTransform
from resnet_flax.data.preprocessing import Preprocessing
from tests import ROOT
from tests.base_only import ABSENT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
TRACKERS = ("trackio", "wandb", "mlflow")
# Folder: the extras that its modules may import from, beside the base.
FOLDERS = {
    "parity": ("torch", "train", "onnx", "test"),  # test for its pytest plugin
    "resnet_flax": ("torch", "train", "onnx", "hf", "fast", *TRACKERS),
    "tests": ("test", "onnx", "fast", *TRACKERS),
    "benchmarks": ("test", "fast"),
    "docs/examples": ("test", "onnx"),
}
BROUGHT_BY_THE_BASE = {
    "absl-py",
    "scipy",
}  # by Optax and JAX; so is Orbax, by Flax, whose absence is tried all the same


def normalised(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def distributions(requirements):
    """The names in a list of requirements, with those of this project's own extras."""
    names = set()
    for requirement in requirements:
        name, extras = re.match(r"([\w.-]+)(?:\[([\w,-]+)\])?", requirement).groups()
        if name == PROJECT["name"]:
            names = names.union(*(distributions(EXTRAS[extra]) for extra in extras.split(",")))
        else:
            names.add(normalised(name))
    return names


def imported(folder):
    """{top-level module: a file that imports it}, this project's own and the standard library's apart."""
    modules = {}
    for path in sorted((ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and node.module and not node.level else []
            modules |= {name.partition(".")[0]: path for name in names}
    own = {"parity", "resnet_flax", "tests", *(path.stem for path in (ROOT / folder).glob("*.py"))}
    return {name: path for name, path in modules.items() if name not in own | sys.stdlib_module_names}


installed = cache(packages_distributions)  # it takes a second


def providers(module):
    """The installed distributions that provide a top-level module; where there are none, one of its own name."""
    return {normalised(name) for name in installed().get(module, [module])}


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_import_is_declared(folder):
    declared = distributions(PROJECT["dependencies"]).union(*(distributions(EXTRAS[name]) for name in FOLDERS[folder]))
    modules = imported(folder)
    assert "numpy" in modules
    for module, path in modules.items():
        assert providers(module) & declared, f"{path} imports {module}, which is not declared"


def test_all_that_the_extras_add_is_taken_away_below():
    added = distributions(["resnet-flax[train,torch,onnx,hf,fast]"]) - distributions(PROJECT["dependencies"])
    absent = set().union(*map(providers, ABSENT))
    assert added - BROUGHT_BY_THE_BASE <= absent
    assert not absent & distributions(PROJECT["dependencies"])


COMMANDS = [
    (name, command)
    for name, program in (("parity", parity.__main__), ("resnet_flax", resnet_flax.__main__))
    for command in program.COMMANDS
]
# What works: a command, and what it prints.
WORKS = {
    **{f"{name} {command} --help": "usage: python -m" for name, command in COMMANDS},
    "parity --help": "usage: python -m parity COMMAND",
    "resnet_flax --help": "usage: python -m resnet_flax COMMAND",
    "resnet_flax models": "resnext101_64x4d",
    "resnet_flax train --list": "fashion_mnist_adam",
    "resnet_flax train --show digits": "--batch-size 64",
    "resnet_flax predict {folder}/image.png --weights {folder}/a.safetensors --top 1": "{folder}/image.png",
    "resnet_flax features {folder}/image.png --weights {folder}/a.safetensors --out {folder}/a.npz": "pool (1, 512)",
    "resnet_flax export --weights {folder}/a.safetensors --out {folder}/a.stablehlo": "-> logits",
    "resnet_flax data show synthetic:8x8x3:16": "16 images",
    "resnet_flax data write synthetic:8x8x3:16 {folder}/shards --format wds": "--data wds:{folder}/shards",
    "resnet_flax data show wds:{folder}/shards": "16 images",
    "parity convert {folder}/a.safetensors {folder}/b.safetensors": "resnet18, 3 classes, 1 input channel",
    "parity inspect {folder}/a.safetensors": "every entry fits resnet18",
    "import resnet_flax.training.recipes": "",
    "import parity:load_checkpoint": "",
}
# What does not: a command, and the beginning of the sentence, which the extra ends.
LACKS = {
    "resnet_flax train": ("training needs grain", "train"),
    "resnet_flax train --evaluate --weights {folder}/a.safetensors": ("--evaluate needs grain", "train"),
    "resnet_flax data show digits": ("the data set digits needs sklearn", "train"),
    "resnet_flax data show tfds:mnist": ("reading or writing TFDS data sets needs tensorflow_datasets", "train"),
    "resnet_flax data write synthetic:8x8x3:16 a": ("reading or writing TFDS data sets needs", "train"),
    "resnet_flax data show hf:a/b": ("reading or writing parquet and Hugging Face data sets needs pyarrow", "hf"),
    "resnet_flax data show parquet:{folder}/a.parquet": (
        "reading or writing parquet and Hugging Face data sets needs",
        "hf",
    ),
    "resnet_flax data write synthetic:8x8x3:16 {folder}/a --format hf": (
        "reading or writing parquet and Hugging Face data sets needs",
        "hf",
    ),
    "resnet_flax data show synthetic:8x8x3:16 --sheet {folder}/a.png": ("a contact sheet needs matplotlib", "train"),
    "resnet_flax export --weights {folder}/a.safetensors --out {folder}/a.pth": (
        "writing {folder}/a.pth needs",
        "torch",
    ),
    "resnet_flax export --weights {folder}/a.safetensors --out {folder}/a.onnx": (
        "exporting to ONNX needs onnx",
        "onnx",
    ),
    "parity inspect {folder}/old.pth": ("reading {folder}/old.pth needs torch", "torch"),
    "parity inspect {folder}": ("reading {folder} with Orbax needs orbax", "train"),
    "parity convert {folder}/a.safetensors {folder}/c": ("writing {folder}/c with Orbax needs orbax", "train"),
    "parity check resnet18": ("checking against PyTorch needs torch", "torch"),
    "import parity.reports.html": ("a report with plots needs matplotlib", "torch"),
    "import resnet_flax.training.loop": ("training needs orbax", "train"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    model = resnet_flax.create_model("resnet18", num_classes=3, in_channels=1, small_images=True)
    preprocessing = Preprocessing(EvaluationTransform(16, 16, "bilinear"), (0.5,), (0.5,))
    write_checkpoint(folder / "a.safetensors", parity.to_torch(model), preprocessing.to_metadata())
    (folder / "old.pth").write_bytes(b"PK")
    Image.fromarray(np.arange(20 * 24, dtype=np.uint8).reshape(20, 24)).save(folder / "image.png")
    return folder


@pytest.fixture(scope="module")
def results(folder):
    """{command: (status, stdout, stderr)}, all in one process in which the extras are absent."""
    names = [*WORKS, *LACKS]
    commands = json.dumps([name.format(folder=folder).split() for name in names])
    done = subprocess.run(
        [sys.executable, "-m", "tests.base_only"],
        input=commands,
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "JAX_COMPILATION_CACHE_DIR": str(cache_directory("jax-tests"))},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return dict(zip(names, json.loads(done.stdout), strict=True))


@pytest.mark.parametrize("command", WORKS)
def test_the_base_alone_is_enough_for(command, results, folder):
    status, out, err = results[command]
    assert status == 0, err or status
    assert WORKS[command].format(folder=folder) in out


@pytest.mark.parametrize("command", LACKS)
def test_an_absent_package_is_named_with_its_extra(command, results, folder):
    status, _, err = results[command]
    start, extra = LACKS[command]
    sentence = status.removeprefix("MissingPackageError: ") if command.startswith("import") else err.splitlines()[-1]
    assert status == 2 or command.startswith("import")
    assert sentence.removeprefix("error: ").startswith(start.format(folder=folder))
    assert f": pip install 'resnet-flax[{extra}]'" in sentence
    assert "Traceback" not in err


def test_a_package_that_is_there_and_cannot_be_imported_gives_its_reason():
    with (
        pytest.raises(MissingPackageError, match=r"^training needs grain \(no libgrain\): pip install .*, or wait$"),
        needs_extra("train", "training", "wait"),
    ):
        raise ImportError("no libgrain", name="grain._src")
