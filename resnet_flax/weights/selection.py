"""The one ResNet in a checkpoint that may hold much else: which entries are its own, and what they are here."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from resnet_flax.errors import UserError
from resnet_flax.weights.layouts import LAYOUTS, TORCHVISION, Layout
from resnet_flax.weights.refusals import WAY_ON, seen
from resnet_flax.weights.wrappers import unwrapped_names


@dataclass(frozen=True)
class Selection:
    """The entries of one network.

    Attributes:
        layout: whose names and layout they have.
        prefix: before each of them, such as "module." or "encoder_q.".
        names: {name in the checkpoint: torchvision's} of every entry of the network.
        dropped: the other entries.
        head: what the head is called in the checkpoint, if it is a linear layer outside the layout's names.
        headless: why there is no head although the checkpoint has something like one, or "".
    """

    layout: Layout
    prefix: str
    names: dict[str, str]
    dropped: tuple[str, ...] = ()
    head: str = ""
    headless: str = ""

    @property
    def outside(self) -> str:
        """The dropped entries in a few words: "queue, predictor.* (4 entries)"."""
        groups: dict[str, int] = {}
        for name in self.dropped:
            group = _group(name, self.prefix)
            groups[group] = groups.get(group, 0) + 1
        shown = [name if count == 1 else f"{name}.* ({count} entries)" for name, count in list(groups.items())[:8]]
        return ", ".join(shown) + (f" and {len(groups) - 8} more" if len(groups) > 8 else "")


@dataclass(frozen=True)
class _Candidate:
    layout: Layout
    prefix: str
    ours: dict[str, str]
    """{name in the checkpoint: torchvision's}."""

    @property
    def is_whole(self) -> bool:
        tops = {name.partition(".")[0] for name in self.ours.values()}
        return tops >= {"conv1", "layer1", "layer2", "layer3"}


# Entries of tools, which are no part of the computation wherever they are.
_COUNTERS = re.compile(r"(^|\.)(total_ops|total_params|n_averaged|num_updates|_extra_state|counter)$")
# Names beside a body that are no head and may well belong to its computation: not dropped, so that they are refused.
_OF_THE_BODY = re.compile(
    r"(conv|bn|norm|gn|stem|layer|res|attn|attention|attnpool|pool|maxpool|se|eca|cbam|ca|sa|adapter|act|relu)\d*$"
)
_HEAD = re.compile(
    r"((?:cls_|classification_|linear_)?heads?|fc|fc_out|(?:linear_)?classifier|linear|last_linear|output|logits|"
    r"head\.fc|head\.projection|(?:cls_)?head\.fc_cls|projection_fc)((?:\.(?:\d|fc|linear|head))*)"
)


def select(arrays: Mapping[str, np.ndarray], prefix: str | None = None, *, source: str = "the checkpoint") -> Selection:
    """The entries of the only ResNet in a checkpoint, or of that under a prefix.

    Args:
        arrays: {name: array}, of which only shapes and addresses are read.
        prefix: what the names of the wanted network begin with, with or without a final dot.
        source: how messages call the checkpoint.

    Raises:
        UserError: if there is none, or several and no prefix that chooses one.
    """
    clean = unwrapped_names(arrays)
    candidates = _candidates(clean)
    if prefix is not None:
        candidates = _under(candidates, prefix, clean, source)
    whole = [candidate for candidate in candidates if candidate.is_whole]
    found = _distinct(whole or candidates, arrays)
    if not found:
        shapes = {clean[name]: tuple(array.shape) for name, array in arrays.items()}
        names = list(arrays)
        shown = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
        raise UserError(seen(shapes) or f"no naming scheme of ResNets known here has the entries {shown}; {WAY_ON}")
    if len(found) > 1:
        prefixes = ", ".join(repr(candidate.prefix) for candidate in found)
        raise UserError(
            f"{source} holds {len(found)} ResNets, under the prefixes {prefixes}; choose one with --prefix "
            f"{found[0].prefix or found[1].prefix} (in Python: prefix={found[0].prefix or found[1].prefix!r})"
        )
    others = {candidate.prefix for candidate in candidates} - {found[0].prefix}
    return _selection(found[0], others, clean, arrays)


def _candidates(clean: Mapping[str, str]) -> list[_Candidate]:
    prefixes: dict[tuple[int, str], None] = {}
    present = set(clean.values())
    for name in clean.values():
        for number, layout in enumerate(LAYOUTS):
            for landmark, stem in layout.landmarks:
                if not name.endswith(landmark):
                    continue
                prefix = name[: len(name) - len(landmark)]
                if (not prefix or prefix.endswith(".")) and (not stem or prefix + stem in present):
                    prefixes[number, prefix] = None
    candidates = []
    for number, prefix in prefixes:
        layout = LAYOUTS[number]
        under = {name[len(prefix) :]: key for key, name in clean.items() if name.startswith(prefix)}
        ours = layout.renamed(under)
        candidates.append(_Candidate(layout, prefix, {under[name]: mine for name, mine in ours.items()}))
    return candidates


def _under(candidates: list[_Candidate], prefix: str, clean: Mapping[str, str], source: str) -> list[_Candidate]:
    wanted = _unwrapped_prefix(prefix if not prefix or prefix.endswith(".") else f"{prefix}.")
    exact = [candidate for candidate in candidates if candidate.prefix == wanted]
    within = exact or [candidate for candidate in candidates if candidate.prefix.startswith(wanted)]
    if not within:
        known = ", ".join(repr(candidate.prefix) for candidate in candidates)
        there = f"the ResNets in it have the prefixes {known}" if known else "no ResNet of any known naming is in it"
        raise UserError(f"{source} has no ResNet under the prefix {prefix!r}; {there}")
    return within


def _distinct(candidates: list[_Candidate], arrays: Mapping[str, np.ndarray]) -> list[_Candidate]:
    """The candidates without those that are another one under a second name, in the same memory."""
    distinct: dict[object, _Candidate] = {}
    for candidate in candidates:
        memory = tuple(
            (name, arrays[key].__array_interface__["data"][0])
            for key, name in sorted(candidate.ours.items(), key=lambda pair: pair[1])
            if arrays[key].size > 1 and not name.startswith("fc.")
        )
        if memory not in distinct or len(candidate.ours) > len(distinct[memory].ours):
            distinct[memory] = candidate
    return list(distinct.values())


def _selection(
    chosen: _Candidate, others: Iterable[str], clean: Mapping[str, str], arrays: Mapping[str, np.ndarray]
) -> Selection:
    prefix, layout = chosen.prefix, chosen.layout
    names: dict[str, str] = {}
    dropped: list[str] = []
    for key, name in clean.items():
        mine = chosen.ours.get(key)
        if mine is None and name.startswith(prefix) and _belongs(name[len(prefix) :]):
            mine = name[len(prefix) :]
        if mine is None or (_COUNTERS.search(name) and arrays[key].size <= 1):
            dropped.append(key)
        else:
            names[key] = mine
    _require_once(names)
    near = _beside(chosen, others, clean, dropped)
    width = features(names, arrays)
    own = {key: name.removeprefix("fc.") for key, name in names.items() if name.startswith("fc.")}
    head, headless = "", ""
    if not _is_linear({leaf: arrays[key] for key, leaf in own.items()}):
        near |= {clean[key]: key for key in own}
        head, headless, own = _find_head(prefix, near, arrays, width)
    if own and (headless := _not_alone(own, prefix, near, arrays, width)):
        head, own = "", {}
    names = {key: name for key, name in names.items() if not name.startswith("fc.")}
    names |= {key: f"fc.{leaf}" for key, leaf in own.items()}
    order = {key: names[key] for key in clean if key in names}
    return Selection(layout, prefix, order, tuple(key for key in clean if key not in names), head, headless)


def _belongs(name: str) -> bool:
    """Whether an entry that no rule knows may take part in the body's computation."""
    return _OF_THE_BODY.fullmatch(name.partition(".")[0]) is not None or ".lora_" in name


def _parent(prefix: str) -> str:
    return "".join(f"{part}." for part in prefix.split(".")[:-2])


def _local(name: str, prefix: str) -> str:
    """A name below the prefix, or below what lies above it."""
    return name.removeprefix(prefix) if name.startswith(prefix) else name.removeprefix(_parent(prefix))


def _beside(
    chosen: _Candidate, others: Iterable[str], clean: Mapping[str, str], dropped: Iterable[str]
) -> dict[str, str]:
    """{name: key} of the entries outside a body that may belong to the same network."""
    parent = _parent(chosen.prefix)
    return {
        clean[key]: key
        for key in dropped
        if clean[key].startswith(parent) and not any(other and clean[key].startswith(other) for other in others)
    }


def _not_alone(
    head: Mapping[str, str], prefix: str, near: Mapping[str, str], arrays: Mapping[str, np.ndarray], width: int
) -> str:
    """Why a linear layer is not all that comes after the pooled features, or ""."""
    classes = arrays[next(iter(head))].shape[0]  # of the weight as of the bias
    for name, key in near.items():
        module, _, leaf = name.rpartition(".")
        shape = arrays[key].shape
        if key in head:
            continue
        if leaf == "running_mean" and shape == (width,) and "." not in _local(module, prefix):
            return f"{module} normalises the features before the linear layer"
        if leaf == "weight" and len(shape) == 2 and shape[1] == classes:
            return f"{module} takes what the linear layer gives"
    return ""


def _require_once(names: Mapping[str, str]) -> None:
    first: dict[str, str] = {}
    for key, name in names.items():
        if name in first:
            raise UserError(f"{first[name]} and {key} are both {name}; a file may hold one network only")
        first[name] = key


def _is_linear(entries: Mapping[str, np.ndarray]) -> bool:
    """Whether the entries are exactly a linear layer's, with or without a bias."""
    weight = entries.get("weight", entries.get("kernel"))
    return weight is not None and weight.ndim == 2 and set(entries) <= {"weight", "bias"}


def _find_head(
    prefix: str, near: Mapping[str, str], arrays: Mapping[str, np.ndarray], width: int
) -> tuple[str, str, dict[str, str]]:
    """(what the head is called, why there is none, {key: "weight" or "bias"}) among the entries outside the body."""
    heads: dict[str, dict[str, str]] = {}
    likely: set[str] = set()
    for name in near:
        module, _, leaf = name.rpartition(".")
        local = _local(module, prefix)
        if leaf != "weight" or not _HEAD.fullmatch(local):
            continue
        top = module[: len(module) - len(local)] + local.partition(".")[0] + "."
        likely.add(top.rstrip("."))
        entries = {other.removeprefix(f"{module}."): near[other] for other in near if other.startswith(top)}
        if _is_linear({leaf: arrays[key] for leaf, key in entries.items()}) and arrays[near[name]].shape[1] == width:
            heads[module] = {key: leaf for leaf, key in entries.items()}
    if len(heads) == 1:
        module, found = next(iter(heads.items()))
        return module, "", found
    if heads:
        return "", f"{', '.join(heads)} are linear layers of the same input, and none is the head for certain", {}
    if likely:
        return "", f"{', '.join(sorted(likely))} is not a single linear layer on {width} features", {}
    return "", "", {}


def features(names: Mapping[str, str], arrays: Mapping[str, np.ndarray]) -> int:
    """Channels of the last stage's output: the most rows of a kernel in its first block."""
    stages = [name.partition(".")[0] for name in names.values() if name.startswith("layer")]
    last = max(stages, default="")
    return max(
        (
            arrays[key].shape[0]
            for key, name in names.items()
            if name.startswith(f"{last}.0.") and arrays[key].ndim >= 2
        ),
        default=0,
    )


def _unwrapped_prefix(prefix: str) -> str:
    return unwrapped_names([prefix])[prefix]


def _group(name: str, prefix: str) -> str:
    """The part of a name up to where it leaves the prefix."""
    components, theirs = name.split("."), prefix.split(".")
    common = next((i for i, pair in enumerate(zip(components, theirs, strict=False)) if pair[0] != pair[1]), 0)
    return ".".join(components[: common + 1])


def layout_of(names: Iterable[str]) -> tuple[Layout, str]:
    """The layout and prefix of a network's names, of which nothing else is known; torchvision's by default."""
    candidates = _candidates(unwrapped_names(names))
    found = next((candidate for candidate in candidates if candidate.is_whole), candidates[0] if candidates else None)
    return (found.layout, found.prefix) if found else (TORCHVISION, "")


def names_by_layout(names: Iterable[str]) -> dict[str, str]:
    """{name: torchvision's} by rules alone, for files that do not have them: written before they were kept."""
    names = list(names)
    candidates = _candidates(unwrapped_names(names))
    known = candidates[0].ours if candidates else {}
    return {name: known.get(name, name.replace("classifier.1.", "fc.")) for name in names}
