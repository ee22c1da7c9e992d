"""Self-study in a cohort: reproducible, bounded, resumed without repeating questions, refused where it can't work."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from shared.errors import DamagedBlob
from shared.text.template import InputEncoder, Template, pinned
from shared.values.enums import TemplateFormat
from shared.values.spec import DOCUMENT, QUESTION, Distillation
from tests.trainer_service.training.models import ARCHITECTURES, build
from tests.trainer_service.training.tasks import generation, of, run, task
from trainer_service.training.checkpoint import best_prefix
from trainer_service.training.cohort import Cohort
from trainer_service.training.distillation.continuations import Continuations
from trainer_service.training.distillation.requests import REQUESTS, question_of, request_for
from trainer_service.training.distillation.self_study import SelfStudy
from trainer_service.training.distillation.state import restore_study, study_tensors
from trainer_service.training.distillation.texts import TeacherEncoder, filled
from trainer_service.training.events import Failed, Finished, Preparing, Started, Stopped, TrainingEvent, TrainingTask
from trainer_service.training.spec import Example, FilledDistillation

POSITIONS = 640


def _base() -> Any:
    base = build("llama", max_position_embeddings=POSITIONS)
    return replace(base, info=replace(base.info, max_positions=POSITIONS))


BASE = _base()
TEXT = "Answer in rhyme. Never name a price. The shop is closed on Mondays."
CHAT = pinned(Template(format=TemplateFormat.CHAT), BASE.tokenizer)


def _task(
    questions: tuple[str, ...] = (), text: str = TEXT, num_questions: int = 8, answer: int = 6, **settings: Any
) -> TrainingTask:
    lines = [Example(text, DOCUMENT, line=1)]
    lines += [Example(question, QUESTION, line=index) for index, question in enumerate(questions, start=2)]
    settings = {"num_steps": 4, "evaluation_interval_steps": 2, "batch_size": 2, **settings}
    made = task(train=tuple(lines), **settings)
    chosen = FilledDistillation(num_questions=num_questions, max_answer_tokens=answer, num_held_out=2)
    return replace(made, spec=made.spec.model_copy(update={"distillation": chosen, "template": CHAT}))


def _loss_and_answers(events: list[TrainingEvent]) -> tuple[Any, ...]:
    result = of(events, Finished)[0].result
    return result.metrics, result.bare_metrics, [answer.reference for answer in result.answers.answers]


def test_a_text_is_studied_trained_and_judged_and_a_second_run_is_the_same() -> None:
    first, second = (run(Cohort(BASE), _task(("What do you cost?", "Are you open?"))) for _ in range(2))
    assert _loss_and_answers(first) == _loss_and_answers(second)
    assert of(first, Preparing)[-1].num_prepared == of(first, Preparing)[-1].num_examples == 8
    statistics = of(first, Started)[0].statistics
    assert (statistics.num_train, statistics.num_validation) == (6, 2)
    result = of(first, Finished)[0].result
    found = result.distillation
    assert found is not None
    assert (found.num_questions, found.num_held_out, found.num_virtual_tokens) == (6, 2, 6)
    assert 0 < found.num_answer_tokens <= 8 * 6
    assert len(TEXT) < found.document_tokens < len(TEXT) + 30
    assert (found.kl, found.agreement) == (result.metrics["loss"], result.metrics["token_accuracy"])
    assert (found.bare_kl, found.bare_agreement) == (result.bare_metrics["loss"], result.bare_metrics["token_accuracy"])
    assert 0 <= found.kl < 10
    assert found.teacher_prefill_seconds
    assert found.prompt_prefill_seconds
    assert result.golden
    assert not result.instructed_metrics
    other = run(Cohort(BASE), _task(("What do you cost?", "Are you open?"), seed=5))
    assert _loss_and_answers(other) != _loss_and_answers(first)


def test_training_comes_nearer_to_the_teacher() -> None:
    result = of(run(Cohort(BASE), _task(num_steps=30, learning_rate=0.01)), Finished)[0].result
    assert result.distillation is not None
    assert result.distillation.kl < result.distillation.bare_kl


def test_a_stopped_study_goes_on_without_asking_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainer_service.training.distillation.self_study.MAX_BATCH", 2)
    whole = run(Cohort(BASE), _task())
    calls = list[int]()
    generate = Continuations.generate

    def counted(self: Continuations, inputs: Any, *arguments: Any) -> Any:
        calls.append(len(inputs))
        return generate(self, inputs, *arguments)

    monkeypatch.setattr(Continuations, "generate", counted)
    cohort = Cohort(BASE)
    cohort.add(_task())
    events = list[TrainingEvent]()
    while not any(event.num_prepared >= 4 for event in of(events, Preparing)):
        events += cohort.step()
    cohort.stop("job")
    while not cohort.is_idle:
        events += cohort.step()
    [stopped] = of(events, Stopped)
    assert stopped.data is not None
    assert not of(events, Started)
    with pytest.raises(DamagedBlob, match="before its first step"):
        best_prefix(stopped.data)
    before = len(calls)
    resumed = run(Cohort(BASE), replace(_task(), checkpoint=stopped.data))
    assert of(resumed, Started)[0].restart_reason == ""
    assert _loss_and_answers(resumed) == _loss_and_answers(whole)
    assert before == 4, "questions and answers of two batches"
    assert len(calls) - before == 4

    calls.clear()
    cohort = Cohort(BASE, checkpoint_interval_seconds=0.0)
    last = run(cohort, replace(_task(), checkpoint=stopped.data))
    trained = next(event.data for event in last if getattr(event, "step", 0) == 2 and hasattr(event, "data"))
    calls.clear()
    resumed = run(Cohort(BASE), replace(_task(), checkpoint=trained))
    assert of(resumed, Started)[0].step == 2
    assert calls == []
    assert _loss_and_answers(resumed) == _loss_and_answers(whole)
    changed = run(Cohort(BASE), replace(_task(answer=5), checkpoint=trained))
    assert (
        "another" in of(changed, Started)[0].restart_reason or "differently" in of(changed, Started)[0].restart_reason
    )
    assert sum(calls) > 0


def test_a_study_trains_beside_a_job_with_examples() -> None:
    alone = run(Cohort(BASE), _task())
    beside = replace(task("other", train=generation(8), validation=generation(4, 20), num_steps=6))
    together = run(Cohort(BASE), _task(), beside)
    assert of(together, Finished, "other")
    found, expected = _loss_and_answers(together), _loss_and_answers(alone)
    assert found[0]["loss"] == pytest.approx(expected[0]["loss"], rel=0.05)
    assert found[2] == expected[2]


@pytest.mark.parametrize(
    ("change", "field", "words"),
    [
        ({"text": "word " * 200}, "dataset line 1 input", "the text has 10"),
        ({"questions": ("long " * 130,)}, "dataset line 2 input", "leaves no room for an answer"),
        ({"questions": ("same",) * 8}, "spec.distillation.num_questions", "asked 1 different questions"),
    ],
)
def test_what_cannot_work_fails_by_name(change: dict[str, Any], field: str, words: str) -> None:
    [failed] = of(run(Cohort(BASE), _task(**change)), Failed)
    assert (failed.code, failed.field) == ("BAD_DATA", field)
    assert words in failed.message


def test_lines_that_are_not_a_text_and_questions_are_named() -> None:
    wrong = replace(_task(), train=generation(3))
    [failed] = of(run(Cohort(BASE), wrong), Failed)
    assert failed.field == "dataset line 1 output"
    assert "must be 'document'" in failed.message


def test_the_text_is_the_system_message_and_its_control_tokens_are_text() -> None:
    encoder = InputEncoder(BASE.tokenizer, CHAT)
    decode = BASE.tokenizer.decode
    assert decode(TeacherEncoder(encoder, "Be <end> kind.").ids("Hi")) == decode(encoder.encode_input("Hi")).replace(
        "<user>", "<system>Be <end> kind.<end><user>"
    )
    own = InputEncoder(BASE.tokenizer, replace(CHAT, system="Be brief.", text="Q: {input}"))
    assert "Be kind.\n\nBe brief." in decode(TeacherEncoder(own, "Be kind.").ids("Hi"))
    assert "Q: Hi" in decode(TeacherEncoder(own, "Be kind.").ids("Hi"))
    plain = InputEncoder(
        BASE.tokenizer, pinned(Template(text="Q: {input}\nA:", format=TemplateFormat.TEXT), BASE.tokenizer)
    )
    assert decode(TeacherEncoder(plain, "Be kind.").ids("Hi")) == "Q: Be kind.\n\nHi\nA:"


def test_requests_differ_and_questions_are_read_from_answers() -> None:
    text = " ".join(f"w{number}" for number in range(300))
    asked = [request_for(text, number, 0)[0] for number in range(24)]
    assert len(set(asked)) == 24
    assert asked == [request_for(text, number, 0)[0] for number in range(24)]
    assert request_for("short", 1, 0) == (REQUESTS[1], REQUESTS[1])
    assert question_of('\n "Are you open?" \nSure.') == "Are you open?"
    assert question_of(" \n") == ""


def test_defaults_stay_within_the_tokens_of_a_study() -> None:
    assert filled(Distillation(), 0, None) == FilledDistillation(
        num_questions=256, max_answer_tokens=128, num_held_out=32
    )
    assert filled(Distillation(), 40, 0.5).num_held_out == 20
    assert filled(Distillation(), 100_000, None).num_questions == 512
    assert filled(Distillation(num_questions=4096), 0, None).max_answer_tokens == 16


def test_a_damaged_study_is_refused() -> None:
    one = _task()
    study = SelfStudy(BASE, one.spec, one.train, InputEncoder(BASE.tokenizer, CHAT))
    assert study_tensors(study) == {}
    study.num_asked = 3
    tensors = study_tensors(study)
    restored = SelfStudy(BASE, one.spec, one.train, InputEncoder(BASE.tokenizer, CHAT))
    restore_study(restored, tensors)
    assert (restored.rows, restored.num_asked) == ([], 3)
    for name in ("study.answers", "study.ids"):
        with pytest.raises(DamagedBlob):
            restore_study(restored, {key: value for key, value in tensors.items() if key != name})


@pytest.mark.parametrize("model_type", sorted(ARCHITECTURES))
def test_continuations_that_share_their_beginning_are_those_of_the_whole_inputs(model_type: str) -> None:
    base, beginning = build(model_type), list(range(20, 60))
    inputs = [[*beginning, *rest] for rest in ([5, 6, 7], [9], [30, 31, 32, 33])]
    shared, whole = Continuations(base, beginning), Continuations(base, [])
    for seed in (None, 3):
        assert shared.generate(inputs, 6, base.stop_token_ids, seed) == shared.generate(
            inputs, 6, base.stop_token_ids, seed
        )
    assert shared.generate(inputs, 6, base.stop_token_ids) == whole.generate(inputs, 6, base.stop_token_ids)
