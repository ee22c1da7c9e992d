"""Soft prompts between this service and the real PEFT: the same adapter gives the same logits on both sides."""

from __future__ import annotations

import copy
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import (
    CartridgeConfig,
    PeftConfig,
    PeftModel,
    PrefixTuningConfig,
    PromptEncoderConfig,
    PromptTuningConfig,
    PromptTuningInit,
    TaskType,
    get_peft_model,
)
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM

from inference_service.engine.engine import Engine
from shared.errors import InvalidInput, PreconditionFailed
from shared.prompt.key_values import KeyValuePrefix
from softprompt import Sampling, Template, TokenIds
from tests.both_services import Services, both
from tests.inference_service.engine.builders import greedy, run_one, small_config, tiny_base
from tests.tiny_models import byte_tokenizer
from trainer_service.base_models import KnownBaseModel
from trainer_service.imports import ImportRequest, read_import

pytestmark = pytest.mark.filterwarnings(
    "ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"
)  # PEFT asks transformers for it

IDS = (20, 21, 22, 90, 7)
MATRIX = torch.randn(6, 64, generator=torch.Generator().manual_seed(3))
"""[num_virtual_tokens, hidden_size]"""


@pytest.fixture
async def services(tiny_model_dir: Path, tmp_path: Path) -> AsyncIterator[Services]:
    async with both(tiny_model_dir, tmp_path) as running:
        yield running


def load_model(model_dir: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32).eval()


def logprobs(model: Any) -> torch.Tensor:
    """Of the token after IDS: `[vocab_size]`."""
    with torch.no_grad():
        return torch.log_softmax(model(input_ids=torch.tensor([IDS])).logits[0, -1], dim=-1)


async def served(services: Services, prompt: str, expected: torch.Tensor) -> None:
    """The replica's log-probabilities after IDS are these."""
    sampling = Sampling(temperature=0, max_new_tokens=1, num_logprobs=10)
    generation = await services.client.generate(TokenIds(IDS), prompt=prompt, sampling=sampling)
    found = generation.output.logprobs[0].alternatives
    assert len(found) == 10
    for alternative in found:
        assert alternative.logprob == pytest.approx(float(expected[alternative.token_id]), abs=1e-4)
    assert generation.output.logprobs[0].token_id == int(expected.argmax())


async def test_an_exported_version_gives_the_same_logits_under_peft(
    services: Services, tiny_model_dir: Path, tmp_path: Path
) -> None:
    save_file({"matrix": MATRIX}, tmp_path / "plain.safetensors")
    imported = await services.client.import_version(
        tmp_path / "plain.safetensors", "tone", template=Template("Q: {input}")
    )
    exported = await services.client.export_version("tone", tmp_path / "adapter", base_model=str(tiny_model_dir))
    assert exported.name == imported.name == "prompts/tone/versions/1"

    bare = load_model(tiny_model_dir)
    embedded = torch.cat([MATRIX, bare.get_input_embeddings()(torch.tensor(IDS))])
    with torch.no_grad():
        expected = torch.log_softmax(bare(inputs_embeds=embedded[None]).logits[0, -1], dim=-1)
        without = logprobs(bare)
    peft = PeftModel.from_pretrained(load_model(tiny_model_dir), tmp_path / "adapter")
    torch.testing.assert_close(logprobs(peft), expected, rtol=0, atol=1e-5)
    assert float((expected - without).abs().max()) > 0.1, "the prompt changes the answer, so agreeing means something"
    await served(services, "tone", expected)


async def test_an_adapter_that_peft_saved_is_served_as_peft_has_it(
    services: Services, tiny_model_dir: Path, tmp_path: Path
) -> None:
    config = PromptTuningConfig(
        task_type=TaskType.CAUSAL_LM, prompt_tuning_init=PromptTuningInit.RANDOM, num_virtual_tokens=5
    )
    peft = get_peft_model(load_model(tiny_model_dir), config).eval()
    torch.nn.init.normal_(
        peft.prompt_encoder["default"].embedding.weight, std=1.0, generator=torch.Generator().manual_seed(5)
    )
    peft.save_pretrained(tmp_path / "adapter")
    version = await services.client.import_version(
        tmp_path / "adapter", "tone", base_model="tiny", labels=["yes", "no"]
    )
    assert (version.num_virtual_tokens, version.labels, version.aliases) == (5, ("yes", "no"), ("default",))
    await served(services, "tone", logprobs(peft))

    config_file = tmp_path / "adapter" / "adapter_config.json"
    written = json.loads(config_file.read_text())
    for name in ("org/another-of-this-width", f"/cache/models--org--{tiny_model_dir.name}/snapshots/0a1b"):
        config_file.write_text(json.dumps(written | {"base_model_name_or_path": name}))
        if "another" in name:
            with pytest.raises(InvalidInput, match=rf"header.base_model: .*{name}.*base models \(tiny\).* say which"):
                await services.client.import_version(tmp_path / "adapter", "tone")
    assert (await services.client.import_version(tmp_path / "adapter", "tone")).name == "prompts/tone/versions/2"

    peft.save_pretrained(tmp_path / "pickled", safe_serialization=False)
    with pytest.raises(InvalidInput, match=r"adapter_model\.bin is refused: a pickle can run any code"):
        await services.client.import_version(tmp_path / "pickled", "tone")


