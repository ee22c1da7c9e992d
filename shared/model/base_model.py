"""The frozen language model for training and serving prompts: its identity and how it is loaded.

A prompt is bound to the weights, config and tokenizer that it was trained with, so each model has a *fingerprint* of
all three. It is computed from the files, cached beside them (in the user's cache if the folder is read-only), and
recomputed when a file changes.
"""

from __future__ import annotations

import json
import logging
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

import torch

from shared.errors import InvalidInput, NotFound, PreconditionFailed, Unavailable
from shared.kernels import library
from shared.model import fingerprint, hub
from shared.model.model_files import check_files, check_no_adapter, damaged_json, first_line
from shared.model.options import DEFAULTS, Device, DType, ModelOptions
from shared.model.tokenizer_file import follows_file, load_from_file
from shared.model.weights import load_weights
from shared.process.user_cache import expanded
from shared.values.base_model import BaseModelInfo

log = logging.getLogger(__name__)
_OTHER_TASKS = re.compile(
    r"(Classification|QuestionAnswering|MaskedLM|MultipleChoice|Reward|RewardModel)$|Bidirectional"
)
"""Names of classes whose models are not causal language models, even if their weights can be read as one's."""


@dataclass(frozen=True)
class BaseModel:
    """A frozen causal model with its tokenizer, ready to run. `model` needs no gradient and is in eval mode."""

    info: BaseModelInfo
    model: Any
    tokenizer: Any
    device: torch.device
    dtype: torch.dtype

    @property
    def embedding_table(self) -> torch.Tensor:
        """Input embeddings `[vocab_size, hidden_size]`. The rows of a soft prompt are vectors of the same space."""
        table: torch.Tensor = self.model.get_input_embeddings().weight
        return table

    @property
    def stop_token_ids(self) -> frozenset[int]:
        """Every token id that ends a generation: the tokenizer's and those of the generation config.

        Values that are not ids of the vocabulary, such as -1, are ignored.
        """
        configured = getattr(self.model.generation_config, "eos_token_id", None)
        ids = configured if isinstance(configured, list) else [configured]
        known = range(self.info.vocab_size)
        return frozenset(i for i in [*ids, self.tokenizer.eos_token_id] if type(i) is int and i in known)


def load(
    source: str | Path,
    options: ModelOptions = DEFAULTS,
    *,
    id: str = "",
    attention: str | None = None,
    device_map: Any = None,
) -> BaseModel:
    """Load a model directory or hub id.

    `attention`: the name of a registered transformers attention function; None: torch's fused attention if the
    architecture supports it, else the model's code. Raises NotFound if there is no such model, Unavailable for files
    that can't be read, PreconditionFailed if this installation can't load it or its architecture can't use soft
    prompts.
    """
    from transformers import GenerationConfig

    path = resolve(source)
    info = inspect(path, id=id or default_id(source))
    target = pick_device(options.device)
    chosen = pick_dtype(options.dtype, target)
    if device_map is None and target.type != "cpu":
        device_map = {"": target}  # straight to the GPU: the machine's memory need not hold the whole model
    tokenizer = load_tokenizer(path, info.vocab_size)  # fails sooner than the weights
    if why := damaged_json(path):  # transformers leaves out a generation_config.json that it can't read, and its ends
        raise PreconditionFailed(f"{info.id} can't be loaded here: {why}")
    try:
        GenerationConfig.from_pretrained(path)
    except OSError:  # there is none
        pass
    except Exception as error:  # each entry raises its own errors
        raise PreconditionFailed(
            f"{info.id} can't be loaded here because of its generation_config.json: {first_line(error)}"
        ) from error
    model = load_weights(path, info.id, chosen, attention, device_map)
    if device_map is None and not getattr(model, "hf_device_map", None):
        model = model.to(target)
    model.eval().requires_grad_(False)
    # Keeps the end of an answer only: `generate` applies a checkpoint's repetition_penalty even to greedy decoding, and
    # what is evaluated is then not what replicas serve.
    ends = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    model.generation_config = GenerationConfig(eos_token_id=ends)
    return BaseModel(info=info, model=model, tokenizer=tokenizer, device=target, dtype=chosen)


