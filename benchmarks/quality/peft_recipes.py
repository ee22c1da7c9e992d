"""PEFT's documented recipes for prompt tuning, trained and scored on the same encoded rows as ours."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from shared.model.base_model import BaseModel
from trainer_service.training.data.encoding import EncodedDataset, EncodedExample
from trainer_service.training.trainee import batch_indices

NUM_VIRTUAL_TOKENS, BATCH_SIZE, WARMUP_SHARE = 20, 16, 0.1


@dataclass(frozen=True)
class PeftRecipe:
    name: str
    init: str
    """RANDOM, SAMPLE_VOCAB or TEXT, as PEFT names them."""
    learning_rate: float


RECIPES = (
    PeftRecipe("PEFT, random init, lr 1e-4", "RANDOM", 1e-4),
    PeftRecipe("PEFT, sampled-vocabulary init, lr 1e-3", "SAMPLE_VOCAB", 1e-3),
    PeftRecipe("PEFT, text init, lr 1e-2", "TEXT", 1e-2),
)


def train_peft(
    base: BaseModel, data: EncodedDataset, recipe: PeftRecipe, text: str, source: str, seed: int, num_steps: int
) -> torch.Tensor:
    """Trains a prompt `[num_virtual_tokens, hidden_size]`, float32, with AdamW, warm-up and cosine, and the loss on the
    label word or the answer.
    """
    from peft import PromptTuningConfig, TaskType, get_peft_model

    warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)
    torch.manual_seed(seed)
    options: dict[str, Any] = {"prompt_tuning_init": recipe.init}
    if recipe.init == "TEXT":
        options |= {"prompt_tuning_init_text": text, "tokenizer_name_or_path": source}
    config = PromptTuningConfig(task_type=TaskType.CAUSAL_LM, num_virtual_tokens=NUM_VIRTUAL_TOKENS, **options)
    model = get_peft_model(base.model, config)
    weight = model.prompt_encoder["default"].embedding.weight
    optimizer = torch.optim.AdamW([weight], lr=recipe.learning_rate, weight_decay=0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _warmup_and_cosine(step, num_steps))
    for step in range(num_steps):
        picks = batch_indices(seed, step, len(data), BATCH_SIZE)
        ids, mask, labels = _padded([data.examples[pick] for pick in picks], data.label_ids, base.device)
        model(input_ids=ids, attention_mask=mask, labels=labels).loss.backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    matrix: torch.Tensor = weight.detach().float().clone()
    base.model.requires_grad_(False)
    return matrix


def _warmup_and_cosine(step: int, num_steps: int) -> float:
    warmup = int(num_steps * WARMUP_SHARE)
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / (num_steps - warmup)))


def _padded(
    examples: Sequence[EncodedExample], label_ids: Sequence[tuple[int, ...]], device: torch.device
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    wholes = [
        (example.input_ids, label_ids[example.label_index] if label_ids else example.target_ids) for example in examples
    ]
    longest = max(len(input_ids) + len(target) for input_ids, target in wholes)
    ids = torch.zeros(len(wholes), longest, dtype=torch.long)
    labels, mask = torch.full_like(ids, -100), torch.zeros_like(ids)
    for index, (input_ids, target) in enumerate(wholes):
        length = len(input_ids) + len(target)
        ids[index, :length] = torch.tensor([*input_ids, *target])
        labels[index, len(input_ids) : length] = torch.tensor(target)
        mask[index, :length] = 1
    return ids.to(device), mask.to(device), labels.to(device)
