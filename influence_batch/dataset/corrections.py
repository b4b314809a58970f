"""Labels that reviewers gave in the place of wrong ones, as a pass over the data sees them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class Corrections:
    """Targets that replace those of the files: sorted rows of the whole dataset (c,), targets (c,)."""

    rows: np.ndarray
    targets: np.ndarray

    def apply(self, start: int, targets: np.ndarray) -> np.ndarray:
        """Targets (n,) of the rows from `start` on, those that have one replaced."""
        low, high = np.searchsorted(self.rows, [start, start + len(targets)])
        if low == high:
            return targets
        corrected = targets.copy()
        corrected[self.rows[low:high] - start] = self.targets[low:high]
        return corrected
