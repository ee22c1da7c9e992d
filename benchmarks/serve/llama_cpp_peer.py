"""llama.cpp's side of the benchmark: `python llama_cpp_peer.py GGUF WORKLOAD_FILE`, under an interpreter that needs
llama-cpp-python, numpy and torch only.

Build llama-cpp-python with CMAKE_ARGS="-DGGML_NATIVE=OFF -DGGML_OPENMP=OFF" and the processor's flags, such as
-DGGML_AVX512=ON -DGGML_AVX512_VNNI=ON: its code for AMX dies in some virtual machines. The results say which it has.

Answers the same orders as `vllm_peer`, greedily. The keys and values of each soft prompt are computed once at the
start; a request's sequence begins with a copy of them, as in our engine.
"""

import ctypes
import json
import sys
import time

import llama_cpp as llama  # type: ignore[import-not-found, unused-ignore]
import numpy
import torch

CELLS, REQUESTS = 256, 32
"""Positions of a sequence, unless inputs are longer, and sequences of requests. Those of prompts follow."""


class Model:
    """A context with one stream of keys and values per sequence."""

    def __init__(self, file: str, prompts: list[torch.Tensor], cells: int) -> None:
        self._model = llama.llama_model_load_from_file(file.encode(), llama.llama_model_default_params())
        values = llama.llama_context_default_params()
        values.n_seq_max = REQUESTS + len(prompts)
        values.n_ctx = cells * values.n_seq_max
        values.n_batch = values.n_ubatch = 512
        values.n_threads = values.n_threads_batch = torch.get_num_threads()  # as many as ours
        values.kv_unified = False
        self._context = llama.llama_init_from_model(self._model, values)
        self._memory = llama.llama_get_memory(self._context)
        self._vocab = llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(self._model))
        self._embeds = llama.llama_batch_init(512, prompts[0].shape[1], 1)
        self._tokens = llama.llama_batch_init(512, 0, 1)
        self._virtual = len(prompts[0])
        for index, prompt in enumerate(prompts):
            rows = prompt.float().contiguous().numpy()
            ctypes.memmove(self._embeds.embd, rows.ctypes.data, rows.nbytes)
            places = [(REQUESTS + index, position) for position in range(len(rows))]
            self._decode(self._embeds, places, wanted=set())

    def seconds(self, inputs: list[list[int]], new: int, num_prompts: int, *, virtual: bool = True) -> float:
        """Time until every input has `new` tokens."""
        begun = time.perf_counter()
        start = self._virtual if virtual else 0
        ends = [start + len(ids) for ids in inputs]
        last = list[int]()
        for sequence in range(len(inputs)):
            llama.llama_memory_seq_rm(self._memory, sequence, -1, -1)
            if virtual:
                llama.llama_memory_seq_cp(self._memory, REQUESTS + sequence % num_prompts, sequence, -1, -1)
        todo = [(s, start + i, token) for s, ids in enumerate(inputs) for i, token in enumerate(ids)]
        for at in range(0, len(todo), 512):
            part = todo[at : at + 512]
            wanted = {i for i, (sequence, position, _) in enumerate(part) if position == ends[sequence] - 1}
            last += self._next([(s, p) for s, p, _ in part], [token for _, _, token in part], wanted)
        for step in range(new - 1):
            places = [(sequence, end + step) for sequence, end in enumerate(ends)]
            last = self._next(places, last, set(range(len(places))))
        return time.perf_counter() - begun

    def close(self) -> None:
        llama.llama_free(self._context)
        llama.llama_model_free(self._model)

    def _next(self, places: list[tuple[int, int]], tokens: list[int], wanted: set[int]) -> list[int]:
        for index, token in enumerate(tokens):
            self._tokens.token[index] = token
        self._decode(self._tokens, places, wanted)
        found = []
        for index in sorted(wanted):
            row = numpy.ctypeslib.as_array(llama.llama_get_logits_ith(self._context, index), (self._vocab,))
            found.append(int(row.argmax()))
        return found

    def _decode(self, batch: "llama.llama_batch", places: list[tuple[int, int]], wanted: set[int]) -> None:
        batch.n_tokens = len(places)
        for index, (sequence, position) in enumerate(places):
            batch.pos[index], batch.seq_id[index][0], batch.n_seq_id[index] = position, sequence, 1
            batch.logits[index] = index in wanted
        if llama.llama_decode(self._context, batch):
            raise RuntimeError("llama_decode failed")


def main(file: str, workload_file: str) -> None:
    workload = torch.load(workload_file, weights_only=True)
    prompts, inputs, new = workload["prompts"], workload["inputs"], workload["num_new"]
    quiet = llama.llama_log_callback(lambda *_: None)
    llama.llama_log_set(quiet, None)
    llama.llama_backend_init()
    cells = CELLS
    model = Model(file, prompts, cells)
    model.seconds(inputs[:2], 4, len(prompts))
    _answer({"about": f"llama-cpp-python {llama.__version__}, {llama.llama_print_system_info().decode()}"})
    for line in sys.stdin:
        order = json.loads(line)
        needed = len(prompts[0]) + max(map(len, order.get("inputs") or inputs)) + new
        if needed > cells:
            cells = needed
            model.close()
            model = Model(file, prompts, cells)
        if order["what"] == "throughput":
            some = (order["inputs"] or inputs)[: order["requests"]]
            _answer({"value": len(some) * new / model.seconds(some, new, len(prompts))})
        else:
            _answer({"value": model.seconds(inputs[:1], 1, len(prompts), virtual=order["virtual"])})


def _answer(value: dict) -> None:  # type: ignore[type-arg]
    sys.stdout.write("RESULT " + json.dumps(value) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
