"""Converts soft prompts that were trained elsewhere from safetensors files to blobs. Other formats, above all pickle,
are never read.

Accepted are blobs of this system (also from another store), PEFT's adapters of prompt tuning, prefix tuning and
cartridges, the `decoder` prompts of TGIS and caikit, and files with one plain matrix. A blob contains its base model's
fingerprint, its template and its golden records, which are kept unless they hold inputs of its training data. The other
formats don't identify their base model, so the caller names it or confirms the name that PEFT gives, and only the
width can be checked; this trainer makes golden records for them.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load

from shared.errors import DamagedBlob, InvalidInput, PreconditionFailed
from shared.model.safetensors_file import complaint
from shared.names import MAX_REQUEST_ID_CHARS, check_alias, check_name
from shared.pickles import PICKLE_BEGINNINGS
from shared.prompt.blob import decode_blob, encode_blob, read_manifest
from shared.prompt.key_values import KeyValuePrefix
from shared.prompt.manifest import GoldenRecord, Manifest, utc_now
from shared.prompt.prefix import Prefix
from shared.prompt.soft_prompt import TENSOR_KEY, SoftPrompt
from shared.text.template import Template, TemplateFormat, dated
from shared.values.base_model import BaseModelInfo
from shared.values.enums import PrefixKind
from shared.values.spec import moved_alias
from trainer_service.base_models import BaseModels, KnownBaseModel
from trainer_service.training.data.dataset import check_labels

_IMPORT_PREFIX = "imports/"
_DECODER, _ENCODER = "decoder", "encoder"
_FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


@dataclass(frozen=True)
class ImportRequest:
    """A request to import a prompt. `template` and `labels` are for files that contain none; `alias` is as in
    `PublishPolicy`. `kind`: what a foreign matrix is, a name of PrefixKind; empty: its width decides.
    """

    prompt: str
    base_model: str
    template: Template
    labels: tuple[str, ...]
    alias: str
    request_id: str
    kind: str = ""
    trained_on: str = ""
    """The base model that another program names; checked if `base_model` is empty."""

    def __post_init__(self) -> None:
        """Raises InvalidInput."""
        check_name(self.prompt, "header.prompt")
        if self.moved_alias:
            check_alias(self.moved_alias, "header.alias")
        if len(self.request_id) > MAX_REQUEST_ID_CHARS:
            raise InvalidInput.of("header.request_id", f"at most {MAX_REQUEST_ID_CHARS} characters are allowed")
        if self.kind and self.kind not in list(PrefixKind):
            raise InvalidInput.of("header.kind", f"{self.kind[:40]!r} must be empty or one of {', '.join(PrefixKind)}")
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

    prefix: Prefix
    manifest: Manifest
    unproven_on: Path | None

    def blob(self, golden: tuple[GoldenRecord, ...] = ()) -> tuple[bytes, Manifest]:
        """The blob to publish and its manifest, with the new golden records, if any."""
        manifest = self.manifest.model_copy(update={"golden": golden}) if golden else self.manifest
        return encode_blob(self.prefix, manifest), manifest


def read_import(data: bytes, request: ImportRequest, models: BaseModels) -> Imported:
    """Checks the file of an import. Raises InvalidInput, DamagedBlob, or PreconditionFailed for another base model."""
    if data.startswith(PICKLE_BEGINNINGS):
        reason = "pickle files can execute code and are never read; save the tensor as safetensors"
        raise InvalidInput.of(
            "chunk", f"begins as a pickle (PyTorch's .bin, .pt, .pth, .pkl) or as an archive of one: {reason}"
        )
    try:
        own = decode_blob(data)
    except DamagedBlob as error:
        exported, field = _exported_manifest(data), "header.base_model"
        is_named = bool(request.trained_on) and not request.base_model and exported is None
        model = models.trained_on(request.trained_on, field) if is_named else models.get(request.base_model, field)
        return _read_foreign(_read_matrix(data, error), exported, request, model)
    fitting = (info.id for info in models.infos if info.fingerprint == own.manifest.base_model.fingerprint)
    model = models.get(request.base_model or next(fitting, ""), "header.base_model")
    _check_base_model(own.manifest.base_model, model.info)
    golden = tuple(record for record in own.manifest.golden if record.is_synthetic)
    manifest = own.manifest.model_copy(update={"prompt": request.prompt, "golden": golden})
    return Imported(own.prefix, manifest, None if golden else model.path)


def _exported_manifest(data: bytes) -> Manifest | None:
    """The manifest of keys and values that were exported in PEFT's form; None if the file has none."""
    try:
        manifest = read_manifest(data)
    except DamagedBlob:
        return None
    return manifest if manifest.kind is PrefixKind.PREFIX else None


