"""Either side's network under an optimiser: a pass, a step, new parameters and statistics."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
import optax

from parity.sides.base import PLAIN, Arrangement, Loss, Run
from parity.sides.optimizers import MOMENTS, Moments, Optimizer, moments, with_moments

if TYPE_CHECKING:
    from parity.sides.flax import FlaxSide
    from parity.sides.torch import TorchSide


class FlaxTrainer:
    """An NNX network under an optax transformation."""

    def __init__(self, side: "FlaxSide", optimizer: Optimizer):
        self.side, self.optimizer = side, optimizer
        self.transform = optimizer.for_jax()
        with side.arithmetic():
            self.state = self.transform.init(side.parts()[0])
        self._update = jax.jit(self._updated, donate_argnums=(0, 1))  # a large network has no room for both

    def _updated(self, gradients: Any, state: Any, parameters: Any, learning_rate: Any) -> Any:
        updates, state = self.transform.update(gradients, state, parameters)
        return optax.apply_updates(parameters, optax.tree.scale(learning_rate, updates)), state

    def step(self, step: int, inputs: np.ndarray, targets: Any, loss: Loss, arrangement: Arrangement = PLAIN) -> Run:
        """One step, counted from 0."""
        run = self.side.run(inputs, targets, loss, train=True, arrangement=arrangement, record=False)
        rate = np.asarray(self.optimizer.learning_rate_at(step), self.side.dtype)
        with self.side.arithmetic():
            gradients = self.side.from_torch_layout(run.gradients)
            parameters, self.state = self._update(gradients, self.state, self.side.parts()[0], rate)
        self.side.values |= parameters
        self.side.load(run.statistics)
        return run

    def moments(self) -> Moments:
        """{parameter: {moment: array}}, copied, in PyTorch's layout."""
        kept: Moments = {}
        for moment, values in moments(self.state).items():
            for name, array in self.side.state(values).items():
                kept.setdefault(name, {})[moment] = array
        return kept

    def take_moments(self, kept: Moments, step: int) -> None:
        """Continues from these moments, after `step` steps; those that are missing stay as they are."""
        named = {moment for names in MOMENTS.values() for moment in names.values()}
        with self.side.arithmetic():
            values = {
                moment: self.side.from_torch_layout(
                    {name: as_array(state[moment]) for name, state in kept.items() if moment in state}
                )
                for moment in named
            }
            self.state = with_moments(self.state, values, step)


class TorchTrainer:
    """A PyTorch network under its optimiser."""

    def __init__(self, side: "TorchSide", optimizer: Optimizer):
        self.side, self.settings = side, optimizer
        self.parameters = dict(side.module.named_parameters())
        self.optimizer = optimizer.for_torch(self.parameters.values())

    def step(
        self,
        step: int,
        inputs: np.ndarray,
        targets: Any,
        loss: Loss,
        arrangement: Arrangement = PLAIN,
        adjust: Callable[[Run], None] = lambda run: None,
    ) -> Run:
        """One step, counted from 0; `adjust` may change the gradients first."""
        import torch

        run = self.side.run(inputs, targets, loss, train=True, arrangement=arrangement, record=False)
        adjust(run)
        for name, parameter in self.parameters.items():
            if name in run.gradients:  # not of a frozen one
                gradient = run.gradients[name]
                parameter.grad = torch.as_tensor(gradient, dtype=self.side.dtype, device=self.side.device)
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings.learning_rate_at(step)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.side.load(run.statistics)
        return run

    def moments(self) -> Moments:
        """The optimiser's own tensors, not copied: the next step changes them."""
        import torch

        return {
            name: {key: value for key, value in self.optimizer.state[parameter].items() if torch.is_tensor(value)}
            for name, parameter in self.parameters.items()
            if parameter in self.optimizer.state
        }

    def take_moments(self, kept: Moments, step: int) -> None:
        """Continues from these moments, by copies; PyTorch's own hold the number of steps, optax's do not."""
        import torch

        for name, state in kept.items():
            parameter = self.parameters[name]
            tensors = {key: torch.as_tensor(value) for key, value in state.items()}
            taken = {
                key: value.to(parameter, copy=True) if value.shape == parameter.shape else value.clone()
                for key, value in tensors.items()
            }
            if taken.keys() & {"exp_avg_sq", "square_avg"}:
                taken.setdefault("step", torch.tensor(float(step)))
            self.optimizer.state[parameter] = taken


def as_array(moment: Any) -> np.ndarray:
    """A moment of either framework as a numpy array, without a copy where it lies in memory."""
    return moment.cpu().numpy() if hasattr(moment, "cpu") else np.asarray(moment)
