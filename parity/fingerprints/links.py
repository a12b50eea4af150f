"""Parts of a network that are run on images, each giving what its norms were given.

A network is a chain of links: each takes the output of the one before. Two links that are equal compute the same.
"""

from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from parity.conversion.convert import as_numpy
from parity.conversion.modules import variables
from parity.conversion.naming import named_modules
from parity.errors import ParityError
from parity.fingerprints.moments import TINY, Moments, Profile
from parity.sides.networks import is_torch, require_network, unwrapped
from parity.sides.recording import recording_flax

if TYPE_CHECKING:
    import torch


class Link(Protocol):
    """A part of a network in eval mode."""

    def __call__(self, x: Any) -> tuple[Any, Profile]:
        """The output for float32 x (N, H, W, C) or the output of the link before, and what the norms were given."""
        ...

    def statistics(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """The running mean and variance of each of its norms."""
        ...

    def __eq__(self, other: object) -> bool: ...


def require_statistics(links: Iterable[Link]) -> None:
    """Raises ParityError unless some norm of the links keeps statistics that training has left there."""
    statistics = [pair for link in links for pair in link.statistics()]
    if not statistics:
        raise ParityError(
            "no norm of this network keeps a mean and a variance of its inputs, as BatchNorm does; without these there "
            "is nothing to compare images with"
        )
    if all((mean == 0).all() and (var == 1).all() for mean, var in statistics):
        raise ParityError(
            "every norm of this network has mean 0 and variance 1, as in a new network or where norms were folded into "
            "the convolutions; there is nothing to compare images with"
        )


def links_of(network: Any) -> list[Link]:
    """Any network with norms as two links: its first norm, which is soon computed, and the whole of it.

    Raises:
        ParityError: for what is neither an NNX module nor a PyTorch module.
    """
    network = unwrapped(network)
    require_network(network)
    if is_torch(network):
        return [TorchLink(network, first=True), TorchLink(network)]
    if not isinstance(network, nnx.Module):
        raise ParityError(f"expected an NNX module or a PyTorch module; found {type(network).__name__}")
    return [FlaxLink(network, first=True), FlaxLink(network)]


# NNX


class FlaxLink:
    """An NNX module, or with `first` only its first norm, after which the next link is given the same input.

    Args:
        prefix: of its norms' names.
    """

    def __init__(self, module: nnx.Module, *, prefix: str = "", first: bool = False):
        self.graph, self.state = nnx.split(module)
        self._prefix, self._first = prefix, first
        self._norms = {name: (norm.mean[...], norm.var[...], norm.epsilon) for name, norm in _flax_norms(module)}

    def __call__(self, x: Any) -> tuple[Any, Profile]:
        output, inputs = _program(self.graph, self._first)(self.state, jnp.asarray(x))
        profile = {}
        for name, given in inputs.items():
            moments = _flax_moments(given, *self._norms[name.partition("#")[0]])
            profile[f"{self._prefix}.{name}" if self._prefix else name] = Moments(*map(np.asarray, moments))
        return x if self._first else output, profile

    def statistics(self) -> list[tuple[np.ndarray, np.ndarray]]:
        return [(np.asarray(mean), np.asarray(var)) for mean, var, _ in self._norms.values()]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, FlaxLink) and (self.graph, self._prefix) == (other.graph, other._prefix)


_PROGRAMS: list[tuple[tuple[Any, bool], Any]] = []  # the last ones; graphs can be compared and not hashed
_MOST = 32


def _program(graph: Any, first: bool) -> Any:
    """A compiled function (state, x) -> (output, what each norm was given); equal graphs share one."""
    for known, program in _PROGRAMS:
        if known == (graph, first):
            return program
    del _PROGRAMS[: -_MOST + 1]
    _PROGRAMS.append(((graph, first), _compiled(graph, first)))
    return _PROGRAMS[-1][1]


