"""Following a job from the command line, to its end or until Ctrl-C lets go of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from softprompt.cli.failures import EXIT_INTERRUPTED, Failure
from softprompt.cli.output import numbers, print_json, show, stderr

if TYPE_CHECKING:
    from softprompt.client.sync_client import Client
    from softprompt.types.tuning import TuningJob


def follow(client: Client, name: str, *, after: int = 0, as_json: bool = False) -> None:
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


def show_result(job: TuningJob) -> None:
    """What came out, beside what the bare model does on the same held-out examples."""
    result = job.result
    if result is None:
        return
    if result.published:
        show(f"published {result.version}" + (" (alias moved)" if result.alias_moved else ""))
    else:
        show(f"not published: {result.gate_decision or 'the gate forbade it'}")
    for title, metrics in (("held out", result.metrics), ("bare model", result.bare_metrics), ("version before", result.current_metrics)):
        if metrics:
            show(f"  {title:<15}{numbers(metrics)}")
