"""Where a run holds its history: slots, given to the outputs of a table's rows as registers are to values.

Output h_i is alive from call i to the last row in which its coefficient is not zero. It may take the slot of an output
that is read for the last time in the network's input of call i, as that is formed before the call; not where noise
enters the input too, because the noise occupies the new slot until the call. As many slots as outputs are ever alive at
once are enough: rows are a path, and the lives along it intervals. Of the free slots the one filled the longest time
ago is taken, so that the slots of a k-step method are a ring of k, and the stages of a Runge-Kutta start give theirs
back.

References:
    Linear scan register allocation (Poletto and Sarkar, 1999).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from itoflow.table import Row


@dataclass(frozen=True)
class Slots:
    """Where each output is held."""

    places: tuple[int, ...]
    """The slot of each row's output, from 0."""
    count: int
    """Of slots."""

    def spread(self, newest: int, weights: Sequence[float]) -> list[float]:
        """The weights of outputs newest, newest - 1, ..., at their slots: (count,).

        Where another output has taken a slot since, the weight of the older one is zero.
        """
        found = [0.0] * self.count
        for i, weight in enumerate(weights):
            found[self.places[newest - i]] += weight
        return found


def slots(rows: Sequence[Row]) -> Slots:
    """Slots for the outputs of these rows, as few as there can be."""
    alive = _alive(rows)
    count = max(len(others) for others in alive) + 1
    places, holds = list[int](), list(range(-count, 0))
    for i, others in enumerate(alive):
        slot = min((s for s in range(count) if holds[s] not in others), key=holds.__getitem__)
        places.append(slot)
        holds[slot] = i
    return Slots(tuple(places), count)


def _alive(rows: Sequence[Row]) -> list[set[int]]:
    """For each row, the outputs of earlier ones that its own must not overwrite."""
    read, kept = [0] * len(rows), [0] * len(rows)  # the first row before which h_j may go
    for i, row in enumerate(rows):
        for j, weight in enumerate(row.q, 1):
            if weight:
                read[i - j] = i + 1 if row.r else i
        for j, weight in enumerate(row.b):
            if weight:
                kept[i - j] = i + 1
    ends = [max(pair) for pair in zip(read, kept, strict=True)]
    reach = max(max(len(row.q), len(row.b)) for row in rows)
    return [{j for j in range(max(i - reach, 0), i) if ends[j] > i} for i in range(len(rows))]
