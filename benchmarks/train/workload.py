"""The rows, prompts and optimizer of both contestants: 20 to 46 random token ids per row, the loss on the last two."""

from __future__ import annotations

import random
from dataclasses import dataclass

import torch
from transformers import AutoModelForCausalLM

LEARNING_RATE = 1e-2


@dataclass(frozen=True)
class Case:
    name: str
    num_jobs: int
    batch_size: int
    num_virtual_tokens: int
    wanted_ratio: float
    is_prefix: bool = False
    """Whether keys and values are trained, beside a soft prompt of equal length."""


CASES = (
    Case("1 job, batch 16, 100 virtual tokens", 1, 16, 100, 5.0),
    Case("1 job, batch 16, 20 virtual tokens", 1, 16, 20, 2.0),
    Case("8 jobs of batch 4, 50 virtual tokens", 8, 4, 50, 3.0),
    Case("keys and values: 1 job, batch 8, 100 positions", 1, 8, 100, 1.3, is_prefix=True),
    Case("keys and values: 8 jobs of batch 4, 50 positions", 8, 4, 50, 1.3, is_prefix=True),
)


def make_rows(case: Case, vocab_size: int, seed: int) -> list[list[list[int]]]:
    """Token ids by job and row for one step."""
    rng = random.Random(seed)
    return [
        [[rng.randrange(vocab_size) for _ in range(rng.randint(20, 46))] for _ in range(case.batch_size)]
        for _ in range(case.num_jobs)
    ]


def make_prompt(table: torch.Tensor, case: Case, job: int) -> torch.Tensor:
    picks = torch.randint(0, table.shape[0], (case.num_virtual_tokens,), generator=torch.Generator().manual_seed(job))
    return table[picks.to(table.device)].float().clone()


def load_model(path: str, dtype: str, device: str) -> torch.nn.Module:
    model: torch.nn.Module = AutoModelForCausalLM.from_pretrained(
        path, dtype=getattr(torch, dtype), attn_implementation="sdpa"
    )
    model = model.to(device)
    model.config.use_cache = False  # otherwise PEFT would fill an unused cache
    return model.eval().requires_grad_(False)
