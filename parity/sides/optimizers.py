"""The same optimiser in optax and in PyTorch, and the correspondence of their moments."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import optax

from parity.errors import ParityError

if TYPE_CHECKING:
    import torch

Schedule = Callable[[int], float]
Moments = dict[str, dict[str, Any]]
"""What an optimiser keeps: {parameter: {PyTorch's name of the moment: array or tensor in PyTorch's layout}}."""

# What optax keeps, by the kind of its state, and PyTorch's names for it.
MOMENTS: dict[type, dict[str, str]] = {
    optax.TraceState: {"trace": "momentum_buffer"},
    optax.ScaleByAdamState: {"mu": "exp_avg", "nu": "exp_avg_sq"},
    optax.ScaleByRmsState: {"nu": "square_avg"},
}


def warmup_then_decay(learning_rate: float) -> Schedule:
    """A schedule that is different at every step: a linear rise over two steps, then halved each step."""
    return lambda step: learning_rate * min((step + 1) / 2, 0.5 ** (step - 1) if step else 1.0)


@dataclass(frozen=True)
class Optimizer:
    """An optimiser by name, with one learning-rate schedule for both sides.

    Attributes:
        kind: "sgd", "adam" (weight decay added to the gradient, as PyTorch's Adam does) or "adamw" (decoupled).
        learning_rate: a number, which then varies from step to step as `warmup_then_decay` says, or a function of the
            step, counted from 0.
        momentum, nesterov: of SGD.
        weight_decay: on every parameter, as PyTorch has it by default.
        transform: an optax transformation to use instead, for a learning rate of 1 (its updates are scaled by the
            schedule's value); its result is compared with PyTorch's under the settings above.
        torch_optimizer: parameters -> the PyTorch optimiser to use instead of the named one.

    Examples:
        >>> import parity, torch
        >>> from flax import nnx
        >>> ours, theirs = nnx.Linear(8, 4, rngs=nnx.Rngs(0)), torch.nn.Linear(8, 4)
        >>> ours = parity.to_flax(theirs.state_dict(), ours)
        >>> adam = parity.Optimizer("adam", learning_rate=1e-3, weight_decay=0.01)
        >>> parity.check(ours, theirs, parity.random_inputs((3, 8)), checks=("optimizer",), optimizer=adam).passed
        True
    """

    kind: str = "sgd"
    learning_rate: float | Schedule = 0.05
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 1e-2
    transform: optax.GradientTransformation | None = None
    torch_optimizer: "Callable[[Iterable[torch.nn.Parameter]], torch.optim.Optimizer] | None" = field(default=None)

    def __post_init__(self) -> None:
        if self.kind not in ("sgd", "adam", "adamw"):
            raise ParityError(f"no optimiser {self.kind!r}: sgd, adam and adamw are known; others come as `transform`")

    def learning_rate_at(self, step: int) -> float:
        """The learning rate of the step, counted from 0."""
        rate = self.learning_rate
        schedule = warmup_then_decay(rate) if isinstance(rate, int | float) else rate
        return float(schedule(step))

    def for_jax(self) -> optax.GradientTransformation:
        """The optax transformation; weight decay is coupled in SGD and Adam, decoupled in AdamW."""
        if self.transform is not None:
            return self.transform
        decay = optax.add_decayed_weights(self.weight_decay)
        if self.kind == "sgd":
            trace = optax.trace(self.momentum, self.nesterov) if self.momentum else optax.identity()
            return optax.chain(decay, trace, optax.scale(-1.0))
        adam = optax.scale_by_adam()
        return optax.chain(*((adam, decay) if self.kind == "adamw" else (decay, adam)), optax.scale(-1.0))

    def for_torch(self, parameters: "Iterable[torch.nn.Parameter]") -> "torch.optim.Optimizer":
        """The PyTorch optimiser, for a learning rate that is set before each step."""
        import torch

        if self.torch_optimizer is not None:
            return self.torch_optimizer(parameters)
        if self.kind == "sgd":
            return torch.optim.SGD(
                parameters,
                lr=1.0,
                momentum=self.momentum,
                nesterov=self.nesterov,
                weight_decay=self.weight_decay,
                foreach=False,
            )
        kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[self.kind]
        return kind(parameters, lr=1.0, weight_decay=self.weight_decay, foreach=False)


def _is_moment(node: Any) -> bool:
    return type(node) in MOMENTS


def moments(state: Any) -> dict[str, dict[str, Any]]:
    """{PyTorch's name of the moment: {parameter: value}} in an optax state."""
    kept = {}
    for node in jax.tree.leaves(state, is_leaf=_is_moment):
        for ours, theirs in MOMENTS.get(type(node), {}).items():
            kept[theirs] = getattr(node, ours)
    return kept


def with_moments(state: Any, values: dict[str, dict[str, Any]], step: int) -> Any:
    """The optax state with PyTorch's moments, after `step` steps."""

    def replace(node: Any) -> Any:
        if not _is_moment(node):
            return node
        # Where PyTorch keeps none, ours keeps its own.
        changes: dict[str, Any] = {
            ours: getattr(node, ours) | values[theirs] for ours, theirs in MOMENTS[type(node)].items()
        }
        if "count" in node._fields:
            changes["count"] = jnp.asarray(step, node.count.dtype)
        return node._replace(**changes)

    return jax.tree.map(replace, state, is_leaf=_is_moment)
