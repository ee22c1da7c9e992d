"""Estimates the memory of a worker that trains one job, from the base model's files and the job's spec. Pure.

The constants were fitted to the peak memory of real trainings (`test_memory_estimate.py` repeats two of them).
"""

from __future__ import annotations

import math

from shared.model.options import DType
from shared.model.shape import ModelShape
from trainer_service.jobs.model import EffectiveSpec
from trainer_service.training.recipe.defaults import OF_KIND

_PROCESS_BYTES = 430 << 20
"""Python, PyTorch, transformers and Ray."""
_WEIGHTS, _ACTIVATIONS = 1.1, 1.5
"""Factors for copies that kernels keep, and for what the backward pass allocates beside what was kept."""
_TRAINED_COPIES = 5
"""A trained number's value, gradient, two moments of AdamW, and the best value so far; all in float32."""
_LOGITS_COPIES, _MOST_LOGITS = 3, 1 << 26
_SEARCH_CANDIDATES = 6
_MOST_POSITIONS = {False: 2048, True: 131_072}
"""Positions in a pass on a CPU and on a GPU, as in `training.budget`."""


def estimated_bytes(shape: ModelShape, spec: EffectiveSpec, *, on_gpu: bool, dtype: DType = "auto") -> int | None:
    """Memory of the GPU, or else of the process, while a worker trains this job alone. None for a distillation, whose
    passes depend on the answers.

    With dtype `auto`, a CPU is assumed to compute in float32, which takes more memory than bfloat16.
    """
    lengths, chosen = spec.lengths, spec.training.hyperparameters
    if spec.training.distillation is not None or lengths is None:
        return None
    size = 4 if dtype == "float32" or (dtype == "auto" and not on_gpu) else 2
    num_candidates = _SEARCH_CANDIDATES if chosen.search else 1
    rows = math.ceil(lengths.longest + (chosen.batch_size - 1) * lengths.mean)
    positions = min(_MOST_POSITIONS[on_gpu], num_candidates * (chosen.num_virtual_tokens + rows))
    kept = positions * shape.num_layers * shape.position_width * size
    targets = num_candidates * math.ceil(chosen.batch_size * lengths.mean_target)
    logits = 4 * _LOGITS_COPIES * min(_MOST_LOGITS, targets * shape.vocab_size)
    has_layers = OF_KIND[chosen.kind].is_of_keys_and_values
    width = shape.num_layers * shape.key_value_width if has_layers else spec.base_model.hidden_size
    trained = 4 * _TRAINED_COPIES * num_candidates * chosen.num_virtual_tokens * width
    weights = shape.file_bytes if shape.is_quantised else shape.num_weights * size
    training = _WEIGHTS * weights + _ACTIVATIONS * kept + logits + trained
    is_converted = not (on_gpu or shape.is_quantised or shape.num_weights * size == shape.file_bytes)
    loading = weights + shape.file_bytes * is_converted  # the file stays in memory until all weights are converted
    return int((0 if on_gpu else _PROCESS_BYTES) + max(training, loading))
