"""Damaged and hostile bytes of a version are refused by name, safely, and in little memory."""

from __future__ import annotations

import json
import resource
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from shared.errors import DamagedBlob
from shared.prompt.blob import MAX_HEADER_BYTES, PromptBlob, decode_blob
from shared.prompt.digest import MAX_BLOB_BYTES, digest_of
from shared.prompt.manifest import Manifest
from shared.prompt.soft_prompt import SoftPrompt
from shared.values.enums import PrefixKind
from tests.shared.prompt.blob_bytes import (
    BLOB,
    BLOBS,
    DATA,
    HEADER,
    KEY_VALUES,
    by_kind,
    join,
    split,
    with_manifest,
    with_tensor,
)
from tests.shared.prompt.blobs import soft_prompt

NUM_DATA_BYTES = 4 * 8 * 4


def without_tensor(name: str) -> bytes:
    header, data = split(KEY_VALUES)
    del header[name]
    return join(header, data)


def in_other_order() -> bytes:
    header, data = split(KEY_VALUES)
    return join(dict(sorted(header.items(), reverse=True)), data)


INFO = json.dumps(json.loads(HEADER["__metadata__"]["manifest"])["base_model"])


@pytest.mark.parametrize(
    ("damaged", "why"),
    {
        "empty": (b"", "cut short"),
        "only a length": (BLOB[:8], "cut short"),
        "header cut": (BLOB[:50], "cut short"),
        "data cut": (BLOB[:-1], "follow the header"),
        "data longer": (BLOB + b"\0", "follow the header"),
        "header claims terabytes": ((1 << 45).to_bytes(8, "little") + BLOB[8:], "no header of at most"),
        "header claims all of 64 bits": (b"\xff" * 8 + BLOB[8:], "no header of at most"),
        "header not JSON": (join(b"{" * 20, DATA), "JSON"),
        "header not Unicode": (join(b"\xff\xfe{}", DATA), "JSON"),
        "header a list": (join([], DATA), "not an object"),
        "header deep": (join(b"[" * 500_000, DATA), "JSON"),
        "header of huge number": (join(b'{"x":' + b"9" * 5000 + b"}", DATA), "JSON"),
        "pickle": (b"\x80\x04\x95" + BLOB, "no header of at most"),
        "a key twice": (join(json.dumps(HEADER)[:-1].encode() + b', "prompt_embeddings": 1}', DATA), "JSON"),
        "no tensor": (join({"__metadata__": HEADER["__metadata__"]}, DATA), "one tensor"),
        "another tensor": (join({**HEADER, "weights": HEADER["prompt_embeddings"]}, DATA), "one tensor"),
        "another name": (
            join({"__metadata__": HEADER["__metadata__"], "weights": HEADER["prompt_embeddings"]}, DATA),
            "one tensor",
        ),
        "tensor not an entry": (join({"prompt_embeddings": 3}, DATA), "must have dtype"),
        "metadata not strings": (join({**HEADER, "__metadata__": {"manifest": {}}}, DATA), "map of strings"),
        "no manifest": (join({**HEADER, "__metadata__": {}}, DATA), "no manifest"),
        "float16": (with_tensor(dtype="F16"), "must be F32"),
        "dtype a list": (with_tensor(dtype=[]), "must be F32"),
        "shape of three": (with_tensor(shape=[4, 4, 2]), "two integers"),
        "shape of booleans": (with_tensor(shape=[True, 32]), "list of integers"),
        "shape of floats": (with_tensor(shape=[4.0, 8.0]), "list of integers"),
        "shape negative": (with_tensor(shape=[-4, -8]), "outside"),
        "shape zero": (with_tensor(shape=[0, 8]), "outside"),
        "shape huge": (with_tensor(shape=[1 << 62, 1 << 62]), "outside"),
        "shape of another product": (with_tensor(shape=[4, 9]), "the manifest says"),
        "shape turned": (with_tensor(shape=[8, 4]), "the manifest says"),
        "offsets beyond the end": (with_tensor(data_offsets=[0, NUM_DATA_BYTES + 4]), "follow the header"),
        "offsets inside the header": (with_tensor(data_offsets=[-8, NUM_DATA_BYTES - 8]), "follow the header"),
        "keys and values in float16": (with_tensor(PrefixKind.PREFIX, dtype="F16"), "must be F32 or BF16, not 'F16'"),
        "keys and values of two dtypes": (with_tensor(PrefixKind.PREFIX, dtype="F32"), "the same dtype"),
        "a matrix instead of keys": (with_manifest(kind="PREFIX"), "layers.0.key"),
        "keys and values instead of a matrix": (with_manifest(PrefixKind.PREFIX, kind="PROMPT"), "must be F32"),
        "a layer missing": (without_tensor("layers.1.value"), "of 2 layers; holds 3"),
        "layers in another order": (in_other_order(), "layers.0.key, layers.0.value, layers.1.key"),
        "a key without heads": (with_tensor(PrefixKind.PREFIX, shape=[4, 4]), "is not .num_virtual_tokens, kv_heads"),
        "heads and width turned": (with_tensor(PrefixKind.PREFIX, shape=[4, 4, 1]), "keys of 4 heads and values of 1"),
        "a position less": (with_tensor(PrefixKind.PREFIX, shape=[3, 1, 4]), "has 3 positions"),
        "keys of another product": (with_tensor(PrefixKind.PREFIX, shape=[4, 1, 5]), "follow the header"),
        "more layers than there can be": (
            with_manifest(PrefixKind.PREFIX, base_model={**json.loads(INFO), "num_layers": 10**15}),
            "of 1000000000000000 layers",
        ),
        "no layers": (
            with_manifest(PrefixKind.PREFIX, base_model={**json.loads(INFO), "num_layers": 0}),
            "of 0 layers",
        ),
        "manifest of a newer format": (with_manifest(format=2, novelty=1), "format 2; this build reads up to 1"),
        "manifest of an unknown kind": (with_manifest(kind="TUNED"), "kind"),
        "manifest with something else": (with_manifest(novelty=1), "novelty"),
        "manifest for a path": (with_manifest(prompt="../../etc"), "prompt"),
        "manifest of another size": (with_manifest(num_virtual_tokens=5), "the manifest says"),
        "manifest with infinity": (with_manifest(metrics={"loss": float("inf")}), "JSON"),
        "template without its field": (
            with_manifest(template={"text": "x", "format": "TEXT", "system": ""}),
            "template",
        ),
    }.values(),
)
def test_damage_is_named(damaged: bytes, why: str) -> None:
    with pytest.raises(DamagedBlob, match=why):
        decode_blob(damaged)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_values_that_are_not_finite(value: float) -> None:
    matrix = soft_prompt().embeddings.clone()
    matrix[2, 3] = value
    with pytest.raises(DamagedBlob, match="finite"):
        decode_blob(join(HEADER, matrix.numpy().tobytes()))
    header, data = split(KEY_VALUES)
    with pytest.raises(DamagedBlob, match="finite"):
        decode_blob(join(header, torch.tensor([value]).bfloat16().view(torch.uint8).numpy().tobytes() + data[2:]))


