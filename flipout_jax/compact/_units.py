"""Units: positions of axes that can only be removed together, and the reasons why some must be kept."""

import numpy as np

# A position of an axis that takes the length of any axis it is combined with, such as that of a broadcast number.
FREE = -1
# A position of an axis whose length is given, such as that of a batch.
FIXED = -2


class Units:
    """Numbered units, some of them tied and some pinned, as a union-find structure.

    Attributes:
      reasons: for the representative of tied units, the reason why they must be kept.
    """

    def __init__(self) -> None:
        self._parents: list[int] = []
        self.reasons: dict[int, str] = {}

    def __len__(self) -> int:
        """The number of units, tied or not."""
        return len(self._parents)

    def new(self, count: int) -> np.ndarray:
        """The numbers of new units."""
        start = len(self._parents)
        self._parents.extend(range(start, start + count))
        return np.arange(start, start + count)

    def find(self, unit: int) -> int:
        """The representative of all units that a unit is tied to."""
        root = unit
        while self._parents[root] != root:
            root = self._parents[root]
        while self._parents[unit] != root:
            parent = self._parents[unit]
            self._parents[unit] = root
            unit = parent
        return root

    def roots(self) -> np.ndarray:
        """The representative of each unit."""
        return np.array([self.find(unit) for unit in range(len(self._parents))], int)

    def pin(self, ids: np.ndarray, reason: str) -> None:
        """Keeps units, for a reason. Positions that are not units are kept anyway."""
        for unit in np.unique(ids[ids >= 0]).tolist():
            self.reasons.setdefault(self.find(unit), reason)

    def is_pinned(self, ids: np.ndarray) -> bool:
        """True if all of these positions are kept in any case."""
        return all(unit < 0 or self.find(unit) in self.reasons for unit in np.unique(ids).tolist())

    def tie(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        """Makes two axes lose the same positions, and returns the positions of an axis that stands for both."""
        reason = "its axis has a given length, as those of inputs do"
        self.pin(first[second == FIXED], reason)
        self.pin(second[first == FIXED], reason)
        for a, b in np.unique(np.stack([first, second]), axis=1).T.tolist():
            if a >= 0 and b >= 0:
                self._union(self.find(a), self.find(b))
        both = np.where(first >= 0, first, second)
        return np.where((first < 0) & (second < 0), np.minimum(first, second), both)

    def _union(self, a: int, b: int) -> None:
        if a == b:
            return
        root = min(a, b)
        child = max(a, b)
        self._parents[child] = root
        reason = self.reasons.pop(child, None)
        if reason is not None:
            self.reasons.setdefault(root, reason)


def fixed(length: int) -> np.ndarray:
    """The positions of an axis whose length is given."""
    return np.full(length, FIXED)


def free(length: int) -> np.ndarray:
    """The positions of an axis that adapts to those it is combined with."""
    return np.full(length, FREE)
