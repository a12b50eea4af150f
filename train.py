"""Trains a ResNet: `python train.py --help`. The same as `python -m resnet_flax train`."""

import sys

from resnet_flax.__main__ import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
