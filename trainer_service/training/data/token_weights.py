"""How much each training example counts in the loss."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from trainer_service.training.data.encoding import EncodedDataset
from trainer_service.training.spec import TaskKind, TrainingSpec


def token_weights(train: EncodedDataset, spec: TrainingSpec) -> NDArray[np.float64]:
    """The weight of each target token of each training example, `[examples]`.

    In classification, an example counts the same however many tokens its label has. Weights are relative to their mean
    over the dataset: relative to its batch, a rare class that is alone in a batch would have no extra weight.
    """
    if spec.task is not TaskKind.CLASSIFICATION:
        return np.ones(len(train))
    weights = _class_weights(train, spec)
    weights /= weights.mean() * train.target_lengths
    return weights


def _class_weights(train: EncodedDataset, spec: TrainingSpec) -> NDArray[np.float64]:
    chosen, by_index = spec.hyperparameters, np.ones(len(spec.labels))
    if chosen.class_weights:
        by_index = np.array([chosen.class_weights.get(label, 1.0) for label in spec.labels])
    elif chosen.balance_classes:
        counts = np.bincount(train.label_indices, minlength=len(spec.labels))
        by_index = len(train) / (np.count_nonzero(counts) * np.maximum(counts, 1.0))
    return np.take(by_index, train.label_indices)
