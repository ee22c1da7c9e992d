"""Converts soft prompts that were trained elsewhere from safetensors files to blobs. Other formats, above all pickle,
are never read.

Accepted are blobs of this system (also from another store), PEFT's prompt-tuning adapters, the `decoder` prompts of
TGIS and caikit, and files with one plain matrix. A blob contains its base model's fingerprint, its template and its
golden records, which are kept unless they hold inputs of its training data. The other formats don't name their base
model, so the caller does and only the width can be checked; this trainer makes golden records for them.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load

from shared.errors import DamagedBlob, InvalidInput, PreconditionFailed
from shared.model.base_model import BaseModelInfo
from shared.model.safetensors_file import complaint
from shared.names import check_alias, check_name
from shared.prompt.blob import TENSOR_KEY, decode_blob, encode_blob
from shared.prompt.manifest import GoldenRecord, Manifest, utc_now
from shared.prompt.soft_prompt import SoftPrompt
from shared.text.template import Template, TemplateFormat, dated
from shared.values.spec import moved_alias
from trainer_service.base_models import BaseModels
from trainer_service.training.data.dataset import check_labels

_IMPORT_PREFIX = "imports/"
_PICKLE_BEGINNINGS = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
_DECODER, _ENCODER = "decoder", "encoder"
_FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
_MAX_REQUEST_ID_CHARS = 128


@dataclass(frozen=True)
class ImportRequest:
    """A request to import a prompt. `template` and `labels` are for files that contain none; `alias` is as in
    `PublishPolicy`.
    """

    prompt: str
    base_model: str
    template: Template
    labels: tuple[str, ...]
    alias: str
    request_id: str

    def __post_init__(self) -> None:
        """Raises InvalidInput."""
        check_name(self.prompt, "header.prompt")
        if self.moved_alias:
            check_alias(self.moved_alias, "header.alias")
        if len(self.request_id) > _MAX_REQUEST_ID_CHARS:
            raise InvalidInput.of("header.request_id", f"at most {_MAX_REQUEST_ID_CHARS} characters are allowed")
        self.template.check("header.template")
        check_labels(self.labels)

    @property
    def moved_alias(self) -> str:
        """The alias that moves to the new version; empty if none does."""
        return moved_alias(self.alias)


def import_job(request: ImportRequest) -> str:
    """The name that the store records as the job of an import; a repeated request id gives the same name."""
    return f"{_IMPORT_PREFIX}{request.request_id or uuid.uuid4().hex}"


def is_import(job: str) -> bool:
    """Whether a version's job is an import."""
    return job.startswith(_IMPORT_PREFIX)


@dataclass(frozen=True)
class Imported:
    """A checked import. `unproven_on` is the directory of the base model with which golden records must be made; None
    if the file contains some.
    """

    soft_prompt: SoftPrompt
    manifest: Manifest
    unproven_on: Path | None

    def blob(self, golden: tuple[GoldenRecord, ...] = ()) -> tuple[bytes, Manifest]:
        """The blob to publish and its manifest, with the new golden records, if any."""
        manifest = self.manifest.model_copy(update={"golden": golden}) if golden else self.manifest
        return encode_blob(self.soft_prompt, manifest), manifest


def read_import(data: bytes, request: ImportRequest, models: BaseModels) -> Imported:
    """Checks the file of an import. Raises InvalidInput, DamagedBlob, or PreconditionFailed for another base model."""
    if data.startswith(_PICKLE_BEGINNINGS):
        reason = "pickle files can execute code and are never read; save the tensor as safetensors"
        raise InvalidInput.of(
            "chunk", f"begins as a pickle (PyTorch's .bin, .pt, .pth, .pkl) or as an archive of one: {reason}"
        )
    model = models.get(request.base_model, "header.base_model")
    try:
        own = decode_blob(data)
    except DamagedBlob as error:
        soft_prompt = _read_matrix(data, error)
        return Imported(soft_prompt, _new_manifest(soft_prompt, request, model.info), model.path)
    _check_base_model(own.manifest.base_model, model.info)
    golden = tuple(record for record in own.manifest.golden if record.is_synthetic)
    manifest = own.manifest.model_copy(update={"prompt": request.prompt, "golden": golden})
    return Imported(own.soft_prompt, manifest, None if golden else model.path)


def _read_matrix(data: bytes, as_blob: DamagedBlob) -> SoftPrompt:
    """The matrix of a safetensors file from another program; `as_blob` says why the file isn't a blob."""
    try:
        tensors = load(data)
    except (SafetensorError, ValueError, KeyError, OverflowError) as error:
        raise DamagedBlob(
            f"the file is not a valid safetensors file: {complaint(data, len(data)) or as_blob.message}"
        ) from error
    if any(name.split(".")[0] == _ENCODER for name in tensors):
        raise InvalidInput.of("chunk", "holds a prompt for an encoder; only decoder models are served")
    found = next((tensors[name] for name in (TENSOR_KEY, _DECODER) if name in tensors), None)
    if found is None and len(tensors) == 1:
        found = next(iter(tensors.values()))
    if found is None:
        raise InvalidInput.of(
            "chunk", f"must hold the tensor {TENSOR_KEY} or {_DECODER}, or one tensor only; it holds {len(tensors)}"
        )
    if found.dtype not in _FLOATS:
        raise InvalidInput.of("chunk", f"must be a matrix of floating-point numbers, not of {found.dtype}")
    return SoftPrompt(found.to(torch.float32).contiguous())


def _new_manifest(soft_prompt: SoftPrompt, request: ImportRequest, info: BaseModelInfo) -> Manifest:
    if soft_prompt.hidden_size != info.hidden_size:
        text = (
            f"the matrix has width {soft_prompt.hidden_size}; {info.id} with fingerprint {info.fingerprint} has "
            f"{info.hidden_size}"
        )
        raise PreconditionFailed(text, hidden_size=soft_prompt.hidden_size, base_model_fingerprint=info.fingerprint)
    return Manifest(
        prompt=request.prompt,
        base_model=info,
        template=dated(replace(request.template, format=request.template.format or TemplateFormat.TEXT)),
        num_virtual_tokens=soft_prompt.num_virtual_tokens,
        hidden_size=soft_prompt.hidden_size,
        labels=request.labels,
        created_at=utc_now(),
    )


def _check_base_model(source: BaseModelInfo, model: BaseModelInfo) -> None:
    if source.fingerprint != model.fingerprint:
        raise PreconditionFailed(
            f"the file is for a base model with fingerprint {source.fingerprint}; {model.id} has {model.fingerprint}",
            source_fingerprint=source.fingerprint,
            base_model_fingerprint=model.fingerprint,
        )
