"""From leave-one-out predictions to suspects: noise matrix, outlier mixture, ranking."""

from influence_batch.detection.depths import depth_columns
from influence_batch.detection.noise_matrix import Channel, NoiseModel
from influence_batch.detection.outliers import OutlierModel, fit_outliers, score_outliers
from influence_batch.detection.planting import Power, least_doubt, plant_labels, plant_targets, power_at
from influence_batch.detection.reviewed import Verdicts, calibrated_by, reviewed_by
from influence_batch.detection.suspects import (
    Reading,
    Settled,
    error_flows,
    keep_for_refit,
    rank_by_doubt,
    read_classes,
    read_numbers,
    reading_parts,
    select_suspects,
    with_loo_of,
)
from influence_batch.detection.trusted import TrustedError, trusted_error

__all__ = [
    "Channel",
    "NoiseModel",
    "OutlierModel",
    "Power",
    "Reading",
    "Settled",
    "TrustedError",
    "Verdicts",
    "calibrated_by",
    "depth_columns",
    "error_flows",
    "fit_outliers",
    "keep_for_refit",
    "least_doubt",
    "plant_labels",
    "plant_targets",
    "power_at",
    "rank_by_doubt",
    "read_classes",
    "read_numbers",
    "reading_parts",
    "reviewed_by",
    "score_outliers",
    "select_suspects",
    "trusted_error",
    "with_loo_of",
]
