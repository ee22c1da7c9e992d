"""PEFT's prompt tuning and prefix tuning in their best usual configuration, and a cohort's training pass. A step is
forward, backward and AdamW.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch

from benchmarks.train.workload import LEARNING_RATE, Case, make_prompt
from shared.model.base_model import BaseModel
from shared.prompt.lift import key_values_of
from shared.values.base_model import BaseModelInfo
from trainer_service.training.attention.forward import choose_forward
from trainer_service.training.attention.packing import Row
from trainer_service.training.compute import backward
from trainer_service.training.recipe.leaves import KeyValueLeaves, Leaves, PromptLeaves
from trainer_service.training.spec import FilledHyperparameters, Init, LearningRateSchedule, Metric, Reparameterisation
from trainer_service.training.trainee import Candidate, Trainee
from trainer_service.training.work import TrainPart

_HYPERPARAMETERS = FilledHyperparameters(
    num_virtual_tokens=1,
    init=Init(),
    reparameterisation=Reparameterisation.NONE,
    learning_rate=LEARNING_RATE,
    schedule=LearningRateSchedule.CONSTANT,
    warmup_steps=0,
    weight_decay=0.0,
    max_grad_norm=0.0,
    batch_size=1,
    num_steps=1_000_000,
    evaluation_interval_steps=1,
    early_stop_patience=0,
    label_smoothing=0.0,
    balance_classes=False,
    metric=Metric.LOSS,
    seed=0,
    search=False,
)


def base_of(model: Any) -> BaseModel:
    """The model as the trainer has it, without a tokenizer."""
    weight, config = model.get_input_embeddings().weight, model.config
    info = BaseModelInfo(
        id="benchmark",
        fingerprint="",
        tokenizer_digest="",
        architecture=type(model).__name__,
        hidden_size=config.hidden_size,
        vocab_size=weight.shape[0],
        num_layers=config.num_hidden_layers,
        max_positions=config.max_position_embeddings,
    )
    return BaseModel(info, model, None, weight.device, weight.dtype)


class Shared:
    """Computes all jobs in one pass, like a cohort."""

    def __init__(self, model: Any, case: Case) -> None:
        self._base, weight = base_of(model), model.get_input_embeddings().weight
        self._forward = choose_forward(self._base)
        candidate = Candidate(LEARNING_RATE, Init())
        prompts = [make_prompt(weight, case, job) for job in range(case.num_jobs)]
        self._trainees = [Trainee(candidate, self._leaves(prompt), _HYPERPARAMETERS) for prompt in prompts]

    def _leaves(self, prompt: torch.Tensor) -> Leaves:
        return PromptLeaves({"prompt": prompt.requires_grad_(True)})

    def step(self, jobs: list[list[list[int]]]) -> list[float]:
        """Runs one optimizer step of every job and returns their losses."""
        parts = [
            TrainPart(trainee, [Row(tuple(ids[:-2]), tuple(ids[-2:])) for ids in rows])
            for trainee, rows in zip(self._trainees, jobs, strict=True)
        ]
        losses = backward(self._base, self._forward, parts, 1 << 30)
        for trainee in self._trainees:
            trainee.clip()
            trainee.update()
        found: list[float] = losses.tolist()
        return found


class SharedPrefix(Shared):
    """The same with keys and values, which begin as those of the prompts."""

    def _leaves(self, prompt: torch.Tensor) -> Leaves:
        return KeyValueLeaves.of(key_values_of(self._base, prompt), self._base.device)


class Peft:
    """Runs one job after another, with right padding, masked labels, one loaded model, and float32 prompts."""

    def __init__(self, model: Any, case: Case) -> None:
        from peft import get_peft_model

        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)
        table = model.get_input_embeddings().weight
        self._device = table.device
        starts = [self._start(model, make_prompt(table, case, job)) for job in range(case.num_jobs)]
        self._model = get_peft_model(model, self._config(case))
        self._states = []
        for start in starts:
            parameter = torch.nn.Parameter(start)
            self._states.append((parameter, torch.optim.AdamW([parameter], lr=LEARNING_RATE, weight_decay=0)))

    def _config(self, case: Case) -> Any:
        from peft import PromptTuningConfig, TaskType

        return PromptTuningConfig(task_type=TaskType.CAUSAL_LM, num_virtual_tokens=case.num_virtual_tokens)

    def _start(self, model: Any, prompt: torch.Tensor) -> torch.Tensor:
        return prompt

    def step(self, jobs: list[list[list[int]]]) -> list[float]:
        losses = []
        for (parameter, optimizer), rows in zip(self._states, jobs, strict=True):
            self._model.prompt_encoder["default"].embedding.weight = parameter
            longest = max(map(len, rows))
            ids = torch.zeros(len(rows), longest, dtype=torch.long)
            labels, mask = torch.full_like(ids, -100), torch.zeros_like(ids)
            for index, row in enumerate(rows):
                ids[index, : len(row)] = torch.tensor(row)
                labels[index, len(row) - 2 : len(row)] = ids[index, len(row) - 2 : len(row)]
                mask[index, : len(row)] = 1
            inputs = {"input_ids": ids, "attention_mask": mask, "labels": labels}
            loss = self._model(**{name: tensor.to(self._device) for name, tensor in inputs.items()}).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(float(loss.detach()))
        return losses


class PeftPrefix(Peft):
    """The same with prefix tuning, all of whose positions are trained."""

    def _config(self, case: Case) -> Any:
        from peft import PrefixTuningConfig, TaskType

        return PrefixTuningConfig(task_type=TaskType.CAUSAL_LM, num_virtual_tokens=case.num_virtual_tokens)

    def _start(self, model: Any, prompt: torch.Tensor) -> torch.Tensor:
        prefix = key_values_of(base_of(model), prompt)
        parts = [part for pair in zip(prefix.keys, prefix.values, strict=True) for part in pair]
        return torch.cat([part.flatten(1) for part in parts], dim=1).to(prompt.device)


Contestants = dict[str, type[Shared] | type[Peft]]
CONTESTANTS: Contestants = {"shared": Shared, "peft": Peft}
PREFIX_CONTESTANTS: Contestants = {"prefix": SharedPrefix, "prompt": Shared, "peft": PeftPrefix}
"""Each first one is compared with all others."""
