"""The block of the "Residual" networks: Zhang et al., "Dive into Deep Learning", section 8.6."""

from resnet_flax.models.blocks import BasicBlock


class Residual(BasicBlock):
    """`BasicBlock` whose shortcut, there a bare convolution, is named `conv3`."""

    shortcut_name = "conv3"
