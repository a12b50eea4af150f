"""What every command has in common: how it is found, how it fails, how it is left."""

import subprocess
import sys
import types
from pathlib import Path

import pytest

from parity.errors import ParityError, UsageError, dispatch
from resnet_flax.errors import UserError
from tests import ROOT


@pytest.fixture
def command(monkeypatch):
    """command(main): runs `main` as the command "work" and returns the exit status."""

    def run(main, arguments=("work", "--fast")):
        module = types.ModuleType("a_command")
        module.__dict__["main"] = main
        monkeypatch.setitem(sys.modules, "a_command", module)
        return dispatch("package", {"work": ("a_command", "does it")}, list(arguments))

    return run


def fail(error):
    def main(arguments):
        raise error

    return main


def test_a_command_gets_its_arguments_and_gives_its_status(command):
    assert command(lambda arguments: 3 if arguments == ["--fast"] else 4) == 3


def test_without_a_command_all_are_listed(command, capsys):
    assert command(None, []) == 2
    assert command(None, ["--help"]) == 0
    assert capsys.readouterr().out.count("  work  does it") == 2


def test_a_misspelt_command_is_guessed(command, capsys):
    assert command(None, ["wrok"]) == 2
    assert "no command 'wrok'; did you mean work?" in capsys.readouterr().err
    assert command(None, ["qqq"]) == 2
    assert "no command 'qqq'; the commands are work" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (UsageError("no such file"), "error: no such file\n"),
        (ParityError("no such file"), "error: no such file\n"),
        (UserError("no such file"), "error: no such file\n"),
        (UsageError("no file \x1b[31mred\udcff\u202e"), r"error: no file \x1b[31mred\udcff\u202e"),
        (OSError(36, "File name too long", "x\x07"), r"error: x\x07: File name too long"),
        (RuntimeError("RESOURCE_EXHAUSTED: Out of memory\nallocating 5 bytes"), "error: out of memory ("),
        (MemoryError("Unable to allocate 9 TiB"), "error: out of memory (Unable to allocate 9 TiB); "),
        (RuntimeError("Could not determine home directory."), "error: the home directory of this user is not known; "),
    ],
)
def test_a_users_mistake_is_one_line(command, capsys, error, message):
    assert command(fail(error)) == 2
    printed = capsys.readouterr().err
    assert printed.startswith(message)
    assert len(printed.splitlines()) == 1


PRINTS = """
import sys, types
from parity.errors import dispatch
sys.modules["a_command"] = types.SimpleNamespace(main=lambda arguments: print("x" * 9) or 0)
sys.exit(dispatch("package", {"work": ("a_command", "")}, ["work"]))
"""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's /dev/full")
@pytest.mark.parametrize(
    ("where", "status", "message"),
    [(">&-", 0, ""), (">/dev/full", 2, "error: the output cannot be written: No space left on device\n")],
)
def test_an_output_that_is_closed_or_full(where, status, message):
    command = f'"{sys.executable}" -c "$0" {where}'
    done = subprocess.run(["sh", "-c", command, PRINTS], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (status, message)


def test_a_fault_keeps_its_traceback(command):
    with pytest.raises(RuntimeError, match="a bug"):
        command(fail(RuntimeError("a bug")))


def test_ctrl_c_ends_the_process_at_once():
    """Also one whose threads would keep it."""
    program = """
import sys, threading, time, types
from parity.errors import dispatch

def main(arguments):
    threading.Thread(target=time.sleep, args=(100,)).start()
    raise KeyboardInterrupt

sys.modules["a_command"] = types.SimpleNamespace(main=main)
dispatch("package", {"work": ("a_command", "")}, ["work"])
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (130, "interrupted\n")


INTERRUPTED = """
import os, signal, sys
def hook(event, details):
    if event == "import" and details[0] == sys.argv[1]:
        os.kill(os.getpid(), signal.SIGINT)
sys.addaudithook(hook)
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell ignores it for what it runs in the background
from resnet_flax.__main__ import main
sys.exit(main(["train", "--list"]))
"""


@pytest.mark.parametrize("module", ["rich.console", "jax", "numpy.linalg", "tyro"])
def test_ctrl_c_during_an_import(module):
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED, module], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "interrupted\n")
