"""Batch normalisation with PyTorch's arithmetic."""

import math

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike


class BatchNorm(nnx.BatchNorm):
    """`nnx.BatchNorm` that computes what `torch.nn.BatchNorm2d` computes, over all axes but the last.

    What differs from Flax's own:

    - the running variance is updated with the unbiased estimate, n / (n - 1) times the batch's;
    - `momentum` keeps Flax's meaning, running = momentum * running + (1 - momentum) * batch, but defaults to 0.9, which
      is PyTorch's `momentum=0.1`;
    - statistics, scale and bias stay float32 whatever the compute dtype (float64 with `param_dtype=float64`), and so
      does the arithmetic between reading the input and writing the output;
    - the batch variance neither cancels (E[x^2] - E[x]^2 does, where the mean is large) nor reads the input twice: the
      sums run over x - s, where s is one pixel of the batch;
    - train mode on a single value per channel is an error, as in PyTorch, not a variance of zero;
    - `num_batches_tracked` counts the updates, so that a checkpoint goes back to PyTorch whole.

    With `axis_name`, statistics are those of the whole batch over that mapped axis (PyTorch's `SyncBatchNorm`);
    without, each device normalises by its own (as under `DistributedDataParallel`).

    Args:
        num_features: channels, the size of the last axis.
        momentum, epsilon: see above; PyTorch's defaults.
        dtype: of the output; None keeps the input's.
        param_dtype: of scale, bias and statistics, at least float32.
        axis_name: the mapped axis to synchronise over.
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
        use_running_average: bool = False,
        rngs: nnx.Rngs,
    ):
        param_dtype = jnp.promote_types(param_dtype, jnp.float32)
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
        self, x: jax.Array, use_running_average: bool | None = None
    ) -> jax.Array:
        """Normalises x (..., num_features); in train mode it also updates the running statistics.

        Raises:
            ValueError: in train mode, if there is only one value per channel.
        """
        if use_running_average is None:
            use_running_average = self.use_running_average
        output_dtype = self.dtype or x.dtype
        x = x.astype(jnp.promote_types(x.dtype, self.param_dtype))
        if use_running_average:
            mean, var = self.mean[...], self.var[...]
        else:
            mean, var, count = self._batch_statistics(x)
            self._update(mean, var * (count / (count - 1)))
        factor = self.scale[...] * jax.lax.rsqrt(var + self.epsilon)
        shape = (1,) * (x.ndim - 1) + (-1,)
        y = (x - mean.reshape(shape)) * factor.reshape(shape) + self.bias[...].reshape(shape)
        return y.astype(output_dtype)

    def _batch_statistics(self, x: jax.Array) -> tuple[jax.Array, jax.Array, int]:
        """Mean and biased variance per channel (num_features,), and the number of values behind them."""
        axes = tuple(range(x.ndim - 1))
        count = math.prod(x.shape[:-1])
        total = count * (jax.lax.axis_size(self.axis_name) if self.axis_name else 1)
        if total == 1:
            raise ValueError(
                f"batch statistics need more than one value per channel, but the input is {x.shape}: "
                "use a larger batch, or model.eval()"
            )
        # Any shift gives the same mean and variance, and no gradient; one near the data keeps the squares small.
        shift = jax.lax.stop_gradient(x[(0,) * (x.ndim - 1)])
        shifted = x - shift.reshape((1,) * (x.ndim - 1) + (-1,))
        shifted_mean = shifted.mean(axes)
        mean = shifted_mean + shift
        var = jnp.maximum(jnp.square(shifted).mean(axes) - jnp.square(shifted_mean), 0)
        if self.axis_name:
            local_mean = mean
            mean = jax.lax.pmean(local_mean, self.axis_name)
            var = jax.lax.pmean(var + jnp.square(local_mean - mean), self.axis_name)
        return mean, var, total

    def _update(self, mean: jax.Array, unbiased_var: jax.Array) -> None:
        mean, unbiased_var = jax.lax.stop_gradient((mean, unbiased_var))
        self.mean[...] = self.momentum * self.mean[...] + (1 - self.momentum) * mean
        self.var[...] = self.momentum * self.var[...] + (1 - self.momentum) * unbiased_var
        self.num_batches_tracked[...] += 1
