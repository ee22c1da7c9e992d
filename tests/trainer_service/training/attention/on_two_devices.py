"""Trains and scores on a model whose layers are on two devices, and compares the numbers with those of one device.

    python -m tests.trainer_service.training.attention.on_two_devices FOLDER

Prints one JSON object: by architecture, what was compared and its relative difference, a text where a part failed. The
worker's own code loads the model; only what needs CUDA is replaced: the choice of the device, and accelerate's map
`auto`. Two more entries are what the first architecture comes to with a fault, a tensor that is left on the wrong
device: "tiles" one of the packed attention, "mlp" one of the last layer.
"""

from __future__ import annotations

import json
import logging
import sys
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from shared.model import base_model
from shared.model.options import Device
from shared.prompt.lift import key_values_of
from shared.prompt.prefix import PrefixInput
from tests import spare_devices
from tests.tiny_models import FLOAT32, LLAMA_SHAPE, save_tiny_model
from tests.trainer_service.training.models import ARCHITECTURES
from tests.trainer_service.training.tasks import generation, losses, matrix, run, task
from trainer_service.cluster.settings import WorkerSettings
from trainer_service.cluster.worker_init import WorkerSpec, load_trainer
from trainer_service.training import budget as budget_module
from trainer_service.training.attention import forward as forward_module
from trainer_service.training.attention.forward import Forward, PackedForward, PlainForward, check_key_values
from trainer_service.training.attention.packing import Layout, Row, Segment
from trainer_service.training.cohort import Cohort
from trainer_service.training.evaluation.generate import greedy_answers

FIRST, SECOND = f"{spare_devices.NAME}:0", f"{spare_devices.NAME}:1"
SMALL = {**LLAMA_SHAPE, "hidden_size": 32, "intermediate_size": 64}
LATENT = {"kv_lora_rank": 16, "q_lora_rank": None, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 8}
MODELS: dict[str, dict[str, Any]] = {
    "llama": SMALL,
    "gemma3_text": {**SMALL, **ARCHITECTURES["gemma3_text"], "num_hidden_layers": 2, "tie_word_embeddings": True},
    "deepseek_v2": {**SMALL, **LATENT, "num_key_value_heads": 4, "first_k_dense_replace": 2},
}


def device_map(path: Path) -> dict[str, str]:
    """As accelerate divides two layers among two devices; weights that the embeddings share stay with them."""
    tied = AutoConfig.from_pretrained(path).get_text_config().tie_word_embeddings
    parts = {"embed_tokens": FIRST, "rotary_emb": FIRST, "layers.0": FIRST, "layers.1": SECOND, "norm": SECOND}
    return {"lm_head": FIRST if tied else SECOND, **{f"model.{part}": device for part, device in parts.items()}}


@contextmanager
def loaded_on_spare_devices() -> Iterator[None]:
    """Within the block, models are loaded on the spare devices instead of on GPUs."""
    from_pretrained, pick_device = AutoModelForCausalLM.from_pretrained, base_model.pick_device

    def placed(path: Path, **options: Any) -> Any:
        if options["device_map"] == "auto":
            options["device_map"] = device_map(path)
        return from_pretrained(path, **options)

    def first(device: Device, chosen_by: str = "") -> torch.device:
        return torch.device(FIRST)

    AutoModelForCausalLM.from_pretrained, base_model.pick_device = placed, first
    try:
        yield
    finally:
        AutoModelForCausalLM.from_pretrained, base_model.pick_device = from_pretrained, pick_device


def worker(path: Path, num_gpus: int) -> Cohort:
    """The cohort that a worker with `num_gpus` GPUs loads; 0: on the CPU."""
    spec = WorkerSpec(path.name, str(path), WorkerSettings.of(FLOAT32), num_threads=1, num_gpus=num_gpus)
    with loaded_on_spare_devices() if num_gpus else nullcontext():
        return load_trainer(spec)[0]


def passes(cohort: Cohort, kind: Callable[[Any], Forward], given: bool) -> torch.Tensor:
    """Logits and the gradients of two prefixes, one after the other; with `given`, of keys and values."""
    base = cohort.base_model
    rows = torch.randn(8, base.info.hidden_size, generator=torch.Generator().manual_seed(1)).to(base.device)
    if given:
        leaves, prefixes = list[torch.Tensor](), list[PrefixInput]()
        for part in (rows[:5], rows[5:]):
            lifted = key_values_of(base, part).input(base.dtype, base.device)
            leaves += [tensor.requires_grad_(True) for tensor in (*lifted.keys, *lifted.values)]
            prefixes.append(lifted)
    else:
        leaves = [part.clone().requires_grad_(True) for part in (rows[:5], rows[5:])]
        prefixes = [PrefixInput(part) for part in leaves]
    alone = Row((9, 10), (11, 12, 13))
    segments = [
        Segment(prefixes[0], [Row((6, 7, 8, 9), (10, 11)), Row((6, 7, 8, 12, 13), (14,))]),
        Segment(prefixes[1], [alone]),
        Segment(None, [alone]),
    ]
    forward = kind(base)
    logits = forward.logits(forward.states(segments))
    assert logits.device == base.device, logits.device
    gradients = torch.autograd.grad(logits.log_softmax(-1)[:, 7].sum(), leaves)
    assert {gradient.device for gradient in gradients} == {base.device}, gradients
    return torch.cat([tensor.detach().cpu().flatten() for tensor in (logits, *gradients)])


