"""The moments of a run at which something can happen to it."""

from resnet_flax.training import best, loop
from resnet_flax.training.checkpoints import Checkpoints
from resnet_flax.training.setup import Setup

MOMENTS = {
    # name: (owner, its function, the call that counts)
    "start": (loop, "open_devices", 1),
    "data": (loop, "open_source", 1),
    "compile": (loop.Run, "_first_step", 1),
    "training": (loop.Run, "_record", 6),
    "evaluation": (loop.Run, "_evaluate", 2),
    "batches of an evaluation": (Setup, "evaluation_batches", 2),
    "export": (best, "write_checkpoint", 1),
    "saving": (Checkpoints, "save", 2),
    "plot": (loop.Run, "_plot", 3),
    "end": (loop.Run, "_finish", 1),
}
AFTER = ("saving",)  # when it has begun, and continues in the background


def inject(moment, act):
    """Calls `act` at that moment."""
    owner, name, number = MOMENTS[moment]
    works, calls = getattr(owner, name), []

    def wrapped(*args, **kwargs):
        calls.append(name)
        if len(calls) == number and moment not in AFTER:
            act()
        result = works(*args, **kwargs)
        if len(calls) == number and moment in AFTER:
            act()
        return result

    setattr(owner, name, wrapped)
