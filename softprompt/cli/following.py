"""Following a job from the command line, to its end or until Ctrl-C lets go of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from softprompt.cli.failures import EXIT_INTERRUPTED, Failure
from softprompt.cli.output import numbers, print_json, show, stderr

if TYPE_CHECKING:
    from softprompt.client.sync_client import Client
    from softprompt.types.tuning import SearchCandidate, TuningJob, TuningResult


MAX_TOKENS = 8
"""Nearest vocabulary tokens that are shown; `--json` has one for each virtual token."""


def follow(client: Client, name: str, *, after: int = 0, as_json: bool = False) -> TuningJob:
    """Show a job's events until it has ended, then its result. JobFailed if it failed; interrupting leaves the job alone."""
    from softprompt.display.training import training_display
    from softprompt.errors import JobFailed
    from softprompt.types.tuning import JobState, StateChanged

    try:
        with training_display(stderr(), name.removeprefix("tuningJobs/")) as display:
            job: TuningJob | None = None
            for event in client.watch_job(name, after=after):
                display.update(event)
                if isinstance(event, StateChanged):
                    job = event.job
                if as_json:
                    print_json({"event": type(event).__name__, **vars(event)})
    except KeyboardInterrupt:
        raise Failure(
            f"let go of {name}; it goes on",
            EXIT_INTERRUPTED,
            hint=f"`softprompt jobs watch {name}` follows it again, `softprompt jobs cancel {name}` ends it",
        ) from None
    if job is None or not job.state.is_final:
        job = client.get_job(name)
    if job.state is not JobState.SUCCEEDED:
        raise JobFailed(job)
    if not as_json:
        show_result(job)
    return job


def show_verdict(client: Client, job: TuningJob, *, as_json: bool = False) -> None:
    """Wait for the first live replica that looks at the version which an alias now names. Failure, with its reason, if it refuses it.

    Says nothing where no replica is alive, or where this caller may not ask or can't.
    """
    from softprompt.errors import DeadlineExceeded, NotFound, PermissionDenied, PreconditionFailed, Unavailable, Unimplemented

    result = job.result
    if result is None or not result.alias_moved:  # replicas load what an alias names
        return
    hint = "`softprompt prompts status` shows the replicas; the alias can be moved back with `softprompt prompts alias set`"
    try:
        status = client.first_verdict(result.version)
    except PreconditionFailed as error:
        raise Failure(f"{result.version} is published, but {error.message}", hint=hint) from None
    except DeadlineExceeded as error:
        stderr().print(f"{error.message}; `softprompt prompts status` shows what they say later", markup=False, soft_wrap=True)
        return
    except KeyboardInterrupt:
        raise Failure(f"{result.version} is published; no replica was waited for", EXIT_INTERRUPTED, hint) from None
    except (NotFound, PermissionDenied, Unavailable, Unimplemented):
        return
    if status.served and not result.serving and not as_json:
        show(f"  {'served by':<15}{', '.join(serving.replica for serving in status.served)}")


def show_result(job: TuningJob) -> None:
    """What came out, beside what the bare model does on the same held-out examples, and what a person can see of the prompt."""
    result = job.result
    if result is None:
        return
    if result.published:
        show(f"published {result.version}" + (" (alias moved)" if result.alias_moved else ""))
        if result.gate_decision:
            show(f"  {'gate':<15}{result.gate_decision}")
        if result.serving:
            show(f"  {'fleet':<15}{result.serving}")
    else:
        show(f"not published: {result.gate_decision or 'the gate forbade it'}")
    compared = (
        ("held out", result.metrics),
        ("bare model", result.bare_metrics),
        ("with template", result.template_metrics),
        ("instructed", result.instructed_metrics),
        (f"{result.num_shots}-shot", result.few_shot_metrics),
        ("version before", result.current_metrics),
    )
    for title, metrics in compared:
        if metrics:
            show(f"  {title:<15}{numbers(metrics)}")
    if result.metrics:
        show(f"  {'measured on':<15}{_measured_on(result)}")
    if result.verdict:
        show(f"  {'verdict':<15}{result.verdict}")
    for candidate in result.candidates:
        show(f"  {'tried':<15}{_candidate_text(candidate)}")
    show(f"  {'best step':<15}{result.best_step}; the score varied by {result.score_stability:.3g} over the last evaluations")
    if job.progress is not None:
        show(f"  {'gradient norm':<15}{job.progress.grad_norm:.3g} at the last step")
    if result.num_skipped_steps:
        show(f"  {'skipped':<15}{result.num_skipped_steps} steps, because their loss or gradient was not finite")
    if result.nearest_tokens:
        shown = ", ".join(f"{token.text!r} {token.cosine:.2f}" for token in result.nearest_tokens[:MAX_TOKENS])
        rest = len(result.nearest_tokens) - MAX_TOKENS
        show(f"  {'reads like':<15}{shown}" + (f" and {rest} more" if rest > 0 else ""))
    statistics = job.dataset_statistics
    if statistics is not None and statistics.num_overlapping:
        show(
            f"  {statistics.num_overlapping} of the {statistics.num_validation} held-out examples also stand in the training data: "
            "the held-out figures flatter"
        )


def _measured_on(result: TuningResult) -> str:
    examples = f"{result.num_judging} held-out example{'' if result.num_judging == 1 else 's'}"
    apart = "none of which chose the checkpoint that it judged" if result.judged_apart else "which also chose the checkpoint: it flatters"
    if result.metric_low is None or result.metric_high is None or not result.comparisons:
        return f"{examples}, {apart}"
    name = result.comparisons[0].metric
    return f"{examples}, {apart}; 95 % interval of {name}: {result.metric_low:.3g} to {result.metric_high:.3g}"


def _candidate_text(candidate: SearchCandidate) -> str:
    end = "chosen" if candidate.chosen else candidate.end or "trained to the end"
    method = candidate.init_method.value.lower() if candidate.init_method else "?"
    return f"learning rate {candidate.learning_rate:g}, init {method}: {candidate.num_steps} steps, {end}  {numbers(candidate.metrics)}"
