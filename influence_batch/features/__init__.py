"""Feature steps: fitted by a reduction over shards, seeded, stored in the run."""

from influence_batch.features.steps import (
    Nystroem,
    Pca,
    RandomFourier,
    Standardize,
    UnitNorm,
    fit_pca,
    fit_random_fourier,
    fit_standardize,
    fit_step,
    restore_step,
    width_of,
)

__all__ = [
    "Nystroem",
    "Pca",
    "RandomFourier",
    "Standardize",
    "UnitNorm",
    "fit_pca",
    "fit_random_fourier",
    "fit_standardize",
    "fit_step",
    "restore_step",
    "width_of",
]
