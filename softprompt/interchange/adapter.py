"""A version as a directory that `peft.PeftModel.from_pretrained` loads.

adapter_model.safetensors   one tensor with PEFT's name, the manifest without golden records in the metadata: of a soft
                            prompt the version's blob, of keys and values its numbers in PEFT's order
adapter_config.json         the settings that PEFT requires; the init is RANDOM because PEFT then loads the matrix
softprompt.json             what PEFT has no field for: template, labels, metrics, origin
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from shared.errors import AlreadyExists, DamagedBlob, InvalidInput
from shared.model.safetensors_file import ITEM_BYTES
from softprompt.output_files import replaced
from softprompt.types.prompts import PromptVersion

_LENGTH_BYTES = 8
_PEFT_TYPES = {"": ("PROMPT_TUNING",), "PROMPT": ("PROMPT_TUNING",), "PREFIX": ("PREFIX_TUNING", "CARTRIDGE")}
"""PEFT's names of a version's kind, the default first. Servers of earlier releases give no kind."""
WEIGHTS_FILE, CONFIG_FILE, ABOUT_FILE = "adapter_model.safetensors", "adapter_config.json", "softprompt.json"


def write_adapter(
    directory: Path,
    version: PromptVersion,
    data: bytes,
    base_model: str = "",
    overwrite: bool = False,
    peft_type: str = "",
) -> Path:
    """Write the three files. `base_model`: the directory or hub id from which PEFT loads the model; empty: the
    trainer's id. `peft_type`: PREFIX_TUNING (if empty) or CARTRIDGE for keys and values. Raises AlreadyExists without
    `overwrite`, DamagedBlob if `data` does not have the version's digest, InvalidInput if the directory can't be
    written or PEFT has no form for the kind.
    """
    if (found := f"sha256:{hashlib.sha256(data).hexdigest()}") != version.digest:
        raise DamagedBlob(f"{version.name} has digest {version.digest}; what arrived has {found}")
    allowed = _PEFT_TYPES.get(version.kind)
    if allowed is None:
        raise InvalidInput.of("version", f"{version.name} is of kind {version.kind[:40]!r}, for which PEFT has no form")
    chosen = peft_type or allowed[0]
    if chosen not in allowed:
        raise InvalidInput.of("peft_type", f"{chosen[:40]!r} must be {' or '.join(allowed)} for {version.name}")
    weights = without_golden_records(data)
    if version.kind == "PREFIX":
        weights, heads, width = flattened(weights)
        config = key_values_config(version, chosen, heads, width, base_model)
    else:
        config = adapter_config(version, base_model)
    files = {WEIGHTS_FILE: weights, CONFIG_FILE: _as_json(config), ABOUT_FILE: _as_json(_about(version))}
    try:
        directory.mkdir(parents=True, exist_ok=True)
        taken = [name for name in files if (directory / name).exists()]
        if taken and not overwrite:
            raise AlreadyExists(f"{directory} already contains {', '.join(taken)}")
        for name, content in files.items():  # the weights first: PEFT ignores a directory without them
            with replaced(directory / name) as written:
                written.write_bytes(content)
    except OSError as error:
        raise InvalidInput.of("directory", f"can't write to {str(directory)!r}: {error.strerror or error}") from error
    return directory


def without_golden_records(blob: bytes) -> bytes:
    """The blob without the golden records in its manifest, if it has one: in earlier releases they contained training
    inputs. Raises DamagedBlob for a manifest that can't be read.
    """
    try:
        header, begin = _header(blob)
        metadata = header.get("__metadata__", {})
        if "manifest" not in metadata:
            return blob
        manifest = json.loads(metadata["manifest"])
        manifest.pop("golden", None)
        metadata["manifest"] = json.dumps(manifest, separators=(",", ":"), ensure_ascii=False)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise DamagedBlob("the version's manifest can't be read") from error
    return _file(header, blob[begin:])


def _header(blob: bytes) -> tuple[dict[str, Any], int]:
    """The header of a safetensors file, and where its data begins."""
    begin = _LENGTH_BYTES + int.from_bytes(blob[:_LENGTH_BYTES], "little")
    return json.loads(blob[_LENGTH_BYTES:begin]), begin


def _file(header: dict[str, Any], data: bytes) -> bytes:
    """A safetensors file."""
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _LENGTH_BYTES)
    return len(text).to_bytes(_LENGTH_BYTES, "little") + text + data


def adapter_config(version: PromptVersion, base_model: str) -> dict[str, Any]:
    """PEFT's configuration (PromptTuningConfig) of a version."""
    model = version.base_model
    known = {"token_dim": model.hidden_size, "num_layers": model.num_layers} if model else {}
    return {
        "peft_type": "PROMPT_TUNING",
        "task_type": "CAUSAL_LM",
        "inference_mode": True,
        "base_model_name_or_path": base_model or (model.id if model else ""),
        "num_virtual_tokens": version.num_virtual_tokens,
        "num_transformer_submodules": 1,
        "prompt_tuning_init": "RANDOM",
        **known,
    }