def load_tokenizer(source: str | Path, vocab_size: int | None = None) -> Any:
    """The transformers tokenizer of a model directory or hub id. A tokenizer.json counts before the class that
    tokenizer_config.json names.

    Raises like `resolve`, Unavailable for a tokenizer that is missing or broken, as during a copy, and
    PreconditionFailed for one that comes with its own code, which is never run, that divides texts in another way than
    its tokenizer.json, or that adds tokens to each text whose ids are not below `vocab_size`.
    """
    from transformers import AutoTokenizer

    path, which = resolve(source), f"the tokenizer of base model {default_id(source)!r}"
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
        if not (is_followed := follows_file(tokenizer, path)):
            tokenizer = load_from_file(path, tokenizer.special_tokens_map)
            is_followed = follows_file(tokenizer, path)
        # The first call sets truncation and padding; setting them while another thread encodes would fail.
        highest = max([*tokenizer("a")["input_ids"], tokenizer.eos_token_id or 0])
    except Exception as error:  # each kind of tokenizer raises its own errors
        if not any(file for name in ("tokenizer.json", "*.model", "vocab*") for file in path.glob(name)):
            raise Unavailable(f"{which} is missing: copy its files there") from error
        kind = PreconditionFailed if "trust_remote_code" in str(error) else Unavailable
        why = damaged_json(path) or first_line(error)
        if not (path / "tokenizer.json").is_file():
            why += "; it has no tokenizer.json, which `AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR)` writes"
        raise kind(f"{which} can't be loaded here: {why}") from error
    if not is_followed:
        raise PreconditionFailed(
            f"{which} divides texts into other tokens than its tokenizer.json says: it and tokenizer_config.json "
            "belong to different models; copy both from one place"
        )
    if vocab_size is not None and highest >= vocab_size:
        raise PreconditionFailed(
            f"{which} writes {tokenizer.convert_ids_to_tokens(highest)!r} with the id {highest}, but the model has "
            f"{vocab_size} tokens: the two belong to different models; copy both from one place"
        )
    return tokenizer


def resolve(source: str | Path) -> Path:
    """The local directory of a model: `source`, or the snapshot of a hub id, from the cache if the hub doesn't answer.

    Raises NotFound; Unavailable if the hub does not answer and nothing is cached.
    """
    path = expanded(source)
    try:
        is_there, is_directory = path.exists(), path.is_dir()
    except OSError as error:  # a name that is too long
        raise NotFound("base model", str(source)[:80], error.strerror or "") from error
    if is_directory and not (path / "config.json").is_file():
        check_no_adapter(path, default_id(path))
        raise NotFound("base model", str(source), f"the directory has no config.json{_meant_instead(path)}")
    if is_directory:
        return path
    if is_there:
        gguf = "; `python -m softprompt.gguf FILE DIRECTORY` converts a GGUF file" if path.suffix == ".gguf" else ""
        raise NotFound("base model", str(source), f"it is a file and not the directory of a model{gguf}")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    patterns, is_answering = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"], hub.answers(str(source))
    try:
        return Path(snapshot_download(str(source), allow_patterns=patterns, local_files_only=not is_answering))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        if not is_answering:
            raise Unavailable(
                f"base model {str(source)!r} is not on this machine, and the hub does not answer; try again"
            ) from error
        raise NotFound(
            "base model",
            str(source),
            "neither a model directory nor a hub id that can be reached; try `softprompt models pull`",
        ) from error


def _meant_instead(path: Path) -> str:
    """What to do about a directory without a config.json: a model below it, as in a hub cache, or a GGUF file in it."""
    below = [found for pattern in ("*", "snapshots/*") for found in path.glob(f"{pattern}/config.json")]
    if below:
        return f"; do you mean its directory {below[0].parent.relative_to(path)}?"
    gguf = next(path.glob("*.gguf"), None)
    return f"; `python -m softprompt.gguf {gguf.name} DIRECTORY` converts its GGUF file" if gguf else ""


def default_id(source: str | Path) -> str:
    """The last part of a model's directory or hub id, in lower case; in a hub cache, the repository's name."""
    parts = str(source).rstrip("/").split("/")
    if len(parts) > 2 and parts[-2] == "snapshots" and parts[-3].startswith("models--"):
        parts = parts[-3].split("--")
    return parts[-1].lower()


def inspect(source: str | Path, *, id: str = "") -> BaseModelInfo:
    """A model's identity, without loading its weights. They are hashed once; later calls use the cached fingerprint.

    Raises NotFound for a directory without config or weights, Unavailable for files that can't be read or are
    incomplete, PreconditionFailed for an unsupported architecture.
    """
    from transformers import AutoConfig

    path = resolve(source)
    try:
        config = AutoConfig.from_pretrained(path, trust_remote_code=False)
    except Exception as error:  # each architecture's config raises its own errors
        _check_type(path)
        raise Unavailable(
            f"base model {default_id(path)!r} has a config.json that can't be read: {first_line(error)}"
        ) from error
    num_tensors = check_files(path, default_id(path))
    check_supported(config)
    text = config.get_text_config()
    if absent := [
        name
        for name in ("hidden_size", "vocab_size", "num_hidden_layers")
        if not isinstance(size := getattr(text, name, None), int) or size < 1
    ]:
        raise PreconditionFailed(
            f"{config.model_type} has no {absent[0]} for its text: a soft prompt is a matrix of that width"
        )
    if (positions := max_positions(text)) < 2:
        raise PreconditionFailed(f"{default_id(path)} has a context of {positions} position: a soft prompt needs more")
    known = fingerprint.of(path)
    if text.num_hidden_layers > num_tensors:  # transformers would build them all before it misses their weights
        raise PreconditionFailed(
            f"{default_id(path)} has {num_tensors} tensors, too few for the {text.num_hidden_layers} layers of its "
            "config.json"
        )
    return BaseModelInfo(
        id=id or default_id(source),
        fingerprint=known.fingerprint,
        tokenizer_digest=known.tokenizer_digest,
        architecture=next(iter(_architectures(config)), config.model_type),
        hidden_size=text.hidden_size,
        vocab_size=text.vocab_size,
        num_layers=text.num_hidden_layers,
        max_positions=positions,
    )