def _compiled(graph: Any, first: bool) -> Any:
    @jax.jit
    def run(state: Any, x: jax.Array) -> tuple[Any, dict[str, jax.Array]]:
        module = nnx.merge(graph, state)
        module.eval()
        norms = dict(_flax_norms(module))
        with recording_flax(module) as recorder:
            output = module(x)
        calls = [name for name in recorder.arguments if name.partition("#")[0] in norms][: 1 if first else None]
        return None if first else output, {name: recorder.arguments[name][0] for name in calls}

    return run


def _flax_norms(module: nnx.Module) -> Iterator[tuple[str, Any]]:
    """Modules with the statistics `mean` and `var`, as BatchNorm's are called."""
    for path, child in named_modules(module):
        own = variables(child)
        if all(isinstance(own.get(name), nnx.BatchStat) for name in ("mean", "var")):
            yield path, child


@jax.jit  # by itself: in the programs above it would be compiled again for each of them
def _flax_moments(
    x: jax.Array, mean: jax.Array, var: jax.Array, epsilon: float
) -> tuple[jax.Array, jax.Array, jax.Array]:
    pixels = tuple(range(1, x.ndim - 1))
    whole = jnp.maximum(var.astype(jnp.float32) + epsilon, TINY)
    z = (x.astype(jnp.float32) - jnp.expand_dims(mean.astype(jnp.float32), range(x.ndim - 1))) * jnp.expand_dims(
        jax.lax.rsqrt(whole), range(x.ndim - 1)
    )
    return z.mean(pixels), jnp.square(z).mean(pixels), epsilon / whole


# PyTorch


class _Enough(Exception):
    pass


class TorchLink:
    """A PyTorch module, or with `first` only its first norm, after which the next link is given the same input."""

    def __init__(self, module: "torch.nn.Module", *, first: bool = False):
        self._module, self._first = module, first

    def __call__(self, x: np.ndarray) -> tuple[Any, Profile]:
        import torch

        profile: Profile = {}

        def hook(name: str) -> Any:
            def before(norm: Any, args: tuple) -> None:
                number = sum(known.partition("#")[0] == name for known in profile) + 1
                profile[name if number == 1 else f"{name}#{number}"] = _torch_moments(args[0], norm)
                if self._first:
                    raise _Enough

            return before

        handles = [norm.register_forward_pre_hook(hook(name)) for name, norm in _torch_norms(self._module)]
        like = next(self._module.parameters())
        batch = torch.from_numpy(np.ascontiguousarray(np.moveaxis(x, -1, 1))).to(like.device, like.dtype)
        try:
            with torch.inference_mode(), _eval_mode(self._module):
                self._module(batch)
        except _Enough:
            pass
        except RuntimeError as error:
            raise ParityError(f"the network does not take images of shape {x.shape[1:]}: {error}") from error
        finally:
            for handle in handles:
                handle.remove()
        return x, profile

    def statistics(self) -> list[tuple[np.ndarray, np.ndarray]]:
        return [(as_numpy(norm.running_mean), as_numpy(norm.running_var)) for _, norm in _torch_norms(self._module)]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, TorchLink) and (self._module, self._first) == (other._module, other._first)


def _torch_norms(module: "torch.nn.Module") -> Iterator[tuple[str, Any]]:
    """Modules with a running_mean and running_var; torchvision's frozen norms are among them."""
    for name, child in module.named_modules():
        if getattr(child, "running_mean", None) is not None and getattr(child, "running_var", None) is not None:
            yield name, child


def _torch_moments(x: Any, norm: Any) -> Moments:
    shape, pixels = (1, -1, *[1] * (x.ndim - 2)), list(range(2, x.ndim))
    whole = (norm.running_var.float() + norm.eps).clamp_min(TINY)
    z = (x.float() - norm.running_mean.float().reshape(shape)) * whole.rsqrt().reshape(shape)
    mean, square = (z.mean(pixels), z.square().mean(pixels)) if pixels else (z, z.square())
    return Moments(*(part.cpu().numpy() for part in (mean, square, norm.eps / whole)))


@contextmanager
def _eval_mode(module: "torch.nn.Module") -> Generator[None]:
    """Each submodule's own mode is put back."""
    modes = [(child, child.training) for child in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for child, training in modes:
            child.training = training
