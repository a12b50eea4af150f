"""That the hosts of a run have the same settings and data, found out before they compute together."""

from __future__ import annotations

import jax
from jax.experimental import multihost_utils

from resnet_flax.data import Source
from resnet_flax.errors import UserError
from resnet_flax.training.hosts import Hosts
from resnet_flax.training.saved_config import OF_A_HOST, as_json, differences, from_json
from resnet_flax.training.setup import Setup


def agree(hosts: Hosts, setup: Setup, source: Source, test: Source) -> None:
    """Waits for all hosts, before anything is written or computed together.

    Args:
        setup: of this host.
        source, test: its training and evaluation sets; the same one where nothing is trained.

    Raises:
        UserError: if this one has other settings or data than the first.
    """
    here = [len(source), len(test), setup.facts.num_classes, jax.local_device_count()]
    first = hosts.agree({"config": as_json(setup.config), "images": here})
    changed = differences(from_json(first["config"]), setup.config, OF_A_HOST)
    if (there := first["images"]) != here:
        changed.append(f"training images, test images, classes, devices {there} there, {here} here")
    if changed:
        raise UserError(
            f"this host and host 0 do not have the same run ({'; '.join(changed)}); give all the same command and data"
        )
    # Gloo allows 30 seconds from one host's first collective to another's: it comes now, when all are here.
    multihost_utils.sync_global_devices("all hosts are ready")
