"""`python -m parity COMMAND`."""

import sys

from parity.errors import dispatch

COMMANDS = {
    "convert": ("parity.commands.convert", "turn a checkpoint into another format: .pth, .safetensors, Orbax"),
    "check": ("parity.commands.check", "prove that a Flax network and its PyTorch original agree"),
    "inspect": ("parity.commands.inspect", "say what a checkpoint holds"),
}


def main(arguments: list[str]) -> int:
    return dispatch("parity", COMMANDS, arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
