"""`softprompt jobs`: list, show, follow, pause, cancel and delete tuning jobs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from shared.values.enums import JobOrder, JobState
from softprompt.cli import job_copies, job_reports, track
from softprompt.cli.field_options import key_values
from softprompt.cli.following import follow_job, show_result
from softprompt.cli.job_options import JobArgument, job_name
from softprompt.cli.options import JsonOption, TrainerOption, example, open_client
from softprompt.cli.output import local_time, numbers, print_json, show, show_facts, show_or_json, table
from softprompt.display.training import is_distillation, is_preparing, preparing_text
from softprompt.report.words import loss

if TYPE_CHECKING:
    from softprompt.types.jobs import TuningJob

app = typer.Typer(no_args_is_help=True)
for module in (job_copies, job_reports, track):
    app.add_typer(module.app)


@app.command("list", epilog=example("softprompt jobs list --state running --state queued"))
def list_(
    prompt: Annotated[str, typer.Option(help="List only jobs of this prompt.")] = "",
    oldest_first: Annotated[bool, typer.Option("--oldest-first", help="List the oldest job first.")] = False,
    state: Annotated[
        list[JobState] | None, typer.Option(case_sensitive=False, help="List only jobs in this state; may be repeated.")
    ] = None,
    label: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="List only jobs with this annotation; may be repeated."),
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="Largest number of jobs to list.")] = 50,
    as_json: JsonOption = False,
    trainer: TrainerOption = None,
) -> None:
    """List jobs, newest first."""
    order = JobOrder.OLDEST_FIRST if oldest_first else JobOrder.NEWEST_FIRST
    labels = key_values(label, "--label")
    with open_client(trainer) as client:
        jobs = client.list_jobs(states=state or (), prompt=prompt, annotations=labels, order=order, limit=limit)
    if as_json:
        print_json(*jobs)
        return
    made = table("JOB", "PROMPT", "STATE", "STEP", "LOSS", "CREATED", "RESULT")
    for job in jobs:
        prompt = job.spec.prompt if job.spec else ""
        made.add_row(job.name, prompt, job.state, *_progress(job), local_time(job.create_time), _outcome(job))
    show(made if jobs else "no jobs")


@app.command("show", epilog=example("softprompt jobs show 8q1r4s7t --json"))
def show_(job: JobArgument, as_json: JsonOption = False, trainer: TrainerOption = None) -> None:
    """Show one job: spec, progress and result."""
    with open_client(trainer) as client:
        found = client.get_job(job_name(client, job))
    if as_json:
        print_json(found)
        return
    step, loss = _progress(found)
    rows = {
        "job": found.name,
        "prompt": found.spec.prompt if found.spec else "",
        "state": f"{found.state}" + (f", {found.queue_position} ahead" if found.queue_position else ""),
        "starts": f"about {local_time(found.estimated_start_time)}" if found.estimated_start_time else "",
        "attempt": str(found.attempt),
        "step": step,
        "loss": loss,
        # the result has those of the published prompt, on the examples that judge it
        "evaluated": numbers(found.progress.metrics) if found.progress and found.result is None else "",
        "created": local_time(found.create_time),
        "started": local_time(found.start_time),
        "ended": local_time(found.end_time),
        "kept": "its best prompt so far; `softprompt jobs continue` starts from it" if found.best_prompt_kept else "",
        "error": f"{found.error.code}: {found.error.message}" if found.error else "",
    }
    show_facts(rows, 10)
    show_result(found)


@app.command(epilog=example("softprompt jobs watch 8q1r4s7t"))
def watch(
    job: JobArgument,
    after: Annotated[int, typer.Option(min=0, help="Show only events after this number.")] = 0,
    as_json: JsonOption = False,
    trainer: TrainerOption = None,
) -> None:
    """Follow a job until it ends, even if the service restarts. Ctrl-C stops following; the job continues."""
    with open_client(trainer) as client:
        follow_job(client, job_name(client, job), after=after, as_json=as_json)


@app.command(epilog=example("softprompt jobs cancel 8q1r4s7t"))
def cancel(job: JobArgument, as_json: JsonOption = False, trainer: TrainerOption = None) -> None:
    """Cancel a job at its next step. Its best prompt so far is kept; `jobs continue` starts from it."""
    with open_client(trainer) as client:
        _say(client.cancel_job(job_name(client, job)), as_json)


@app.command(epilog=example("softprompt jobs pause 8q1r4s7t"))
def pause(job: JobArgument, as_json: JsonOption = False, trainer: TrainerOption = None) -> None:
    """Stop a job at its next step and keep a checkpoint, until `jobs resume`."""
    with open_client(trainer) as client:
        _say(client.pause_job(job_name(client, job)), as_json)


@app.command(epilog=example("softprompt jobs resume 8q1r4s7t"))
def resume(job: JobArgument, as_json: JsonOption = False, trainer: TrainerOption = None) -> None:
    """Queue a paused job again. It continues from its checkpoint."""
    with open_client(trainer) as client:
        _say(client.resume_job(job_name(client, job)), as_json)


@app.command(epilog=example("softprompt jobs delete 8q1r4s7t"))
def delete(job: JobArgument, trainer: TrainerOption = None) -> None:
    """Delete an ended job with its events and its kept prompt. Versions that it published stay."""
    with open_client(trainer) as client:
        name = job_name(client, job)
        client.delete_job(name)
    show(f"{name} is deleted")


def _say(job: TuningJob, as_json: bool) -> None:
    kept = f"; its best prompt so far is kept: `softprompt jobs continue {job.name}`" if job.best_prompt_kept else ""
    show_or_json(job, f"{job.name} is {job.state.value.lower()}{kept}", as_json)


def _progress(job: TuningJob) -> tuple[str, str]:
    if job.progress is None:
        return "", ""
    if is_preparing(job.progress):
        return preparing_text(job.progress, is_distillation(job)), ""
    if not job.progress.num_steps:
        return "", ""
    return f"{job.progress.step}/{job.progress.num_steps}", loss(job.progress.train_loss)


def _outcome(job: TuningJob) -> str:
    if job.error is not None:
        return f"{job.error.code}: {job.error.message}"
    return job.result.version or "not published" if job.result is not None else ""
