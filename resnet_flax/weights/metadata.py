"""What is kept beside weights, as text."""

import json
from collections.abc import Sequence

from resnet_flax.data.preprocessing import Preprocessing
from resnet_flax.weights.files import ARCHITECTURE


def metadata_of(architecture: str, preprocessing: Preprocessing, class_names: Sequence[str] | None) -> dict[str, str]:
    """What one needs to use weights, as the text that is kept beside them."""
    names = {"class_names": json.dumps(list(class_names))} if class_names else {}
    return {ARCHITECTURE: architecture, **preprocessing.to_metadata(), **names}
