"""`python -m resnet_flax COMMAND`: finds the command's module and runs its `main(arguments) -> exit status`."""

import importlib
import sys

from parity.naming import ParityError
from resnet_flax.errors import UserError

# Each module is imported only when its command is asked for, so that none pays for another's libraries.
COMMANDS = {
    "train": ("resnet_flax.commands.train", "train a model, resume a run, or evaluate weights"),
    "predict": ("resnet_flax.commands.predict", "classify images"),
    "features": ("resnet_flax.commands.features", "write the activations of chosen layers to an .npz file"),
    "models": ("resnet_flax.commands.models", "list architectures, parameters, published accuracy and weight names"),
    "export": ("resnet_flax.commands.export", "write a model as .safetensors, .pth or a StableHLO artifact"),
    "data": ("resnet_flax.commands.data", "describe a data source, or write it out as a TFDS data set"),
}


def run(main, arguments: list[str]) -> int:
    """Runs `main(arguments)`; an unusable input becomes one line on stderr and exit status 2, Ctrl-C status 130."""
    try:
        return main(arguments)
    except (UserError, ParityError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def usage() -> str:
    width = max(map(len, COMMANDS))
    rows = "\n".join(f"  {name:<{width}}  {summary}" for name, (_, summary) in COMMANDS.items())
    return f"usage: python -m resnet_flax COMMAND [...]\n\n{rows}\n\npython -m resnet_flax COMMAND --help explains one."


def main(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(usage())
        return 0 if arguments else 2
    name, *rest = arguments
    if name not in COMMANDS:
        raise UserError(f"no command {name!r}; the commands are {', '.join(COMMANDS)}")
    return importlib.import_module(COMMANDS[name][0]).main(rest)


if __name__ == "__main__":
    sys.exit(run(main, sys.argv[1:]))
