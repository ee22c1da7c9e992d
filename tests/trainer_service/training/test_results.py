"""Metrics of a classification."""

from __future__ import annotations

import pytest

from trainer_service.training.results import classification_metrics


def test_f1_counts_only_labels_that_occur() -> None:
    metrics = classification_metrics([0, 0, 1, 1], [0, 1, 1, 1], num_labels=5)
    assert metrics["accuracy"] == 0.75
    assert metrics["macro_f1"] == pytest.approx((2 / 3 + 0.8) / 2)
