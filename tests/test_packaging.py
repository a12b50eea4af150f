"""What importing costs, and which part may know which."""

import ast
import subprocess
import sys

import pytest

from tests import ROOT

HEAVY = ("torch", "torchvision", "tensorflow", "tensorflow_datasets", "orbax", "grain", "matplotlib", "huggingface_hub")

# What the modules under a path may import of this project; the first path that fits counts.
MAY_IMPORT = {
    "parity/errors.py": (),
    "parity/options.py": ("parity.errors",),
    "parity/conversion": ("parity.conversion", "parity.errors", "parity.registry"),
    "parity/sides": ("parity.sides", "parity.conversion", "parity.errors"),
    "parity/checks": (
        "parity.checks",
        "parity.progress",
        "parity.reports.results",
        "parity.sides",
        "parity.conversion",
        "parity.errors",
        "parity.diagnosis.diagnose",
        "parity.diagnosis.in_jax",
        "parity.diagnosis.moved_statistics",
    ),
    "parity/reports": (
        *("parity.reports", "parity.checks.tolerance", "parity.conversion.files", "parity.errors"),
        "parity.trimmed",
    ),
    "parity": ("parity",),
    "resnet_flax/errors.py": ("parity.errors",),
    "resnet_flax/layers": ("resnet_flax.layers", "resnet_flax.errors"),
    "resnet_flax/models": (
        *("parity.errors", "parity.options"),
        *(f"resnet_flax.{part}" for part in ("errors", "layers", "models")),
    ),
    "resnet_flax/data": (
        *("parity.conversion.files", "parity.errors", "parity.options"),
        *(f"resnet_flax.{part}" for part in ("cache", "data", "errors", "figures")),
    ),
    "resnet_flax/weights": (
        *("parity.conversion", "parity.errors", "parity.options", "parity.fingerprints.distance"),
        *(f"resnet_flax.{part}" for part in ("cache", "data", "errors", "layers", "models", "weights")),
    ),
    "resnet_flax": ("resnet_flax", "parity.conversion", "parity.errors", "parity.options", "parity.trimmed"),
}
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for package in ("parity", "resnet_flax")
    for path in sorted((ROOT / package).rglob("*.py"))
}


def imports_of(module: str, nodes) -> set[str]:
    """The modules of this project that the statements import, and for `from package import name` the name too."""
    imported = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} imports relatively"
            imported |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in imported if name.split(".")[0] in ("parity", "resnet_flax")}


@pytest.mark.parametrize("module", MODULES)
def test_dependencies_point_one_way(module):
    path = MODULES[module]
    relative = path.relative_to(ROOT).as_posix()
    allowed = next(names for prefix, names in MAY_IMPORT.items() if relative.startswith(prefix))
    for name in imports_of(module, ast.walk(ast.parse(path.read_text()))):
        assert name in allowed or name.startswith(tuple(f"{part}." for part in allowed)), f"{relative} imports {name}"


def at_import_time(tree: ast.Module):
    """Every statement that runs when the module is imported: none inside functions or under TYPE_CHECKING."""
    pending: list[ast.AST] = list(tree.body)
    while pending:
        node = pending.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            pending += node.orelse
            continue
        yield node
        pending += ast.iter_child_nodes(node)


def import_graph() -> dict[str, set[str]]:
    """{module: those that it imports while it is itself being imported}, packages' `__init__` included."""
    graph = {}
    for module, path in MODULES.items():
        edges = set()
        for name in imports_of(module, at_import_time(ast.parse(path.read_text()))):
            target = name if name in MODULES else name.rpartition(".")[0]
            parts = target.split(".")
            # Importing a.b.c imports a and a.b first; a package that is itself being imported is no cycle.
            parents = {".".join(parts[:depth]) for depth in range(1, len(parts))}
            edges |= {target, *parents} - {module} - {m for m in parents if module.startswith(f"{m}.")}
        graph[module] = edges & MODULES.keys()
    return graph


def test_no_modules_import_each_other():
    graph, done = import_graph(), set()

    def walk(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " -> ".join([*path[path.index(module) :], module])
        if module not in done:
            for target in sorted(graph[module]):
                walk(target, (*path, module))
            done.add(module)

    for module in graph:
        walk(module, ())


def test_a_cycle_would_be_found(monkeypatch, tmp_path):
    for name, other in (("a", "b"), ("b", "c"), ("c", "a")):
        (tmp_path / f"{name}.py").write_text(f"def later():\n    import parity.zz\n\nfrom parity.{other} import x\n")
    monkeypatch.setattr(sys.modules[__name__], "MODULES", {f"parity.{name}": tmp_path / f"{name}.py" for name in "abc"})
    with pytest.raises(AssertionError, match=r"parity\.a -> parity\.b -> parity\.c -> parity\.a"):
        test_no_modules_import_each_other()


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
