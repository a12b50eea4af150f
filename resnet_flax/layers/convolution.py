"""A 2-D convolution with PyTorch's arguments, padding and initialisation."""

import math

import jax.numpy as jnp
from flax import nnx
from jax.nn.initializers import Initializer
from jax.typing import DTypeLike

from resnet_flax.layers.conv_gradients import conv_general_dilated
from resnet_flax.layers.initializers import kaiming_normal, torch_default_bias


def _each(value: int | tuple[int, ...], axes: int = 2) -> tuple[int, ...]:
    return (value,) * axes if isinstance(value, int) else value


class Conv(nnx.Conv):
    """`nnx.Conv` in 2-D, with the arguments and initialisation of `torch.nn.Conv2d` in torchvision's ResNets.

    It has as many axes as a `kernel_size` in a tuple: (3,) makes a `torch.nn.Conv1d`.

    `padding` is a number of pixels, the same on both sides. Flax's "SAME" differs: at stride 2 it pads even sizes by
    (0, 1) and odd sizes by (1, 1).

    Args:
        in_features, out_features: channels.
        kernel_size, stride, padding, dilation: in pixels; one number for all spatial axes, or (height, width).
        groups: channel groups; divides both channel counts.
        use_bias: torchvision's ResNets have none.
        kernel_init: torchvision's Kaiming normal by default; `initializers.torch_default` is the one of `nn.Conv2d`.
        bias_init: the uniform one of `nn.Conv2d` by default.
        dtype: of the computation; None takes it from the input and the parameters.
        param_dtype: of the parameters.

    Raises:
        ValueError: if `groups` does not divide the channels.
    """

    strides: tuple[int, ...]
    padding: list[tuple[int, int]]

    def __init__(
        self,
        in_features: int,
        out_features: int,
        kernel_size: int | tuple[int, ...],
        *,
        stride: int | tuple[int, ...] = 1,
        padding: int | tuple[int, ...] = 0,
        dilation: int | tuple[int, ...] = 1,
        groups: int = 1,
        use_bias: bool = False,
        kernel_init: Initializer = kaiming_normal,
        bias_init: Initializer | None = None,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        if in_features % groups or out_features % groups:
            raise ValueError(f"groups={groups} must divide in_features={in_features} and out_features={out_features}")
        kernel_size = _each(kernel_size)
        axes = len(kernel_size)
        super().__init__(
            in_features,
            out_features,
            kernel_size,
            strides=_each(stride, axes),
            padding=[(p, p) for p in _each(padding, axes)],
            kernel_dilation=_each(dilation, axes),
            feature_group_count=groups,
            use_bias=use_bias,
            kernel_init=kernel_init,
            bias_init=bias_init or torch_default_bias(math.prod(kernel_size) * in_features // groups),
            dtype=dtype,
            param_dtype=param_dtype,
            conv_general_dilated=conv_general_dilated,
            rngs=rngs,
        )

    @property
    def is_product(self) -> bool:
        """Whether the output is the strided input times the kernel: 1x1 without padding, groups or bias."""
        plain = self.feature_group_count == 1 and self.bias is None and not any(map(any, self.padding))
        return plain and self.kernel.shape[:2] == (1, 1)
