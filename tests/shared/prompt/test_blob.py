"""The bytes of a version: what is written is read back, by us, by safetensors and by PEFT."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors import safe_open
from safetensors.torch import load_file

from shared.errors import InvalidInput
from shared.prompt.blob import MAX_HEADER_BYTES, PromptBlob, decode_blob, encode_blob
from shared.prompt.digest import MAX_BLOB_BYTES, check_digest, digest_of
from shared.prompt.key_values import KeyValuePrefix
from shared.prompt.manifest import GoldenRecord, parse_timestamp, utc_now
from shared.prompt.soft_prompt import SoftPrompt
from shared.text.template import Template
from shared.values.enums import PrefixKind, TemplateFormat
from tests.shared.prompt.blob_bytes import (
    BLOB,
    BLOBS,
    KEY_VALUES,
    by_kind,
    split,
)
from tests.shared.prompt.blobs import base_model_info, key_values, manifest, prefix_of, soft_prompt


def matrix_of(blob: PromptBlob) -> torch.Tensor:
    return blob.prefix.tensors()["prompt_embeddings"]


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
