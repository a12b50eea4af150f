"""Converts a ResNet checkpoint and draws what each stage of the network makes of a photograph.

    python docs/examples/look_at_features.py resnet50.pth photograph.jpg features.png

The checkpoint is any that `python -m parity inspect` understands, or a name such as IMAGENET1K_V2 with --model.
"""

import argparse
from pathlib import Path

import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from PIL import Image

import resnet_flax
from resnet_flax.data.on_device import normalize

CHANNELS = 6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights")
    parser.add_argument("image", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--model", help="the architecture, where it does not follow from the weights")
    args = parser.parse_args()

    pretrained = resnet_flax.load_pretrained(args.model, args.weights)
    with Image.open(args.image) as image:
        pixels = pretrained.preprocessing.transform(image.convert("RGB"))
    images = normalize(jnp.asarray(pixels[None]), pretrained.preprocessing.mean, pretrained.preprocessing.std)
    stages = pretrained.model.features(images, taps=("stem", "layer1", "layer2", "layer3", "layer4"))

    figure, axes = plt.subplots(len(stages), CHANNELS + 1, figsize=(12, 9), layout="constrained")
    for row, (name, activations) in zip(axes, stages.items(), strict=True):
        maps = np.asarray(activations[0])
        strongest = np.argsort(-maps.std((0, 1)))[:CHANNELS]
        row[0].imshow(pixels)
        row[0].set_ylabel(f"{name}\n{maps.shape[0]} x {maps.shape[1]} x {maps.shape[2]}")
        for axis, channel in zip(row[1:], strongest, strict=True):
            axis.imshow(maps[:, :, channel], cmap="magma")
            axis.set_title(f"channel {channel}", fontsize=8)
        for axis in row:
            axis.set_xticks([])
            axis.set_yticks([])
    figure.suptitle(f"{pretrained.architecture}: the channels of each stage that vary most")
    figure.savefig(args.out, dpi=100)
    print(args.out)


if __name__ == "__main__":
    main()
