"""From leave-one-out predictions to suspects: noise matrix, outlier mixture, ranking."""

from influence_batch.detection.noise_matrix import NoiseModel, fit_noise
from influence_batch.detection.outliers import OutlierModel, fit_outliers, score_outliers
from influence_batch.detection.suspects import (
    Reading,
    keep_for_refit,
    rank_by_doubt,
    read_classes,
    read_numbers,
    reading_parts,
    select_suspects,
    with_loo_of,
)

__all__ = [
    "NoiseModel",
    "OutlierModel",
    "Reading",
    "fit_noise",
    "fit_outliers",
    "keep_for_refit",
    "rank_by_doubt",
    "read_classes",
    "read_numbers",
    "reading_parts",
    "score_outliers",
    "select_suspects",
    "with_loo_of",
]
