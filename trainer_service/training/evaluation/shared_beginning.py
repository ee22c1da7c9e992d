"""The tokens that all inputs of a baseline begin with, such as few-shot examples, as keys and values computed once.

Scoring shares them anyway, within each of its passes (`packing`). The model's own code, which generates answers, does
not.
"""

from __future__ import annotations

import logging
from dataclasses import replace

import torch

from shared.model.base_model import BaseModel
from shared.prompt.lift import key_values_of
from shared.prompt.prefix import PrefixInput
from shared.values.hyperparameters import MAX_VIRTUAL_TOKENS
from trainer_service.training.attention.forward import PlainForward, check_key_values
from trainer_service.training.attention.packing import Row, common_length
from trainer_service.training.data.encoding import EncodedDataset
from trainer_service.training.faults import is_machine_fault

log = logging.getLogger(__name__)

MIN_TOKENS = 64
"""With fewer tokens, computing their keys and values separately costs more than it saves."""


@torch.no_grad()
def shared_beginning(base_model: BaseModel, data: EncodedDataset) -> tuple[PrefixInput | None, EncodedDataset]:
    """The keys and values of the common beginning, and the data without it.

    None and the data as it is, if the beginning is short, if the model gives other answers after keys and values, or if
    it has a sliding window: then only inputs of equal length can be generated together (`greedy_answers`).
    """
    length = min(common_length([Row(row.input_ids, row.target_ids) for row in data.examples]), MAX_VIRTUAL_TOKENS)
    if length < MIN_TOKENS or getattr(base_model.model.config.get_text_config(), "sliding_window", None) is not None:
        return None, data
    ids = torch.tensor(data.examples[0].input_ids[:length], device=base_model.device)
    try:
        check_key_values(base_model, PlainForward(base_model))
        lifted = key_values_of(base_model, base_model.model.get_input_embeddings()(ids))
    except Exception as error:  # models that can't be given keys and values raise anything
        if is_machine_fault(error):
            raise
        log.info("every answer computes the %d tokens that all inputs begin with: %s", length, str(error)[:200])
        return None, data
    rest = tuple(replace(row, input_ids=row.input_ids[length:]) for row in data.examples)
    return lifted.input(base_model.dtype, base_model.device), replace(data, examples=rest)
