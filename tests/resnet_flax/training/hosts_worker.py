"""The train command on the small network with one fault: run by test_hosts.py.

usage: hosts_worker.py FAULT MOMENT ARGUMENTS ... (FAULT "none" for a host that works)
"""

import os
import signal
import sys
import time

from parity.errors import dispatch
from resnet_flax.errors import UserError
from resnet_flax.training import setup
from tests.resnet_flax.training.moments import inject
from tests.resnet_flax.training.small import create


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


def main(fault, moment, *arguments):
    setup.create_model = create
    if fault != "none":
        inject(moment, lambda: fail(fault))
    return dispatch("resnet_flax", {"train": ("resnet_flax.commands.train", "")}, ["train", *arguments])


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
