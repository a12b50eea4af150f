"""Every public name has a docstring with an example that runs, says what it raises, and is in the API reference."""

import ast
import doctest
import importlib
import inspect
import itertools
import re

import pytest

import parity
import resnet_flax
from tests import ROOT

pytest.importorskip("torch", reason="compares with PyTorch")

PUBLIC = [(package, name) for package in (parity, resnet_flax) for name in package.__all__]
TRAINS = ("Result", "evaluate", "fit")  # each compiles a network with a name, which takes a while
RAISE_NOTHING = ("list_models", "register_layer", "check_classes", "check_preprocessing", "summary")


def case(package, name: str):
    return pytest.param(package, name, id=name, marks=[pytest.mark.full] * (name in TRAINS))


def docstring(package, name: str) -> str:
    """Of a constant it is the text that follows it in its module."""
    value = getattr(package, name)
    if not isinstance(value, dict):
        return inspect.getdoc(value) or ""
    module = next(path for path in reference(package) if path.endswith(f".{name}")).rpartition(".")[0]
    body = ast.parse(inspect.getsource(importlib.import_module(module))).body
    for statement, following in itertools.pairwise(body):
        if isinstance(statement, ast.AnnAssign) and ast.unparse(statement.target) == name:
            return inspect.cleandoc(ast.literal_eval(following.value))
    return ""


def reference(package) -> list[str]:
    """The dotted names on the package's page of the API reference."""
    page = ROOT / "docs" / "api" / f"{package.__name__}.md"
    return re.findall(r"^::: (\S+)$", page.read_text(), re.M)


def examples(text: str) -> list[doctest.Example]:
    return [example for example in doctest.DocTestParser().get_examples(text) if doctest.SKIP not in example.options]


@pytest.mark.parametrize(("package", "name"), [case(*public) for public in PUBLIC])
def test_the_examples_of_a_public_name_run(package, name, tmp_path, monkeypatch, capsys):
    text = docstring(package, name)
    assert "\nExamples:\n" in text, f"{name} has no example"
    shown = examples(text)
    assert shown
    assert shown[0].source.startswith(("import ", "from ")), "an example can be pasted as it is"
    monkeypatch.chdir(tmp_path)
    test = doctest.DocTest(shown, {}, name, None, 0, text)
    report: list[str] = []
    failed, tried = doctest.DocTestRunner(verbose=False).run(test, out=report.append)
    assert tried == len(shown)
    assert not failed, "".join(report)


@pytest.mark.parametrize(("package", "name"), PUBLIC)
def test_a_public_function_says_what_it_takes_and_raises(package, name):
    value = getattr(package, name)
    if inspect.isfunction(value):
        text = inspect.getdoc(value) or ""
        assert "\nRaises:\n" in text or name in RAISE_NOTHING
        assert len(inspect.signature(value).parameters) < 2 or "\nArgs:\n" in text or " as `" in text.lower()


@pytest.mark.parametrize(("package", "name"), PUBLIC)
def test_the_api_reference_has_every_public_name(package, name):
    assert [path.rpartition(".")[2] for path in reference(package)].count(name) == 1
