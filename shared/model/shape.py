"""The sizes of a model that decide how much memory it takes, from its files and without its weights."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

from shared.errors import Unavailable
from shared.model.model_files import weight_files
from shared.model.safetensors_file import header_of


@dataclass(frozen=True)
class ModelShape:
    """What the files of a base model say about its memory."""

    num_weights: int
    file_bytes: int
    is_quantised: bool
    num_layers: int
    vocab_size: int
    position_width: int
    """Numbers that a layer keeps of each position for the backward pass."""
    key_value_width: int
    """Numbers in the key and the value of a position in a layer."""

    @classmethod
    def read(cls, path: Path) -> ModelShape | None:
        """The shape of the model in a directory; None if its configuration lacks a width, or a file can't be read."""
        try:
            found = json.loads((path / "config.json").read_bytes())
            config = {**found, **(found.get("text_config") or {})}
            hidden, heads = int(config["hidden_size"]), int(config["num_attention_heads"])
            head = int(config.get("head_dim") or hidden // heads)
            key_value = 2 * head * int(config.get("num_key_value_heads") or heads)
            inner = int(config.get("moe_intermediate_size") or config.get("intermediate_size") or 4 * hidden)
            inner *= int(config.get("num_experts_per_tok") or 1)
            files = weight_files(path)
            return cls(
                num_weights=sum(map(_num_weights, files)),
                file_bytes=sum(file.stat().st_size for file in files),
                is_quantised=bool(found.get("quantization_config")),
                num_layers=int(config["num_hidden_layers"]),
                vocab_size=int(config["vocab_size"]),
                position_width=2 * inner + 2 * hidden + head * heads + key_value,
                key_value_width=key_value,
            )
        except (
            OSError,
            ValueError,
            LookupError,
            TypeError,
            AttributeError,
            ArithmeticError,
            RecursionError,
            Unavailable,
        ):
            return None


def _num_weights(file: Path) -> int:
    """The number of weights in a safetensors file, from its header."""
    header = json.loads(header_of(file))
    return sum(math.prod(entry["shape"]) for name, entry in header.items() if name != "__metadata__")
