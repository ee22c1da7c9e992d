"""Inputs for the model's own code: rows after their prefixes, padded to the longest."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch

from shared.prompt.prefix import VirtualTokens


def plain_inputs(
    rows: Sequence[torch.Tensor], prefixes: Sequence[VirtualTokens | None], padding_side: Literal["left", "right"]
) -> dict[str, torch.Tensor]:
    """Arguments of the model's `forward` and `generate`; `None` among the prefixes is the bare model.

    `rows`: embeddings `[tokens, width]`. The result has `inputs_embeds` `[rows, longest, width]` and `attention_mask`
    `[rows, longest]`, with the prefixes' positions.
    """
    rows = [
        row if prefix is None else torch.cat([prefix.embeddings, row])
        for row, prefix in zip(rows, prefixes, strict=True)
    ]
    padded = torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True, padding_side=padding_side)
    lengths = torch.tensor([len(row) for row in rows], device=padded.device)
    places, longest = torch.arange(padded.shape[1], device=padded.device)[None], padded.shape[1]
    mask = places >= longest - lengths[:, None] if padding_side == "left" else places < lengths[:, None]
    return {"inputs_embeds": padded, "attention_mask": mask.long()}
