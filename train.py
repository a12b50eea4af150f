"""Trains a ResNet, like `python -m resnet_flax train`; see `python train.py --help`."""

import sys

from resnet_flax.__main__ import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