def trained(cohort: Cohort, kind: str, num_held_out: int = 0) -> torch.Tensor:
    """A whole job, with held-out examples also judged: each step's loss, and the numbers that it leaves."""
    held_out = generation(num_held_out, 100)
    events = run(cohort, task(train=generation(6), validation=held_out, num_steps=2, batch_size=3, kind=kind))
    return torch.cat([torch.tensor(losses(events)), matrix(events).flatten()])


def answers(cohort: Cohort, given: bool) -> list[str]:
    """What the model's own code generates after a prefix."""
    base = cohort.base_model
    rows = torch.randn(4, base.info.hidden_size, generator=torch.Generator().manual_seed(2)).to(base.device)
    prefix = key_values_of(base, rows).input(base.dtype, base.device) if given else PrefixInput(rows)
    return greedy_answers(base, [prefix, prefix], [(9, 10), (11, 12, 13)], 4, ())


def keeps_to_the_fullest(cohort: Cohort) -> str:
    """The token budget is what fits into the device with the least free memory."""
    budget: Any = budget_module
    base, forward = cohort.base_model, PackedForward(cohort.base_model)
    per_position = budget.bytes_per_position(base, forward)
    both = sum((budget.kept_bytes(base, forward, 192) - budget.kept_bytes(base, forward, 64)).values()) // 128
    assert 0 < per_position < both, (per_position, both)
    original, free = budget.free_bytes, Counter({FIRST: 1 << 40, SECOND: 4000 * per_position})
    budget.free_bytes = lambda device: free[str(device)]
    try:
        found = budget.measured_token_budget(base, forward)
    finally:
        budget.free_bytes = original
    return "" if found == 1000 else f"{found} tokens, not 1000"


def compared(path: Path, only: Collection[str] = ()) -> dict[str, float | str]:
    """The relative difference of each part, or of those named by `only`; a text for one that failed."""
    one, two = worker(path, 0), worker(path, 2)
    assert {str(parameter.device) for parameter in two.base_model.model.parameters()} == {FIRST, SECOND}
    parts: dict[str, Callable[[Cohort], Any]] = {
        "forward": lambda cohort: (type(cohort.forward), vars(cohort.forward).get("split")),
        "packed PROMPT": lambda cohort: passes(cohort, PackedForward, given=False),
        "packed PREFIX": lambda cohort: passes(cohort, PackedForward, given=True),
        "plain PROMPT": lambda cohort: passes(cohort, PlainForward, given=False),
        "plain PREFIX": lambda cohort: passes(cohort, PlainForward, given=True),
        "job PROMPT": lambda cohort: trained(cohort, "PROMPT", 2),
        "job PREFIX": lambda cohort: trained(cohort, "PREFIX"),
        "answers PROMPT": lambda cohort: answers(cohort, given=False),
        "answers PREFIX": lambda cohort: answers(cohort, given=True),
        "prefix check": lambda cohort: check_key_values(cohort.base_model, cohort.forward),
        "token budget": lambda cohort: "" if cohort is one else keeps_to_the_fullest(cohort),
    }
    found: dict[str, float | str] = {}
    for name, part in parts.items():
        if only and name not in only:
            continue
        try:
            expected, value = part(one), part(two)
        except (RuntimeError, AssertionError) as error:
            found[name] = f"{type(error).__name__}: {error}"
            continue
        if isinstance(expected, torch.Tensor):
            found[name] = float((value - expected).norm() / expected.norm())
        else:
            found[name] = "" if value == expected else f"{value} instead of {expected}"
    return found


@contextmanager
def tiles_left_on_the_first_device() -> Iterator[None]:
    right = Layout.tiles_on

    def wrong(self: Layout, device: torch.device) -> Any:
        return right(self, torch.device(FIRST) if device.type == spare_devices.NAME else device)

    Layout.tiles_on = wrong  # type: ignore[method-assign]
    try:
        yield
    finally:
        Layout.tiles_on = right  # type: ignore[method-assign]


@contextmanager
def positions_left_where_they_are() -> Iterator[None]:
    right = forward_module.only_at
    forward_module.only_at = lambda positions, mlp: right(_Immovable(positions), mlp)  # type: ignore[arg-type]
    try:
        yield
    finally:
        forward_module.only_at = right


FAULTS = {"tiles": tiles_left_on_the_first_device, "mlp": positions_left_where_they_are}
FAULTY = ("forward", "packed PROMPT")
"""The parts that show a fault."""


class _Immovable:
    def __init__(self, positions: torch.Tensor) -> None:
        self._positions = positions

    def to(self, device: torch.device) -> torch.Tensor:
        return self._positions


def main(folder: Path) -> None:
    spare_devices.install()
    logging.disable(logging.WARNING)
    found = {name: compared(save_tiny_model(folder / name, name, **shape)) for name, shape in MODELS.items()}
    for fault, is_made in FAULTS.items():
        with is_made():
            found[fault] = compared(folder / next(iter(MODELS)), only=FAULTY)
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
