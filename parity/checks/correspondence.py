"""Whether the parameters and statistics of two networks are the same ones."""

from collections.abc import Callable

from parity.conversion.naming import NAMES_HINT, homeless_counters, mismatch_message
from parity.errors import ParityError
from parity.sides.base import Side


def require_correspondence(candidate: Side, oracle: Side, warn: Callable[[str], None], *, by_outputs: bool) -> None:
    """Raises ParityError unless both have the same names and shapes; constants of one of them are told of.

    Args:
        by_outputs: whether that is told of instead, because only outputs and activations are compared.
    """
    shapes, others = candidate.shapes(), oracle.shapes()
    homeless = {*homeless_counters(others, shapes), *homeless_counters(shapes, others)}
    missing = {name: shape for name, shape in others.items() if name not in shapes and name not in homeless}
    unexpected = {name: shape for name, shape in shapes.items() if name not in others and name not in homeless}
    for side, lacking in ((oracle, missing), (candidate, unexpected)):
        if constant := sorted(lacking.keys() & side.constants):
            listed = ", ".join(constant[:5]) + (" and more" if constant[5:] else "")
            warn(
                f"{side.framework} keeps {listed}, which no pass changes and the other network does not have: what "
                "they hold shows in the outputs alone"
            )
            for name in constant:
                del lacking[name]
    misshapen = {name: (shape, others[name]) for name, shape in shapes.items() if others.get(name, shape) != shape}
    if missing or unexpected or misshapen:
        source, target = (f"the {side.framework} network" for side in (candidate, oracle))
        if by_outputs:
            names = ", ".join(sorted({*missing, *unexpected, *misshapen})[:5])
            count = len({*missing, *unexpected, *misshapen})
            warn(f"{count} parameters or statistics do not correspond ({names}): only values are compared")
            return
        raise ParityError(
            mismatch_message(missing, unexpected, misshapen, source=source, target=target), hint=NAMES_HINT
        )
