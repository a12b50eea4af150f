"""The train command on the small network, ended like a kill at one change to a file of its workdir.

usage: kill_worker.py EVENT NAME NUMBER ARGUMENTS ... (the NUMBERth audit event of a path with NAME; "" is any)

With NUMBER 0 nothing is killed, and the number of such events is printed.
"""

import os
import sys
from pathlib import Path

CHANGES = ("os.rename", "os.link", "os.remove", "os.mkdir", "os.rmdir", "open")
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC


def main(event, name, number, *arguments):
    from resnet_flax.commands import train
    from resnet_flax.training import setup
    from tests.resnet_flax.training.small import create

    workdir = str(Path(arguments[-1]).absolute())
    seen = 0

    def hook(kind, details):
        nonlocal seen
        if kind not in CHANGES or (event and kind != event) or (kind == "open" and not details[2] & WRITES):
            return
        paths = [os.path.abspath(os.fsdecode(x)) for x in details[:2] if isinstance(x, str | bytes | os.PathLike)]  # noqa: PTH100
        if any(path.startswith(workdir) and name in path.removeprefix(workdir) for path in paths):
            seen += 1
            if seen == int(number):
                os._exit(9)

    setup.create_model = create
    sys.addaudithook(hook)
    status = train.main(list(arguments))
    print(f"{seen} changes")
    return status


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
