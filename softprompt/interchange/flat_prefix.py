"""Keys and values in the form of PEFT: one matrix, a row for each position. Bytes only, so it needs no torch.

A row holds the key of layer 0 (head after head), its value, the key of layer 1, and so on: PEFT's `prompt_embeddings`
of prefix tuning and of cartridges.
"""

from __future__ import annotations

import json
from typing import Any

from shared.errors import DamagedBlob, InvalidInput

_LENGTH_BYTES = 8
_ITEM_BYTES = {"F32": 4, "BF16": 2}
FLAT_KEY = "prompt_embeddings"


def flattened(blob: bytes) -> tuple[bytes, int, int]:
    """(safetensors file with the matrix and the version's manifest, key-value heads, width of a head).

    Raises InvalidInput if PEFT has no form for its layers, DamagedBlob for bytes that are no such version.
    """
    begin = _LENGTH_BYTES + int.from_bytes(blob[:_LENGTH_BYTES], "little")
    try:
        header: dict[str, Any] = json.loads(blob[_LENGTH_BYTES:begin])
        metadata = header.pop("__metadata__", {})
        shapes = {tuple(entry["shape"]) for entry in header.values()}
        dtypes = {entry["dtype"] for entry in header.values()}
        if len(dtypes) != 1 or any(len(shape) != 3 for shape in shapes):
            raise DamagedBlob("the version holds no keys and values")
        if len(shapes) != 1:
            raise InvalidInput.of(
                "version", f"PEFT keeps keys and values of one shape only; this version has {sorted(shapes)}"
            )
        ((positions, heads, width),), (dtype,) = shapes, dtypes
        num_bytes = heads * width * _ITEM_BYTES[dtype]
        starts = [begin + entry["data_offsets"][0] for entry in header.values()]
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise DamagedBlob("the version's header can't be read") from error
    data = memoryview(blob)
    rows = [
        data[start + position * num_bytes : start + (position + 1) * num_bytes]
        for position in range(positions)
        for start in starts
    ]
    body = b"".join(rows)
    written = {
        "__metadata__": metadata,
        FLAT_KEY: {"dtype": dtype, "shape": [positions, len(starts) * heads * width], "data_offsets": [0, len(body)]},
    }
    text = json.dumps(written, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _LENGTH_BYTES)
    return len(text).to_bytes(_LENGTH_BYTES, "little") + text + body, heads, width
