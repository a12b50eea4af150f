"""`python -m parity COMMAND`: finds the command's module and runs its `main(arguments) -> exit status`."""

import importlib
import sys

COMMANDS = {
    "convert": ("parity.commands.convert", "turn a checkpoint into another format: .pth, .safetensors, Orbax"),
    "check": ("parity.commands.check", "prove that a Flax network and its PyTorch original agree"),
    "inspect": ("parity.commands.inspect", "say what a checkpoint holds"),
}


def usage() -> str:
    width = max(map(len, COMMANDS))
    rows = "\n".join(f"  {name:<{width}}  {summary}" for name, (_, summary) in COMMANDS.items())
    return f"usage: python -m parity COMMAND [...]\n\n{rows}\n\npython -m parity COMMAND --help explains one."


def main(arguments: list[str]) -> int:
    """Runs one command; unusable input becomes one message on stderr and exit status 2, Ctrl-C status 130."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(usage())
        return 0 if arguments else 2
    name, *rest = arguments
    if name not in COMMANDS:
        print(f"error: no command {name!r}; the commands are {', '.join(COMMANDS)}", file=sys.stderr)
        return 2

    from parity.naming import ParityError
    from resnet_flax.errors import UserError

    try:
        return importlib.import_module(COMMANDS[name][0]).main(rest)
    except (ParityError, UserError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
