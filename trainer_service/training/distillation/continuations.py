"""Continuations of inputs that begin with the same text, whose keys and values are computed once for all of them."""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Collection, Sequence
from typing import Any

import torch

from shared.model.base_model import BaseModel
from trainer_service.training.attention.plain_inputs import plain_inputs
from trainer_service.training.faults import is_machine_fault, is_out_of_memory

log = logging.getLogger(__name__)
TEMPERATURE, TOP_P = 0.8, 0.95
"""Of sampled continuations."""


def common_beginning(first: Sequence[int], second: Sequence[int]) -> list[int]:
    """The tokens with which both inputs begin."""
    length = 0
    while length < min(len(first), len(second)) and first[length] == second[length]:
        length += 1
    return list(first[:length])


class Continuations:
    """Generates with one model. Inputs that don't begin with `beginning`, and models that can't continue a cache that
    they are given, compute each input as a whole.
    """

    def __init__(self, base_model: BaseModel, beginning: Sequence[int]) -> None:
        self._base_model, self._beginning = base_model, list(beginning)
        self._cache: Any = None
        self._can_share = len(self._beginning) > 0 and not _has_windows(base_model.model.config)

    @torch.no_grad()
    def generate(
        self,
        inputs: Sequence[Sequence[int]],
        max_new_tokens: int,
        end_token_ids: Collection[int],
        seed: int | None = None,
    ) -> list[list[int]]:
        """The continuations in one batch, each with the token that ended it. `seed`: sample with it; None: greedy."""
        device, stops = self._base_model.device, sorted(end_token_ids)
        how: dict[str, Any] = {"do_sample": False}
        if seed is not None:
            how = {"do_sample": True, "temperature": TEMPERATURE, "top_p": TOP_P, "top_k": 0}
        how |= {"max_new_tokens": max_new_tokens, "eos_token_id": stops or None}
        how["pad_token_id"] = stops[0] if stops else 0
        with warnings.catch_warnings(), torch.random.fork_rng([device] if device.type == "cuda" else []):
            # greedy decoding doesn't read the generation config's sampling defaults, and transformers warns of that
            warnings.simplefilter("ignore")
            ids = self._shared(inputs, how, seed) if self._shares(inputs) else None
            if ids is None:
                ids = self._whole(inputs, how, seed)
        return [_to_end(row, end_token_ids) for row in ids.tolist()]

    def _shares(self, inputs: Sequence[Sequence[int]]) -> bool:
        length = len(self._beginning)
        return self._can_share and all(len(ids) > length and list(ids[:length]) == self._beginning for ids in inputs)

    def _whole(self, inputs: Sequence[Sequence[int]], how: dict[str, Any], seed: int | None) -> torch.Tensor:
        model, device = self._base_model.model, self._base_model.device
        embed = model.get_input_embeddings()
        rows = [embed(torch.tensor(ids, device=device)) for ids in inputs]
        _seed(seed)
        found: torch.Tensor = model.generate(**plain_inputs(rows, [None] * len(rows), "left"), **how)
        return found

    def _shared(self, inputs: Sequence[Sequence[int]], how: dict[str, Any], seed: int | None) -> torch.Tensor | None:
        """None if the model can't do that; padding is between the beginning and the rest of each input."""
        model, device, length = self._base_model.model, self._base_model.device, len(self._beginning)
        longest = max(map(len, inputs))
        padding = [longest - len(ids) for ids in inputs]
        tokens = [[*self._beginning, *[0] * pad, *ids[length:]] for pad, ids in zip(padding, inputs, strict=True)]
        mask = [[1] * length + [0] * pad + [1] * (longest - length - pad) for pad in padding]
        try:
            if self._cache is None:
                beginning = torch.tensor([self._beginning], device=device)
                self._cache = model(input_ids=beginning, use_cache=True, logits_to_keep=1).past_key_values
            known = copy.deepcopy(self._cache)
            known.batch_repeat_interleave(len(inputs))
            _seed(seed)
            found: torch.Tensor = model.generate(
                input_ids=torch.tensor(tokens, device=device),
                attention_mask=torch.tensor(mask, device=device),
                past_key_values=known,
                **how,
            )
            return found[:, longest:]
        except Exception as error:
            if is_machine_fault(error) or is_out_of_memory(error):
                raise
            log.info("keys and values of the text are not shared; each question computes them: %s", str(error)[:200])
            self._can_share, self._cache = False, None
            return None


def _has_windows(config: Any) -> bool:
    """Whether a layer's attention has a window: padding behind the beginning would shorten it."""
    text = config.get_text_config()
    kinds = getattr(text, "layer_types", None)
    if kinds is not None:
        return any(kind != "full_attention" for kind in kinds)
    return getattr(text, "sliding_window", None) is not None


def _seed(seed: int | None) -> None:
    if seed is not None:
        torch.manual_seed(seed)


def _to_end(ids: list[int], end_token_ids: Collection[int]) -> list[int]:
    end = next((index for index, token in enumerate(ids) if token in end_token_ids), len(ids))
    return ids[: end + 1]
