"""The train command on the small network with one fault: run by test_hosts.py.

usage: hosts_worker.py FAULT PHASE ARGUMENTS ... (FAULT "none" for a host that works)
"""

import os
import signal
import sys
import time

from parity.errors import dispatch
from resnet_flax.errors import UserError
from resnet_flax.training import loop, setup
from resnet_flax.training.checkpoints import Checkpoints
from tests.resnet_flax.training.small import create

PHASES = {
    "start": (loop, "open_devices"),
    "data": (loop, "open_source"),
    "training": (loop.Run, "_record"),
    "evaluation": (loop.Run, "_evaluate"),
    "saving": (Checkpoints, "save"),
}
AT = {"start": 1, "data": 1, "training": 6, "evaluation": 2, "saving": 2}  # which of its calls fails


def fail(fault):
    if fault == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if fault == "freeze":
        os.kill(os.getpid(), signal.SIGSTOP)
    if fault == "mistake":
        raise UserError("the disk is full")
    if fault == "error":
        raise ZeroDivisionError("a bug")
    time.sleep(float(fault))


def main(fault, phase, *arguments):
    setup.create_model = create
    if fault != "none":
        owner, name = PHASES[phase]
        works, calls = getattr(owner, name), []

        def fails(*args, **kwargs):
            calls.append(name)
            if phase != "saving" and len(calls) == AT[phase]:
                fail(fault)
            result = works(*args, **kwargs)
            if phase == "saving" and len(calls) == AT[phase]:  # while it is being written
                fail(fault)
            return result

        setattr(owner, name, fails)
    return dispatch("resnet_flax", {"train": ("resnet_flax.commands.train", "")}, ["train", *arguments])


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
