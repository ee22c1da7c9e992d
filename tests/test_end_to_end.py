"""The main journey on the real base model: examples, a Ray worker, a published version, a stream; two services, real
processes.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from openai import AsyncOpenAI

from softprompt import AsyncClient, Hyperparameters, JobState, Sampling, Template, TuningSpec
from softprompt.local.services import LocalConfig, LocalServices

EXAMPLES = Path(__file__).parents[1] / "examples" / "product-descriptions"
NUM_HELD_OUT = 2
"""Judging the prompt reads each of them five times, once with a dozen examples before it."""
PRODUCT = "name: Aria 5 | category: wireless earbuds | battery: 30 h | feature: noise cancelling | price: $79"


@pytest.mark.model
@pytest.mark.usefixtures("one_thread")
async def test_from_examples_to_a_streamed_answer(real_model_dir: Path, tmp_path: Path) -> None:
    logged: list[str] = []
    services = LocalServices(
        LocalConfig(real_model_dir, tmp_path, gateway_port=0), lambda name, line: logged.append(f"{name}: {line}")
    )
    async with services, AsyncClient(services.trainer_endpoint, services.inference_endpoint) as client:
        train = await client.upload_dataset(EXAMPLES / "train.jsonl")
        few = (EXAMPLES / "heldout.jsonl").read_text().splitlines(keepends=True)[:NUM_HELD_OUT]
        (tmp_path / "heldout.jsonl").write_text("".join(few))
        heldout = await client.upload_dataset(tmp_path / "heldout.jsonl")
        spec = TuningSpec(
            prompt="product-descriptions",
            dataset=train.dataset,
            validation_dataset=heldout.dataset,
            template=Template("{input}\n"),
            hyperparameters=Hyperparameters(
                num_virtual_tokens=8, batch_size=1, num_steps=8, evaluation_interval_steps=8, seed=1
            ),
        )
        job = await client.tune(spec)
        assert job.state is JobState.SUCCEEDED, logged[-30:]
        assert job.result is not None
        assert job.result.version == "prompts/product-descriptions/versions/1"
        assert job.result.metrics["loss"] < job.result.template_metrics["loss"] - 0.1
        report = await client.job_report(job.name)
        assert len(report.answers) == job.result.num_judging
        written = [answer for answer in report.answers if answer.tuned is not None and answer.tuned.text]
        assert any(answer.bare is not None and answer.bare.text for answer in written)
        assert any(answer.few_shot is not None and answer.few_shot.text for answer in report.answers)
        loaded = await client.wait_until_served(job.result.version)
        assert loaded.digest == job.result.digest

        greedy = Sampling(temperature=0.0, max_new_tokens=24)
        tuned = await client.generate(PRODUCT, prompt="product-descriptions", sampling=greedy)
        bare = await client.generate(PRODUCT, sampling=greedy)
        assert tuned.start.version == job.result.version
        assert tuned.start.virtual_tokens == 8
        assert bare.start.version == ""
        assert tuned.text != bare.text
        stream = client.stream(PRODUCT, prompt="product-descriptions@1", sampling=greedy)
        assert "".join([delta.text async for delta in stream]) == tuned.text

        async with AsyncOpenAI(base_url=services.gateway_url, api_key="none", max_retries=0) as http:
            answer = await http.chat.completions.create(
                model="product-descriptions@1",
                messages=[{"role": "user", "content": PRODUCT}],
                temperature=0,
                max_tokens=24,
            )
        assert (answer.model, answer.choices[0].message.content) == ("product-descriptions@1", tuned.text)
        assert answer.system_fingerprint == job.result.digest
    assert services.alive() == []
