"""The workload of all contestants: soft prompts of 100 virtual tokens, inputs of 25 tokens, 64 new tokens, greedy.
Needs torch only.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

NUM_PROMPTS = 8
NUM_VIRTUAL = 100
NUM_INPUT = 25
NUM_NEW = 64


@dataclass(frozen=True)
class Workload:
    """`prompts` are `[NUM_VIRTUAL, hidden]`, float32; request i uses prompt i modulo their number."""

    prompts: list[torch.Tensor]
    inputs: list[tuple[int, ...]]

    @classmethod
    def make(cls, table: torch.Tensor, num_requests: int, num_prompts: int = NUM_PROMPTS, seed: int = 0) -> Workload:
        """Prompts near rows of the embedding table `[vocab, hidden]`, like trained prompts; inputs of random tokens."""
        generator = torch.Generator().manual_seed(seed)
        vocab, hidden = table.shape

        def prompt() -> torch.Tensor:
            rows = torch.randint(3, vocab, (NUM_VIRTUAL,), generator=generator)
            return table[rows].float() + 0.01 * torch.randn(NUM_VIRTUAL, hidden, generator=generator)

        inputs = [
            tuple(torch.randint(3, vocab, (NUM_INPUT,), generator=generator).tolist()) for _ in range(num_requests)
        ]
        return cls([prompt() for _ in range(num_prompts)], inputs)
