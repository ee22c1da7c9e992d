"""`softprompt jobs report`, `compare` and `curve`: what a job's training came to."""

from __future__ import annotations

import sys
import tempfile
import webbrowser
from collections.abc import Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from shared.process.standard_streams import is_utf8
from softprompt.cli.job_options import JOB_HELP, JobArgument, job_name
from softprompt.cli.options import FormerOutput, JsonOption, TrainerOption, example, open_client
from softprompt.cli.output import print_json, show, stderr, stdout, table
from softprompt.display.chart import MIN_COLUMNS, beside, chart

if TYPE_CHECKING:
    from rich.table import Table

    from softprompt.types.report import JobReport

app = typer.Typer()

MetricOption = Annotated[str, typer.Option(help="Held-out metric to draw.")]
ColumnsOption = Annotated[
    int | None, typer.Option(min=MIN_COLUMNS, max=500, help="Width of the curves in characters [that of the terminal].")
]
_PIPE_COLUMNS, _MAX_COLUMNS, _BESIDE_COLUMNS = 80, 200, 38


class Format(StrEnum):
    """Formats of a report."""

    HTML = "html"
    JSON = "json"
    CSV = "csv"


@app.command(epilog=example("softprompt jobs report 8q1r4s7t --open"))
def report(
    job: JobArgument,
    open_: Annotated[bool, typer.Option("--open", help="Show the page in the browser.")] = False,
    format: Annotated[
        Format | None,
        typer.Option(help="html: a page; json: everything; csv: the held-out answers.", show_default=False),
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="File to write; its name can say the format.")] = None,
    output: FormerOutput = None,
    trainer: TrainerOption = None,
) -> None:
    """Write a job's report: curves, metrics, held-out answers, data, recipe, lineage and cost.

    Without --out, --open and --format, a terminal shows a summary, and a pipe gets the HTML page.
    """
    from softprompt.report.data import FORMATS, check_target, save_report

    out = output or out
    kind = format or Format(check_target(out) if out is not None and out.suffix else Format.HTML)
    if open_ and kind is not Format.HTML:
        raise typer.BadParameter("--open shows the page: leave --format out, or name an HTML file")
    with open_client(trainer) as client:
        found = client.job_report(job_name(client, job))
    if out is None and not open_ and format is None and stdout().is_terminal:
        _summarize(found)
        return
    if out is None and not open_:
        sys.stdout.buffer.write(FORMATS[kind](found).encode())
        sys.stdout.flush()
        return
    if out is None:
        out = Path(tempfile.mkdtemp(prefix="softprompt-")) / f"{found.job.name.removeprefix('tuningJobs/')}.html"
    save_report(found, out, kind)
    stderr().print(f"written to {out}", markup=False, soft_wrap=True)
    if open_ and not webbrowser.open(out.absolute().as_uri()):
        stderr().print("no browser was found; open the file yourself", markup=False)


def _summarize(report: JobReport) -> None:
    """The curve, the result, and how to see the rest."""
    from softprompt.cli.following import show_result

    id = report.job.name.removeprefix("tuningJobs/")
    show(_drawn(report, "loss", _columns()))
    show("")
    show_result(report.job)
    stderr().print(f"the page with all held-out answers: softprompt jobs report {id} --open", markup=False)
    stderr().print(f"a file: softprompt jobs report {id} -o report.html (or .json, .csv)", markup=False)


@app.command(epilog=example("softprompt jobs curve 8q1r4s7t --metric accuracy"))
def curve(
    job: JobArgument,
    metric: MetricOption = "loss",
    columns: ColumnsOption = None,
    as_json: JsonOption = False,
    trainer: TrainerOption = None,
) -> None:
    """Draw a job's curve: the training loss and a held-out metric by step."""
    with open_client(trainer) as client:
        found = client.job_report(job_name(client, job), answers=False)
    if as_json:
        print_json({"training": found.training, "evaluations": found.evaluations})
        return
    _check_metric([found], metric)
    show(_drawn(found, metric, columns or _columns()))


@app.command(epilog=example("softprompt jobs compare 8q1r4s7t w6y2x9ze"))
def compare(
    jobs: Annotated[list[str], typer.Argument(metavar="JOB JOB...", help=f"Two jobs or more. {JOB_HELP}")],
    metric: MetricOption = "loss",
    columns: ColumnsOption = None,
    as_json: JsonOption = False,
    trainer: TrainerOption = None,
) -> None:
    """Compare jobs: hyperparameters that differ, final metrics with their intervals, and the curves side by side."""
    from softprompt.report.comparison import cautions, differing_settings, final_metrics

    with open_client(trainer) as client:
        names = list(dict.fromkeys(job_name(client, job) for job in jobs))
        if len(names) < 2:
            raise typer.BadParameter("name two different jobs or more")
        reports = [client.job_report(name, answers=False) for name in names]
    settings, metrics, notes = differing_settings(reports), final_metrics(reports), cautions(reports)
    if as_json:
        print_json({"jobs": names, "settings": settings, "metrics": metrics, "cautions": notes})
        return
    _check_metric(reports, metric)
    titles = [report.job.name.removeprefix("tuningJobs/") for report in reports]
    show(_rows("SETTING", titles, settings) if settings else "no hyperparameter differs")
    show("")
    show(_rows("HELD OUT", titles, metrics) if metrics else "no job has a result yet")
    for note in notes:
        show(note)
    show("")
    total = columns or _columns()
    width = min(total, max(_BESIDE_COLUMNS, (total + 2) // len(reports) - 2))
    show(beside([_drawn(report, metric, width) for report in reports], total, width))


def _rows(head: str, titles: Sequence[str], rows: Mapping[str, Sequence[str]]) -> Table:
    made = table(head, *titles)
    for name, values in rows.items():
        made.add_row(name, *values)
    return made


def _drawn(report: JobReport, metric: str, columns: int) -> str:
    from softprompt.report.curves import held_out_curve, training_curve

    series: dict[str, Any] = {"training loss": training_curve(report)} if metric == "loss" else {}
    series[f"held-out {metric}"] = held_out_curve(report, metric)
    title = f"{report.job.name.removeprefix('tuningJobs/')}  {report.job.spec.prompt if report.job.spec else ''}"
    return chart(title.strip(), series, columns, utf8=is_utf8(sys.stdout))


def _check_metric(reports: Sequence[JobReport], metric: str) -> None:
    from softprompt.report.curves import held_out_metrics

    known = sorted({name for report in reports for name in held_out_metrics(report)} | {"loss"})
    if metric not in known:
        raise typer.BadParameter(f"--metric {metric!r} was not evaluated; there are {', '.join(known)}")


def _columns() -> int:
    return min(stdout().width, _MAX_COLUMNS) if stdout().is_terminal else _PIPE_COLUMNS
