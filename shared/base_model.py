"""The frozen language model that prompts are trained on and served from: what it is, which bytes it is made of, how it is loaded.

A prompt is bound to the very weights, config and tokenizer it was trained with, so each model has a *fingerprint* over all three.
It is computed from the files, cached beside them (in the user's cache where the folder is read-only), and again when a file changes.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel as PydanticModel
from pydantic import ConfigDict

from shared import fingerprint, hub
from shared.errors import InvalidInput, NotFound, PreconditionFailed, Unavailable
from shared.safetensors_file import complaint_about
from shared.user_cache import expanded

log = logging.getLogger(__name__)

DType = Literal["auto", "float32", "bfloat16"]
Device = Literal["auto", "cpu", "cuda"]


class BaseModelInfo(PydanticModel):
    """Identity of a base model; part of every manifest. Digests are `sha256:<hex>`."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())
    id: str
    fingerprint: str
    tokenizer_digest: str
    architecture: str
    hidden_size: int
    vocab_size: int
    num_layers: int
    max_positions: int


@dataclass(frozen=True)
class BaseModel:
    """A frozen causal model with its tokenizer, ready to run. `model` takes no gradient and is in eval mode (dropout off)."""

    info: BaseModelInfo
    model: Any
    tokenizer: Any
    device: torch.device
    dtype: torch.dtype

    @property
    def embedding_table(self) -> torch.Tensor:
        """Input embeddings `[vocab_size, hidden_size]`; soft prompts live in the space of its rows."""
        table: torch.Tensor = self.model.get_input_embeddings().weight
        return table

    @property
    def stop_token_ids(self) -> frozenset[int]:
        """Every token id that ends a generation: the tokenizer's and those of the generation config."""
        configured = getattr(self.model.generation_config, "eos_token_id", None)
        ids = configured if isinstance(configured, list) else [configured]
        return frozenset(i for i in [*ids, self.tokenizer.eos_token_id] if i is not None)


def load(
    source: str | Path,
    *,
    id: str = "",
    dtype: DType = "auto",
    device: Device = "auto",
    attention: str | None = None,
    device_map: Any = None,
) -> BaseModel:
    """Load a model directory or hub id. `attention` is the name of a registered transformers attention function; None: torch's fused one
    where the architecture has it, else its own code.

    Raises NotFound if there is no such model, PreconditionFailed if its architecture can't take a soft prompt.
    """
    from transformers import AutoModelForCausalLM

    path = resolve(source)
    info = inspect(path, id=id or default_id(source))
    target = pick_device(device)
    chosen = pick_dtype(dtype, target)
    model = AutoModelForCausalLM.from_pretrained(path, dtype=chosen, attn_implementation=attention, device_map=device_map)
    if device_map is None:
        model = model.to(target)
    model.eval().requires_grad_(False)
    return BaseModel(info=info, model=model, tokenizer=load_tokenizer(path), device=target, dtype=chosen)


def load_tokenizer(source: str | Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(resolve(source))


def resolve(source: str | Path) -> Path:
    """The local directory of a model: itself, or the hub's snapshot of that id, a cached one if the hub does not answer.

    Raises NotFound; Unavailable if the hub does not answer and nothing is cached.
    """
    path = expanded(source)
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise NotFound("base model", str(source), "the directory has no config.json")
        return path
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    patterns, is_answering = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"], hub.answers(str(source))
    try:
        return Path(snapshot_download(str(source), allow_patterns=patterns, local_files_only=not is_answering))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        if not is_answering:
            raise Unavailable(f"base model {str(source)!r} is not on this machine, and the hub does not answer; try again") from error
        raise NotFound(
            "base model", str(source), "neither a model directory nor a hub id that can be reached; try `softprompt models pull`"
        ) from error


def default_id(source: str | Path) -> str:
    """A model is called after the last part of its directory or hub id, in lower case."""
    return str(source).rstrip("/").rsplit("/", 1)[-1].lower()


def inspect(source: str | Path, *, id: str = "") -> BaseModelInfo:
    """Identity of a model without loading its weights into memory (they are hashed once, then the cached digests serve).

    Raises NotFound for a directory without config or weights, Unavailable for files that can't be read or are incomplete.
    """
    from transformers import AutoConfig

    path = resolve(source)
    try:
        config = AutoConfig.from_pretrained(path)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise Unavailable(f"base model {path.name!r} has a config.json that can't be read: {_first_line(error)}") from error
    _check_weights(path)
    check_supported(config)
    text = config.get_text_config()
    known = fingerprint.of(path)
    return BaseModelInfo(
        id=id or default_id(source),
        fingerprint=known.fingerprint,
        tokenizer_digest=known.tokenizer_digest,
        architecture=(config.architectures or [config.model_type])[0],
        hidden_size=text.hidden_size,
        vocab_size=text.vocab_size,
        num_layers=text.num_hidden_layers,
        max_positions=getattr(text, "max_position_embeddings", None) or 1 << 20,
    )


def _check_weights(path: Path) -> None:
    """Compare each file's size with what its header says; reads headers only, so that a truncated copy is found before it is hashed."""
    from safetensors import SafetensorError, safe_open

    for file in sorted(path.glob("*.safetensors")):
        try:
            with safe_open(file, "pt"):
                pass
        except (SafetensorError, OSError) as error:
            reason = complaint_about(file) or _first_line(error)
            raise Unavailable(f"base model {path.name!r} has weights that can't be read: {file.name}: {reason}") from error


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def check_supported(config: Any) -> None:
    """Refuse what has no per-token keys and values that a prefix could be computed into once: encoder-decoders, state-space models."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

    kind = config.model_type
    if getattr(config, "is_encoder_decoder", False):
        raise PreconditionFailed(f"{kind} is an encoder-decoder model: soft prompts here stand in front of a decoder-only model's input")
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise PreconditionFailed(f"{kind} is not a causal language model that this transformers release knows")
    if getattr(MODEL_FOR_CAUSAL_LM_MAPPING[type(config)], "_is_stateful", False):
        raise PreconditionFailed(f"{kind} keeps a recurrent state instead of keys and values for each token: a prefix can't be shared")


def pick_device(device: Device) -> torch.device:
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device == "cuda" and not torch.cuda.is_available():
        raise InvalidInput.of("device", "cuda was asked for and torch sees no GPU")
    return torch.device(device)


def pick_dtype(dtype: DType, device: torch.device) -> torch.dtype:
    """`auto`: bfloat16 where the processor multiplies it natively, else float32."""
    if dtype != "auto":
        return {"float32": torch.float32, "bfloat16": torch.bfloat16}[dtype]
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    capabilities = torch.cpu.get_capabilities()
    return torch.bfloat16 if capabilities.get("avx512_bf16") or capabilities.get("amx_bf16") else torch.float32
