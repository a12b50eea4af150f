"""A map between the names of two networks, proposed from order, kinds of layer, shapes and names."""

import difflib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from parity.conversion.files import read_regular, write_text
from parity.conversion.naming import leaves, mismatch_message, named_modules
from parity.conversion.trees import as_module, is_tree
from parity.errors import ParityError

Shape = tuple[int, ...]
Layers = dict[str, dict[str, Shape]]
"""{path of a layer: {its parameter or statistic: shape}}, in order of definition."""
Orders = tuple[Sequence[str], Sequence[str]]
COUNTER = "num_batches_tracked"
LARGEST = 2**26  # bytes of a file with names


def proposed_names(network: Any, original: Any, orders: Orders | None = None) -> dict[str, str]:
    """The map that `parity.match_names` proposes.

    Args:
        orders: paths of both networks' submodules in the order of their calls; that of definition by default.

    Raises:
        ParityError: if a layer has no counterpart; the message lists them.
    """
    module = as_module(network)
    if module is None:
        raise ParityError(f"expected a network in JAX first, found a {type(network).__name__}")
    ours, theirs = _layers(_shapes(network)), _layers(_shapes(original))
    for layers, others in ((ours, theirs), (theirs, ours)):
        if not any(COUNTER in layer for layer in others.values()):
            for layer in layers.values():
                layer.pop(COUNTER, None)
    if orders is not None:
        ours, theirs = (_in_order(*one) for one in zip((ours, theirs), orders, strict=True))
    elif is_tree(module):  # its keys are sorted as text, and a layer's BatchNorm_0 comes before its Conv_0
        ours = {path: ours[path] for path in sorted(ours, key=_natural)}
        ours, theirs = (
            {path: one[path] for path in sorted(one, key=lambda path: _kind(one[path]))} for one in (ours, theirs)
        )
    matched = _matched(ours, theirs)
    missing = _flat({path: layer for path, layer in theirs.items() if path not in matched.values()})
    unexpected = _flat({path: layer for path, layer in ours.items() if path not in matched})
    paths = {leaf.torch_name: leaf.path for leaf in leaves(module)}
    single = {name: other for name, other in _by_shape(unexpected, missing).items() if name in paths}
    missing = {name: shape for name, shape in missing.items() if name not in single.values()}
    unexpected = {name: shape for name, shape in unexpected.items() if name not in single}
    if missing or unexpected:
        raise ParityError(
            "no complete map of names: layers are left without a counterpart of their shapes. "
            + mismatch_message(missing, unexpected, {}, source="the network", target="the original")
        )
    known = {path for path, _ in named_modules(module)}
    known |= {path.rpartition(".")[0] for path in paths.values()}
    # A part that the rule of a whole layer covers has no path of its own in Flax, and follows that layer.
    names = {path: matched[path] for path in ours if matched.get(path, path) != path and path in known}
    return names | {paths[name]: other for name, other in single.items()}


def _by_shape(ours: Mapping[str, Shape], theirs: Mapping[str, Shape]) -> dict[str, str]:
    """Single tensors of the same shapes, in the same order, where there are as many of a shape on both sides."""
    pairs: dict[str, str] = {}
    for shape in dict.fromkeys(ours.values()):
        left, right = ([name for name, other in one.items() if other == shape] for one in (ours, theirs))
        if len(left) == len(right):
            pairs |= dict(zip(left, right, strict=True))
    return pairs


def _in_order(layers: Layers, order: Sequence[str]) -> Layers:
    """The layers as they are called; those that never are come last."""
    place = {path: index for index, path in reversed(list(enumerate(order)))}
    return {path: layers[path] for path in sorted(layers, key=lambda path: place.get(path, len(order)))}


def _natural(path: str) -> list[tuple[str, int]]:
    """What sorts layers_10 after layers_2."""
    return [(text, int(number or 0)) for text, number in re.findall(r"(\D+)(\d*)", path)]


def _kind(layer: dict[str, Shape]) -> tuple[tuple[str, Shape], ...]:
    return tuple(sorted(layer.items()))


def write_names(names: Mapping[str, str], path: Path) -> None:
    """A file that `read_names` reads."""
    write_text(path, json.dumps(names, indent=1) + "\n")


def read_names(path: Path) -> dict[str, str]:
    """The map in a JSON file.

    Raises:
        ParityError: if it cannot be read or is anything else.
    """
    try:
        names = json.loads(read_regular(path, LARGEST))
    except OSError as error:
        raise ParityError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise ParityError(f"{path} is not JSON: {error}") from error
    if not isinstance(names, dict) or not all(isinstance(value, str) for value in names.values()):
        raise ParityError(f"{path} must hold one JSON object {{Flax path: PyTorch path}}")
    return names


def _shapes(network: Any) -> dict[str, Shape]:
    if hasattr(network, "state_dict"):
        network = network.state_dict()
    if isinstance(network, Mapping) and all(hasattr(value, "shape") for value in network.values()):
        return {name: tuple(tensor.shape) for name, tensor in network.items()}
    module = as_module(network)
    if module is None:
        raise ParityError(f"a {type(network).__name__} is neither a network nor a state_dict")
    return {leaf.torch_name: leaf.torch_shape for leaf in leaves(module)}


def _layers(shapes: Mapping[str, Shape]) -> Layers:
    layers: Layers = {}
    for name, shape in shapes.items():
        path, _, leaf = name.rpartition(".")
        layers.setdefault(path, {})[leaf] = shape
    return layers


def _flat(layers: Layers) -> dict[str, Shape]:
    return {f"{path}.{leaf}".lstrip("."): shape for path, layer in layers.items() for leaf, shape in layer.items()}


def _matched(ours: Layers, theirs: Layers) -> dict[str, str]:
    matched = {path: path for path, layer in ours.items() if theirs.get(path) == layer}
    left = [path for path in ours if path not in matched]
    right = [path for path in theirs if path not in matched]
    kinds = [[_kind(layers[path]) for path in paths] for layers, paths in ((ours, left), (theirs, right))]
    for i, j, size in difflib.SequenceMatcher(None, *kinds, autojunk=False).get_matching_blocks():
        matched |= dict(zip(left[i : i + size], right[j : j + size], strict=True))
    taken = set(matched.values())
    for path in left:
        alike = [other for other in right if path not in matched and other not in taken and theirs[other] == ours[path]]
        if alike:
            best = max(alike, key=lambda other: difflib.SequenceMatcher(None, path, other).ratio())
            matched[path] = best
            taken.add(best)
    return matched
