"""`python -m parity COMMAND`."""

import sys

from parity.errors import dispatch

COMMANDS = {
    "convert": ("parity.commands.convert", "turn a checkpoint into another format: .pth, .safetensors, Orbax"),
    "check": ("parity.commands.check", "prove that a network agrees with its original, or a recording"),
    "record": ("parity.commands.record", "write what a network gives to a file, for checks without it"),
    "diff": ("parity.commands.diff", "compare two checkpoints or two recordings, tensor by tensor"),
    "inspect": ("parity.commands.inspect", "show what a checkpoint holds"),
}


def main(arguments: list[str]) -> int:
    return dispatch("parity", COMMANDS, arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