async def test_an_adapter_of_p_tuning_is_served_as_peft_has_it(
    services: Services, tiny_model_dir: Path, tmp_path: Path
) -> None:
    """Its file holds what the encoder made of the virtual tokens."""
    torch.manual_seed(5)
    config = PromptEncoderConfig(task_type=TaskType.CAUSAL_LM, num_virtual_tokens=5, encoder_hidden_size=16)
    peft = get_peft_model(load_model(tiny_model_dir), config).eval()
    peft.save_pretrained(tmp_path / "adapter")
    version = await services.client.import_version(tmp_path / "adapter", "tone", base_model="tiny")
    assert version.num_virtual_tokens == 5
    expected = logprobs(peft)
    assert float((expected - logprobs(load_model(tiny_model_dir))).abs().max()) > 1e-3, "the prompt changes the answer"
    await served(services, "tone", expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
async def test_a_decoder_prompt_of_tgis(
    services: Services, tiny_model_dir: Path, tmp_path: Path, dtype: torch.dtype
) -> None:
    directory = tmp_path / "tgis"
    directory.mkdir()
    save_file({"decoder": MATRIX.to(dtype)}, directory / "decoder.safetensors")
    await services.client.import_version(directory, "tone", request_id="once")
    again = await services.client.import_version(directory, "tone", request_id="once")
    assert again.name == "prompts/tone/versions/1"
    bare = load_model(tiny_model_dir)
    embedded = torch.cat([MATRIX.to(dtype).float(), bare.get_input_embeddings()(torch.tensor(IDS))])
    with torch.no_grad():
        expected = torch.log_softmax(bare(inputs_embeds=embedded[None]).logits[0, -1], dim=-1)
    await served(services, "tone@1", expected)


async def test_what_does_not_fit_is_refused_and_nothing_is_published(services: Services, tmp_path: Path) -> None:
    save_file({"prompt_embeddings": MATRIX[:, :32].contiguous()}, tmp_path / "narrow.safetensors")
    with pytest.raises(PreconditionFailed, match="has width 32"):
        await services.client.import_version(tmp_path / "narrow.safetensors", "tone")
    save_file({"decoder": MATRIX, "encoder": MATRIX + 1}, tmp_path / "both.safetensors")
    with pytest.raises(InvalidInput, match="encoder"):
        await services.client.import_version(tmp_path / "both.safetensors", "tone")
    with pytest.raises(InvalidInput, match="not one of this trainer's base models"):
        await services.client.import_version(tmp_path / "narrow.safetensors", "tone", base_model="other")
    assert await services.client.list_prompts() == []


async def test_a_version_moves_to_another_name_with_all_that_it_says(services: Services, tmp_path: Path) -> None:
    save_file({"matrix": MATRIX}, tmp_path / "plain.safetensors")
    await services.client.import_version(
        tmp_path / "plain.safetensors", "tone", template=Template("Q: {input}"), labels=["a", "b"]
    )
    await services.client.export_version("tone@1", tmp_path / "adapter")
    copy = await services.client.import_version(tmp_path / "adapter", "copy", alias="-")
    assert copy.template is not None
    assert (copy.name, copy.template.text, copy.labels, copy.aliases) == (
        "prompts/copy/versions/1",
        "Q: {input}",
        ("a", "b"),
        (),
    )


PREFIXES: dict[str, PeftConfig] = {
    "prefix tuning": PrefixTuningConfig(task_type=TaskType.CAUSAL_LM, num_virtual_tokens=12),
    "prefix tuning with a projection": PrefixTuningConfig(
        task_type=TaskType.CAUSAL_LM, num_virtual_tokens=12, prefix_projection=True, encoder_hidden_size=16
    ),
    "a cartridge": CartridgeConfig(task_type=TaskType.CAUSAL_LM, num_virtual_tokens=12, num_frozen_tokens=2),
}


def saved_prefix(model: Any, kind: str, directory: Path) -> torch.Tensor:
    """Save a random adapter of PEFT for the model; returns what PEFT's model answers with it."""
    torch.manual_seed(7)
    peft = get_peft_model(model, copy.deepcopy(PREFIXES[kind])).eval()
    expected = logprobs(peft)
    peft.save_pretrained(directory)
    return expected


@pytest.mark.parametrize("kind", PREFIXES)
async def test_keys_and_values_of_peft_are_served_as_peft_has_them_and_go_back(
    services: Services, tiny_model_dir: Path, tmp_path: Path, kind: str
) -> None:
    expected = saved_prefix(load_model(tiny_model_dir), kind, tmp_path / "adapter")
    assert float((expected - logprobs(load_model(tiny_model_dir))).abs().max()) > 1e-3, "the prefix changes the answer"
    imported = await services.client.import_version(tmp_path / "adapter", "tone", template=Template("Q: {input}"))
    assert (imported.kind, imported.num_virtual_tokens) == ("PREFIX", 12)
    await served(services, "tone", expected)
    (status,) = (await services.client.prompt_status("tone")).versions
    (loaded,) = (await services.client.loaded_prompts("tone")).prompts
    assert {status.kind, loaded.kind, (await services.client.list_versions("tone"))[0].kind} == {"PREFIX"}
    for number, peft_type in enumerate(("", "CARTRIDGE")):
        directory = tmp_path / f"exported-{number}"
        await services.client.export_version("tone", directory, base_model=str(tiny_model_dir), peft_type=peft_type)
        again = PeftModel.from_pretrained(load_model(tiny_model_dir), directory)
        torch.testing.assert_close(logprobs(again), expected, rtol=0, atol=1e-5)
    with pytest.raises(InvalidInput, match="'LORA' must be PREFIX_TUNING or CARTRIDGE"):
        await services.client.export_version("tone", tmp_path / "x", peft_type="LORA")
    copied = await services.client.import_version(tmp_path / "exported-1", "copy")
    assert copied.template is not None
    assert (copied.template.text, copied.kind) == ("Q: {input}", "PREFIX"), "what PEFT keeps no field for"
    await served(services, "copy", expected)


async def test_keys_and_values_of_another_model_are_refused(
    services: Services, tiny_model_dir: Path, tmp_path: Path
) -> None:
    other = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(tiny_model_dir, num_hidden_layers=3))
    saved_prefix(other, "a cartridge", tmp_path / "adapter")
    with pytest.raises(PreconditionFailed, match=r"take 128 numbers for each position \(2 layers, 2 heads of width 16"):
        await services.client.import_version(tmp_path / "adapter", "tone")
    assert await services.client.list_prompts() == []


