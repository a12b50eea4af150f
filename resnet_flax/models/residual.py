"""The block of the "Residual" networks: Zhang et al., "Dive into Deep Learning", section 8.6."""

from resnet_flax.models.blocks import BasicBlock


class Residual(BasicBlock):
    """`BasicBlock` whose shortcut, there a bare convolution, is named `conv3`.

    (N, H, W, C) -> (N, H / stride, W / stride, planes).

    Examples:
        >>> from flax import nnx
        >>> from resnet_flax import Residual, ResNet
        >>> model = ResNet(Residual, (1, 1), channels=(8, 16), num_classes=10, rngs=nnx.Rngs(0))
        >>> hasattr(model.layer2[0], "conv3"), hasattr(model.layer2[0], "downsample")
        (True, False)
    """

    shortcut_name = "conv3"
