"""The bytes of a version: readable by us, by safetensors and by PEFT; all other bytes are refused safely."""

from __future__ import annotations

import hashlib
import json
import resource
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from safetensors import safe_open
from safetensors.torch import load_file

from shared.errors import DamagedBlob, InvalidInput
from shared.prompt.blob import (
    MAX_BLOB_BYTES,
    MAX_HEADER_BYTES,
    PromptBlob,
    check_digest,
    decode_blob,
    digest_of,
    encode_blob,
)
from shared.prompt.key_values import KeyValuePrefix
from shared.prompt.manifest import GoldenRecord, Manifest, parse_timestamp, utc_now
from shared.prompt.prefix import PrefixKind
from shared.prompt.soft_prompt import SoftPrompt
from shared.text.template import Template
from shared.values.enums import TemplateFormat
from tests.shared.prompt.blobs import base_model_info, key_values, make_blob, manifest, prefix_of, soft_prompt

BLOB = encode_blob(soft_prompt(), manifest())
BLOBS = {kind: make_blob(kind=kind) for kind in PrefixKind}
KEY_VALUES = BLOBS[PrefixKind.PREFIX]
FIRST = {PrefixKind.PROMPT: "prompt_embeddings", PrefixKind.PREFIX: "layers.0.key"}
by_kind = pytest.mark.parametrize("kind", list(PrefixKind))
NUM_DATA_BYTES = 4 * 8 * 4


def split(blob: bytes) -> tuple[dict[str, Any], bytes]:
    end = 8 + int.from_bytes(blob[:8], "little")
    return json.loads(blob[8:end]), blob[end:]


def join(header: object, data: bytes) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def with_tensor(kind: PrefixKind = PrefixKind.PROMPT, **fields: Any) -> bytes:
    header, data = split(BLOBS[kind])
    header[FIRST[kind]] |= fields
    return join(header, data)


def with_manifest(of: PrefixKind = PrefixKind.PROMPT, **fields: Any) -> bytes:
    header, data = split(BLOBS[of])
    header["__metadata__"]["manifest"] = json.dumps(json.loads(header["__metadata__"]["manifest"]) | fields)
    return join(header, data)


def matrix_of(blob: PromptBlob) -> torch.Tensor:
    return blob.prefix.tensors()["prompt_embeddings"]


def without_tensor(name: str) -> bytes:
    header, data = split(KEY_VALUES)
    del header[name]
    return join(header, data)


def in_other_order() -> bytes:
    header, data = split(KEY_VALUES)
    return join(dict(sorted(header.items(), reverse=True)), data)


class TestRoundTrip:
    def test_the_bytes_of_a_soft_prompt_never_change(self) -> None:
        """A release that wrote other bytes for the same version would publish it under another digest."""
        zeros = encode_blob(
            SoftPrompt(torch.zeros(4, 8)), manifest(template=Template("Say: {input}", TemplateFormat.TEXT))
        )
        assert digest_of(zeros) == "sha256:4d8ea5ed11e9d4152b99608f70f70c390eca534c68485c57f9aa24c734b9be5b"

    def test_the_bytes_of_keys_and_values_never_change(self) -> None:
        keys, values = ((torch.full((4, 1, 4), number),) * 2 for number in (0.5, -0.25))
        made = manifest(kind=PrefixKind.PREFIX, template=Template("Say: {input}", TemplateFormat.TEXT))
        halves = encode_blob(KeyValuePrefix(keys, values), made)
        assert digest_of(halves) == "sha256:b22cd3e2b41f899dd8896ab906820e5eab9417d3e9acccdb31577427e62b44c5"

    @by_kind
    def test_everything_comes_back(self, kind: PrefixKind) -> None:
        blob, data = decode_blob(BLOBS[kind]), BLOBS[kind]
        assert blob.prefix.equals(prefix_of(kind))
        assert blob.manifest == manifest(kind=kind)
        assert blob.digest == digest_of(data) == "sha256:" + hashlib.sha256(data).hexdigest()
        assert encode_blob(blob.prefix, blob.manifest) == data, "the same content has the same digest"

    def test_bfloat16_numbers_take_two_bytes_and_others_four(self) -> None:
        """Neither conversion loses a bit."""
        exact = key_values(num_virtual_tokens=4)
        for prefix, item_bytes in ((exact, 4), (exact.rounded(), 2)):
            blob = encode_blob(prefix, manifest(kind=PrefixKind.PREFIX))
            assert len(split(blob)[1]) == item_bytes * 2 * 2 * 4 * 4
            assert decode_blob(blob).prefix.equals(prefix)
        assert not exact.equals(exact.rounded())

    def test_safetensors_reads_it(self, tmp_path: Path) -> None:
        path = tmp_path / "adapter_model.safetensors"
        path.write_bytes(BLOB)
        assert torch.equal(load_file(path)["prompt_embeddings"], soft_prompt().embeddings)
        with safe_open(path, framework="pt") as file:
            assert list(file.keys()) == ["prompt_embeddings"]
            assert file.metadata()["format"] == "pt"
        path.write_bytes(KEY_VALUES)
        loaded = load_file(path)
        assert {tensor.dtype for tensor in loaded.values()} == {torch.bfloat16}
        expected = prefix_of(PrefixKind.PREFIX).tensors()
        assert all(torch.equal(tensor.float(), expected[name]) for name, tensor in loaded.items())

    def test_text_of_any_kind_survives(self) -> None:
        awkward = manifest(
            template=Template(text='„{input}" \u2028 \0 \U0001f642 {{}}'),
            labels=("ä", '"', ""),
            recipe={"nested": [1, {"x": None}]},
        )
        assert decode_blob(encode_blob(soft_prompt(), awkward)).manifest == awkward

    def test_the_matrix_is_a_copy_of_its_own(self) -> None:
        first, second = decode_blob(BLOB), decode_blob(BLOB)
        matrix_of(first).zero_()
        assert torch.equal(matrix_of(second), soft_prompt().embeddings)

    def test_a_transposed_matrix_is_written_in_order(self) -> None:
        matrix = soft_prompt(num_virtual_tokens=8, hidden_size=4).embeddings.t()
        blob = decode_blob(encode_blob(type(soft_prompt())(matrix), manifest()))
        assert torch.equal(matrix_of(blob), matrix)


