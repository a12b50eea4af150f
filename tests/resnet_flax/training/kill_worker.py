"""Runs train commands on the small network, each in a fork of this process, in which everything is imported already.

Each line on stdin is JSON: {"arguments": [...], "fault": [kind, ...]}; each is answered with a line: [exit status,
negative for a signal; what it printed; the number of changes that were counted]. The faults:

    ["change", event, name, N]  like a kill at the Nth of Python's audit events on a path of the workdir with `name`
    ["write", N]                a kill in the Nth write, or at another change to a file (killer.c, in LD_PRELOAD)
    ["signal", number, moment, seconds]  a signal, so long after that moment (`moments.MOMENTS`)
"""

import ctypes
import importlib
import json
import os
import signal
import sys
import tempfile
import threading
import traceback
from pathlib import Path

if __name__ == "__main__":  # and not again in each process that a run starts to read its data
    from parity.errors import dispatch
    from resnet_flax.training import loop, setup  # noqa: F401
    from tests.resnet_flax.training.moments import inject
    from tests.resnet_flax.training.small import create

    importlib.import_module("grain")
    importlib.import_module("matplotlib.backends.backend_agg")
    importlib.import_module("orbax.checkpoint")
    importlib.import_module("tensorboard.summary.writer.record_writer")

CHANGES = ("os.rename", "os.link", "os.remove", "os.mkdir", "os.rmdir", "open")
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC


def count_changes(workdir, wanted_event, wanted_name, number):
    """Ends the process at that change."""
    seen = 0

    def hook(kind, details):
        nonlocal seen
        if kind not in CHANGES or (kind == "open" and not details[2] & WRITES) or wanted_event not in ("", kind):
            return
        paths = [os.path.abspath(os.fsdecode(x)) for x in details[:2] if isinstance(x, str | bytes | os.PathLike)]  # noqa: PTH100
        if any(path.startswith(workdir) and wanted_name in path.removeprefix(workdir) for path in paths):
            seen += 1
            if seen == number:
                os._exit(9)

    sys.addaudithook(hook)


def send(number, moment, seconds):
    def kill():
        if number == signal.SIGKILL:
            os.kill(os.getpid(), number)
        else:  # to its worker processes too, as a terminal and SLURM do
            os.killpg(0, number)

    inject(moment, threading.Timer(seconds, kill).start if seconds else kill)


def run(arguments, fault, killer):
    workdir = str(Path(arguments[-1]).absolute())
    match fault:
        case ["change", event, name, number]:
            count_changes(workdir, event, name, number)
        case ["write", number]:
            killer.arm(workdir.encode(), number)
        case ["signal", number, moment, seconds]:
            send(number, moment, seconds)
    try:
        return dispatch("resnet_flax", {"train": ("resnet_flax.commands.train", "")}, ["train", *arguments])
    except BaseException:
        traceback.print_exc()
        return 1


def main():
    setup.create_model = create
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell ignores it for what it runs in the background
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # and nohup this one
    killer = ctypes.CDLL(os.environ["LD_PRELOAD"]) if "LD_PRELOAD" in os.environ else None
    for line in sys.stdin:
        case = json.loads(line)
        with tempfile.TemporaryFile() as printed, tempfile.TemporaryFile() as counted:
            if not (child := os.fork()):
                os.setsid()
                os.dup2(printed.fileno(), 1)
                os.dup2(printed.fileno(), 2)
                status = run(case["arguments"], case["fault"], killer)
                if killer:
                    os.write(counted.fileno(), str(killer.changes()).encode())
                sys.stdout.flush()
                os._exit(status)
            status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            printed.seek(0)
            counted.seek(0)
            print(json.dumps([status, printed.read().decode(), int(counted.read() or 0)]), flush=True)


if __name__ == "__main__":
    main()
