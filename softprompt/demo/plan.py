"""The sizes of the demo, which takes a few minutes on two cores."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from softprompt.demo.example import examples_dir


@dataclass(frozen=True)
class DemoPlan:
    """Model, examples and hyperparameters of the demo."""

    model: str = "smollm2-135m-instruct"
    prompt: str = "product-descriptions"
    examples_dir: Path = examples_dir() / "product-descriptions"
    template: str = "{input}\ndescription:"
    num_virtual_tokens: int = 20
    batch_size: int = 8
    learning_rate: float = 0.03
    """High because there are few steps: the held-out loss was 1.85 after 30 of them; at 0.005 it was 2.26 after 40."""
    second_learning_rate: float = 0.006
    """For the training from version 1. At 0.03 it first loses what version 1 has learned (1.53 became 1.68)."""
    first_steps: int = 64
    second_steps: int = 24
    evaluation_interval_steps: int = 12
    seed: int = 7
    num_products: int = 3
    """Unseen products in the side-by-side table."""
    answer_tokens: int = 96
    """More than a description needs, so that the answers end by themselves."""

    @property
    def train_file(self) -> Path:
        """Training examples as JSON lines."""
        return self.examples_dir / "train.jsonl"

    @property
    def heldout_file(self) -> Path:
        """Held-out examples as JSON lines."""
        return self.examples_dir / "heldout.jsonl"
