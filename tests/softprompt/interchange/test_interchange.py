"""Which files are sent for an import, which are refused by name and why; and the directory that PEFT reads."""

from __future__ import annotations

import contextlib
import hashlib
import json
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save, save_file

from shared.errors import AlreadyExists, DamagedBlob, InvalidInput, NotFound
from shared.prompt.blob import decode_blob, encode_blob, read_manifest
from shared.prompt.key_values import KeyValuePrefix
from shared.prompt.manifest import GoldenRecord
from shared.values.base_model import BaseModelInfo
from shared.values.enums import PrefixKind
from shared.values.template import Template
from softprompt.interchange.adapter import write_adapter
from softprompt.interchange.source import MAX_BYTES, ImportSource
from softprompt.types.prompts import PromptVersion
from tests.shared.prompt.blobs import key_values, manifest, soft_prompt

MATRIX = torch.arange(12, dtype=torch.float32).reshape(4, 3)
CONFIG = {"peft_type": "PROMPT_TUNING", "task_type": "CAUSAL_LM", "num_virtual_tokens": 4}


def adapter(directory: Path, weights: str = "adapter_model.safetensors", **config: object) -> Path:
    directory.mkdir(exist_ok=True)
    save_file({"prompt_embeddings": MATRIX}, directory / weights)
    (directory / "adapter_config.json").write_text(json.dumps({**CONFIG, **config}))
    return directory


def test_files_and_directories_that_are_taken(tmp_path: Path) -> None:
    peft = adapter(tmp_path / "peft")
    assert ImportSource.of(peft) == ImportSource(peft / "adapter_model.safetensors", "PROMPT")
    for kind in ("PREFIX_TUNING", "CARTRIDGE"):
        assert ImportSource.of(adapter(tmp_path / kind, peft_type=kind)).kind == "PREFIX"
    tgis = tmp_path / "tgis"
    tgis.mkdir()
    save_file({"decoder": MATRIX}, tgis / "decoder.safetensors")
    assert ImportSource.of(str(tgis)).file == tgis / "decoder.safetensors"
    plain = tmp_path / "matrix.safetensors"
    save_file({"x": MATRIX}, plain)
    assert ImportSource.of(plain).file == plain


@pytest.mark.parametrize(
    "name", ["adapter_model.bin", "decoder.pt", "prompt.pth", "prompt.pkl", "prompt.PT", "x.pickle", "x.ckpt"]
)
def test_pickles_are_refused_by_name_and_never_opened(tmp_path: Path, name: str) -> None:
    file = tmp_path / "dir" / name
    file.parent.mkdir()
    file.write_bytes(pickle.dumps({"prompt_embeddings": [1.0]}))
    file.chmod(0)
    with pytest.raises(InvalidInput, match="can run any code") as refused:
        ImportSource.of(file)
    assert str(file) in refused.value.message
    if not name.endswith("PT"):
        with pytest.raises(InvalidInput, match="can run any code") as refused:
            ImportSource.of(file.parent)
        assert name in refused.value.message


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_pickles_under_another_name_are_refused_by_their_beginning(tmp_path: Path, protocol: int) -> None:
    file = tmp_path / "adapter_model.safetensors"
    file.write_bytes(pickle.dumps({"a": 1}, protocol=protocol))
    with pytest.raises(InvalidInput, match="its content is a pickle"):
        ImportSource.of(file)


def test_an_archive_of_torch_is_refused_by_its_beginning(tmp_path: Path) -> None:
    file = tmp_path / "prompt.safetensors"
    torch.save({"prompt_embeddings": MATRIX}, file)
    with pytest.raises(InvalidInput, match="its content is a pickle"):
        ImportSource.of(file)


