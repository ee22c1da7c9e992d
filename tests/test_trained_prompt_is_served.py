"""Where training and serving meet: the golden record that a cohort writes is what a replica finds, in every dtype that
serves.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from prompttuning.v1 import generation_pb2

from shared.model.base_model import load
from shared.model.options import DType, ModelOptions
from shared.prompt.prefix import Prefix
from shared.values.enums import PrefixKind
from tests.inference_service.replica import blob, publish, running_replica
from tests.tiny_models import save_tiny_llama
from tests.trainer_service.training.tasks import TEMPLATE, classification, of, run, task
from trainer_service.training.cohort import Cohort
from trainer_service.training.events import Finished


def _another(prefix: Prefix) -> Prefix:
    """A prefix of the same shape that says something else."""
    return type(prefix).from_tensors({name: 3 * tensor.flip(0) for name, tensor in prefix.tensors().items()})


@pytest.mark.parametrize("kind", PrefixKind)
@pytest.mark.parametrize(
    ("trained_in", "served_in"), [("float32", "float32"), ("bfloat16", "bfloat16"), ("bfloat16", "float32")]
)
async def test_what_a_cohort_recorded_is_what_a_replica_replays(
    tmp_path: Path, trained_in: DType, served_in: DType, kind: PrefixKind
) -> None:
    model_dir = save_tiny_llama(tmp_path / "model", initializer_range=0.3)  # so large that answers depend on the prompt
    base = load(model_dir, ModelOptions(dtype=trained_in, device="cpu"))
    one = task(train=classification(12), validation=classification(6, 100), num_steps=10, learning_rate=0.05, kind=kind)
    result = of(run(Cohort(base), one), Finished)[0].result
    assert len(result.golden) > 1
    assert result.prefix.kind is kind
    data = blob(model_dir, result.prefix, template=TEMPLATE, golden=result.golden, labels=one.spec.labels)
    async with running_replica(model_dir, tmp_path, dtype=served_in) as replica:
        record = publish(replica.store, data)
        await replica.state(record.name, "LOADED")
        source = generation_pb2.GenerationInput(prompt="tone", text="review 3")
        scored = await replica.stub.Score(generation_pb2.ScoreRequest(input=source))
        assert [score.candidate for score in scored.scores] == list(one.spec.labels)
        wrong = blob(model_dir, _another(result.prefix), template=TEMPLATE, golden=result.golden)
        refused = await replica.state(publish(replica.store, wrong).name, "QUARANTINED")
        assert "golden" in refused.reason
        assert await replica.served_version() == record.name
