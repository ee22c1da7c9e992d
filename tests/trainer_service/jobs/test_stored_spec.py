"""Specs in job databases of earlier releases, and checkpoints that belong to them."""

from __future__ import annotations

import json

from pydantic import TypeAdapter

from shared.values.enums import InitMethod, TemplateFormat, TooLong
from shared.values.hyperparameters import Hyperparameters, Init
from shared.values.sampling import Sampling
from shared.values.spec import PublishPolicy
from shared.values.template import Template
from tests.trainer_service.builders import effective_spec
from trainer_service.jobs.model import EffectiveSpec, StoredSpec
from trainer_service.jobs.stored_json import from_json, to_json
from trainer_service.training.checkpoint import digest_of, digest_of_format_1

OLD_SPEC = """{"prompt":"a","base_model":"","dataset":"datasets/sha256-00","validation_dataset":"",
"validation_fraction":null,"template":{"text":"Q: {input}","format":"CHAT","system":"Be kind","system_override":false,
"arguments":{"n":3},"date":"","lead":"","end":"","rendering":1},"task":null,"labels":[],"too_long":"REFUSE",
"hyperparameters":{"num_virtual_tokens":null,
"init":{"method":"FROM_PROMPT","text":"","source_version":"prompts/b/versions/2"},"reparameterisation":null,
"learning_rate":null,"schedule":null,"warmup_steps":null,"weight_decay":null,"max_grad_norm":null,"batch_size":null,
"num_epochs":null,"num_steps":null,"evaluation_interval_steps":null,"early_stop_patience":null,"label_smoothing":null,
"balance_classes":null,"class_weights":{},"metric":null,"seed":null,"search":null},
"publish":{"alias":"","gate":null,"wait_until_served_seconds":null},"priority":0,"max_runtime_seconds":null,
"sampling_defaults":{"temperature":null,"top_k":null,"top_p":null,"min_p":null,"repetition_penalty":null,
"stop":["x"],"max_new_tokens":null},"annotations":{},"deadline":null}"""
OLD_TRAINING = """{"task":"GENERATION","template":{"text":"{input}","format":"TEXT","system":"","system_override":false,
"arguments":{},"date":"","lead":"","end":"","rendering":1},"labels":[],"hyperparameters":{"num_virtual_tokens":4,
"init":{"method":"SAMPLE_VOCAB","text":"","source_version":""},"reparameterisation":"NONE","learning_rate":0.01,
"schedule":"CONSTANT","warmup_steps":0,"weight_decay":0.0,"max_grad_norm":1.0,"batch_size":4,"num_steps":5,
"evaluation_interval_steps":5,"early_stop_patience":0,"label_smoothing":0.0,"balance_classes":false,"metric":"LOSS",
"seed":1,"search":false,"class_weights":{}},"too_long":"REFUSE","max_positions":0}"""


def test_a_spec_of_the_release_before_is_read() -> None:
    assert from_json(StoredSpec, OLD_SPEC) == StoredSpec(
        prompt="a",
        dataset="datasets/sha256-00",
        template=Template("Q: {input}", TemplateFormat.CHAT, "Be kind", arguments={"n": 3}),
        too_long=TooLong.REFUSE,
        hyperparameters=Hyperparameters(init=Init(InitMethod.FROM_PROMPT, source="prompts/b/versions/2")),
        publish=PublishPolicy("-"),  # an empty alias was none
        sampling_defaults=Sampling(stop_sequences=("x",)),
    )


def test_what_is_written_is_read_and_has_the_keys_of_before() -> None:
    spec = from_json(StoredSpec, OLD_SPEC)
    written = to_json(spec)
    assert from_json(StoredSpec, written) == spec
    before = json.loads(OLD_SPEC)
    assert json.loads(written) == {
        **before,
        "hyperparameters": {**before["hyperparameters"], "kind": None},
        "publish": {"alias": "-", "gate": None, "wait_until_served_seconds": None},
        "distillation": None,
    }


def test_a_checkpoint_of_the_release_before_fits_its_job() -> None:
    effective = effective_spec()
    stored = json.loads(effective.model_dump_json()) | {"training": json.loads(OLD_TRAINING)}
    training = TypeAdapter(EffectiveSpec).validate_python(stored).training
    assert digest_of(training, (), ()) == "3ffe26f0f2f15cefa81ee14a5f287be6:71d0aacb690b61280d0c97c6b6a66664"
    assert digest_of_format_1(training, (), ()) == "5e666ad125e0c1eb31179ed9d79e65e2"
    chat = training.model_copy(
        update={
            "template": Template(format=TemplateFormat.CHAT),
            "hyperparameters": training.hyperparameters.model_copy(update={"init": Init(InitMethod.LABELS)}),
        }
    )
    assert digest_of(chat, (), ()) == "bde3bc1ad9191ccd7facc4e9ca509225:71d0aacb690b61280d0c97c6b6a66664"


def test_a_field_that_no_longer_exists_is_skipped() -> None:
    written = json.loads(to_json(effective_spec()))
    old = json.dumps({**written, "estimated_seconds": 0.0})
    assert from_json(EffectiveSpec, old) == effective_spec()
