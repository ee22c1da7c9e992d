"""PEFT's methods with their best documented settings, trained by one loop on the same encoded rows as ours.

The loop gives each method the same batches, warm-up and cosine, and computes logits only at target positions. The last
weights are scored, as in PEFT's own comparison. Nothing of softprompt's engine runs here.
"""

from __future__ import annotations

import math
import tempfile
import warnings
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from shared.model.base_model import BaseModel
from trainer_service.training.attention.packing import Row
from trainer_service.training.trainee import batch_indices
from trainer_service.training.work import RowScore

PROMPT_TOKENS, PREFIX_TOKENS, LORA_RANK, LORA_ALPHA = 20, 50, 16, 32
WARMUP_SHARE, MAX_GRAD_NORM = 0.1, 1.0
TOKENS_AT_ONCE, IGNORED = 1024, -100
IA3_MODULES, IA3_FEEDFORWARD = ("q_proj", "k_proj", "v_proj", "o_proj"), ("down_proj", "gate_proj", "up_proj")


@dataclass(frozen=True)
class Start:
    """What a recipe builds an adapter from. `text`: the instruction, which our recipe also starts from."""

    base: BaseModel
    source: str
    text: str
    has_chat_template: bool


@dataclass(frozen=True)
class PeftRecipe:
    name: str
    build: Callable[[Start], Any]
    learning_rate: Callable[[BaseModel], float]


class Adapter:
    """A trained PEFT model, as `scoring` scores it."""

    def __init__(self, base: BaseModel, model: Any) -> None:
        self._base, self._model = base, model
        self.num_parameters = int(model.get_nb_trainable_parameters()[0])
        with tempfile.TemporaryDirectory() as directory:
            model.save_pretrained(directory)
            self.num_bytes = (Path(directory) / "adapter_model.safetensors").stat().st_size

    @torch.inference_mode()
    def score_rows(self, rows: Sequence[Row]) -> list[RowScore]:
        """The scores in the order of `rows`, computed in batches of similar length."""
        scores: dict[int, RowScore] = {}
        for picks in _batches(rows):
            ids, mask, labels = _padded([rows[pick] for pick in picks], self._base.device)
            logits, wanted = _target_logits(self._model, ids, mask, labels)
            log_probabilities = logits.float().log_softmax(-1)
            found = log_probabilities.gather(1, wanted[:, None]).squeeze(1)
            correct, first = log_probabilities.argmax(-1) == wanted, 0
            for pick in picks:
                part = slice(first, first := first + len(rows[pick].target_ids))
                scores[pick] = RowScore(float(found[part].sum()), part.stop - part.start, int(correct[part].sum()))
        return [scores[index] for index in range(len(rows))]

    @torch.inference_mode()
    def answers(
        self, inputs: Sequence[Sequence[int]], max_new_tokens: int, end_token_ids: Collection[int]
    ) -> list[str]:
        """The stripped greedy answers to some inputs, one by one: PEFT ignores positions, so padding shifts them."""
        stops, found = sorted(end_token_ids), list[str]()
        for some in inputs:
            ids = torch.tensor([list(some)], device=self._base.device)
            with warnings.catch_warnings():
                # PEFT says that it ignores positions; transformers, that greedy decoding ignores sampling defaults.
                warnings.simplefilter("ignore")
                answer = self._model.generate(
                    input_ids=ids,
                    attention_mask=torch.ones_like(ids),
                    max_new_tokens=max_new_tokens,
                    do_sample=False,
                    eos_token_id=stops,
                    pad_token_id=stops[0],
                )[0, len(some) :]
            found.append(self._base.tokenizer.decode(answer, skip_special_tokens=True).strip())
        return found


def train_adapter(
    recipe: PeftRecipe, start: Start, rows: Sequence[Row], seed: int, num_steps: int, batch_size: int
) -> Adapter:
    """Trains on `rows` with AdamW without weight decay. `start.base` is changed: load it for this call alone."""
    warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)
    torch.manual_seed(seed)
    model, rate = recipe.build(start), recipe.learning_rate(start.base)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=rate, weight_decay=0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _warmup_and_cosine(step, num_steps))
    for step in range(num_steps):
        picks = batch_indices(seed, step, len(rows), batch_size)
        logits, wanted = _target_logits(model, *_padded([rows[pick] for pick in picks], start.base.device))
        torch.nn.functional.cross_entropy(logits.float(), wanted).backward()
        torch.nn.utils.clip_grad_norm_(trained, MAX_GRAD_NORM)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    return Adapter(start.base, model.eval())


