"""One module per command of `python -m resnet_flax`."""