def test_too_large_is_refused_by_its_length_alone() -> None:
    with pytest.raises(DamagedBlob, match="at most"):
        decode_blob(bytes(MAX_BLOB_BYTES + 1))
    with pytest.raises(DamagedBlob, match="a PROMPT takes at most 67108864"):
        decode_blob(BLOB + bytes(SoftPrompt.max_bytes))


@by_kind
def test_a_single_flipped_bit_changes_the_digest_or_is_refused(kind: PrefixKind) -> None:
    data = BLOBS[kind]
    for position in range(0, len(data), 7):
        flipped = bytearray(data)
        flipped[position] ^= 1
        blob = _decoded(bytes(flipped))
        assert blob is None or blob.digest != digest_of(data)


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.text(max_size=10)
    | st.sampled_from(["F32", "BF16"]),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["dtype", "shape", "x"]), inner, max_size=4)
    ),
    max_leaves=12,
)


pairs = st.lists(st.integers(-1, 2**64), max_size=3)


tensors = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "BF16"]) | json_values,
        "shape": st.lists(st.integers(-1, 2**64), max_size=3) | json_values,
        "data_offsets": json_values,
    }
)


headers = st.dictionaries(
    st.sampled_from(["__metadata__", "prompt_embeddings", "layers.0.key", "other"]), tensors | json_values, max_size=3
)


def _decoded(data: bytes) -> PromptBlob | None:
    """Hostile bytes raise DamagedBlob and nothing else."""
    try:
        return decode_blob(data)
    except DamagedBlob:
        return None


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(header=headers, data=st.binary(max_size=200))
def test_fuzzed_headers(header: dict[str, Any], data: bytes) -> None:
    assert _decoded(join(header, data)) is None


@by_kind
@settings(max_examples=300, deadline=None)
@given(fields=st.dictionaries(st.sampled_from(sorted(Manifest.model_fields)), json_values, min_size=1, max_size=3))
def test_fuzzed_manifests(kind: PrefixKind, fields: dict[str, Any]) -> None:
    blob = _decoded(with_manifest(kind, **fields))
    assert blob is None or blob.manifest.hidden_size == 8


@by_kind
@settings(max_examples=300, deadline=None)
@given(position=st.integers(0, 4000), patch=st.binary(min_size=1, max_size=16), cut=st.integers(0, 4000))
@example(position=0, patch=b"\xff" * 8, cut=4000)
def test_fuzzed_bytes(kind: PrefixKind, position: int, patch: bytes, cut: int) -> None:
    data = BLOBS[kind]
    position %= len(data)
    blob = _decoded((data[:position] + patch + data[position + len(patch) :])[:cut])
    assert blob is None or all(bool(torch.isfinite(tensor).all()) for tensor in blob.prefix.tensors().values())


def test_hostile_headers_take_no_memory() -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for kind, shape in (
        *((PrefixKind.PROMPT, shape) for shape in ([1024, 65536], [1 << 40, 1], [1, 1 << 40])),
        *((PrefixKind.PREFIX, shape) for shape in ([1024, 1024, 4096], [4, 1024, 4096], [1 << 40, 1, 1])),
    ):
        for claimed in (0, 1 << 62):
            _decoded(with_tensor(kind, shape=shape, data_offsets=[0, claimed]))
    for header in (
        b"[" * MAX_HEADER_BYTES,
        b'{"a":' * (MAX_HEADER_BYTES // 5),
        b'"' + b"x" * (MAX_HEADER_BYTES - 2) + b'"',
    ):
        _decoded(join(header, b""))
    grown_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown_kib < 64 << 10