def lora_learning_rate(base: BaseModel) -> float:
    """Ten times full fine-tuning's rate (Schulman et al. 2025, LoRA Without Regret), which is 5e-5 times a power of the
    model's width, fitted on the Llama family: `hyperparam_utils.get_lr` of the Tinker cookbook, until 2025.
    """
    return float(10 * 5e-5 * (2000 / base.info.hidden_size) ** 0.781)


def _prompt(start: Start) -> Any:
    from peft import PromptTuningConfig, TaskType, get_peft_model

    config = PromptTuningConfig(
        task_type=TaskType.CAUSAL_LM,
        num_virtual_tokens=PROMPT_TOKENS,
        prompt_tuning_init="TEXT",
        prompt_tuning_init_text=start.text,
        tokenizer_name_or_path=start.source,
    )
    return get_peft_model(start.base.model, config)


def _prefix(start: Start) -> Any:
    """Starts from the keys and values of the text, repeated until it is long enough."""
    from peft import PrefixTuningConfig, TaskType, get_peft_model, initialize_kv_prefix_from_text

    tokenizer = start.base.tokenizer
    repeats = math.ceil(PREFIX_TOKENS / max(1, len(tokenizer(start.text, add_special_tokens=False)["input_ids"])))
    model = get_peft_model(
        start.base.model, PrefixTuningConfig(task_type=TaskType.CAUSAL_LM, num_virtual_tokens=PREFIX_TOKENS)
    )
    text = " ".join([start.text] * (repeats + 1))
    initialize_kv_prefix_from_text(model, tokenizer, text=text, use_chat_template=start.has_chat_template)
    return model


def _lora(start: Start) -> Any:
    from peft import LoraConfig, TaskType, get_peft_model

    config = LoraConfig(
        task_type=TaskType.CAUSAL_LM, r=LORA_RANK, lora_alpha=LORA_ALPHA, target_modules="all-linear", bias="none"
    )
    return get_peft_model(start.base.model, config)


def _ia3(start: Start) -> Any:
    from peft import IA3Config, TaskType, get_peft_model

    config = IA3Config(
        task_type=TaskType.CAUSAL_LM,
        target_modules=[*IA3_MODULES, *IA3_FEEDFORWARD],
        feedforward_modules=list(IA3_FEEDFORWARD),
    )
    return get_peft_model(start.base.model, config)


RECIPES = (
    PeftRecipe("PEFT's best", _prompt, lambda base: 1e-2),
    PeftRecipe("PEFT's prefix", _prefix, lambda base: 5e-3),
    PeftRecipe("LoRA", _lora, lora_learning_rate),
    PeftRecipe("IA3", _ia3, lambda base: 5e-3),
)
"""The prefix and IA3 with the settings that are best for them in PEFT's comparison on MetaMathQA."""


def _warmup_and_cosine(step: int, num_steps: int) -> float:
    warmup = int(num_steps * WARMUP_SHARE)
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, num_steps - warmup)))


def _batches(rows: Sequence[Row]) -> list[list[int]]:
    """Indices of rows of similar length, at most `TOKENS_AT_ONCE` with padding; a longer row is a separate batch."""
    found: list[list[int]] = [[]]
    for index in sorted(range(len(rows)), key=lambda index: len(rows[index].tokens)):
        if found[-1] and (len(found[-1]) + 1) * len(rows[index].tokens) > TOKENS_AT_ONCE:
            found.append([])
        found[-1].append(index)
    return found


def _padded(rows: Sequence[Row], device: torch.device) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Token ids, attention mask and labels, `[rows, longest]`, padded on the right."""
    longest = max(len(row.input_ids) + len(row.target_ids) for row in rows)
    ids = torch.zeros(len(rows), longest, dtype=torch.long)
    labels, mask = torch.full_like(ids, IGNORED), torch.zeros_like(ids)
    for index, row in enumerate(rows):
        length = len(row.input_ids) + len(row.target_ids)
        ids[index, :length] = torch.tensor([*row.input_ids, *row.target_ids])
        labels[index, len(row.input_ids) : length] = torch.tensor(row.target_ids)
        mask[index, :length] = 1
    return ids.to(device), mask.to(device), labels.to(device)


def _target_logits(
    model: Any, ids: torch.Tensor, mask: torch.Tensor, labels: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits `[targets, vocab]` and the wanted tokens `[targets]`, ordered by row and position."""
    is_target = labels != IGNORED
    positions = is_target.any(0).nonzero().squeeze(1)
    # Counted from the end, because a prompt adds positions in front.
    kept = positions - 1 - ids.shape[1]
    logits = model(input_ids=ids, attention_mask=mask, logits_to_keep=kept).logits
    return logits[is_target[:, positions]], labels[is_target]
