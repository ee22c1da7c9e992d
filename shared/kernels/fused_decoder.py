"""A whole decoder of Llama's structure as one call of a compiled kernel (decoder.c).

The parts are found in a model that `replace_modules.speed_up_serving` has changed, by their names and types, so each
one is already proven; the caller must compare the whole with the model's own forward pass before it uses it.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from shared.kernels import library, ops
from shared.kernels.norm import rms_norm

_LAYER, _NORM = library.STRUCTURES["Layer"], library.STRUCTURES["Norm"]


@dataclass(frozen=True)
class LayerAttention:
    """A layer's cache, keys and values `[rows, kv_heads, max_length, width]`, and the arguments of its attention."""

    keys: torch.Tensor
    values: torch.Tensor
    window: int
    """0: no window."""
    scaling: float


class OtherStructure(Exception):
    """The model has another structure, or parts for which the kernel has no code; says which."""


class FusedDecoder:
    """The decoder of a model in bfloat16 on a CPU, embeddings to logits. Keeps all tensors that the kernel reads."""

    def __init__(self, model: Any, attentions: Sequence[LayerAttention]) -> None:
        """Raises OtherStructure."""
        found, base = library.load(), model.base_model
        self._kept: list[torch.Tensor | ops.PackedWeights] = []
        try:
            layers, norm, head = list(base.layers), base.norm, model.get_output_embeddings()
            self._rotary = base.rotary_emb
            first = attentions[0]
            if found is None or len(layers) != len(attentions) or not ops.can_attend(first.keys, first.values):
                raise OtherStructure("no kernels, or another cache")
            head = self._weights(head)
            self.width, (rows, kv_heads, length, width) = head.inputs, first.keys.shape
            structs = [self._layer(layer, attention) for layer, attention in zip(layers, attentions, strict=True)]
            norm = self._norm(norm, self.width)
        except (AttributeError, IndexError) as error:
            raise OtherStructure(str(error)) from error
        self._step, self._layers = found.decoder_step, (_LAYER * len(structs))(*structs)
        heads, inner = structs[0].out.inputs // width, structs[0].down.inputs
        sizes = (len(structs), self.width, heads, kv_heads, width, inner)
        strides = (first.keys.stride(0), first.keys.stride(1), rows, length)
        self._decoder = library.STRUCTURES["Decoder"](self._layers, *sizes, *strides, norm, head)
        self._head_width, self._vocab = width, head.outputs
        self._check(structs, attentions)

    def __call__(
        self, hidden: torch.Tensor, rows: torch.Tensor, positions: torch.Tensor, wanted: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Writes the tokens' keys and values to the cache at `rows` and `positions` `[tokens]` int64.

        hidden are their embeddings `[tokens, width]` bfloat16, wanted `[n]` int64 the tokens whose logits are needed.
        Returns the logits `[n, vocab]` and the hidden states after the last norm, like hidden. Raises ValueError, with
        nothing written, for a place outside the cache, MemoryError.
        """
        tokens, hidden = len(rows), hidden.contiguous().clone()
        cos, sin = (angles[0].contiguous() for angles in self._rotary(hidden[None], positions[None]))
        expected = (tokens, self.width), (tokens,), (tokens, self._head_width), (tokens, self._head_width)
        dtypes = {tensor.dtype for tensor in (hidden, cos, sin)}
        if (hidden.shape, positions.shape, cos.shape, sin.shape) != expected or dtypes != {torch.bfloat16}:
            raise ValueError(f"expected {tokens} tokens in bfloat16, got {hidden.shape} and angles {cos.shape}")
        if len(wanted) and not 0 <= int(wanted.min()) <= int(wanted.max()) < tokens:
            raise ValueError(f"the wanted tokens {wanted.tolist()} are not among {tokens}")
        logits = hidden.new_empty(len(wanted), self._vocab)
        places = rows.data_ptr(), positions.data_ptr(), tokens, wanted.data_ptr(), len(wanted)
        tensors = hidden.data_ptr(), cos.data_ptr(), sin.data_ptr()
        status = self._step(self._decoder, *tensors, *places, logits.data_ptr(), torch.get_num_threads())
        if status == ops.OUTSIDE:
            raise ValueError(f"rows {rows.tolist()} at {positions.tolist()} lie outside of the cache")
        if status != 0:
            raise MemoryError(f"no memory for a step of {tokens} tokens")
        return logits, hidden

    def _layer(self, layer: Any, attention: LayerAttention) -> ctypes.Structure:
        own, mlp, head_width = layer.self_attn, layer.mlp, attention.keys.shape[3]
        if "forward" not in vars(mlp):
            raise OtherStructure("its MLP is not a SwiGLU")
        head_norms = [getattr(own, name, None) for name in ("q_norm", "k_norm")]
        norms = (
            self._norm(layer.input_layernorm, self.width),
            *(_NORM() if norm is None else self._norm(norm, head_width) for norm in head_norms),
            self._norm(layer.post_attention_layernorm, self.width),
        )
        return _LAYER(
            *norms,
            *(self._joined(own.q_proj, own.k_proj, own.v_proj), self._weights(own.o_proj)),
            *(self._joined(mlp.gate_proj, mlp.up_proj), self._weights(mlp.down_proj)),
            *(self._pointer(attention.keys), self._pointer(attention.values), attention.window, attention.scaling),
        )

    def _check(self, structs: Sequence[ctypes.Structure], attentions: Sequence[LayerAttention]) -> None:
        """The kernel reads memory unchecked, so all layers must have the same sizes."""
        decoder, shape, strides = self._decoder, attentions[0].keys.shape, attentions[0].keys.stride()
        attended, hidden = decoder.heads * decoder.width, decoder.hidden
        expected = (
            *((hidden, attended + 2 * decoder.kv_heads * decoder.width), (attended, hidden)),
            *((hidden, 2 * decoder.inner), (decoder.inner, hidden)),
        )
        for struct, attention in zip(structs, attentions, strict=True):
            parts = (struct.qkv, struct.out, struct.gate_up, struct.down)
            if tuple((part.inputs, part.outputs) for part in parts) != expected:
                raise OtherStructure("its layers have other sizes")
            same = (attention.keys.shape, attention.keys.stride()) == (shape, strides)
            if not same or not ops.can_attend(attention.keys, attention.values):
                raise OtherStructure("its layers have caches of other sizes")
        if decoder.heads % decoder.kv_heads:
            raise OtherStructure("its heads have another form")

    def _norm(self, module: nn.Module, width: int) -> ctypes.Structure:
        forward = vars(module).get("forward")
        if not isinstance(forward, partial) or forward.func is not rms_norm:
            raise OtherStructure(f"{type(module).__name__} is not an RMSNorm")
        weight, epsilon = forward.args
        if weight.shape != (width,):
            raise OtherStructure(f"{type(module).__name__} has another width")
        return _NORM(self._pointer(weight.contiguous()), epsilon)

    def _joined(self, *projections: Any) -> ctypes.Structure:
        whole = projections[0].whole
        if any(projection.whole is not whole for projection in projections):
            raise OtherStructure("projections of one input are not joined")
        return self._weights(whole)

    def _weights(self, module: Any) -> ctypes.Structure:
        packed: ops.PackedWeights = module.packed
        self._kept.append(packed)
        return packed.struct

    def _pointer(self, tensor: torch.Tensor) -> int:
        self._kept.append(tensor)
        return tensor.data_ptr()