def key_values_config(
    version: PromptVersion, peft_type: str, heads: int, width: int, base_model: str
) -> dict[str, Any]:
    """PEFT's configuration (PrefixTuningConfig or CartridgeConfig) of keys and values with `heads` heads of `width`."""
    own = {"num_frozen_tokens": 1} if peft_type == "CARTRIDGE" else {"prefix_projection": False}
    config = adapter_config(version, base_model)
    del config["prompt_tuning_init"]
    return {**config, "peft_type": peft_type, "token_dim": heads * width, "num_attention_heads": heads, **own}


def _about(version: PromptVersion) -> dict[str, Any]:
    model, template = version.base_model, version.template
    return {
        "version": version.name,
        "digest": version.digest,
        "kind": version.kind,
        "job": version.job,
        "parent": version.parent,
        "base_model": None if model is None else {"id": model.id, "fingerprint": model.fingerprint},
        "template": None
        if template is None
        else {"text": template.text, "format": template.format, "system": template.system},
        "labels": list(version.labels),
        "metrics": dict(version.metrics),
    }


def _as_json(value: dict[str, Any]) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()


FLAT_KEY = "prompt_embeddings"


def flattened(blob: bytes) -> tuple[bytes, int, int]:
    """Keys and values in the form of PEFT: (safetensors file with the matrix and the version's manifest, key-value
    heads, width of a head). A row of the matrix, PEFT's `prompt_embeddings`, is a position: the key of layer 0 (head
    after head), its value, the key of layer 1, and so on. Raises InvalidInput if PEFT has no form for the layers,
    DamagedBlob for other bytes.
    """
    try:
        header, begin = _header(blob)
        metadata = header.pop("__metadata__", {})
        shapes = {tuple(entry["shape"]) for entry in header.values()}
        dtypes = {entry["dtype"] for entry in header.values()}
        if len(dtypes) != 1 or any(len(shape) != 3 for shape in shapes):
            raise DamagedBlob("the version holds no keys and values")
        if len(shapes) != 1:
            reason = f"PEFT keeps keys and values of one shape only; this version has {sorted(shapes)}"
            raise InvalidInput.of("version", reason)
        ((positions, heads, width),), (dtype,) = shapes, dtypes
        num_bytes = heads * width * ITEM_BYTES[dtype]
        starts = [begin + entry["data_offsets"][0] for entry in header.values()]
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise DamagedBlob("the version's header can't be read") from error
    data = memoryview(blob)
    places = (start + position * num_bytes for position in range(positions) for start in starts)
    body = b"".join(data[place : place + num_bytes] for place in places)
    shape = [positions, len(starts) * heads * width]
    matrix = {"dtype": dtype, "shape": shape, "data_offsets": [0, len(body)]}
    return _file({"__metadata__": metadata, FLAT_KEY: matrix}, body), heads, width
