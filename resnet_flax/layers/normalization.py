"""Batch and group normalisation with PyTorch's arithmetic."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from flax.errors import TraceContextError
from jax.typing import DTypeLike

from resnet_flax.errors import UserError
from resnet_flax.layers.convolution import Conv
from resnet_flax.layers.products import product, product_moments

# Rounding x to this type loses more than squaring it in float32 does, and products of such numbers are exact in
# float32; so their variance is computed as E[x^2] - E[x]^2.
_COARSE = jnp.bfloat16


def _always(pixels: int, in_features: int, out_features: int) -> bool:
    return True


class BatchNorm(nnx.BatchNorm):
    """`nnx.BatchNorm` with the arithmetic of `torch.nn.BatchNorm2d`, over all axes but the last.

    It differs from `nnx.BatchNorm` as follows:

    - the running variance is updated with the unbiased estimate, n / (n - 1) times the batch's;
    - `momentum` keeps Flax's meaning, running = momentum * running + (1 - momentum) * batch, but defaults to 0.9, which
      is PyTorch's `momentum=0.1`;
    - statistics, scale and bias stay float32 whatever the compute dtype (float64 with `param_dtype=float64`), and so
      does the arithmetic between reading the input and writing the output;
    - the batch variance neither cancels (as E[x^2] - E[x]^2 does where the mean is large) nor reads the input twice:
      the sums are over x - s, where s is one pixel of the batch (0 in bfloat16, whose rounding loses more);
    - train mode on a single value per channel is an error, as in PyTorch, not a variance of zero;
    - `num_batches_tracked` counts the updates, so that a checkpoint can return to PyTorch complete.

    With `axis_name`, statistics are those of the whole batch over that mapped axis (PyTorch's `SyncBatchNorm`);
    without it, each device normalises by its own (as under `DistributedDataParallel`).

    Args:
        num_features: channels, the size of the last axis.
        momentum, epsilon: see above; PyTorch's defaults.
        dtype: of the output; None keeps the input's.
        param_dtype: of scale, bias and statistics, at least float32.
        axis_name: the mapped axis to synchronise over.
        fold: asked with (pixels of the output, its input's channels, its channels) whether to compute the norm of a
            convolution's output from the convolution's input, where that is possible (see `conv_norm`); always by
            default.
        use_running_average: True in eval mode; `model.train()` and `model.eval()` set it.
    """

    scale: nnx.Param  # ty: ignore[incompatible-mutable-override]  (never None here)
    bias: nnx.Param  # ty: ignore[incompatible-mutable-override]

    def __init__(
        self,
        num_features: int,
        *,
        momentum: float = 0.9,
        epsilon: float = 1e-5,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        axis_name: str | None = None,
        fold: Callable[[int, int, int], bool] = _always,
        use_running_average: bool = False,
        rngs: nnx.Rngs,
    ):
        self.fold = fold
        param_dtype = _wider(param_dtype, jnp.float32)
        super().__init__(
            num_features,
            momentum=momentum,
            epsilon=epsilon,
            dtype=dtype,
            param_dtype=param_dtype,
            axis_name=axis_name,
            use_running_average=use_running_average,
            rngs=rngs,
        )
        self.mean = nnx.BatchStat(jnp.zeros(num_features, param_dtype))
        self.var = nnx.BatchStat(jnp.ones(num_features, param_dtype))
        self.num_batches_tracked = nnx.BatchStat(jnp.zeros((), jnp.int32))

    def __call__(  # ty: ignore[incompatible-method-override]  (no `mask`: PyTorch has none)
        self,
        x: jax.Array,
        use_running_average: bool | None = None,
        *,
        factors: tuple[jax.Array, jax.Array] | None = None,
    ) -> jax.Array:
        """Normalises x (N, ..., num_features); in train mode it also updates the running statistics.

        `factors`, if given, are two arrays, (N, ..., k) and (k, num_features), with the product x. For bfloat16 in
        train mode the result is then computed from them (see `conv_norm`) if `fold` has it so, and `jax.jit` never
        computes x itself.

        Raises:
            ValueError: in train mode, if there is only one value per channel.
        """
        if use_running_average is None:
            use_running_average = self.use_running_average
        output_dtype = self.dtype or x.dtype
        if use_running_average:
            x = x.astype(_wider(x.dtype, self.param_dtype))
            shape = (1,) * (x.ndim - 1) + (-1,)
            factor = self.scale[...] * jax.lax.rsqrt(self.var[...] + self.epsilon)
            y = (x - self.mean[...].reshape(shape)) * factor.reshape(shape) + self.bias[...].reshape(shape)
        elif factors is not None and x.dtype == _COARSE and self.fold(x.size // x.shape[-1], *factors[1].shape):
            inputs, kernel = factors
            factor, offset = self._train_mode(*product_moments(inputs, kernel), 0, self._count(x))
            offset = offset.reshape((1,) * (x.ndim - 1) + (-1,))
            y = product(inputs, kernel * factor[None, :]).astype(offset.dtype) + offset
        else:
            y = self._normalize(x.astype(_wider(x.dtype, self.param_dtype)), exact=x.dtype != _COARSE)
        return y.astype(output_dtype)

    def _normalize(self, x: jax.Array, exact: bool) -> jax.Array:
        """Train mode; `exact` unless the numbers come from `_COARSE`."""
        shift = 0
        if exact:
            # The result and its gradient are the same for any shift; one near the data keeps the squares small.
            shift = jax.lax.stop_gradient(x[(0,) * (x.ndim - 1)])
            x = x - shift.reshape((1,) * (x.ndim - 1) + (-1,))
        # Sums over each image first, then both over the images at once; likewise coefficients for each image, so that
        # the gradients are summed the same way. On a GPU either pair is one read of the input and two launches.
        pixels = tuple(range(1, x.ndim - 1))
        sums = jnp.stack([x.sum(pixels), jnp.square(x).sum(pixels)]).sum(1)
        mean, square = sums / math.prod(x.shape[:-1])
        coefficients = jnp.stack(self._train_mode(mean, square, shift, self._count(x)))
        images, channels = x.shape[0], x.shape[-1]
        factor, offset = jnp.broadcast_to(coefficients[:, None], (2, images, channels)).reshape(
            2, images, *(1,) * len(pixels), channels
        )
        return x * factor + offset

    def _train_mode(
        self, mean: jax.Array, square: jax.Array, shift: jax.Array | int, count: int
    ) -> tuple[jax.Array, jax.Array]:
        """Updates the statistics, given the mean and mean square of x - shift, and returns factor and offset.

        The norm is (x - shift) * factor + offset, a form whose gradient needs the sums of g and of g x and no others.
        """
        var = jnp.maximum(square - jnp.square(mean), 0)
        if self.axis_name:
            local_mean = mean
            mean = jax.lax.pmean(local_mean + shift, self.axis_name) - shift
            var = jax.lax.pmean(var + jnp.square(local_mean - mean), self.axis_name)
        self._update(mean + shift, var * (count / (count - 1)))
        factor = self.scale[...] * jax.lax.rsqrt(var + self.epsilon)
        return factor, self.bias[...] - mean * factor

    def _count(self, x: jax.Array) -> int:
        """The number of values per channel that the statistics are computed from."""
        count = math.prod(x.shape[:-1]) * (jax.lax.axis_size(self.axis_name) if self.axis_name else 1)
        if count == 1:
            raise ValueError(
                f"batch statistics need more than one value per channel, but the input is {x.shape}; "
                "use a larger batch, or model.eval()"
            )
        return count

    def _update(self, mean: jax.Array, unbiased_var: jax.Array) -> None:
        mean, unbiased_var = jax.lax.stop_gradient((mean, unbiased_var))
        # `statistic[...] = ` would look up the sharding of a traced array, for which JAX composes an error message,
        # soon discarded, by searching the whole program so far: a third of the time to trace a ResNet-50.
        for statistic, new in ((self.mean, mean), (self.var, unbiased_var)):
            average = self.momentum * statistic[...] + (1 - self.momentum) * new
            try:
                statistic.set_value(average.astype(statistic.dtype))
            except TraceContextError as error:
                raise UserError(
                    "the network is in train mode in a compiled function that captures it, where its running "
                    "statistics cannot be updated: call model.eval() before evaluating, or, to train, pass the model "
                    "as an argument to a function under nnx.jit"
                ) from error
        self.num_batches_tracked.set_value(self.num_batches_tracked[...] + 1)


class GroupNorm(nnx.GroupNorm):
    """`torch.nn.GroupNorm(32, num_features)`: arXiv:1803.08494.

    It differs from `nnx.GroupNorm` in epsilon and in the variance, which does not cancel; statistics, scale and bias
    are at least float32.
    """

    scale: nnx.Param  # ty: ignore[incompatible-mutable-override]  (never None here)
    bias: nnx.Param  # ty: ignore[incompatible-mutable-override]

    def __init__(
        self,
        num_features: int,
        *,
        epsilon: float = 1e-5,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        super().__init__(
            num_features,
            num_groups=32,
            epsilon=epsilon,
            dtype=dtype,
            param_dtype=_wider(param_dtype, jnp.float32),
            rngs=rngs,
        )

    def __call__(self, x: jax.Array) -> jax.Array:  # ty: ignore[incompatible-method-override]  (no `mask`)
        """Normalises x (N, ..., num_features) within each image and group of channels."""
        wide = x.astype(_wider(x.dtype, self.param_dtype))
        groups = wide.reshape(x.shape[0], -1, self.num_groups, x.shape[-1] // self.num_groups)
        groups = groups - groups.mean((1, 3), keepdims=True)
        groups = groups * jax.lax.rsqrt(jnp.square(groups).mean((1, 3), keepdims=True) + self.epsilon)
        shape = (1,) * (x.ndim - 1) + (-1,)
        y = groups.reshape(x.shape) * self.scale[...].reshape(shape) + self.bias[...].reshape(shape)
        return y.astype(self.dtype or x.dtype)


def _wider(a: DTypeLike, b: DTypeLike) -> jnp.dtype:
    """`jnp.promote_types`, also where JAX is set to refuse implicit promotion: this one is explicit."""
    with jax.numpy_dtype_promotion("standard"):
        return jnp.promote_types(a, b)


def conv_norm(conv: Callable[..., jax.Array], norm: Callable[..., jax.Array], x: jax.Array) -> jax.Array:
    """norm(conv(x)) for x (N, H, W, C), in bfloat16 without storing the output of a 1x1 convolution in between.

    Training on a GPU is bound by memory traffic, and a bottleneck's last convolution writes four times what it reads.
    But with y = x K over r pixels, the statistics of y follow from those of x, which is narrower:

        mean(y) = mean(x) K        mean(y[c]^2) = K[:, c]^T (x^T x / r) K[:, c]

    and norm(y) = x (K * factor) + offset. So y is never written, nor read by the statistics, the norm and the backward
    pass; the gradient of these formulas has the same terms.
    """
    y = conv(x)
    if type(conv) is not Conv or type(norm) is not BatchNorm or not conv.is_product:
        return norm(y)
    rows, columns = conv.strides
    return norm(y, factors=(x[:, ::rows, ::columns].astype(y.dtype), conv.kernel[0, 0]))
