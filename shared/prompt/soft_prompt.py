"""The soft prompt: a float32 matrix of virtual tokens in front of the input (Lester et al. 2021, arXiv:2104.08691)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Self

import numpy as np
import torch

from shared.errors import DamagedBlob, PreconditionFailed
from shared.model.base_model import BaseModel
from shared.prompt.prefix import Prefix, PrefixInput
from shared.values.base_model import MAX_HIDDEN_SIZE
from shared.values.enums import PrefixKind
from shared.values.hyperparameters import MAX_VIRTUAL_TOKENS

if TYPE_CHECKING:
    from shared.prompt.manifest import Manifest

TENSOR_KEY = "prompt_embeddings"
"""Name of the matrix in a file: PEFT's."""


@dataclass(frozen=True)
class SoftPrompt(Prefix):
    """`embeddings`: `[num_virtual_tokens, hidden_size]`, float32, on the CPU, finite. Immutable.

    Raises DamagedBlob for any other tensor.
    """

    kind: ClassVar[PrefixKind] = PrefixKind.PROMPT
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

    @classmethod
    def check_shapes(cls, shapes: Mapping[str, tuple[int, ...]], manifest: Manifest) -> None:
        """One matrix, `[num_virtual_tokens, hidden_size]` of the manifest. Raises DamagedBlob."""
        if list(shapes) != [TENSOR_KEY]:
            raise DamagedBlob(f"must hold the one tensor {TENSOR_KEY}, holds {len(shapes)} of other names or number")
        shape = shapes[TENSOR_KEY]
        if len(shape) != 2:
            raise DamagedBlob("shape must be two integers")
        rows, columns = shape
        if not (1 <= rows <= MAX_VIRTUAL_TOKENS and 1 <= columns <= MAX_HIDDEN_SIZE):
            raise DamagedBlob(
                f"shape [{rows}, {columns}] is outside [1 to {MAX_VIRTUAL_TOKENS}, 1 to {MAX_HIDDEN_SIZE}]"
            )
        if shape != (manifest.num_virtual_tokens, manifest.hidden_size):
            raise DamagedBlob(
                f"the tensor is {list(shape)}, the manifest says {[manifest.num_virtual_tokens, manifest.hidden_size]}"
            )

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, torch.Tensor]) -> Self:
        """The soft prompt of a file. Raises DamagedBlob."""
        return cls(tensors[TENSOR_KEY])

    def tensors(self) -> dict[str, torch.Tensor]:
        """The matrix by its name in a file."""
        return {TENSOR_KEY: self.embeddings}

    def check_fits(self, base: BaseModel) -> None:
        """Raises PreconditionFailed for another hidden size, DamagedBlob if a value overflows the model's dtype."""
        width = base.embedding_table.shape[1]
        if self.hidden_size != width:
            raise PreconditionFailed(f"the soft prompt has hidden size {self.hidden_size}, this model takes {width}")
        self.cast(base.dtype)

    def input(self, dtype: torch.dtype, device: torch.device | str = "cpu") -> PrefixInput:
        """The matrix as it enters a model. Raises DamagedBlob if a value overflows `dtype`."""
        return PrefixInput(self.cast(dtype, device))

    def cast(self, dtype: torch.dtype, device: torch.device | str = "cpu") -> torch.Tensor:
        """The matrix in the model's dtype. Raises DamagedBlob if a value overflows `dtype`."""
        matrix = self.embeddings.to(device=device, dtype=dtype)
        if not bool(torch.isfinite(matrix).all()):
            raise DamagedBlob(f"the soft prompt overflows {dtype}")
        return matrix
