"""Decode steps as captured CUDA graphs, one for each batch size of a ladder; batches are padded with dummy rows.

A decode step of a small batch is a thousand short kernels that take longer to launch than to run; a graph launches them
as one. This module knows no model: it captures a function that the caller passes.
"""

from __future__ import annotations

import logging
from bisect import bisect_left
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch

from inference_service.engine.kv.upload import upload

log = logging.getLogger(__name__)

_WARM_UPS = 2
Decode = Callable[[torch.Tensor], torch.Tensor]
"""Inputs `[3, batch]` int64 (token ids, rows, positions) -> logits `[batch, vocab]`. Must not wait for the device."""


def ladder(max_batch: int) -> list[int]:
    """Batch sizes to capture: powers of two up to 8, then multiples of 8.

    Padding wastes at most half of a small batch and an eighth of a large one.
    """
    sizes = [size for size in (1, 2, 4, 8) if size < max_batch] + list(range(16, max_batch, 8))
    return [*sizes, max_batch]


class Graph(Protocol):
    """A decode step on fixed inputs `[3, batch]`."""

    inputs: torch.Tensor

    def replay(self) -> torch.Tensor:
        """Run the step on the current `inputs`; logits `[batch, vocab]`, valid until the next call."""


class CudaGraph:
    """Captures `decode` once; `replay` runs it on the content of `inputs`. `pool` is the graphs' common memory."""

    def __init__(self, decode: Decode, inputs: torch.Tensor, pool: Any) -> None:
        self.inputs = inputs
        # Capturing needs a separate, warmed-up stream: lazy initialisation can't be captured.
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(_WARM_UPS):
                decode(inputs)
        torch.cuda.current_stream().wait_stream(stream)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph, pool=pool):
            self._logits = decode(inputs)

    def replay(self) -> torch.Tensor:
        self._graph.replay()
        return self._logits


class DecodeGraphs:
    """A graph for each batch size. `padding` is the input column, `[3]`, of dummy rows."""

    def __init__(
        self, make: Callable[[torch.Tensor], Graph], max_batch: int, padding: Sequence[int], device: torch.device
    ) -> None:
        self._sizes = ladder(max_batch)
        self._padding = list(padding)
        self._graphs: dict[int, Graph] = {}
        for size in reversed(self._sizes):  # the largest first: the smaller ones fit into its memory
            self._graphs[size] = make(torch.tensor([self._padding] * size, device=device).T.contiguous())

    def run(self, columns: Sequence[tuple[int, int, int]]) -> torch.Tensor | None:
        """Logits `[n, vocab]` of n (token id, row, position) until the next run. None: no graph is large enough."""
        step = bisect_left(self._sizes, len(columns))
        if step == len(self._sizes):
            return None
        graph = self._graphs[self._sizes[step]]
        padded = [*columns, *([self._padding] * (self._sizes[step] - len(columns)))]
        graph.inputs.copy_(upload(padded, torch.long, graph.inputs.device).T)
        return graph.replay()[: len(columns)]


def capture(decode: Decode, max_batch: int, padding: Sequence[int], device: torch.device) -> DecodeGraphs | None:
    """Capture the decode function for all batch sizes.

    None if it can't be captured because it waits for the device; decodes then run like other steps.
    """
    pool = torch.cuda.graph_pool_handle()
    try:
        return DecodeGraphs(lambda inputs: CudaGraph(decode, inputs, pool), max_batch, padding, device)
    except RuntimeError as error:
        torch.cuda.synchronize(device)
        log.warning("CUDA graphs unavailable; decode steps run eagerly: %s", error)
        return None
