"""README and docs: the options they name exist, and (`-m full`) the commands print what the page shows."""

import contextlib
import io
import itertools
import os
import re
import runpy
import shlex
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

import parity.__main__
import resnet_flax.__main__
from tests import ROOT

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("docs/*.md"))]
OPTION = re.compile(r"(?<![\w-])--(?!xla_)[a-z][a-z0-9.-]*")
FOREIGN = {
    "--editable",
    "--quiet",
    "--cov",
    "--nodes",
    "--logdir",
    "--parity-report",
    "--strict",
}  # pip, pytest, SLURM, TensorBoard, MkDocs
COMMANDS = {"parity": parity.__main__, "resnet_flax": resnet_flax.__main__}
FASHION_MNIST = "/usr/share/datasets/fashion-mnist"


def commands(page: Path) -> list[tuple[str, list[str]]]:
    """The fenced shell commands of a page, each with the lines that the page shows as its output."""
    found = []
    for language, block in re.findall(r"^```(bash|console)\n(.*?)^```$", page.read_text(), re.M | re.S):
        for line in block.replace("\\\n", " ").splitlines():
            if line.startswith("$ ") or language == "bash":
                found.append((line.removeprefix("$ "), []))
            else:
                found[-1][1].append(line)
    return found


def words_of(command: str) -> list[str]:
    """What follows `python` in a command that runs something of this project; else nothing."""
    words = shlex.split(command, comments=True)
    words = words[words.index("python") + 1 :] if "python" in words else []
    return words if words and (words[0].endswith(".py") or words[:2] in ([["-m", name] for name in COMMANDS])) else []


@cache
def options(*program: str) -> frozenset[str]:
    """Those that `program --help` names."""
    match program:
        case ["train.py", *rest]:
            name, rest = "resnet_flax", ["train", *rest]
        case ["-m", name, *rest]:
            pass
        case _:
            pytest.importorskip("torch", reason="compares with PyTorch")
            return frozenset(OPTION.findall(help_of(program)))
    with contextlib.redirect_stdout(io.StringIO()) as printed, contextlib.suppress(SystemExit):
        COMMANDS[name].main([*rest, "--help"])
    return frozenset(OPTION.findall(printed.getvalue()))


def help_of(program: tuple[str, ...]) -> str:
    """What a script prints for --help; in this process, which has imported what most of them need."""
    with pytest.MonkeyPatch.context() as patched, contextlib.redirect_stdout(io.StringIO()) as printed:
        patched.setattr(sys, "argv", [*program, "--help"])
        patched.setattr(sys, "path", [str(ROOT / Path(program[0]).parent), *sys.path])
        with contextlib.suppress(SystemExit):
            runpy.run_path(str(ROOT / program[0]), run_name="__main__")
    return printed.getvalue()


def program(words: list[str]) -> list[str]:
    """The words before the first option."""
    start = 2 if words[0] == "-m" else 1
    return words[:start] + list(itertools.takewhile(lambda word: not word.startswith("--"), words[start:]))


DOCUMENTED = {
    shlex.join(words): words for page in PAGES for command, _ in commands(page) if (words := words_of(command))
}


@pytest.mark.parametrize("command", DOCUMENTED)
def test_the_options_of_documented_commands_exist(command):
    assert set(OPTION.findall(command)) <= options(*program(DOCUMENTED[command]))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_options_named_in_a_text_exist(page):
    pytest.importorskip("torch", reason="compares with PyTorch")  # the benchmarks' options count, too
    prose = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.M | re.S)
    named = {option for span in re.findall(r"`[^`]+`", prose) for option in OPTION.findall(span)}
    everywhere = [program(words) for words in DOCUMENTED.values()]
    everywhere += [["-m", name, command] for name, module in COMMANDS.items() for command in module.COMMANDS]
    known = frozenset().union(*(options(*words) for words in everywhere))
    groups = {option.rpartition(".")[0] for option in known}  # --train-transform.crop-size's
    assert named <= known | groups | FOREIGN


def pattern(line: str) -> list[str]:
    """What a printed line has in common with another machine's: all but the figures of a line that measures."""
    line = line.replace("(best)", "")
    if line.endswith("  ok"):  # a row of a report: the tensor that is nearest its limit is another one elsewhere
        return [*line.split()[:2], "ok"]
    return re.sub(r"[\d.,:]+(e[-+]\d+)?%?" if re.search(r"\d[.:]\d", line) else r"$^", "#", line).split()


@pytest.mark.full
@pytest.mark.parametrize("page", ["README.md", "docs/converting.md", "docs/data.md"])
def test_documented_commands_print_what_is_shown(page, tmp_path):
    torchvision = pytest.importorskip("torchvision", reason="compares with PyTorch")
    torch = pytest.importorskip("torch", reason="compares with PyTorch")
    torch.save(torchvision.models.resnet50().state_dict(), tmp_path / "resnet50.pth")
    (tmp_path / "train.py").symlink_to(ROOT / "train.py")
    python = Path(sys.executable).parent
    environment = {**os.environ, "PATH": f"{python}{os.pathsep}{os.environ['PATH']}"}
    for command, shown in commands(ROOT / page):
        if "benchmarks/" in command or not (shown or "python -c" in command):
            continue  # takes long, or is meant to be tried and prints what it will
        if FASHION_MNIST in command and not Path(FASHION_MNIST).exists():
            pytest.skip(f"there is no {FASHION_MNIST} here")
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        done = subprocess.run(command, shell=True, cwd=tmp_path, env=environment, text=True, **streams)
        assert done.returncode == 0, done.stdout
        printed = [pattern(line) for line in done.stdout.splitlines()]
        for line in shown:
            assert line == "..." or pattern(line) in printed, f"{command} printed\n{done.stdout}and not\n{line}"
