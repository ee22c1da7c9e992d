"""`softprompt init`: a starter file of examples, with a page that explains its format."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from shared.errors import AlreadyExists, InvalidInput
from shared.text.counted import counted
from shared.values.enums import TaskKind
from softprompt.cli.options import example
from softprompt.cli.output import show
from softprompt.output_files import replaced

app = typer.Typer()

Rows = Sequence[Mapping[str, Any]]
_GENERATION: Rows = [
    {"input": "name: Aria 5 | category: earbuds | battery: 30 h", "output": "**Aria 5** – earbuds that play for 30 h."},
    {"input": "name: Kite 2 | category: drone | camera: 4K", "output": "**Kite 2** – a drone that films in 4K."},
    {"input": "name: Loom | category: desk lamp | light: warm", "output": "**Loom** – a desk lamp with warm light."},
    {"input": "name: Pace X | category: watch | depth: 50 m", "output": "**Pace X** – a watch that dives to 50 m."},
]
_CLASSIFICATION: Rows = [
    {"input": "It broke after a day.", "label": "negative"},
    {"input": "Works as described, and fast.", "label": "positive"},
    {"input": "The strap tore, nobody answers my mails.", "label": "negative"},
    {"input": "My second one. I would buy it again.", "label": "positive"},
]
_QUESTIONS = {
    "Where is my parcel?": "Thanks for asking! Please send me your order number, and I will look at once.",
    "Can I return this?": "Of course! You have 30 days. Shall I send you a label?",
    "Do you repair it?": "Yes, gladly! Please tell me what is broken, and I will find a date.",
    "It arrived damaged.": "I am sorry about that! A photo is enough, and a new one is on its way.",
}
_CHAT: Rows = [
    {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}
    for question, answer in _QUESTIONS.items()
]
_ROWS = {TaskKind.GENERATION: _GENERATION, TaskKind.CLASSIFICATION: _CLASSIFICATION, TaskKind.CHAT: _CHAT}
_FORMATS = {
    TaskKind.GENERATION: "an `input` and the `output` that the model shall learn to write",
    TaskKind.CLASSIFICATION: "an `input` and one `label` out of a few",
    TaskKind.CHAT: (
        "`messages`, turns of `role` (system, user, assistant) and `content`; the model learns the last one, which is "
        "the assistant's"
    ),
}
_PAGE = """# {name}

Each line (in a table: each row) is one example: {format}.

- Replace the examples by your own. Some hundred are good, a few dozen are a beginning; several for each kind of input.
- Write the inputs exactly as they will be sent later, and the answers exactly as you want them.
- Repeated and contradicting examples make the result worse: `softprompt data check` counts them.
- Some examples are held out to measure the result; `--validation FILE` names your own held-out examples.
- CSV, TSV, XLSX, Parquet and JSON lines are read; columns of other names are chosen by `--input`, `--output`, `--label`
  and `--messages`.

```sh
softprompt data check {quoted}
softprompt tune {quoted} --prompt my-prompt
softprompt {use}
```
"""


@app.command(epilog=example("softprompt init reviews.csv --task classification"))
def init(
    file: Annotated[
        str, typer.Argument(help="File to write: .jsonl, .csv, .tsv, .xlsx or .parquet.")
    ] = "examples.jsonl",
    task: Annotated[
        TaskKind, typer.Option(case_sensitive=False, help="What the examples teach.")
    ] = TaskKind.GENERATION,
) -> None:
    """Write a starter file of examples, and beside it a page that explains the format. Never overwrites a file."""
    from softprompt.data.writing import STANDARD_OUTPUT, check_output, format_of, write_rows

    if file == STANDARD_OUTPUT:
        raise InvalidInput.of("file", "a file is expected, not standard output")
    path = Path(file)
    rows = _ROWS[task]
    if path.is_dir():
        raise InvalidInput.of("file", f"{file!r} is a directory; name a file in it, such as {path / 'examples.jsonl'}")
    page = path.with_name(f"{path.name}.README.md")
    format = format_of(file)
    use = 'classify --prompt my-prompt "Your input"' if task is TaskKind.CLASSIFICATION else "chat my-prompt"
    text = _PAGE.format(name=path.name, format=_FORMATS[task], quoted=shlex.quote(file), use=use)
    for place in (path, page):
        _check_free(place)
    check_output(file, overwrite=False)
    with replaced(page) as written:
        written.write_text(text, encoding="utf-8", errors="surrogateescape")  # FILE may have any bytes
        write_rows(file, format, list(rows[0]), rows)
        _check_free(page)
    show(f"{file} has {counted(len(rows), 'example')}; {page} explains the format. Next:")
    for line in text.split("```sh\n")[1].splitlines()[:3]:
        show(f"  {line}")


def _check_free(path: Path) -> None:
    if path.exists() or path.is_symlink():
        raise AlreadyExists(f"{path} exists; `init` never overwrites a file: name another one")
