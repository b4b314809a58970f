"""From Parquet to shards of numbers: files, columns, checks, fingerprints, samples."""

from influence_batch.dataset.columns import Columns, resolve_columns
from influence_batch.dataset.corrections import Corrections
from influence_batch.dataset.files import ParquetFileInfo, find_files
from influence_batch.dataset.inspection import Inspection, inspect
from influence_batch.dataset.reading import ShardRef, plan_shards
from influence_batch.dataset.shards import Dataset, Shard
from influence_batch.dataset.source import match_columns, open_dataset

__all__ = [
    "Columns",
    "Corrections",
    "Dataset",
    "Inspection",
    "ParquetFileInfo",
    "Shard",
    "ShardRef",
    "find_files",
    "inspect",
    "match_columns",
    "open_dataset",
    "plan_shards",
    "resolve_columns",
]