def _read_foreign(
    matrix: torch.Tensor, exported: Manifest | None, request: ImportRequest, model: KnownBaseModel
) -> Imported:
    if _is_flat(matrix, exported, request, model):
        prefix: Prefix = from_flat(matrix, model)
    else:
        prefix = SoftPrompt(matrix)
        if prefix.hidden_size != model.info.hidden_size:
            raise PreconditionFailed(
                f"the matrix has width {prefix.hidden_size}; {model.info.id} with fingerprint "
                f"{model.info.fingerprint} has {model.info.hidden_size}",
                hidden_size=prefix.hidden_size,
                base_model_fingerprint=model.info.fingerprint,
            )
    if exported is not None:
        _check_base_model(exported.base_model, model.info)
        return Imported(prefix, exported.model_copy(update={"prompt": request.prompt, "golden": ()}), model.path)
    return Imported(prefix, _new_manifest(prefix, request, model.info), model.path)


def _is_flat(matrix: torch.Tensor, exported: Manifest | None, request: ImportRequest, model: KnownBaseModel) -> bool:
    """Whether the matrix holds keys and values: its file or the request says so, or only they have its width."""
    if exported is not None:
        return True
    if request.kind:
        return request.kind == PrefixKind.PREFIX
    width = matrix.shape[-1] if matrix.dim() == 2 else 0
    may_be_flat = width != model.info.hidden_size and width > 0 and width % (2 * model.info.num_layers) == 0
    return may_be_flat and width == flat_width(model)


def _read_matrix(data: bytes, as_blob: DamagedBlob) -> torch.Tensor:
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
    return found.to(torch.float32).contiguous()


def _new_manifest(prefix: Prefix, request: ImportRequest, info: BaseModelInfo) -> Manifest:
    return Manifest(
        prompt=request.prompt,
        base_model=info,
        template=dated(replace(request.template, format=request.template.format or TemplateFormat.TEXT)),
        kind=prefix.kind,
        num_virtual_tokens=prefix.num_virtual_tokens,
        hidden_size=info.hidden_size,
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


def flat_width(model: KnownBaseModel) -> int:
    """Numbers that PEFT keeps of one position: two for each layer, head and component of a head."""
    heads, width = _heads(model)
    return 2 * model.info.num_layers * heads * width


def from_flat(matrix: torch.Tensor, model: KnownBaseModel) -> KeyValuePrefix:
    """The prefix of a matrix `[num_virtual_tokens, layers * 2 * kv_heads * width]`, float32, as PEFT flattens prefix
    tuning and cartridges. PEFT puts keys and values into the model's cache as they are and gives the first input token
    the position after them, as this service does; so no rotary embedding is undone or added.
    Raises PreconditionFailed for another width, or a model with latent attention, for which PEFT has no form.
    """
    heads, width = _heads(model)
    if matrix.dim() != 2 or matrix.shape[1] != flat_width(model):
        raise PreconditionFailed(
            f"the matrix is {list(matrix.shape)}; keys and values for {model.info.id} with fingerprint "
            f"{model.info.fingerprint} take {flat_width(model)} numbers for each position "
            f"({model.info.num_layers} layers, {heads} heads of width {width})",
            base_model_fingerprint=model.info.fingerprint,
        )
    layers = matrix.reshape(matrix.shape[0], model.info.num_layers, 2, heads, width)
    keys, values = (
        tuple(layers[:, layer, part].contiguous() for layer in range(model.info.num_layers)) for part in (0, 1)
    )
    return KeyValuePrefix(keys, values)


def _heads(model: KnownBaseModel) -> tuple[int, int]:
    """(key-value heads, width of a head), by PEFT's rule."""
    from transformers import AutoConfig

    config: Any = AutoConfig.from_pretrained(model.path, trust_remote_code=False).get_text_config()
    if isinstance(getattr(config, "kv_lora_rank", None), int):
        raise PreconditionFailed(
            f"{model.info.id} keeps latents instead of keys and values; another program's prefix can't be imported"
        )
    if getattr(config, "is_heterogeneous", False):
        raise PreconditionFailed(
            f"{model.info.id} has layers with different heads; another program's prefix can't be imported"
        )
    heads = config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    return getattr(config, "num_key_value_heads", None) or heads, width
