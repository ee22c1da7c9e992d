"""Quantised weights, made by their method's package: loaded, trained on and served as the model itself computes."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

from tests import architectures


def _quantise(directory: Path, bits: int, kind: str, stored: str, *, activations: bool = False) -> None:
    """Replaces the weights by compressed-tensors' of `bits` per value with one scale per row."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the package's own
        from compressed_tensors.compressors import ModelCompressor
        from compressed_tensors.quantization import (
            QuantizationArgs,
            QuantizationConfig,
            QuantizationScheme,
            apply_quantization_config,
        )

    model = AutoModelForCausalLM.from_pretrained(directory)
    scheme = QuantizationScheme(
        targets=["Linear"],
        weights=QuantizationArgs(num_bits=bits, type=kind, symmetric=True, strategy="channel"),
        input_activations=QuantizationArgs(num_bits=8, type="int", strategy="token", dynamic=True)
        if activations
        else None,
    )
    config = QuantizationConfig(
        config_groups={"weights": scheme}, ignore=["lm_head"], format=stored, quantization_status="frozen"
    )
    apply_quantization_config(model, config)
    largest = 448.0 if kind == "float" else 2.0 ** (bits - 1) - 1
    for module in model.modules():
        if hasattr(module, "weight_scale"):
            module.weight_scale.data = module.weight.detach().abs().amax(1, keepdim=True) / largest
    compressor = ModelCompressor.from_pretrained_model(model)
    compressor.compress_model(model)
    tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    compressor.update_config(directory)


@pytest.mark.parametrize(
    ("bits", "kind", "stored"),
    [(4, "int", "pack-quantized"), (8, "int", "naive-quantized"), (8, "float", "float-quantized")],
)
def test_quantised_weights_are_trained_on_and_served(bits: int, kind: str, stored: str, tmp_path: Path) -> None:
    architectures.save("llama", tmp_path)
    _quantise(tmp_path, bits, kind, stored)
    works = architectures.Verdict(architectures.WORKS, architectures.WORKS)
    assert architectures.judge_saved("llama", tmp_path) == works


def test_quantised_activations_are_refused_by_name(tmp_path: Path) -> None:
    architectures.save("llama", tmp_path)
    _quantise(tmp_path, 8, "int", "int-quantized", activations=True)
    verdict = architectures.judge_saved("llama", tmp_path)
    assert verdict.training.startswith("no: ")
    assert verdict.serving.startswith("no: ")
