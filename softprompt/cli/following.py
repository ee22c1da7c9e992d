"""Follow a job from the command line until it ends or Ctrl-C is pressed."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from shared import errors
from shared.text.counted import counted
from softprompt.cli.data import repetition
from softprompt.cli.failures import EXIT_INTERRUPTED, Failure
from softprompt.cli.job_options import with_source
from softprompt.cli.options import open_client
from softprompt.cli.output import numbers, print_json, show, show_or_json, stderr
from softprompt.display.transfer import transfer_display, upload_display
from softprompt.report.distillation import distillation_facts
from softprompt.report.words import interval, number
from softprompt.types.type_names import listed

if TYPE_CHECKING:
    from shared.values.results import SearchCandidate, TuningResult
    from shared.values.spec import TuningSpec
    from softprompt.client.sync_client import Client
    from softprompt.types.jobs import JobCheck, TuningJob


MAX_TOKENS = 8
"""Number of nearest vocabulary tokens shown; `--json` has one for each virtual token."""
MAX_LABELS = 20
"""Number of labels shown."""


def submit(
    spec: TuningSpec, trainer: str | None, *, validate_only: bool, request_id: str, follow: bool, as_json: bool
) -> None:
    """Create a job and `conclude`, or check it and print what it would be."""
    with open_client(trainer) as client:
        spec = replace(spec, hyperparameters=with_source(client, spec.hyperparameters))
        if validate_only:
            with upload_display(stderr(), "checking the job") as on_upload:
                found = client.validate_job(spec, on_upload=on_upload)
            show_check(found, as_json=as_json)
            return
        with upload_display(stderr(), "creating the job") as on_upload:
            job = client.create_job(spec, request_id=request_id, on_upload=on_upload)
        conclude(client, job, follow=follow, as_json=as_json)


def conclude(client: Client, job: TuningJob, *, follow: bool, as_json: bool) -> None:
    """Follow a new job to its end and to the first replica that serves its version, or print its name."""
    if follow:
        stderr().print(f"{job.name} is queued", markup=False)
        show_verdict(client, follow_job(client, job.name, as_json=as_json), as_json=as_json)
        return
    for sentence in repetition(job.dataset_statistics):
        stderr().print(sentence, markup=False)
    show_or_json(job, job.name, as_json)


def show_check(found: JobCheck, *, as_json: bool) -> None:
    """Print what a job would be: the recipe's choices, the statistics of its data, and its estimated time."""
    from dataclasses import fields

    from softprompt.display.status import clock_text

    if as_json:
        print_json(found)
        return
    chosen = found.job.effective_spec.hyperparameters if found.job.effective_spec else None
    statistics = found.job.dataset_statistics
    if statistics is not None:
        show(f"{'examples':<27}{statistics.num_train} to train on, {statistics.num_validation} held out")
    labels = found.job.effective_spec.labels if found.job.effective_spec else ()
    if labels:
        show(f"{'labels':<27}{listed(labels, MAX_LABELS)}")
    for sentence in repetition(statistics):
        show(f"{'':<27}{sentence}")
    for item in fields(chosen) if chosen is not None else ():
        value = getattr(chosen, item.name)
        if value is not None and value != {}:
            shown = value.method if item.name == "init" else value
            show(f"{item.name:<27}{shown}")
    seconds = found.estimated_seconds
    unknown, memory = "unknown before the first job", found.estimated_memory_bytes
    show(f"{'estimated time':<27}{unknown if seconds is None else clock_text(seconds)}")
    show(f"{'memory of a worker':<27}{unknown if memory is None else f'about {memory / (1 << 30):.1f} GiB'}")


def follow_job(client: Client, name: str, *, after: int = 0, as_json: bool) -> TuningJob:
    """Show a job's progress until it ends, then its result. Raises JobFailed. Ctrl-C does not cancel the job."""
    from shared.values.enums import JobState
    from softprompt.display.training import training_display
    from softprompt.errors import JobFailed
    from softprompt.types.events import StateChanged

    try:
        with training_display(stderr(), name.removeprefix("tuningJobs/")) as show_event:
            job: TuningJob | None = None
            for event in client.watch_job(name, after=after):
                show_event(event)
                if isinstance(event, StateChanged):
                    job = event.job
                if as_json:
                    print_json({"event": type(event).__name__, **vars(event)})
    except KeyboardInterrupt:
        hint = f"`softprompt jobs watch {name}` follows it again; `softprompt jobs cancel {name}` cancels it"
        raise Failure(f"stopped following {name}; the job continues", EXIT_INTERRUPTED, hint) from None
    if job is None or not job.state.is_final:
        job = client.get_job(name)
    if job.state is not JobState.SUCCEEDED:
        raise JobFailed(job)
    if not as_json:
        show_result(job)
    return job


