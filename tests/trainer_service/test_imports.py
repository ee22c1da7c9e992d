"""Fuzzed foreign files: any bytes give a valid matrix or an error, in little memory."""

from __future__ import annotations

import json
import pickle
import resource
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from safetensors.torch import save
from transformers import AutoConfig, LlamaConfig

from shared.errors import DamagedBlob, InvalidInput, PreconditionFailed, SoftPromptError
from shared.prompt.blob import decode_blob
from shared.prompt.digest import MAX_BLOB_BYTES
from shared.text.template import Template
from tests.shared.prompt.blobs import base_model_info
from trainer_service.base_models import KnownBaseModel
from trainer_service.imports import ImportRequest, read_import

WIDTH = 8
SOUND = save({"prompt_embeddings": torch.arange(4 * WIDTH, dtype=torch.float32).reshape(4, WIDTH)})
FLAT_WIDTH = 2 * 2 * 1 * 4
"""Two layers, a key and a value each, of one head of width 4."""
SOUND_FLAT = save({"prompt_embeddings": torch.arange(4 * FLAT_WIDTH, dtype=torch.float32).reshape(4, FLAT_WIDTH)})
REQUEST = ImportRequest(prompt="tone", base_model="tiny", template=Template(), labels=(), alias="", request_id="")


class Models:
    """The one base model of the tests."""

    path = Path()
    infos = ()

    def get(self, id: str, field: str = "base_model") -> KnownBaseModel:
        return KnownBaseModel(base_model_info(WIDTH), None, self.path)


@pytest.fixture(scope="module", autouse=True)
def model_config(tmp_path_factory: pytest.TempPathFactory) -> None:
    """The directory contains the shape of its attention heads."""
    Models.path = tmp_path_factory.mktemp("model")
    LlamaConfig(hidden_size=WIDTH, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1).save_pretrained(
        Models.path
    )


def imported(data: bytes) -> torch.Tensor | None:
    """The numbers by position; None if the file was refused with a proper error."""
    models: Any = Models()
    try:
        blob, manifest = read_import(data, REQUEST, models).blob()
    except SoftPromptError:
        return None
    assert manifest.prompt == "tone"
    tensors = decode_blob(blob).prefix.tensors()
    return torch.cat([tensor.flatten(1) for tensor in tensors.values()], dim=1)


def file_of(header: object, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


@pytest.mark.parametrize(("sound", "width"), [(SOUND, WIDTH), (SOUND_FLAT, FLAT_WIDTH)])
@settings(max_examples=200, deadline=None)
@given(position=st.integers(0, 1000), patch=st.binary(min_size=1, max_size=16), cut=st.integers(0, 1000))
@example(position=0, patch=b"\xff" * 8, cut=1000)
@example(position=0, patch=b"", cut=1000)
def test_damaged_files(sound: bytes, width: int, position: int, patch: bytes, cut: int) -> None:
    position %= len(sound)
    matrix = imported((sound[:position] + patch + sound[position + len(patch) :])[:cut])
    assert matrix is None or (matrix.shape[1] in (WIDTH, FLAT_WIDTH) and bool(torch.isfinite(matrix).all()))
    if not patch and cut >= len(sound):
        assert matrix is not None
        assert matrix.shape == (4, width)


def test_the_order_of_a_flat_matrix_is_by_layer() -> None:
    models: Any = Models()
    prefix = read_import(SOUND_FLAT, REQUEST, models).prefix
    assert list(prefix.tensors()) == ["layers.0.key", "layers.0.value", "layers.1.key", "layers.1.value"]
    assert prefix.tensors()["layers.1.key"][2].flatten().tolist() == [40.0, 41.0, 42.0, 43.0]


def test_keys_and_values_for_layers_of_different_heads_are_refused(tmp_path: Path) -> None:
    """PEFT's matrix for Gemma 4 has padding in some layers."""
    AutoConfig.for_model("gemma4_text", num_hidden_layers=2).save_pretrained(tmp_path)
    models: Any = Models()
    models.path = tmp_path
    with pytest.raises(PreconditionFailed, match="has layers with different heads"):
        read_import(SOUND_FLAT, replace(REQUEST, kind="PREFIX"), models)


def test_the_kind_of_a_matrix_may_be_said() -> None:
    models: Any = Models()
    for data, kind, why in (
        (SOUND, "PREFIX", "take 16 numbers for each position"),
        (SOUND_FLAT, "PROMPT", f"has width {FLAT_WIDTH}"),
    ):
        with pytest.raises(PreconditionFailed, match=why):
            read_import(data, replace(REQUEST, kind=kind), models)
    with pytest.raises(InvalidInput, match=r"header.kind.*'LORA' must be empty or one of PROMPT, PREFIX"):
        replace(REQUEST, kind="LORA")


values = st.one_of(st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.floats(), st.text(max_size=8))
entries = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "F16", "BF16", "F64", "I64", "BOOL", "F8_E4M3", "F4", "nonsense"]) | values,
        "shape": st.lists(st.integers(-1, 2**64), max_size=4) | values,
        "data_offsets": st.lists(st.integers(-1, 2**64), max_size=3) | values,
    }
)
headers = st.dictionaries(
    st.sampled_from(["prompt_embeddings", "decoder", "encoder", "x", "__metadata__"]), entries | values, max_size=3
)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(header=headers, data=st.binary(max_size=128))
@example(header={"x": {"dtype": "F8_E4M3", "shape": [2, 8], "data_offsets": [0, 16]}}, data=bytes(16))
@example(header={"x": {"dtype": "F32", "shape": [0, 8], "data_offsets": [0, 0]}}, data=b"")
@example(header={"x": {"dtype": "BOOL", "shape": [2, 8], "data_offsets": [0, 16]}}, data=bytes(16))
def test_hostile_headers(header: dict[str, Any], data: bytes) -> None:
    matrix = imported(file_of(header, data))
    assert matrix is None or bool(torch.isfinite(matrix).all())


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=300))
def test_any_bytes(data: bytes) -> None:
    imported(data)


