"""`python -m resnet_flax COMMAND`."""

import sys

from parity.errors import dispatch

COMMANDS = {
    "train": ("resnet_flax.commands.train", "train a model, resume a run, or evaluate weights"),
    "predict": ("resnet_flax.commands.predict", "classify images"),
    "features": ("resnet_flax.commands.features", "write the activations of chosen layers to an .npz file"),
    "models": ("resnet_flax.commands.models", "list architectures, parameters, published accuracy and weight names"),
    "export": ("resnet_flax.commands.export", "write a model as .safetensors, .pth, .onnx or a StableHLO artifact"),
    "push": ("resnet_flax.commands.push", "publish a model on the Hugging Face hub, or write the same folder"),
    "average": ("resnet_flax.commands.average", "write the mean of several checkpoints"),
    "data": ("resnet_flax.commands.data", "describe a data source, or write it out in another form"),
}


def main(arguments: list[str]) -> int:
    return dispatch("resnet_flax", COMMANDS, arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
