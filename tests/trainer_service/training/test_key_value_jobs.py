"""Jobs that train keys and values: what they start from, and which positions an example may attend to."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import Any

import pytest
import torch

from shared.prompt.key_values import KeyValuePrefix
from shared.prompt.lift import key_values_of
from shared.prompt.prefix import Prefix
from shared.prompt.soft_prompt import SoftPrompt
from shared.text.template import InputEncoder, Template, pinned
from shared.values.enums import TemplateFormat
from tests.trainer_service.training.models import build
from tests.trainer_service.training.tasks import TEMPLATE, classification, generation, of, run, task
from trainer_service.training.attention.forward import Forward, PackedForward, PlainForward
from trainer_service.training.attention.packing import Row
from trainer_service.training.attention.plain_inputs import cache_of
from trainer_service.training.cohort import Cohort
from trainer_service.training.data.encoding import encode_dataset
from trainer_service.training.evaluation.generate import greedy_answers
from trainer_service.training.events import Checkpointed, Evaluated, Failed, Finished, StepDone, TrainingTask
from trainer_service.training.recipe.demonstrations import demonstrations
from trainer_service.training.recipe.init import embed
from trainer_service.training.recipe.leaves import KeyValueLeaves
from trainer_service.training.spec import Example
from trainer_service.training.trainee import Candidate, Trainee

BASE = build()
CHAT = pinned(Template(format=TemplateFormat.CHAT), BASE.tokenizer)
FROM_PROMPT = {"method": "FROM_PROMPT", "source_version": "prompts/p/versions/1"}


def test_a_soft_prompt_is_lifted_to_keys_and_values_with_the_same_loss() -> None:
    trained, loss = _trained(_job())
    lifted = run(Cohort(BASE), replace(_job(kind="PREFIX", init=FROM_PROMPT, num_steps=2), source=trained))
    at_start = of(lifted, Evaluated)[0]
    assert at_start.step == 0
    assert at_start.metrics["loss"] == pytest.approx(loss, rel=1e-5)
    assert isinstance(of(lifted, Finished)[0].result.prefix, KeyValuePrefix)


def test_a_version_of_keys_and_values_is_trained_on() -> None:
    trained, loss = _trained(_job(kind="PREFIX"))
    again = run(Cohort(BASE), replace(_job(kind="PREFIX", init=FROM_PROMPT, num_steps=2), source=trained))
    assert of(again, Evaluated)[0].metrics["loss"] == pytest.approx(loss, rel=1e-5)


def test_a_version_that_training_makes_worse_is_published_unchanged() -> None:
    """Its numbers are float32, as of an import, and not rounded."""
    trained, _ = _trained(_job(kind="PREFIX", learning_rate=3.0))
    assert isinstance(trained, KeyValuePrefix)
    source = KeyValuePrefix(*(tuple(layer * 1.0001 for layer in part) for part in (trained.keys, trained.values)))
    others = tuple(replace(example, output="~^~^") for example in generation())
    worse = replace(_job(kind="PREFIX", init=FROM_PROMPT, learning_rate=3.0), source=source, train=others)
    result = of(run(Cohort(BASE), worse), Finished)[0].result
    assert result.best_step == 0
    assert result.prefix.equals(source)


def test_keys_and_values_of_other_heads_are_refused_as_a_start_and_not_compared() -> None:
    prefix = key_values_of(BASE, torch.randn(6, BASE.embedding_table.shape[1]))
    narrow = KeyValuePrefix(*(tuple(layer[..., :8] for layer in part) for part in (prefix.keys, prefix.values)))
    [failed] = of(run(Cohort(BASE), replace(_job(kind="PREFIX", init=FROM_PROMPT), source=narrow)), Failed)
    assert failed.code == "BAD_DATA"
    assert "layer 0 has keys and values [2, 8] and [2, 8], this model's are [2, 16] and [2, 16]" in failed.message
    result = of(run(Cohort(BASE), replace(_job(num_steps=2), current=narrow)), Finished)[0].result
    assert result.metrics
    assert not result.current_metrics


def test_answers_after_keys_and_values_are_those_after_the_prompt() -> None:
    prompts = [SoftPrompt(torch.randn(length, BASE.embedding_table.shape[1])) for length in (7, 3)]
    inputs = [[5, 6, 7, 8], [9, 10]]
    expected, found = (
        greedy_answers(BASE, [prefix.input(BASE.dtype) for prefix in prefixes], inputs, 8, ())
        for prefixes in (prompts, [key_values_of(BASE, prompt.embeddings) for prompt in prompts])
    )
    assert found == expected


def test_demonstrations_are_whole_examples_whose_positions_only_their_own_rows_hide() -> None:
    job = _job(kind="PREFIX", init={"method": "DEMONSTRATIONS"})
    encoder = InputEncoder(BASE.tokenizer, TEMPLATE)
    examples = encode_dataset(job.train, encoder, job.spec, BASE.info.max_positions).examples
    shown = demonstrations(examples, 90, 3, None)
    assert shown == demonstrations(examples, 90, 3, None)
    assert shown != demonstrations(examples, 90, 4, None)
    assert len(shown.token_ids) == len(shown.owners) == 90
    assert shown.owners[0] is None
    assert sorted(position for positions in shown.hidden.values() for position in positions) == list(range(1, 90))
    blocks = list(shown.hidden.items())
    known = {(example.input_ids, example.target_ids) for example in examples}
    for index, (owner, positions) in enumerate(blocks):
        assert owner in known
        whole = (*owner[0], *owner[1])
        tokens = tuple(shown.token_ids[position] for position in positions)
        assert tokens == (whole if index else whole[-len(tokens) :]), "the first one has lost its beginning"
    few = demonstrations(examples[:1], 200, 0, 1)
    alone = (examples[0].input_ids, examples[0].target_ids)
    assert (few.token_ids[0], set(few.owners[1:])) == (1, {alone}), "one example fills all"


@pytest.mark.parametrize("template", [TEMPLATE, CHAT])
@pytest.mark.parametrize("examples", [generation(3), classification(3)])
def test_no_copy_of_an_example_attends_to_its_demonstration(template: Template, examples: tuple[Example, ...]) -> None:
    """If all examples are one, every row hides all that is trained, so the gradient is zero."""

    def gradients(train: tuple[Example, ...]) -> list[float]:
        one = task(train=train, kind="PREFIX", init={"method": "DEMONSTRATIONS"}, num_virtual_tokens=70, num_steps=2)
        events = run(Cohort(BASE), replace(one, spec=one.spec.model_copy(update={"template": template})))
        return [event.grad_norm for event in of(events, StepDone)]

    copies = tuple(replace(examples[0], line=line) for line in range(1, 9))
    assert gradients(copies) == [0.0, 0.0]
    assert min(gradients((*copies, *examples[1:]))) > 0


def test_a_job_from_demonstrations_shows_training_examples_only() -> None:
    init = {"method": "DEMONSTRATIONS"}
    one = _job(kind="PREFIX", init=init, num_virtual_tokens=40, num_steps=1, learning_rate=1e-8, metric="LOSS")
    encoder = InputEncoder(BASE.tokenizer, TEMPLATE)
    examples = encode_dataset(one.train, encoder, one.spec, BASE.info.max_positions).examples
    shown = demonstrations(examples, 40, one.spec.hyperparameters.seed, None)
    found = of(run(Cohort(BASE), one), Finished)[0].result.prefix.tensors()
    expected = key_values_of(BASE, embed(BASE, shown.token_ids)).rounded().tensors()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-2, atol=1e-6)


@pytest.mark.parametrize("forward", [PlainForward(BASE), PackedForward(BASE)])
def test_an_example_does_not_attend_to_its_own_demonstration(forward: Forward) -> None:
    prefix = key_values_of(BASE, torch.randn(9, BASE.embedding_table.shape[1]))
    leaves = KeyValueLeaves.of(prefix, BASE.device)
    rows = [Row((11, 12, 13 + number), (21, 22)) for number in range(5)]
    own_row = rows[4].input_ids, rows[4].target_ids
    hidden = {(rows[0].input_ids, rows[0].target_ids): (2, 3), own_row: (5, 6, 7, 8)}
    trainee = Trainee(Candidate(0.1, task().spec.hyperparameters.init), leaves, task().spec.hyperparameters, 0, hidden)
    segments = trainee.segments(trainee.input(BASE.dtype), rows)
    logits = forward.logits(forward.states(segments)).view(len(rows), 2, -1)
    in_order = [row for segment in segments for row in segment.rows]
    assert sorted(row.input_ids for row in in_order) == [row.input_ids for row in rows]
    for row, found in zip(in_order, logits, strict=True):
        expected = _masked(prefix, row, hidden.get((row.input_ids, row.target_ids), ()))
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    own = [one for row, one in zip(in_order, logits, strict=True) if row is rows[4]]
    gradient = torch.autograd.grad(own[0].log_softmax(-1)[:, 7].sum(), leaves.parameters["others"])[0]
    assert (gradient.norm(dim=1) > 0).tolist() == [True] * 4 + [False] * 4


def _masked(prefix: KeyValuePrefix, row: Row, hidden: Collection[int]) -> torch.Tensor:
    """The model's own logits at the row's targets, with an attention mask over the whole prefix."""
    length = prefix.num_virtual_tokens
    cache = cache_of([prefix.input(BASE.dtype, BASE.device)], length)
    mask = [[int(position not in hidden) for position in range(length)] + [1] * len(row.tokens)]
    positions = torch.arange(length, length + len(row.tokens))[None]
    model: Any = BASE.model
    with torch.no_grad():
        output = model(
            torch.tensor([row.tokens]),
            attention_mask=torch.tensor(mask),
            position_ids=positions,
            past_key_values=cache,
        )
    return output.logits[0, len(row.input_ids) - 1 :]


@pytest.mark.parametrize("train", [generation(), classification()])
def test_a_job_from_demonstrations_is_resumed_exactly(train: Any) -> None:
    one = task(train=train, kind="PREFIX", init={"method": "DEMONSTRATIONS"}, num_virtual_tokens=70, num_steps=8)
    whole = run(Cohort(BASE, checkpoint_interval_seconds=0), one)
    middle = of(whole, Checkpointed)[3]
    resumed = run(Cohort(BASE), replace(one, checkpoint=middle.data))
    first, second = (of(events, Finished)[0].result.prefix for events in (whole, resumed))
    assert first.equals(second)


def _trained(one: TrainingTask) -> tuple[Prefix, float]:
    """The job's prefix and its loss on the examples that choose a checkpoint."""
    events = run(Cohort(BASE), one)
    result = of(events, Finished)[0].result
    return result.prefix, next(
        event.metrics["loss"] for event in of(events, Evaluated) if event.step == result.best_step
    )


def _job(**hyperparameters: Any) -> TrainingTask:
    wanted = {"num_steps": 10, "evaluation_interval_steps": 5, "learning_rate": 0.02} | hyperparameters
    return task(validation=generation(6, 50), **wanted)