def test_hostile_sizes_take_no_memory() -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for shape in ([1024, 65536], [1 << 40, 1], [1 << 32, 1 << 32]):
        assert imported(file_of({"x": {"dtype": "F32", "shape": shape, "data_offsets": [0, 1 << 40]}})) is None
    for header in (b"[" * (1 << 20), b'{"a":' * (1 << 18), b'"' + b"x" * (1 << 20) + b'"'):
        assert imported(file_of(header)) is None
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 << 10


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_pickles_are_never_read(protocol: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*args: object, **kwargs: object) -> object:
        raise AssertionError("a pickle was read")

    data = pickle.dumps({"prompt_embeddings": [1.0]}, protocol=protocol)
    monkeypatch.setattr(pickle, "loads", forbidden)
    monkeypatch.setattr(torch, "load", forbidden)
    models: Any = Models()
    with pytest.raises(InvalidInput, match="begins as a pickle"):
        read_import(data, REQUEST, models)


@pytest.mark.parametrize(
    ("tensors", "kind", "why"),
    [
        ({"x": torch.full((2, WIDTH), float("inf"))}, DamagedBlob, "finite"),
        (
            {"x": torch.full((2, WIDTH), 1e300, dtype=torch.float64)},
            DamagedBlob,
            "finite",
        ),  # finite before the cast, not after it
        ({"x": torch.zeros(2, WIDTH + 1)}, PreconditionFailed, f"has width {WIDTH + 1}"),
        ({"x": torch.zeros(1025, WIDTH)}, DamagedBlob, "1025 virtual tokens"),
        ({"x": torch.zeros(2, 2, WIDTH)}, DamagedBlob, "is a matrix"),
        ({"decoder": torch.zeros(2, WIDTH), "encoder": torch.ones(2, WIDTH)}, InvalidInput, "encoder"),
        ({"encoder": torch.zeros(2, WIDTH)}, InvalidInput, "encoder"),
        ({"x": torch.zeros(2, WIDTH), "y": torch.ones(2, WIDTH)}, InvalidInput, "holds 2"),
    ],
)
def test_matrices_that_cannot_be_served(
    tensors: dict[str, torch.Tensor], kind: type[SoftPromptError], why: str
) -> None:
    models: Any = Models()
    with pytest.raises(kind, match=why):
        read_import(save(tensors), REQUEST, models)
    assert len(SOUND) < MAX_BLOB_BYTES
