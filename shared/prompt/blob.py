"""The bytes of a version: one safetensors file with the tensors of a prefix and the manifest.

    8 bytes   length of the header, little-endian
    header    JSON: {"__metadata__": {"format": "pt", "manifest": "<JSON>"},
                     name: {dtype, shape, data_offsets}, ...}
    data      float32 or bfloat16, tensor after tensor, row after row

The manifest names the kind of prefix, and the kind decides which tensors there are (`kinds`); for a soft prompt this is
`prompt_embeddings`, PEFT's key, in float32. Keys and values are written as bfloat16 if every one of them is a bfloat16
number, which loses nothing. Reading is stricter than the format: exactly these tensors in this order, exactly this many
bytes, and all limits are checked before memory is allocated. The file may come from anywhere; any fault raises
DamagedBlob. Writing is deterministic, so the same prefix and manifest have the same digest.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
import torch
from pydantic import ValidationError

from shared.errors import DamagedBlob, InvalidInput
from shared.json_keys import no_constant, unique_keys
from shared.model.safetensors_file import ITEM_BYTES
from shared.prompt.digest import MAX_BLOB_BYTES, digest_of
from shared.prompt.kinds import KINDS
from shared.prompt.manifest import MANIFEST_FORMAT, Manifest
from shared.prompt.prefix import Prefix

MAX_HEADER_BYTES = 1 << 20

_LENGTH_BYTES = 8


@dataclass(frozen=True)
class PromptBlob:
    """A checked version: the prefix, its manifest, and the digest of its bytes."""

    prefix: Prefix
    manifest: Manifest
    digest: str


def encode_blob(prefix: Prefix, manifest: Manifest) -> bytes:
    """The bytes of the file. Raises InvalidInput if the manifest is for another prefix, or a part is too large."""
    tensors, kind = prefix.tensors(), KINDS[manifest.kind]
    try:
        kind.check_shapes({name: tuple(tensor.shape) for name, tensor in tensors.items()}, manifest)
    except DamagedBlob as error:
        raise InvalidInput.of("manifest", f"is for another prefix: {error.message}") from error
    header: dict[str, Any] = {"__metadata__": {"format": "pt", "manifest": manifest.model_dump_json()}}
    arrays = {name: tensor.detach().contiguous().numpy().astype("<f4", copy=False) for name, tensor in tensors.items()}
    is_short = kind.is_bfloat16_stored and all(map(_is_bfloat16, arrays.values()))
    parts, end = list[bytes](), 0
    for name, array in arrays.items():
        parts.append(_upper_halves(array).tobytes() if is_short else array.tobytes())
        begin, end = end, end + len(parts[-1])
        dtype = "BF16" if is_short else "F32"
        header[name] = {"dtype": dtype, "shape": list(array.shape), "data_offsets": [begin, end]}
    written = json.dumps(header, separators=(",", ":")).encode()
    written += b" " * (-len(written) % 8)
    if len(written) > MAX_HEADER_BYTES:
        raise InvalidInput.of(
            "manifest", f"takes {len(written)} bytes; at most {MAX_HEADER_BYTES} are allowed (recipe, golden records)"
        )
    if _LENGTH_BYTES + len(written) + end > kind.max_bytes:
        raise InvalidInput.of("prefix", f"takes {end} bytes; a {manifest.kind} may take {kind.max_bytes}")
    return b"".join([len(written).to_bytes(_LENGTH_BYTES, "little"), written, *parts])


def decode_blob(data: bytes) -> PromptBlob:
    """Check the bytes and return the version. Raises only DamagedBlob, for bytes that are not a valid version."""
    if len(data) > MAX_BLOB_BYTES:
        raise DamagedBlob(f"{len(data)} bytes; a version takes at most {MAX_BLOB_BYTES}")
    header, body = _split(data)
    metadata, entries = _read_header(header)
    manifest = _read_manifest(metadata)
    kind = KINDS[manifest.kind]
    if len(data) > kind.max_bytes:
        raise DamagedBlob(f"{len(data)} bytes; a {manifest.kind} takes at most {kind.max_bytes}")
    _check_dtypes(entries, kind)
    kind.check_shapes({name: entry.shape for name, entry in entries.items()}, manifest)
    _check_offsets(entries, len(body))
    tensors = {name: _tensor(entry, body) for name, entry in entries.items()}
    return PromptBlob(prefix=kind.from_tensors(tensors), manifest=manifest, digest=digest_of(data))


def read_manifest(data: bytes) -> Manifest:
    """The manifest alone; the tensors are not checked. Raises DamagedBlob if it is missing or damaged."""
    return _read_manifest(_read_header(_split(data)[0])[0])


@dataclass(frozen=True)
class _Entry:
    """One tensor as the header describes it."""

    dtype: str
    shape: tuple[int, ...]
    offsets: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        return ITEM_BYTES[self.dtype] * math.prod(self.shape)


def _split(data: bytes) -> tuple[bytes, memoryview]:
    if len(data) < _LENGTH_BYTES:
        raise DamagedBlob(f"cut short: {len(data)} bytes")
    length = int.from_bytes(data[:_LENGTH_BYTES], "little")
    if length > MAX_HEADER_BYTES:
        raise DamagedBlob(
            f"not a version in the safetensors format: no header of at most {MAX_HEADER_BYTES} bytes begins it"
        )
    end = _LENGTH_BYTES + length
    if end > len(data):
        raise DamagedBlob(f"cut short: {len(data)} bytes are there, and its header alone ends at byte {end}")
    return data[_LENGTH_BYTES:end], memoryview(data)[end:]


def _read_header(header: bytes) -> tuple[dict[str, str], dict[str, _Entry]]:
    """(metadata, tensors by name). Checks types only."""
    parsed = _parse_json(header)
    metadata = parsed.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise DamagedBlob("the header's metadata is not a map of strings")
    entries = dict[str, _Entry]()
    for name, tensor in parsed.items():
        if not isinstance(tensor, dict) or set(tensor) != {"dtype", "shape", "data_offsets"}:
            raise DamagedBlob("the tensor's entry must have dtype, shape and data_offsets")
        entries[name] = _Entry(
            str(tensor["dtype"])[:20],
            _integers(tensor["shape"], "shape"),
            _integers(tensor["data_offsets"], "data_offsets"),
        )
    return metadata, entries


def _check_dtypes(entries: Mapping[str, _Entry], kind: type[Prefix]) -> None:
    """Check that all tensors have one dtype, which this kind may have."""
    allowed = ("F32", "BF16") if kind.is_bfloat16_stored else ("F32",)
    found = {entry.dtype for entry in entries.values()}
    if wrong := sorted(found.difference(allowed)):
        raise DamagedBlob(f"the tensor must be {' or '.join(allowed)}, not {wrong[0]!r}")
    if len(found) > 1:
        raise DamagedBlob("all tensors must have the same dtype")


def _tensor(entry: _Entry, body: memoryview) -> torch.Tensor:
    """A copy of the tensor's numbers, in float32."""
    data = body[entry.offsets[0] : entry.offsets[1]]
    if entry.dtype == "F32":
        return torch.frombuffer(bytearray(data), dtype=torch.float32).reshape(entry.shape)
    halves = np.frombuffer(data, dtype="<u2").astype("<u4")
    return torch.from_numpy((halves << 16).view("<f4")).reshape(entry.shape)


