"""Datasets that the trainer stores, and what is counted in them: plain frozen dataclasses."""

from __future__ import annotations

from shared.values.datasets import StoredDataset as StoredDataset
from shared.values.datasets import UploadedDataset as UploadedDataset
from shared.values.results import DatasetStatistics as DatasetStatistics
