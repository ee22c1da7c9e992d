"""The bare model that a job is compared with reads exactly what the inference service gives the bare model."""

from __future__ import annotations

from typing import Any

import pytest

from inference_service.inputs import InputPreparer, InputRequest
from shared.text.template import InputEncoder, Message, bare_template, default_format
from tests.tiny_models import VOCAB_SIZE, byte_tokenizer
from tests.trainer_service.training.tasks import LABELS, TEMPLATE, task
from trainer_service.training.evaluation import baselines
from trainer_service.training.spec import Example, TaskKind

QUESTION = (Message(role="user", content="a lamp"),)
EXAMPLES = {
    TaskKind.GENERATION: Example(line=1, input="a lamp", output="It glows."),
    TaskKind.CLASSIFICATION: Example(line=1, input="a lamp", label=LABELS[0]),
    TaskKind.CHAT: Example(line=1, messages=(*QUESTION, Message(role="assistant", content="It glows."))),
}


def tokenizer_with(chat_template: str | None) -> Any:
    tokenizer = byte_tokenizer()
    if chat_template != "own":
        tokenizer.chat_template = chat_template
    return tokenizer


@pytest.mark.parametrize("kind", EXAMPLES)
@pytest.mark.parametrize("chat_template", ["own", None, "{{ raise_exception('no') }}"])
async def test_a_job_asks_the_bare_model_as_the_service_does(kind: TaskKind, chat_template: str | None) -> None:
    tokenizer = tokenizer_with(chat_template)
    spec = task().spec.model_copy(update={"task": kind, "labels": LABELS if kind is TaskKind.CLASSIFICATION else ()})
    assert spec.template == TEMPLATE, "the job's own template is another one"
    found = baselines.bare(spec, tokenizer, [EXAMPLES[kind]])
    encoder = InputEncoder(tokenizer, bare_template(None, default_format(tokenizer)))
    content = QUESTION if kind is TaskKind.CHAT else "a lamp"
    served = await InputPreparer(VOCAB_SIZE, 100).prepare(InputRequest(content), encoder, 0)
    assert found.data.examples[0].input_ids == served.ids
    assert found.end_token_id == encoder.end_token_id
    assert (tokenizer.decode(served.ids).startswith("<user>")) is (chat_template == "own")
