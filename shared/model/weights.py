"""Reads a model's weights: one file or shards, tied, half precision, quantised, or linked from a hub cache.

Errors say what to do. Missing weights are an error, never replaced by random numbers.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from shared.errors import PreconditionFailed, Unavailable
from shared.model.model_files import damaged_json, first_line, weight_files

_OF_LAYER = re.compile(r"(.*?\.\d+)\.(.+)")
_IS_TABLE = re.compile(r"rotary|rope|inv_freq|_cached$")
"""Tables of positions that some files hold and every model computes."""


def load_weights(path: Path, name: str, dtype: torch.dtype, attention: str | None, device_map: Any) -> Any:
    """The model on the CPU, or on the devices given by `device_map` and its quantisation.

    Raises PreconditionFailed, naming the model, if this installation can't load it, Unavailable if the files can't be
    read.
    """
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.quantizers.auto import AutoHfQuantizer

    quantisation = _quantisation(path)
    quantised = str(quantisation.get("quant_method", "unknown method"))
    is_known = not quantisation
    with suppress(ValueError, TypeError):  # no method is named, or not by a string
        is_known = is_known or AutoHfQuantizer.supports_quant_method(quantisation)
    if not is_known:
        raise PreconditionFailed(
            f"{name} is quantised ({quantised}) and can't be loaded here: transformers does not know the method"
        )
    try:
        config = AutoConfig.from_pretrained(path, trust_remote_code=False)
        config._attn_implementation, config.return_dict = None, True  # not those of the machine that saved it
        model, report = AutoModelForCausalLM.from_pretrained(
            path,
            output_loading_info=True,
            config=config,
            dtype=dtype,
            attn_implementation=attention,
            device_map=device_map,
            trust_remote_code=False,
        )
    except torch.OutOfMemoryError:
        raise
    except OSError as error:
        raise Unavailable(f"base model {name!r} has weights that can't be read: {first_line(error)}") from error
    except Exception as error:
        what = f"{name} is quantised ({quantised}) and" if quantisation else name
        why = damaged_json(path) or f"{type(error).__name__}: {first_line(error)}"
        if isinstance(error, KeyError) and why.startswith("KeyError"):  # of a table of activations or position schemes
            why = f"its config.json asks for {error}, which the installed transformers does not know"
        if "ignore_mismatched_sizes" in why:  # advice that only a program can follow
            why = "its weights have other shapes than its config.json says"
        raise PreconditionFailed(f"{what} can't be loaded here: {why}") from error
    if missing := sorted(report.get("missing_keys") or ()):
        raise PreconditionFailed(
            f"{name} lacks {len(missing)} of the weights that its config.json asks for, the first is {missing[0]}: "
            "copy the files again, config.json and weights from one place"
        )
    ignored = {key: _name_in(model, key) for key in report.get("unexpected_keys") or ()}
    if further := _further_layers(model, ignored.values()):
        raise PreconditionFailed(
            f"{name} has more layers than its config.json says, the first is {further[0]}: the two belong to "
            "different models; copy both from one place"
        )
    if not quantisation:
        _check_plain(path, name, model, ignored)
    if wrong := next((key for key, weight in model.named_parameters() if not _is_finite(weight)), ""):
        raise PreconditionFailed(
            f"{name} has weights that are not finite in {str(dtype).removeprefix('torch.')}, the first is {wrong}: "
            "copy the files again, or choose another dtype"
        )
    return model


def _name_in(model: Any, key: str) -> str:
    """A weight's name in a causal language model. Files of the model without its head have shorter names:
    `h.0.ln_1.bias` is `transformer.h.0.ln_1.bias`.
    """
    is_full = key.partition(".")[0] in dict(model.named_children())
    return key if is_full else f"{model.base_model_prefix}.{key}"


def _further_layers(model: Any, unexpected: Iterable[str]) -> list[str]:
    """The layers, in order, of the unexpected weights that have no weight that a loaded layer beside them lacks. Those
    that predict further tokens have some.
    """
    names = defaultdict[str, set[str]](set)
    loaded, ignored = _weights_by_layer(model.state_dict()), _weights_by_layer(unexpected)
    for at, keys in loaded.items():
        names[at.rpartition(".")[0]] |= keys | ignored.get(at, set())
    further = (at for at, keys in ignored.items() if at not in loaded and keys <= names[at.rpartition(".")[0]])
    return sorted(further, key=lambda at: int(at.rpartition(".")[2]))


def _weights_by_layer(keys: Iterable[str]) -> dict[str, set[str]]:
    """`model.layers.0.mlp.bias` is the weight `mlp.bias` of the layer `model.layers.0`."""
    found = defaultdict[str, set[str]](set)
    for key in keys:
        if (match := _OF_LAYER.match(key)) is not None:
            found[match[1]].add(match[2])
    return found


def _check_plain(path: Path, name: str, model: Any, ignored: dict[str, str]) -> None:
    """Raises PreconditionFailed if the files have weights that the loaded model ignores although they change its
    results: codes and scales of a quantised model, or biases, norms and adapters in its layers, of which config.json
    says nothing. Weights of other heads are allowed, and masks of layers, which are boolean or have four dimensions or
    none. `ignored`: names in the files, with those in the model.
    """
    from safetensors import safe_open

    modules, layers = dict(model.named_modules()), _weights_by_layer(model.state_dict())
    foreign = set[str]()
    for file in weight_files(path):
        with safe_open(file, "numpy") as tensors:
            for key in tensors.keys():  # noqa: SIM118 - not a dict
                entry = tensors.get_slice(key)
                dtype, num_dimensions = entry.get_dtype(), len(entry.get_shape())
                if key.endswith(".weight") and dtype.startswith(("I", "U", "BOOL")):
                    foreign.add(key)
                if key in ignored and not _IS_TABLE.search(key):
                    at, layer = ignored[key].rpartition(".")[0], _OF_LAYER.match(ignored[key])
                    is_beside = at in modules and modules[at]._parameters
                    is_mask = dtype == "BOOL" or num_dimensions not in (1, 2, 3)
                    if is_beside or (layer is not None and layer[1] in layers and not is_mask):
                        foreign.add(key)
    if foreign:
        raise PreconditionFailed(
            f"{name} has weights that its config.json does not explain, the first is {min(foreign)}: the model is "
            "quantised, or the two belong to different models; copy both from one place"
        )


def _is_finite(weight: torch.Tensor) -> bool:
    if weight.dtype not in (torch.float32, torch.float16, torch.bfloat16) or weight.is_meta or not weight.numel():
        return True
    return all(bool(torch.isfinite(bound)) for bound in torch.aminmax(weight.detach()))


def _quantisation(path: Path) -> dict[str, Any]:
    """The quantisation entry of config.json; empty for plain weights."""
    found = json.loads((path / "config.json").read_bytes()).get("quantization_config")
    return found if isinstance(found, dict) else {}
