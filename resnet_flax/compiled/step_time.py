"""How long a compiled step takes on a card, as a range: a prediction that a measurement can refute.

A kernel takes the longer of two times, of moving its bytes and of its operations on the matrix units, each at the share
of the card's peak that `kernels.EFFICIENCIES` gives its kind, and a launch. Kernels follow one another; a collective
runs beside those launched between its start and its end, and only what it takes longer counts.

Left out: caches (every byte counts as moved to or from memory), the cost of XLA's untuned tiles (a card's autotuning
chooses others), arithmetic outside the matrix units, kernels slowed by a collective beside them, clocks that fall under
load, and a host that launches too slowly. **Nothing here has been compared with a measurement of this project.**
"""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from resnet_flax.compiled.cards import Card
from resnet_flax.compiled.kernels import EFFICIENCIES, LAUNCH, Kind, Pair, kind_of, operations, peak_rate
from resnet_flax.compiled.program import CompiledProgram, Kernel

Bound = Literal["memory", "arithmetic", "launch", "link"]

# All-reduces, from the sources of `kernels`. Over one host's NVLink: XLA's table for 8 H100s, 33.5 MB (252 of 450 GB/s
# in each direction) and 268 MB (365). Between hosts: XLA's cost model (sol_gpu_cost_model.cc) has 25 GB/s, 31
# microseconds there and back, and 45 to begin; the fast end is the line rate of one 400 Gb/s port for each GPU.
LINK_SHARE: Pair = (252 / 450, 365 / 450)
NETWORK: Pair = (25e9, 50e9)  # bytes per second and GPU
ROUND_TRIP = 31e-6
COLLECTIVE_LAUNCH: Pair = (45e-6, 5e-6)


def duration(kind: Kind, moved: float, operations: float, card: Card, rate: float | None = None) -> tuple[Pair, Bound]:
    """Seconds (slow, fast) of one kernel, and what bounds the slow one.

    Args:
        moved: bytes read and written.
        operations: on the matrix units.
        rate: their peak, operations per second; that of bfloat16 by default.
    """
    efficiency = EFFICIENCIES[kind]
    memory, arithmetic = (
        [amount / (peak * share) for share in shares]
        for amount, peak, shares in (
            (moved, card.bandwidth, efficiency.bandwidth),
            (operations, rate or card.bfloat16, efficiency.rate),
        )
    )
    parts: dict[Bound, float] = {"memory": memory[0], "arithmetic": arithmetic[0], "launch": LAUNCH[0]}
    slow, fast = (max(memory[i], arithmetic[i]) + LAUNCH[i] for i in (0, 1))
    return (slow, fast), max(parts, key=parts.__getitem__)


def all_reduce(nbytes: int, card: Card, gpus: int, hosts: int = 1) -> Pair:
    """Seconds (slow, fast) that the all-reduce of `nbytes` takes over `hosts` with `gpus` each.

    Every GPU sends and receives 2 (n - 1) / n of the bytes. Between hosts the slow end goes round a ring, whose delay
    grows with the number of hosts, the fast end up and down a tree.
    """
    if gpus * hosts == 1:
        return 0.0, 0.0
    sent = 2 * nbytes * (gpus * hosts - 1) / (gpus * hosts)
    seconds = [sent / (card.link * share) for share in LINK_SHARE]
    if hosts > 1:
        steps = (2 * (hosts - 1), 2 * math.log2(hosts))
        seconds = [
            max(within, sent / (gpus * speed)) + count * ROUND_TRIP
            for within, speed, count in zip(seconds, NETWORK, steps, strict=True)
        ]
    return seconds[0] + COLLECTIVE_LAUNCH[0], seconds[1] + COLLECTIVE_LAUNCH[1]


@dataclass(frozen=True)
class KernelTime:
    """All launches of one kernel of the program: seconds (slow, fast), and what bounds the slow one."""

    kernel: Kernel
    kind: Kind
    seconds: Pair
    bound: Bound


@dataclass(frozen=True)
class StepTime:
    """The predicted time of a program on a card.

    Args:
        gpus, hosts: that the program's collectives go over.
    """

    program: CompiledProgram
    card: Card
    gpus: int = 1
    hosts: int = 1

    @cached_property
    def kernels(self) -> list[KernelTime]:
        """The program's kernels in order, without the collectives."""
        found = []
        for kernel in self.program.kernels:
            kind = kind_of(self.program, kernel)
            if kind != "collective":
                amounts = kernel.read + kernel.written, operations(self.program, kernel)
                (slow, fast), bound = duration(kind, *amounts, self.card, peak_rate(self.program, kernel, self.card))
                found.append(KernelTime(kernel, kind, (slow * kernel.times, fast * kernel.times), bound))
        return found

    @cached_property
    def collectives(self) -> list[tuple[Pair, Pair]]:
        """Of each collective: its seconds, and those that nothing launched beside it covers."""
        seconds = {one.kernel.instruction.name: one.seconds for one in self.kernels}
        found = []
        for collective in self.program.collectives:
            total = all_reduce(collective.read, self.card, self.gpus, self.hosts)
            beside = [seconds[name] for name in self.program.overlapped(collective) if name in seconds]
            slow, fast = (max(0.0, total[i] - sum(one[i] for one in beside)) for i in (0, 1))
            found.append((total, (slow * collective.times, fast * collective.times)))
        return found

    @property
    def seconds(self) -> Pair:
        """Of the whole step: slow, fast."""
        parts = [one.seconds for one in self.kernels] + [exposed for _, exposed in self.collectives]
        return sum(part[0] for part in parts), sum(part[1] for part in parts)

    def images_per_second(self, images: int) -> Pair:
        """Low and high, of a step over `images` on all devices together."""
        slow, fast = self.seconds
        return images / slow, images / fast

    @property
    def shares(self) -> list[tuple[str, Pair, dict[Bound, float]]]:
        """Of each kind of kernel, the largest first: its share of the step (slow, fast), and how much of its slow time
        each bound has."""
        totals: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
        bounds: dict[str, dict[Bound, float]] = defaultdict(lambda: defaultdict(float))
        rows = [(one.kind, one.seconds, one.bound) for one in self.kernels]
        rows += [("collective", exposed, "link") for _, exposed in self.collectives]
        for kind, (slow, fast), bound in rows:
            totals[kind][0] += slow
            totals[kind][1] += fast
            bounds[kind][bound] += slow
        whole = self.seconds
        return [
            (
                kind,
                (slow / whole[0], fast / whole[1]),
                {bound: part / slow for bound, part in sorted(bounds[kind].items(), key=lambda x: -x[1]) if slow},
            )
            for kind, (slow, fast) in sorted(totals.items(), key=lambda item: -item[1][0])
        ]


def shares_in_words(predicted: StepTime) -> list[str]:
    """One line for each kind of kernel: launches, share of the step, and what bounds the slow end."""
    counts: dict[str, int] = defaultdict(int)
    for one in predicted.kernels:
        counts[one.kind] += one.kernel.times
    counts["collective"] = sum(kernel.times for kernel in predicted.program.collectives)
    return [
        f"{kind:<14}{counts[kind]:>6} launches  {100 * min(share):3.0f} to {100 * max(share):.0f}% of the step; "
        + (", ".join(f"{bound} bounds {100 * part:.0f}% of it" for bound, part in bounds.items()) or "all hidden")
        for kind, share, bounds in predicted.shares
    ]
