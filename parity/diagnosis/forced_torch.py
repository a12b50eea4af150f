"""As `forced`, for a candidate in PyTorch: its pass in which every submodule is handed the reference's tensors."""

from collections.abc import Collection
from typing import Any

import numpy as np
import torch

from parity.checks.pair import Pair
from parity.diagnosis.forced import Event, Tensors
from parity.diagnosis.program import hooked
from parity.sides.base import OUTPUT
from parity.sides.recording import Record, flatten_output, map_output
from parity.sides.torch import TorchSide


class ForcedTorch:
    """A PyTorch candidate as a function that takes the reference's tensors on the way."""

    def __init__(self, pair: Pair, arguments: Record, outputs: Record, *, train: bool):
        """`arguments` and `outputs` are those of the reference's submodules, as numpy arrays by path."""
        assert isinstance(pair.candidate, TorchSide)
        self._side, self._inputs, self._train = pair.candidate, pair.inputs.candidate, train
        self._arguments, self._outputs = arguments, outputs
        self.replaced: set[Event] = set()
        self.narrowed: list[str] = []

    def run(self, released: Collection[Event] = ()) -> Tensors:
        """Every tensor as the candidate computed it; those in `released` go on to the next layer as they are."""
        seen: Tensors = {}

        def forced(event: Event, name: str, own: Any, theirs: np.ndarray | None) -> Any:
            if not isinstance(own, torch.Tensor):
                return own
            seen.setdefault(event, {})[name] = own.detach().cpu().numpy().copy()
            if theirs is None or theirs.shape != own.shape:
                return own
            self.replaced.add(event)
            return own if event in released else torch.from_numpy(theirs).to(own)

        def before(key: str, args: tuple) -> tuple:
            given = self._arguments.get(key, ())
            if len(given) != len(args):
                return args
            pairs = enumerate(zip(args, given, strict=True))
            return tuple(forced(("input", key), str(i), own, theirs) for i, (own, theirs) in pairs)

        def after(key: str, output: Any) -> Any:
            return map_output(
                lambda own, name: forced(("output", key), name, own, self._outputs.get(name)), output, key
            )

        state = self._side.state()
        self._side.set_mode(self._train)
        try:
            with torch.no_grad(), hooked(self._side.module, before, after):
                outputs = self._side.forward(self._side.array(self._inputs))
        finally:
            self._side.load(state)
        arrays = flatten_output(outputs, OUTPUT)
        seen["output", ""] = {name: np.asarray(array) for name, array in arrays.items()}
        return seen

    def run_wide(self, released: Collection[Event] = ()) -> Tensors:
        """Nothing: types are followed in JAX's programs only."""
        return {}