def test_a_file_of_another_kind_is_refused_by_name_before_it_is_sent(tmp_path: Path) -> None:
    for name, content, why in (
        ("train.csv", b"input,output\na,b\n", "does not begin as a safetensors file"),
        ("empty.safetensors", b"", "it is empty"),
        ("lfs.safetensors", b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        ("cut.safetensors", save({"prompt_embeddings": MATRIX})[:-4], "it is cut short"),
    ):
        file = tmp_path / name
        file.write_bytes(content)
        with pytest.raises(InvalidInput) as refused:
            ImportSource.of(file)
        assert refused.value.violations[0].description.startswith(f"{file} is not a valid safetensors file: ")
        assert why in refused.value.message


@pytest.mark.parametrize(
    ("config", "why"),
    [
        ({"peft_type": "LORA"}, "peft_type 'LORA'"),
        ({"peft_type": "IA3"}, "PROMPT_TUNING, P_TUNING, PREFIX_TUNING, CARTRIDGE"),
        ({"peft_type": None}, "peft_type 'None'"),
        ({"task_type": "SEQ_2_SEQ_LM"}, "task_type 'SEQ_2_SEQ_LM'"),
        ({"num_transformer_submodules": 2}, "num_transformer_submodules '2'"),
        ({"num_virtual_tokens": 5}, "has num_virtual_tokens 5, but adapter_model.safetensors has 4"),
    ],
)
def test_adapters_of_another_kind(tmp_path: Path, config: dict[str, Any], why: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        ImportSource.of(adapter(tmp_path / "peft", **config))
    assert why in refused.value.message


def test_directories_that_hold_nothing_to_import(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"must contain adapter_model\.safetensors"):
        ImportSource.of(tmp_path)
    directory = adapter(tmp_path / "peft")
    (directory / "adapter_config.json").write_bytes(b"[" * 200_000)
    with pytest.raises(InvalidInput, match="as JSON"):
        ImportSource.of(directory)
    (directory / "adapter_config.json").write_bytes(b" " * (1 << 21))
    with pytest.raises(InvalidInput, match="not an adapter configuration"):
        ImportSource.of(directory)
    (directory / "adapter_config.json").unlink()
    with pytest.raises(InvalidInput, match="is missing"):
        ImportSource.of(directory)
    save_file({"encoder": MATRIX}, directory / "encoder.safetensors")
    with pytest.raises(InvalidInput, match="encoder-decoder"):
        ImportSource.of(directory)
    with pytest.raises(NotFound):
        ImportSource.of(tmp_path / "nowhere")


def test_a_huge_file_is_refused_unread(tmp_path: Path) -> None:
    file = tmp_path / "huge.safetensors"
    with file.open("wb") as opened:
        opened.truncate(MAX_BYTES + 1)
    with pytest.raises(InvalidInput, match="at most"):
        ImportSource.of(file)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(weights=st.binary(max_size=200), config=st.binary(max_size=200))
def test_any_bytes_are_taken_or_refused(tmp_path: Path, weights: bytes, config: bytes) -> None:
    (tmp_path / "adapter_model.safetensors").write_bytes(weights)
    (tmp_path / "adapter_config.json").write_bytes(config)
    with contextlib.suppress(InvalidInput):
        assert ImportSource.of(tmp_path).file == tmp_path / "adapter_model.safetensors"


def version(data: bytes) -> PromptVersion:
    model = BaseModelInfo("tiny", "sha256:f", "sha256:t", "LlamaForCausalLM", 3, 261, 2, 512)
    return PromptVersion(
        name="prompts/tone/versions/2",
        digest=f"sha256:{hashlib.sha256(data).hexdigest()}",
        size_bytes=len(data),
        create_time=None,
        job="tuningJobs/1",
        base_model=model,
        num_virtual_tokens=4,
        template=Template("Q: {input}"),
        labels=("a",),
        metrics={"loss": 1.0},
        sampling_defaults=None,
        recipe={},
        parent="",
        revision=3,
        aliases=("default",),
        gate="",
    )


def test_an_adapter_holds_no_golden_records(tmp_path: Path) -> None:
    golden = GoldenRecord(
        text="account 4711", input_ids=(5, 6), top_token_ids=(7,), top_logprobs=(-0.1,), dtype="float32"
    )
    data = encode_blob(soft_prompt(), manifest(golden=(golden,), labels=("größer",)))
    written = write_adapter(tmp_path, version(data), data) / "adapter_model.safetensors"
    assert b"4711" in data
    assert b"4711" not in written.read_bytes()
    found = decode_blob(written.read_bytes())
    assert found.manifest == decode_blob(data).manifest.model_copy(update={"golden": ()})
    assert torch.equal(found.prefix.tensors()["prompt_embeddings"], soft_prompt().embeddings)


@pytest.mark.parametrize("bfloat16", [True, False])
def test_keys_and_values_are_written_in_the_order_of_peft(tmp_path: Path, bfloat16: bool) -> None:
    prefix = key_values(num_virtual_tokens=3, num_layers=2, heads=2, width=5)
    prefix = prefix.rounded() if bfloat16 else prefix
    data = encode_blob(prefix, manifest(kind=PrefixKind.PREFIX, num_virtual_tokens=3))
    one = replace(version(data), kind="PREFIX", num_virtual_tokens=3)
    written = write_adapter(tmp_path / "a", one, data)
    (matrix,) = load_file(written / "adapter_model.safetensors").values()
    assert matrix.dtype == (torch.bfloat16 if bfloat16 else torch.float32)
    expected = torch.stack([prefix.keys[0], prefix.values[0], prefix.keys[1], prefix.values[1]], dim=1)
    assert torch.equal(matrix.float(), expected.reshape(3, -1))
    config = json.loads((written / "adapter_config.json").read_text())
    assert (config["peft_type"], config["token_dim"], config["num_attention_heads"]) == ("PREFIX_TUNING", 10, 2)
    assert read_manifest((written / "adapter_model.safetensors").read_bytes()).golden == ()
    with pytest.raises(InvalidInput, match="must be PROMPT_TUNING"):
        write_adapter(tmp_path / "b", replace(version(data), kind="PROMPT"), data, peft_type="CARTRIDGE")
    uneven = KeyValuePrefix(prefix.keys, (prefix.values[0], prefix.values[1][..., :4].contiguous()))
    data = encode_blob(uneven, manifest(kind=PrefixKind.PREFIX, num_virtual_tokens=3))
    with pytest.raises(InvalidInput, match="PEFT keeps keys and values of one shape only"):
        write_adapter(tmp_path / "b", replace(version(data), kind="PREFIX"), data)
    data = encode_blob(soft_prompt(), manifest())
    with pytest.raises(DamagedBlob, match="holds no keys and values"):
        write_adapter(tmp_path / "b", replace(version(data), kind="PREFIX"), data)
    assert not (tmp_path / "b").exists()


def test_an_adapter_is_written_once_and_says_what_peft_does_not_keep(tmp_path: Path) -> None:
    data = save({"prompt_embeddings": MATRIX})
    written = write_adapter(tmp_path / "a" / "b", version(data), data, base_model="org/tiny")
    assert (written / "adapter_model.safetensors").read_bytes() == data
    config = json.loads((written / "adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["num_virtual_tokens"], config["prompt_tuning_init"]) == (
        "org/tiny",
        4,
        "RANDOM",
    )
    about = json.loads((written / "softprompt.json").read_text())
    assert (about["version"], about["template"]["text"], about["labels"]) == (
        "prompts/tone/versions/2",
        "Q: {input}",
        ["a"],
    )
    with pytest.raises(AlreadyExists):
        write_adapter(written, version(data), data)
    write_adapter(written, version(data), data, overwrite=True)
    assert ImportSource.of(written).file == written / "adapter_model.safetensors"
    with pytest.raises(DamagedBlob):
        write_adapter(tmp_path / "c", version(data), data[:-1])
    assert not (tmp_path / "c").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(InvalidInput, match="can't write"):
        write_adapter(tmp_path / "file", version(data), data)