def _check_type(path: Path) -> None:
    """Raises PreconditionFailed for a type of model that transformers does not know, or a description of a quantisation
    that it can't read; Unavailable for a config.json that is not a JSON object.
    """
    from transformers import CONFIG_MAPPING

    if why := damaged_json(path):
        raise Unavailable(f"base model {default_id(path)!r} can't be loaded here: {why}")
    config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    kind, quantisation = config.get("model_type"), config.get("quantization_config") or {}
    if not isinstance(kind, str):
        raise PreconditionFailed(f"base model {default_id(path)!r} has no model_type in its config.json")
    if kind not in CONFIG_MAPPING:
        raise PreconditionFailed(
            f"base model {default_id(path)!r} has model_type {kind[:40]!r} in its config.json, which the installed "
            "transformers does not know; a newer release may, and code that a model brings is never run"
        )
    if not isinstance(quantisation, dict):
        raise PreconditionFailed(
            f"base model {default_id(path)!r} has the quantization_config {json.dumps(quantisation)[:40]} in its "
            'config.json, which must be an object such as {"quant_method": "fp8"}: copy the file again, or leave the '
            "entry out if the weights are not quantised"
        )


def max_positions(config: Any) -> int:
    """The number of positions within which a token's results don't depend on the other sequences in its pass.

    LongRoPE (Ding et al. 2024, arXiv:2402.13753) changes the frequencies of all positions if a pass exceeds the
    original context, and dynamic NTK if it exceeds `max_position_embeddings`. In a pass of many sequences, and with
    cached keys, the length of one sequence would then change the results of others. Within this limit, the model uses
    the original frequencies.
    """
    names = ("max_position_embeddings", "max_seq_len", "max_target_positions")
    sizes = (getattr(config, name, None) for name in names)
    bounds: list[Any] = [next(filter(_is_bound, sizes), None)]  # -1: no limit
    rope = getattr(config, "rope_parameters", None) or {}
    schemes = [rope, *(value for value in rope.values() if isinstance(value, dict))]
    if longrope := [scheme for scheme in schemes if scheme.get("rope_type") == "longrope"]:
        bounds += [scheme.get("original_max_position_embeddings") for scheme in longrope]
        bounds.append(getattr(config, "original_max_position_embeddings", None))
    return min(min(filter(_is_bound, bounds), default=1 << 20), (1 << 31) - 1)


def _is_bound(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and value > 0


def check_supported(config: Any) -> None:
    """Raises PreconditionFailed for models without keys and values per token, which a shared prefix needs.

    These are encoder-decoder and state-space models.
    """
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

    kind = config.model_type
    if getattr(config, "is_encoder_decoder", False):
        raise PreconditionFailed(f"{kind} is an encoder-decoder model: soft prompts need a decoder-only model")
    if other := [name for name in _architectures(config) if _OTHER_TASKS.search(name)]:
        raise PreconditionFailed(f"{other[0]} is a model for another task: soft prompts need a causal language model")
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise PreconditionFailed(f"{kind} is not a causal language model that this transformers release knows")
    if getattr(MODEL_FOR_CAUSAL_LM_MAPPING[type(config)], "_is_stateful", False):
        raise PreconditionFailed(
            f"{kind} keeps a recurrent state instead of keys and values for each token: a prefix can't be shared"
        )


def _architectures(config: Any) -> list[str]:
    named = getattr(config, "architectures", None)
    return [str(name) for name in (named if isinstance(named, list) else [named] if named else [])]


def pick_device(device: Device, chosen_by: str = "device") -> torch.device:
    """`auto`: a GPU if torch sees one, else the CPU. Raises InvalidInput for `cuda` without a GPU, which names
    `chosen_by`.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device == "cuda" and not torch.cuda.is_available():
        raise InvalidInput.of(chosen_by, "a GPU is asked for and torch sees no GPU")
    return torch.device(device)


def pick_dtype(dtype: DType, device: torch.device) -> torch.dtype:
    """`auto`: bfloat16 if the processor or our kernels multiply it; else float16 on a GPU (T4), float32 on a CPU."""
    if dtype != "auto":
        return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[dtype]
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    capabilities = torch.cpu.get_capabilities()
    native = capabilities.get("avx512_bf16") or capabilities.get("amx_bf16")
    return torch.bfloat16 if native or library.load() is not None else torch.float32