class TestWriting:
    def test_another_shape_than_the_manifest_says(self) -> None:
        with pytest.raises(InvalidInput, match="manifest"):
            encode_blob(soft_prompt(num_virtual_tokens=5), manifest())
        for prefix in (key_values(num_virtual_tokens=5), key_values(num_layers=3), soft_prompt()):
            with pytest.raises(InvalidInput, match="manifest"):
                encode_blob(prefix, manifest(kind=PrefixKind.PREFIX))

    def test_too_many_bytes(self) -> None:
        """The limit is by kind: keys and values take more than embeddings."""
        assert KeyValuePrefix.max_bytes == MAX_BLOB_BYTES == 4 * SoftPrompt.max_bytes
        layer = torch.zeros(1024, 64, 1024)
        large = KeyValuePrefix((layer,), (layer,))
        with pytest.raises(InvalidInput, match="a PREFIX may take 268435456"):
            encode_blob(
                large,
                manifest(
                    kind=PrefixKind.PREFIX,
                    num_virtual_tokens=1024,
                    base_model=replace(base_model_info(), num_layers=1),
                ),
            )

    def test_a_manifest_too_large_to_be_read_back(self) -> None:
        with pytest.raises(InvalidInput, match="manifest"):
            encode_blob(soft_prompt(), manifest(recipe={"notes": "x" * MAX_HEADER_BYTES}))

    @pytest.mark.parametrize(
        "fields",
        [
            {"prompt": "../x"},
            {"prompt": "Upper"},
            {"metrics": {"loss": float("nan")}},
            {"metrics": {str(number): 0.0 for number in range(65)}},
            {"base_model": base_model_info(hidden_size=9)},
            {"num_virtual_tokens": 0},
            {"created_at": "yesterday"},
            {"template": Template(text="no field")},
            {
                "golden": (
                    {"text": "", "input_ids": [1], "top_token_ids": [1, 2], "top_logprobs": [0.0], "dtype": "float32"},
                )
            },
            {"unknown": 1},
        ],
    )
    def test_manifests_that_cannot_be(self, fields: dict[str, Any]) -> None:
        with pytest.raises(ValidationError):
            manifest(**fields)

    def test_times_are_utc_and_sort(self) -> None:
        first, second = utc_now(), utc_now()
        assert first <= second
        assert parse_timestamp(first).utcoffset() is not None
        assert manifest(created_at=first).created_at == first
        assert parse_timestamp("2026-01-02T03:04:05.123456789Z").microsecond == 123456


HEADER, DATA = split(BLOB)
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


@pytest.mark.parametrize(
    "digest",
    ["", "sha256:", "sha256:" + "0" * 63, "sha256:" + "0" * 65, "sha1:" + "0" * 64, "sha256:" + "0" * 64 + "\n"],
)
def test_digests_by_rule(digest: str) -> None:
    with pytest.raises(InvalidInput, match="digest"):
        check_digest(digest)


def test_golden_records_hold_what_they_say() -> None:
    record = GoldenRecord(text="a", input_ids=(1,), top_token_ids=(2, 3), top_logprobs=(-0.1, -3.0), dtype="bfloat16")
    assert decode_blob(encode_blob(soft_prompt(), manifest(golden=(record,)))).manifest.golden == (record,)
