"""Runs the frozen model over segments of rows and returns only the logits at target positions.

`PackedForward` is the fast path: all segments as one sequence without padding. `PlainForward` prepends the prompt to
each row and is right for every causal model. `choose_forward` compares the two on the loaded model and chooses the fast
one if they agree. Models whose attention can't be replaced, or depends on more than positions, use the plain one.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Protocol

import torch

from shared.errors import PreconditionFailed
from shared.kernels.replace_modules import restore, speed_up_training
from shared.model.attention_calls import attention_calls
from shared.model.base_model import BaseModel
from shared.model.causality import check_causal
from shared.prompt.lift import attended, key_values_of, latent_layers
from shared.prompt.prefix import PrefixInput
from trainer_service.training.attention.packing import Row, Segment, num_packed_tokens, pack
from trainer_service.training.attention.plain_inputs import plain_inputs
from trainer_service.training.attention.prefix_attention import packed_attention
from trainer_service.training.attention.row_memory import RowMemory

log = logging.getLogger(__name__)

_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.05}


class Forward(Protocol):
    """A forward pass over segments, in two parts: hidden states at the targets, then logits."""

    row_memory: RowMemory
    """Set by the cohort (`budget.measured_row_memory`); until then, only positions count."""

    def states(self, segments: Sequence[Segment]) -> torch.Tensor:
        """The input of `logits`, `[targets, width]`, ordered by segment, row, target."""

    def logits(self, states: torch.Tensor) -> torch.Tensor:
        """`[targets, vocab]` in the model's dtype."""

    def num_tokens(self, num_virtual_tokens: int, rows: Sequence[Row]) -> int:
        """The number of positions that such a segment takes in a pass."""


class PackedForward:
    """All segments as one sequence without padding.

    `split`: apply the output head separately from the layers, so that large logits can be computed in parts.

    The layers may be on several devices; states and logits are on the first one, where the embeddings are.
    """

    def __init__(self, base_model: BaseModel, *, split: bool = True) -> None:
        self.row_memory = RowMemory()
        self._model, self._device, self.split = base_model.model, base_model.device, split
        self._embed = base_model.model.get_input_embeddings()
        self._last_mlp = last_mlp(base_model.model)
        self._latent_layers = latent_layers(base_model.model)
        config = base_model.model.config.get_text_config()
        self._scaling = getattr(config, "logits_scaling", None)
        self._softcap = getattr(config, "final_logit_softcapping", None)

    def states(self, segments: Sequence[Segment]) -> torch.Tensor:
        packed = pack(segments, self._device, self._attended)
        pieces = [piece if piece.is_floating_point() else self._embed(piece) for piece in packed.pieces]
        inputs = {
            "inputs_embeds": torch.cat(pieces)[None],
            "position_ids": packed.layout.positions[None],
            "use_cache": False,
        }
        with packed_attention(self._model, packed.layout):
            if self.split:
                with only_at(packed.target_positions, self._last_mlp):
                    hidden: torch.Tensor = self._model.base_model(**inputs).last_hidden_state[0]
                return hidden.index_select(0, packed.target_positions.to(hidden.device)).to(self._device)
            logits: torch.Tensor = self._model(**inputs, logits_to_keep=packed.target_positions).logits[0]
            return logits

    def _attended(self, prefix: PrefixInput) -> PrefixInput:
        keys, values = attended(self._latent_layers, prefix.keys, prefix.values)
        return replace(prefix, keys=keys, values=values)

    def logits(self, states: torch.Tensor) -> torch.Tensor:
        if not self.split:
            return states
        logits: torch.Tensor = self._model.get_output_embeddings()(states).to(self._device)
        if self._scaling is not None:
            logits = logits / self._scaling
        return logits if self._softcap is None else torch.tanh(logits / self._softcap) * self._softcap

    def num_tokens(self, num_virtual_tokens: int, rows: Sequence[Row]) -> int:
        return num_packed_tokens(num_virtual_tokens, rows)


class PlainForward:
    """Each row after a copy of its prefix, padded to the longest row."""

    def __init__(self, base_model: BaseModel) -> None:
        self.row_memory = RowMemory()
        self._model, self._device = base_model.model, base_model.device
        self._embed = base_model.model.get_input_embeddings()

    def states(self, segments: Sequence[Segment]) -> torch.Tensor:
        rows = [(segment, row) for segment in segments for row in segment.rows]
        embeds = [self._embed(torch.tensor(row.tokens, device=self._device)) for _, row in rows]
        inputs = plain_inputs(embeds, [segment.prefix for segment, _ in rows], "right")
        logits = self._model(**inputs, use_cache="past_key_values" in inputs).logits  # [rows, longest, vocab]
        picks = [
            (index, segment.num_embedded + len(row.input_ids) - 1, len(row.target_ids))
            for index, (segment, row) in enumerate(rows)
        ]
        return torch.cat([logits[row, first : first + count] for row, first, count in picks])

    def logits(self, states: torch.Tensor) -> torch.Tensor:
        return states

    def num_tokens(self, num_virtual_tokens: int, rows: Sequence[Row]) -> int:
        return len(rows) * (num_virtual_tokens + max((len(row.tokens) for row in rows), default=0))


