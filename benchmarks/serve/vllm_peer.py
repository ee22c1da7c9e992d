"""vLLM's side of the benchmark: `python vllm_peer.py MODEL WORKLOAD_FILE`, under an interpreter that needs only vLLM.

For every line with a number of requests on standard input, it answers with one JSON line: tokens per second, or seconds
to the first token.
"""

import json
import os
import sys
import time

# By default, vLLM reserves a core and binds its threads; on a machine with two cores, that is half of them.
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "2")
os.environ.setdefault("VLLM_CPU_NUM_OF_RESERVED_CPU", "0")
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
os.environ.setdefault("OMP_NUM_THREADS", str(len(os.sched_getaffinity(0))))

import torch
import vllm  # type: ignore[import-not-found, unused-ignore]
from vllm import LLM, SamplingParams  # type: ignore[import-not-found, unused-ignore]


def main(model: str, workload_file: str) -> None:
    workload = torch.load(workload_file, weights_only=True)
    prompts, inputs, new = workload["prompts"], workload["inputs"], workload["num_new"]
    llm = LLM(model=model, dtype="bfloat16", enable_prompt_embeds=True, max_model_len=4096, max_num_seqs=32, seed=0)
    table = workload["table"]

    def request(index: int, virtual: bool, inputs: list) -> dict[str, torch.Tensor]:  # type: ignore[type-arg]
        embeds = table[torch.tensor(inputs[index])]
        if virtual:
            embeds = torch.cat([prompts[index % len(prompts)].to(embeds.dtype), embeds])
        return {"prompt_embeds": embeds}

    def seconds(count: int, tokens: int, virtual: bool, order: dict) -> float:  # type: ignore[type-arg]
        values = order.get("sampling") or {"temperature": 0.0}
        sampling = SamplingParams(**values, max_tokens=tokens, min_tokens=tokens, ignore_eos=True)
        requests = [request(i, virtual, order.get("inputs") or inputs) for i in range(count)]
        begun = time.perf_counter()
        llm.generate(requests, sampling, use_tqdm=False)
        return time.perf_counter() - begun

    seconds(2, 4, True, {})
    sys.stdout.write("RESULT " + json.dumps({"about": f"vLLM {vllm.__version__}"}) + "\n")
    sys.stdout.flush()
    for line in sys.stdin:
        order = json.loads(line)
        if order["what"] == "throughput":
            value = order["requests"] * new / seconds(order["requests"], new, True, order)
        else:
            value = seconds(1, 1, order["virtual"], order)
        sys.stdout.write("RESULT " + json.dumps({"value": value}) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