@pytest.mark.parametrize("architecture", ["llama", "qwen3", "gemma3_text", "gpt2"])
@pytest.mark.parametrize("kind", ["prefix tuning", "a cartridge"])
def test_prefixes_of_peft_give_the_same_logits_in_the_engine(tmp_path: Path, architecture: str, kind: str) -> None:
    """Grouped queries, normed keys, layers with a window shorter than the prefix, learned positions."""
    overrides: dict[str, Any] = {"num_key_value_heads": 4} if architecture == "gpt2" else {}
    base = tiny_base(architecture, **overrides)
    base.model.save_pretrained(tmp_path / "model")
    byte_tokenizer().save_pretrained(tmp_path / "model")
    expected = saved_prefix(load_model(tmp_path / "model"), kind, tmp_path / "adapter")
    models: Any = OneModel(KnownBaseModel(base.info, base.tokenizer, tmp_path / "model"))
    request = ImportRequest(prompt="tone", base_model="", template=Template(), labels=(), alias="", request_id="")
    imported = read_import((tmp_path / "adapter" / "adapter_model.safetensors").read_bytes(), request, models)
    assert isinstance(imported.prefix, KeyValuePrefix)
    engine = Engine.from_base_model(base, small_config())
    engine.load_prefix("tone", imported.prefix)
    found = run_one(engine, IDS, greedy(1, num_logprobs=20), "tone").logprobs[0].top
    assert len(found) == 20
    for token, logprob in found:
        assert logprob == pytest.approx(float(expected[token]), abs=1e-5)


class OneModel:
    """The base models of a trainer that has one."""

    def __init__(self, model: KnownBaseModel) -> None:
        self.model = model

    def get(self, id: str, field: str = "base_model") -> KnownBaseModel:
        return self.model