def show_verdict(client: Client, job: TuningJob, *, as_json: bool) -> None:
    """Wait until a live replica serves or refuses the version that the alias now names. Raises Failure with a refusal's
    reason. Prints nothing if no replica is alive, or if this caller can't ask for the status.
    """
    result = job.result
    if result is None or not result.alias_moved:  # replicas load what an alias names
        return
    hint = "`softprompt prompts status` shows the replicas; `softprompt prompts alias set` moves the alias back"
    try:
        with transfer_display(stderr(), f"waiting for a replica that serves {result.version}"):
            status = client.first_verdict(result.version)
    except errors.PreconditionFailed as error:
        raise Failure(f"{result.version} is published, but {error.message}", hint=hint) from None
    except errors.DeadlineExceeded as error:
        stderr().print(f"{error.message}; `softprompt prompts status` shows it later", markup=False, soft_wrap=True)
        return
    except KeyboardInterrupt:
        raise Failure(f"{result.version} is published; stopped waiting for a replica", EXIT_INTERRUPTED, hint) from None
    except (errors.NotFound, errors.PermissionDenied, errors.Unavailable, errors.Unimplemented):
        return
    if status.served and not result.serving and not as_json:
        show(f"  {'served by':<15}{', '.join(serving.replica for serving in status.served)}")


def show_result(job: TuningJob) -> None:
    """Print a job's metrics beside those of the other models on the same examples, and what the prompt resembles."""
    result = job.result
    if result is None:
        return
    if result.published:
        show(f"published {result.version}" + (" (alias moved)" if result.alias_moved else ""))
    else:
        show(f"not published: {result.gate_decision or 'the gate refused it'}")
    tokens = [f"{token.text!r} {token.cosine:.2f}" for token in result.nearest_tokens]
    skipped = f"{counted(result.num_skipped_steps, 'step')} whose loss or gradient was not finite"
    stability = f"the score's standard deviation over the last evaluations is {result.score_stability:.3g}"
    lines = (
        ("gate", result.gate_decision if result.published else ""),
        ("fleet", result.serving if result.published else ""),
        ("held out", numbers(result.metrics)),
        ("bare model", numbers(result.bare_metrics)),
        ("with template", numbers(result.template_metrics)),
        ("instructed", numbers(result.instructed_metrics)),
        (f"{result.num_shots}-shot", numbers(result.few_shot_metrics)),
        ("version before", numbers(result.current_metrics)),
        ("measured on", _measured_on(result) if result.metrics else ""),
        *(distillation_facts(result.distillation).items() if result.distillation is not None else ()),
        ("verdict", result.verdict),
        *(("tried", _candidate_text(candidate)) for candidate in result.candidates),
        ("best step", f"{result.best_step}; {stability}"),
        ("gradient norm", f"{number(job.progress.grad_norm, 3)} at the last step" if job.progress is not None else ""),
        ("skipped", skipped if result.num_skipped_steps else ""),
        ("reads like", listed(tokens, MAX_TOKENS)),
    )
    for title, text in lines:
        if text:
            show(f"  {title:<15}{text}")
    statistics = job.dataset_statistics
    if statistics is not None and (statistics.num_dropped or statistics.num_truncated):
        dropped = f"{counted(statistics.num_dropped, 'example')} {'was' if statistics.num_dropped == 1 else 'were'}"
        show(f"  too long: {dropped} dropped, the inputs of {statistics.num_truncated} were truncated")
    if statistics is not None and statistics.num_overlapping:
        verb = "repeats" if statistics.num_overlapping == 1 else "repeat"
        show(
            f"  {statistics.num_overlapping} of the {counted(statistics.num_validation, 'held-out example')} {verb} an "
            "input of the training data, apart from case and space: the held-out metrics are optimistic"
        )


def _measured_on(result: TuningResult) -> str:
    examples = counted(result.num_judging, "held-out example")
    apart = "which also chose the checkpoint, so the metrics are optimistic"
    if result.judged_apart:
        apart = "none of which chose the checkpoint that it judged"
    found = interval(result.metric_low, result.metric_high)
    if not found or not result.comparisons:
        return f"{examples}, {apart}"
    return f"{examples}, {apart}; 95 % interval of {result.comparisons[0].metric}: {found}"


def _candidate_text(candidate: SearchCandidate) -> str:
    end = "chosen" if candidate.chosen else candidate.end or "trained to the end"
    method = candidate.init_method.value.lower() if candidate.init_method else "?"
    tried = f"learning rate {candidate.learning_rate:g}, init {method}"
    losses = f"  training loss {', '.join(map(number, candidate.losses))}" if candidate.losses else ""
    return f"{tried}: {counted(candidate.num_steps, 'step')}, {end}{losses}  {numbers(candidate.metrics)}"
