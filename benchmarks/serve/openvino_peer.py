"""OpenVINO GenAI's side of the benchmark: `python openvino_peer.py GGUF WORKLOAD_FILE`, under an interpreter that needs
openvino-genai, numpy and torch only.

Answers the same orders as `vllm_peer`, greedily. Its pipelines take token ids and no embeddings, so as many tokens
stand for each soft prompt, whose keys and values its prefix cache keeps. Inputs are new random tokens each time,
because the cache would keep them, too.
"""

import json
import sys
import time

import numpy
import openvino  # type: ignore[import-not-found, unused-ignore]
import openvino_genai as genai  # type: ignore[import-not-found, unused-ignore]
import torch


def main(file: str, workload_file: str) -> None:
    workload = torch.load(workload_file, weights_only=True)
    prompts, inputs, new = workload["prompts"], workload["inputs"], workload["num_new"]
    rng, vocab = numpy.random.default_rng(0), len(workload["table"])
    ids = rng.integers(3, vocab, (len(prompts), len(prompts[0])))
    schedule = genai.SchedulerConfig()
    schedule.enable_prefix_caching, schedule.cache_size = True, 2  # GB
    threads = {"INFERENCE_NUM_THREADS": torch.get_num_threads()}  # as many as ours
    pipeline = genai.ContinuousBatchingPipeline(file, schedule, "CPU", threads)

    def seconds(some: list[list[int]], count: int, *, virtual: bool = True) -> float:
        config = genai.GenerationConfig(max_new_tokens=count, min_new_tokens=count, ignore_eos=True)
        rows = [rng.integers(3, vocab, len(own)) for own in some]
        if virtual:
            rows = [numpy.concatenate([ids[index % len(ids)], own]) for index, own in enumerate(rows)]
        requests = [openvino.Tensor(row[None]) for row in rows]
        begun = time.perf_counter()
        pipeline.generate(requests, [config] * len(requests))
        return time.perf_counter() - begun

    seconds(inputs[: len(prompts)], 4)
    _answer({"about": f"openvino-genai {genai.__version__}"})
    for line in sys.stdin:
        order = json.loads(line)
        if order["what"] == "throughput":
            some = (order["inputs"] or inputs)[: order["requests"]]
            _answer({"value": len(some) * new / seconds(some, new)})
        else:
            _answer({"value": seconds(inputs[:1], 1, virtual=order["virtual"])})


def _answer(value: dict) -> None:  # type: ignore[type-arg]
    sys.stdout.write("RESULT " + json.dumps(value) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
