"""What can be chosen about a network although its weights do not show it."""

from dataclasses import dataclass, fields
from typing import Annotated, Any, Literal

from parity.options import Range


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """Options of `ResNet` under which the same weights are another function, as on the command line."""

    output_stride: Literal[8, 16, 32] | None = None
    """8 or 16 dilates the last stages instead of striding, as segmentation networks do; 32 by default."""
    last_stride: Literal[1, 2] = 2
    """Stride of the last stage; 1 in networks for person re-identification."""
    stride_in_first_1x1: bool = False
    """Stride in the first 1x1 convolution of a bottleneck, as Caffe's networks do, instead of in the 3x3."""
    max_pool_ceil: bool = False
    """Max-pool without padding and in ceil mode, as Caffe's networks do."""
    norm_epsilon: Annotated[float | None, Range(ge=0)] = None
    """Added to the variance in the norms; 1e-5 by default."""

    def arguments(self) -> dict[str, Any]:
        """Those that differ from the default, as arguments of `ResNet`."""
        values = {field.name: (getattr(self, field.name), field.default) for field in fields(ModelOptions)}
        return {name: value for name, (value, default) in values.items() if value != default}