def _is_bfloat16(array: np.ndarray[Any, Any]) -> bool:
    """Whether every float32 number is a bfloat16 number: those are its upper 16 bits."""
    return not (array.view("<u4") & 0xFFFF).any()


def _upper_halves(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return (array.view("<u4") >> 16).astype("<u2")


def _check_offsets(entries: Mapping[str, _Entry], num_data_bytes: int) -> None:
    """Check that the tensors fill the data bytes one after another, without gaps."""
    ends = list(accumulate((entry.num_bytes for entry in entries.values()), initial=0))
    if [entry.offsets for entry in entries.values()] != list(pairwise(ends)) or ends[-1] != num_data_bytes:
        shapes = ", ".join(str(list(entry.shape)) for entry in entries.values())
        raise DamagedBlob(f"shape {shapes[:200]} takes {ends[-1]} bytes of data; {num_data_bytes} follow the header")


def _read_manifest(metadata: dict[str, str]) -> Manifest:
    text = metadata.get("manifest")
    if text is None:
        raise DamagedBlob("has no manifest; use import for soft prompts of other tools")
    written = _parse_json(text.encode("utf-8", "surrogatepass")).get("format")
    if isinstance(written, int) and written > MANIFEST_FORMAT:
        raise DamagedBlob(
            f"has a manifest of format {written}; this build reads up to {MANIFEST_FORMAT}: update it", format=written
        )
    try:
        return Manifest.model_validate_json(text)
    except (ValidationError, UnicodeError) as error:
        raise DamagedBlob(f"the manifest is not sound: {_first_problem(error)}") from error


def _parse_json(data: bytes) -> dict[str, Any]:
    """A JSON object without repeated keys (readers may disagree about them) and without NaN or infinities."""
    try:
        parsed = json.loads(data.decode("utf-8"), object_pairs_hook=unique_keys, parse_constant=no_constant)
    except (ValueError, RecursionError) as error:
        raise DamagedBlob("a JSON part can't be read") from error
    if not isinstance(parsed, dict):
        raise DamagedBlob("a JSON part is not an object")
    return parsed


def _integers(value: object, what: str) -> tuple[int, ...]:
    if not isinstance(value, list) or not all(type(part) is int for part in value):
        raise DamagedBlob(f"{what} must be a list of integers")
    return tuple(value)


def _first_problem(error: ValidationError | UnicodeError) -> str:
    if isinstance(error, UnicodeError):
        return "its text is not Unicode"
    problem = error.errors(include_url=False, include_input=False, include_context=False)[0]
    where = ".".join(str(part)[:60] for part in problem["loc"])
    return f"{where[:200]}: {problem['msg'][:200]}"