def choose_forward(base_model: BaseModel) -> Forward:
    """The packed path if its results equal those of the plain path on this model, else the plain path.

    Replaces modules of the model by faster ones for the packed path. Raises PreconditionFailed for a model that doesn't
    accept embeddings, or passes no gradient to the prompt.
    """
    check_causal(base_model)
    plain = PlainForward(base_model)
    segments, prompt = _probe(base_model)
    try:
        expected, gradient = _logits_and_gradient(plain, segments, prompt)
    except Exception as error:
        raise PreconditionFailed(
            f"{base_model.info.id} can't be given virtual tokens: {type(error).__name__}: {error}"
        ) from error
    if not bool(torch.isfinite(gradient).all()) or not float(gradient.norm()):
        raise PreconditionFailed(f"{base_model.info.id} passes no gradient to virtual tokens")
    if _has_masks_of_its_own(base_model.model):
        return plain
    tolerance = _TOLERANCE.get(base_model.dtype, 0.1)
    faster = speed_up_training(base_model.model, base_model.device)
    for replaced in (faster, []):  # if it fails with faster modules, once more with the model's own
        for packed in (PackedForward(base_model), PackedForward(base_model, split=False)):
            try:
                logits, packed_gradient = _logits_and_gradient(packed, segments, prompt)
                if _difference(logits, expected) < tolerance and _difference(packed_gradient, gradient) < 2 * tolerance:
                    return packed
            except Exception as error:
                log.info("%s: a packed pass is not possible: %s", base_model.info.id, error)
        restore(replaced)
    log.warning(
        "%s is trained without a shared prefix, which is slower: its attention can't be replaced or needs more "
        "than positions",
        base_model.info.id,
    )
    return plain


def check_key_values(base_model: BaseModel, forward: Forward) -> None:
    """Raises PreconditionFailed if this model gives other answers after a prefix's keys and values than after the
    embeddings that they were computed from.
    """
    [first, second, bare], prompt = _probe(base_model)
    with torch.no_grad():
        lifted = [
            key_values_of(base_model, part).input(base_model.dtype, base_model.device)
            for part in (prompt[:5], prompt[5:])
        ]
        segments = [Segment(lifted[0], first.rows), Segment(lifted[1], second.rows), bare]
        expected, found = (forward.logits(forward.states(some)).float() for some in ([first, second, bare], segments))
    difference = _difference(found, expected)
    if not difference < _TOLERANCE.get(base_model.dtype, 0.1):
        raise PreconditionFailed(
            f"{base_model.info.id} can't be given keys and values: its answers differ by {difference:.2g} of their "
            "norm; train a soft prompt"
        )


def _probe(base_model: BaseModel) -> tuple[list[Segment], torch.Tensor]:
    """Test segments for packing: prompts of different lengths, and rows that share a beginning."""
    generator = torch.Generator().manual_seed(0)
    vocab = base_model.embedding_table.shape[0]
    ids = torch.randint(0, vocab, (24,), generator=generator).tolist()
    table = base_model.model.get_input_embeddings()
    with torch.no_grad():
        prompt = table(torch.randint(0, vocab, (8,), generator=generator).to(base_model.device)).detach()
    prompt.requires_grad_(True)
    rows = [
        Row(tuple(ids[:5]), tuple(ids[5:7])),
        Row((*ids[:3], *ids[7:13]), tuple(ids[13:14])),
        Row(tuple(ids[14:16]), tuple(ids[16:19])),
    ]
    first, second = PrefixInput(prompt[:5]), PrefixInput(prompt[5:])
    return [Segment(first, rows[:2]), Segment(second, rows[2:]), Segment(None, rows[1:])], prompt


def _logits_and_gradient(
    forward: Forward, segments: list[Segment], prompt: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    logits = forward.logits(forward.states(segments)).float()
    gradient = torch.autograd.grad(logits.log_softmax(-1)[:, 7].sum(), prompt)[0]
    return logits.detach(), gradient.float()


def _difference(value: torch.Tensor, reference: torch.Tensor) -> float:
    """The relative difference; infinite if the shapes differ."""
    return float((value - reference).norm() / reference.norm()) if value.shape == reference.shape else float("inf")


def _has_masks_of_its_own(model: Any) -> bool:
    """Whether a mask hides more than the arguments of the attention function say, as the chunks of Llama 4 do.

    A replaced attention doesn't see masks, and windows and chunks are longer than the test rows.
    """
    try:
        return not all(call.is_described for call in attention_calls(model))
    except PreconditionFailed:  # then a packed pass fails, too
        return False


def last_mlp(model: torch.nn.Module) -> torch.nn.Module | None:
    """The MLP of `model`'s last layer, most of that layer's work; None if the layer has no module called `mlp`."""
    stacks = [module for module in model.modules() if isinstance(module, torch.nn.ModuleList) and len(module)]
    found = getattr(max(stacks, key=len)[-1], "mlp", None) if stacks else None
    return found if isinstance(found, torch.nn.Module) else None


@contextmanager
def only_at(positions: torch.Tensor, mlp: torch.nn.Module | None) -> Iterator[None]:
    """Within the block, `mlp` maps [1, tokens, width] to zeros everywhere except at `positions`, [targets]."""
    if mlp is None:
        yield
        return
    forward, replaced = mlp.forward, vars(mlp).get("forward")

    def some(hidden: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        places = positions.to(hidden.device)
        values = forward(hidden.index_select(1, places), *args, **kwargs)
        if not isinstance(values, torch.Tensor):  # a mixture of experts that also returns its router's choices
            return forward(hidden, *args, **kwargs)
        return torch.zeros_like(hidden).index_copy(1, places, values)

    mlp.forward = some
    try:
        yield
    finally:
        if replaced is None:
            del mlp.forward
        else:
            mlp.forward = replaced
