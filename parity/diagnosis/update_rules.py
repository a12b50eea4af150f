"""The update rules of SGD, Adam and AdamW in numpy, with everything that implementations do differently.

Sources: torch.optim's documented algorithms; Kingma & Ba 2015 (Adam), Reddi et al. 2018 (AMSGrad), Loshchilov & Hutter
2019 (AdamW).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Tree = dict[str, np.ndarray]


@dataclass(frozen=True)
class Rule:
    """An update rule; the change of a parameter for a learning rate of 1 at every step is what `updates` gives.

    Attributes:
        kind: "sgd" or "adam".
        decay, decoupled: weight decay; added to the update instead of the gradient.
        decays: whether a parameter is decayed.
        inside: epsilon is added under the square root.
        corrected: Adam's moments are divided by 1 - beta^t.
        clip: (norm, limit) of gradients: "global", "each" parameter's, or "value".
        clip_after: clipping comes after the coupled decay.
        factor: of the gradients.
        rate: step, counted from 0 -> factor of the update.
        rate_in_momentum: the learning rate is multiplied in before the momentum.
    """

    kind: str = "sgd"
    decay: float = 0.0
    decoupled: bool = False
    decays: Callable[[str, np.ndarray], bool] = lambda name, array: True
    momentum: float = 0.0
    dampening: float = 0.0
    nesterov: bool = False
    betas: tuple[float, float] = (0.9, 0.999)
    epsilon: float = 1e-8
    inside: bool = False
    amsgrad: bool = False
    corrected: bool = True
    clip: tuple[str, float] | None = None
    clip_after: bool = False
    factor: float = 1.0
    rate: Callable[[int], float] = lambda step: 1.0
    rate_in_momentum: bool = False

    def updates(self, parameters: Tree, gradients: Sequence[Tree]) -> list[Tree]:
        """The change of each parameter at each step, if the parameters stay what they are."""
        kept: dict[str, dict[str, Any]] = {name: {} for name in parameters}
        return [self._step(parameters, gradient, kept, step) for step, gradient in enumerate(gradients)]

    def _step(self, parameters: Tree, gradients: Tree, kept: dict[str, dict[str, Any]], step: int) -> Tree:
        gradients = {name: self.factor * value for name, value in gradients.items()}
        decay = {name: self.decay * value * self.decays(name, value) for name, value in parameters.items()}
        if not self.clip_after:
            gradients = self._clipped(gradients)
        if not self.decoupled:
            gradients = {name: value + decay[name] for name, value in gradients.items()}
        if self.clip_after:
            gradients = self._clipped(gradients)
        early = self.rate(step) if self.rate_in_momentum else 1.0
        late = 1.0 if self.rate_in_momentum else self.rate(step)
        direction = self._sgd if self.kind == "sgd" else self._adam
        changes = {name: direction(early * value, kept[name], step) for name, value in gradients.items()}
        if self.decoupled:
            changes = {name: value + decay[name] for name, value in changes.items()}
        return {name: -late * value for name, value in changes.items()}

    def _clipped(self, gradients: Tree) -> Tree:
        if self.clip is None:
            return gradients
        norm, limit = self.clip
        if norm == "value":
            return {name: value.clip(-limit, limit) for name, value in gradients.items()}
        sizes = {name: float(np.linalg.norm(value)) for name, value in gradients.items()}
        if norm == "global":
            sizes = dict.fromkeys(sizes, float(np.linalg.norm(list(sizes.values()))))
        return {
            name: value * min(1.0, limit / sizes[name]) if sizes[name] else value for name, value in gradients.items()
        }

    def _sgd(self, gradient: np.ndarray, kept: dict[str, Any], step: int) -> np.ndarray:
        if not self.momentum:
            return gradient
        # PyTorch's first step is not dampened.
        share = 1 - self.dampening if "trace" in kept else 1.0
        kept["trace"] = self.momentum * kept.get("trace", 0.0) + share * gradient
        return gradient + self.momentum * kept["trace"] if self.nesterov else kept["trace"]

    def _adam(self, gradient: np.ndarray, kept: dict[str, Any], step: int) -> np.ndarray:
        first, second = self.betas
        kept["mu"] = first * kept.get("mu", 0.0) + (1 - first) * gradient
        kept["nu"] = second * kept.get("nu", 0.0) + (1 - second) * gradient**2
        corrections = (1 - first ** (step + 1), 1 - second ** (step + 1)) if self.corrected else (1.0, 1.0)
        kept["largest"] = np.maximum(kept.get("largest", 0.0), kept["nu"])
        mean, square = kept["mu"], kept["largest"] if self.amsgrad else kept["nu"]
        mean, square = mean / corrections[0], square / corrections[1]
        return mean / (np.sqrt(square + self.epsilon) if self.inside else np.sqrt(square) + self.epsilon)
