"""The bytes of a version: one safetensors file with the tensor `prompt_embeddings` (PEFT's key) and the manifest.

    8 bytes   length of the header, little-endian
    header    JSON: {"__metadata__": {"format": "pt", "manifest": "<JSON>"},
                     "prompt_embeddings": {dtype, shape, data_offsets}}
    data      float32, row after row

Reading is stricter than the format: exactly this one tensor, exactly this many bytes, and all limits are checked before
memory is allocated. The file may come from anywhere; any fault raises DamagedBlob. Writing is deterministic, so the
same soft prompt and manifest have the same digest.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from typing import Any

import torch
from pydantic import ValidationError

from shared.errors import DamagedBlob, InvalidInput
from shared.prompt.manifest import MANIFEST_FORMAT, GoldenRecord, Manifest, SamplingDefaults
from shared.prompt.soft_prompt import MAX_HIDDEN_SIZE, MAX_VIRTUAL_TOKENS, SoftPrompt

__all__ = [
    "MAX_BLOB_BYTES",
    "MAX_HEADER_BYTES",
    "TENSOR_KEY",
    "GoldenRecord",
    "Manifest",
    "PromptBlob",
    "SamplingDefaults",
    "check_digest",
    "decode_blob",
    "digest_of",
    "encode_blob",
]

MAX_BLOB_BYTES = 64 << 20
MAX_HEADER_BYTES = 1 << 20
TENSOR_KEY = "prompt_embeddings"

_LENGTH_BYTES = 8
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


@dataclass(frozen=True)
class PromptBlob:
    """A checked version: the matrix, its manifest, and the digest of its bytes."""

    soft_prompt: SoftPrompt
    manifest: Manifest
    digest: str


def digest_of(data: bytes) -> str:
    """`sha256:<hex>` of the bytes."""
    return "sha256:" + hashlib.sha256(data).hexdigest()


def check_digest(digest: str, field: str = "digest") -> str:
    """Returns the digest. Raises InvalidInput if it is malformed, because digests become parts of paths."""
    if not _DIGEST.fullmatch(digest):
        raise InvalidInput.of(field, f"{digest[:80]!r} must be sha256: and 64 lower-case hexadecimal digits")
    return digest


def encode_blob(soft_prompt: SoftPrompt, manifest: Manifest) -> bytes:
    """The bytes of the file. Raises InvalidInput if the manifest is for another shape, or a part is too large."""
    shape = [soft_prompt.num_virtual_tokens, soft_prompt.hidden_size]
    if shape != [manifest.num_virtual_tokens, manifest.hidden_size]:
        raise InvalidInput.of(
            "manifest", f"is for {[manifest.num_virtual_tokens, manifest.hidden_size]}, the soft prompt is {shape}"
        )
    data = soft_prompt.embeddings.detach().contiguous().numpy().astype("<f4", copy=False).tobytes()
    tensor = {"dtype": "F32", "shape": shape, "data_offsets": [0, len(data)]}
    metadata = {"format": "pt", "manifest": manifest.model_dump_json()}
    header = json.dumps({"__metadata__": metadata, TENSOR_KEY: tensor}, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    if len(header) > MAX_HEADER_BYTES:
        raise InvalidInput.of(
            "manifest", f"takes {len(header)} bytes; at most {MAX_HEADER_BYTES} are allowed (recipe, golden records)"
        )
    if _LENGTH_BYTES + len(header) + len(data) > MAX_BLOB_BYTES:
        raise InvalidInput.of("soft_prompt", f"takes {len(data)} bytes; a version may take {MAX_BLOB_BYTES}")
    return len(header).to_bytes(_LENGTH_BYTES, "little") + header + data


def decode_blob(data: bytes) -> PromptBlob:
    """Check the bytes and return the version. Raises only DamagedBlob, for bytes that are not a valid version."""
    if len(data) > MAX_BLOB_BYTES:
        raise DamagedBlob(f"{len(data)} bytes; a version takes at most {MAX_BLOB_BYTES}")
    header, body = _split(data)
    metadata, shape = _read_header(header, len(body))
    manifest = _read_manifest(metadata)
    if shape != (manifest.num_virtual_tokens, manifest.hidden_size):
        raise DamagedBlob(
            f"the tensor is {list(shape)}, the manifest says {[manifest.num_virtual_tokens, manifest.hidden_size]}"
        )
    matrix = torch.frombuffer(bytearray(body), dtype=torch.float32).reshape(shape)  # [num_virtual_tokens, hidden_size]
    return PromptBlob(soft_prompt=SoftPrompt(matrix), manifest=manifest, digest=digest_of(data))


def _split(data: bytes) -> tuple[bytes, memoryview]:
    if len(data) < _LENGTH_BYTES:
        raise DamagedBlob(f"cut short: {len(data)} bytes")
    length = int.from_bytes(data[:_LENGTH_BYTES], "little")
    if length > MAX_HEADER_BYTES:
        raise DamagedBlob(
            f"not a soft prompt in the safetensors format: no header of at most {MAX_HEADER_BYTES} bytes begins it"
        )
    end = _LENGTH_BYTES + length
    if end > len(data):
        raise DamagedBlob(f"cut short: {len(data)} bytes are there, and its header alone ends at byte {end}")
    return data[_LENGTH_BYTES:end], memoryview(data)[end:]


def _read_header(header: bytes, num_data_bytes: int) -> tuple[dict[str, str], tuple[int, int]]:
    """(metadata, shape). Checks that dtype, shape, offsets and the number of data bytes agree."""
    parsed = _parse_json(header)
    metadata = parsed.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise DamagedBlob("the header's metadata is not a map of strings")
    if list(parsed) != [TENSOR_KEY]:
        raise DamagedBlob(f"must hold the one tensor {TENSOR_KEY}, holds {len(parsed)} of other names or number")
    tensor = parsed[TENSOR_KEY]
    if not isinstance(tensor, dict) or set(tensor) != {"dtype", "shape", "data_offsets"}:
        raise DamagedBlob("the tensor's entry must have dtype, shape and data_offsets")
    if tensor["dtype"] != "F32":
        raise DamagedBlob(f"the tensor must be F32, not {str(tensor['dtype'])[:20]!r}")
    rows, columns = _two_integers(tensor["shape"], "shape")
    if not (1 <= rows <= MAX_VIRTUAL_TOKENS and 1 <= columns <= MAX_HIDDEN_SIZE):
        raise DamagedBlob(f"shape [{rows}, {columns}] is outside [1 to {MAX_VIRTUAL_TOKENS}, 1 to {MAX_HIDDEN_SIZE}]")
    if (
        _two_integers(tensor["data_offsets"], "data_offsets") != (0, num_data_bytes)
        or num_data_bytes != rows * columns * 4
    ):
        raise DamagedBlob(
            f"shape [{rows}, {columns}] takes {rows * columns * 4} bytes of data; {num_data_bytes} follow the header"
        )
    return metadata, (rows, columns)


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
        parsed = json.loads(data.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise DamagedBlob("a JSON part can't be read") from error
    if not isinstance(parsed, dict):
        raise DamagedBlob("a JSON part is not an object")
    return parsed


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a key is repeated")
    return result


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")


def _two_integers(value: object, what: str) -> tuple[int, int]:
    if not isinstance(value, list) or len(value) != 2 or not all(type(part) is int for part in value):
        raise DamagedBlob(f"{what} must be two integers")
    return value[0], value[1]


def _first_problem(error: ValidationError | UnicodeError) -> str:
    if isinstance(error, UnicodeError):
        return "its text is not Unicode"
    problem = error.errors(include_url=False, include_input=False, include_context=False)[0]
    where = ".".join(str(part)[:60] for part in problem["loc"])
    return f"{where[:200]}: {problem['msg'][:200]}"
