"""Arguments of `create_model` that other libraries spell otherwise, or that nobody knows: a sentence with ours."""

import difflib
import inspect
from collections.abc import Iterable
from functools import cache

from resnet_flax.errors import UserError
from resnet_flax.models.resnet import ResNet

ELSEWHERE = {
    "pretrained": 'weights="DEFAULT", another of torchvision\'s names, "hf-hub:OWNER/REPOSITORY", or a file',
    "checkpoint_path": "weights=, which takes a file",
    "in_chans": "in_channels",
    "drop_path_rate": "stochastic_depth",
    "features_only": "model.features(images, taps=(...)) on the finished model",
    "out_indices": "model.features(images, taps=(...)) on the finished model",
    "cardinality": "groups",
    "base_width": "width_per_group",
    "act_layer": "activation, a function",
}
"""{timm's or torchvision's name: ours}."""


@cache
def _known() -> list[str]:
    own = set(inspect.signature(ResNet.__init__).parameters) - {"self", "block", "layers", "rngs"}
    return sorted(own | {"initialization", "weights", "prefix"})


def require_known(options: Iterable[str]) -> None:
    """Raises UserError for an option that no network has, with the nearest name, or ours for another library's."""
    for name in options:
        if name in ELSEWHERE:
            raise UserError(f"create_model has no {name}=; here it is {ELSEWHERE[name]}")
        if name not in _known():
            near = difflib.get_close_matches(name, _known(), n=2, cutoff=0.5)
            way_on = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(_known())}"
            raise UserError(f"create_model has no {name}=; {way_on}")
