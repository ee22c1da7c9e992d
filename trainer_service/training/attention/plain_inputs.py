"""Inputs for the model's own code: rows after their prefixes, padded to the longest."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from transformers.cache_utils import DynamicCache

from shared.prompt.prefix import PrefixInput


def plain_inputs(
    rows: Sequence[torch.Tensor], prefixes: Sequence[PrefixInput | None], padding_side: Literal["left", "right"]
) -> dict[str, Any]:
    """Arguments of the model's `forward` and `generate`; `None` among the prefixes is the bare model.

    `rows`: embeddings `[tokens, width]`. The result has `inputs_embeds` `[rows, longest, width]` with virtual tokens,
    and `attention_mask` with all positions. Keys and values are in `past_key_values`, after padding to the longest
    prefix; `position_ids` then count what each row has.
    """
    rows = [
        row if prefix is None or prefix.embeddings is None else torch.cat([prefix.embeddings, row])
        for row, prefix in zip(rows, prefixes, strict=True)
    ]
    padded = torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True, padding_side=padding_side)
    mask = _mask([len(row) for row in rows], padded.shape[1], padding_side, padded.device)
    given = [0 if prefix is None else prefix.num_given for prefix in prefixes]
    if not any(given):
        return {"inputs_embeds": padded, "attention_mask": mask}
    before = _mask(given, max(given), "left", padded.device)
    whole = torch.cat([before, mask], dim=1)
    hidden = [0 if prefix is None else prefix.num_hidden for prefix in prefixes]
    counted = whole.cumsum(1) - 1 + torch.tensor(hidden, device=padded.device)[:, None]
    return {
        "inputs_embeds": padded,
        "attention_mask": whole,
        "position_ids": counted.clamp(min=0)[:, max(given) :],
        "past_key_values": cache_of(prefixes, max(given)),
    }


def _mask(
    lengths: Sequence[int], longest: int, padding_side: Literal["left", "right"], device: torch.device
) -> torch.Tensor:
    places, wanted = torch.arange(longest, device=device)[None], torch.tensor(lengths, device=device)[:, None]
    return (places >= longest - wanted if padding_side == "left" else places < wanted).long()


def cache_of(prefixes: Sequence[PrefixInput | None], longest: int) -> DynamicCache:
    """A new cache with each row's keys and values, padded on the left to `longest` positions, with gradient."""
    cache = _PrefixCache()
    some = next(prefix for prefix in prefixes if prefix is not None and prefix.keys)
    for layer, like in enumerate(zip(some.keys, some.values, strict=True)):
        pair = [
            torch.stack(
                [
                    none if prefix is None or not prefix.keys else _padded(getattr(prefix, part)[layer], longest)
                    for prefix in prefixes
                ]
            ).transpose(1, 2)
            for part, none in zip(
                ("keys", "values"), (one.new_zeros(longest, *one.shape[1:]) for one in like), strict=True
            )
        ]
        cache.update(pair[0], pair[1], layer)
    return cache


class _PrefixCache(DynamicCache):  # type: ignore[misc]
    """A cache for layers on several devices: what it begins with moves to a layer's device when that layer reads it."""

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if layer_idx < len(self.layers) and (layer := self.layers[layer_idx]).is_initialized:
            layer.keys, layer.values = layer.keys.to(key_states.device), layer.values.to(value_states.device)
        keys, values = super().update(key_states, value_states, layer_idx, *args, **kwargs)
        return keys, values


def _padded(tensor: torch.Tensor, longest: int) -> torch.Tensor:
    return torch.cat([tensor.new_zeros(longest - len(tensor), *tensor.shape[1:]), tensor])
