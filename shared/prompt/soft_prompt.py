"""The soft prompt: a float32 matrix of virtual tokens in front of the input (Lester et al. 2021, arXiv:2104.08691)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from shared.errors import DamagedBlob
from shared.values.hyperparameters import MAX_VIRTUAL_TOKENS as MAX_VIRTUAL_TOKENS

MAX_HIDDEN_SIZE = 65536


@dataclass(frozen=True)
class SoftPrompt:
    """`embeddings`: `[num_virtual_tokens, hidden_size]`, float32, on the CPU, finite. Immutable.

    Raises DamagedBlob for any other tensor.
    """

    embeddings: torch.Tensor

    def __post_init__(self) -> None:
        matrix = self.embeddings
        if matrix.dim() != 2:
            raise DamagedBlob(f"a soft prompt is a matrix [num_virtual_tokens, hidden_size], not {list(matrix.shape)}")
        if not 1 <= matrix.shape[0] <= MAX_VIRTUAL_TOKENS:
            raise DamagedBlob(f"{matrix.shape[0]} virtual tokens: allowed are 1 to {MAX_VIRTUAL_TOKENS}")
        if not 1 <= matrix.shape[1] <= MAX_HIDDEN_SIZE:
            raise DamagedBlob(f"hidden size {matrix.shape[1]}: allowed is 1 to {MAX_HIDDEN_SIZE}")
        if matrix.dtype != torch.float32:
            raise DamagedBlob(f"soft prompts are float32, not {matrix.dtype}")
        # NumPy on one thread: torch would wake its thread pool, which takes 100 ms beside a busy model, for 0.1 ms of
        # work.
        if not np.isfinite(matrix.detach().cpu().numpy()).all():
            raise DamagedBlob("the soft prompt has values that are not finite")

    @property
    def num_virtual_tokens(self) -> int:
        """Rows of the matrix."""
        return int(self.embeddings.shape[0])

    @property
    def hidden_size(self) -> int:
        """Columns of the matrix."""
        return int(self.embeddings.shape[1])

    def cast(self, dtype: torch.dtype, device: torch.device | str = "cpu") -> torch.Tensor:
        """The matrix in the model's dtype. Raises DamagedBlob if a value overflows `dtype`."""
        matrix = self.embeddings.to(device=device, dtype=dtype)
        if not bool(torch.isfinite(matrix).all()):
            raise DamagedBlob(f"the soft prompt overflows {dtype}")
        return matrix
