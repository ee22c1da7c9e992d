"""Writes `docs/python.md` from the client's public names: `python -m tests.python_reference`. A test checks that it is
current.
"""

from __future__ import annotations

import ast
import doctest
import inspect
import textwrap
from collections.abc import Iterator
from dataclasses import MISSING, Field, fields, is_dataclass
from enum import Enum
from itertools import pairwise
from pathlib import Path
from typing import Any

import softprompt
from softprompt import Client, errors

PAGE = Path(__file__).parents[1] / "docs/python.md"
_LINE = 100
_INNER = ("check", "moved")
"""Methods of the values that the services call."""
_BEGIN = """# Python

Generated from the code by `python -m tests.python_reference`; change the docstrings there. All names are imported from
`softprompt`. `AsyncClient` has the methods of `Client` as coroutines. The examples run in the tests.
"""


def reference() -> str:
    """The page."""
    names = [getattr(softprompt, name) for name in softprompt.__all__ if name != "errors"]
    classes = sorted((item for item in names if _is_class(item)), key=lambda item: str(item.__name__))
    parts = [_BEGIN, "\n## Client\n", _signature("Client", Client.__init__), f"\n{_doc(Client)}"]
    for name, method in _methods(Client):
        parts += [f"\n### {name}\n", _signature(name, method), f"\n{_doc(method)}"]
    parts.append("\n## Values")
    for item in classes:
        parts += [f"\n### {item.__name__}\n", _doc(item), *_table(item)]
        parts += [f"- `{name}()`: {_summary(method)}" for name, method in _methods(item)]
    parts += [
        "\n## Errors\n",
        "In `softprompt.errors`. `message` is a text for people.\n",
        "| error | meaning |",
        "|---|---|",
    ]
    parts += [f"| `{name}` | {_cell(_summary(getattr(errors, name)))} |" for name in errors.__all__]
    return "\n".join(parts).rstrip() + "\n"


def _is_class(item: Any) -> bool:
    return inspect.isclass(item) and item.__name__ not in ("Client", "AsyncClient")


def _methods(owner: type) -> Iterator[tuple[str, Any]]:
    """Public methods with a docstring, in alphabetical order. Those of the standard library's classes are left out."""
    for name, item in inspect.getmembers(owner, inspect.isfunction):
        ours = item.__module__.partition(".")[0] in ("softprompt", "shared")
        if not name.startswith("_") and ours and inspect.getdoc(item) and name not in _INNER:
            yield name, item


class _Plain(str):
    """Code that is shown without quotes."""

    def __repr__(self) -> str:
        return str(self)


def _signature(name: str, function: Any) -> str:
    """The call as code; a long one has a line for each parameter."""
    found = inspect.signature(function)
    parts: list[str] = []
    for item in list(found.parameters.values())[1:]:
        if item.kind is item.KEYWORD_ONLY and "*" not in parts:
            parts.append("*")
        default = item.default
        if isinstance(default, Enum):
            default = _Plain(f"{type(default).__name__}.{default.name}")
        parts.append(str(item.replace(annotation=_Plain(item.annotation), default=default)))
    end = "): ..." if name == "Client" else f") -> {found.return_annotation}: ..."
    line = f"def {name}({', '.join(parts)}{end}"
    if len(line) > _LINE:
        line = f"def {name}(\n    " + ",\n    ".join(parts) + f",\n{end}"
    return _code(line, "python")


def _table(item: Any) -> list[str]:
    if issubclass(item, Enum):
        return ["", ", ".join(f"`{choice.name}`" for choice in item) + "."]
    if not is_dataclass(item):
        return []
    meanings = {name: text for base in reversed(item.__mro__) for name, text in _field_docs(base).items()}
    rows = [(entry, meanings.get(entry.name, "")) for entry in fields(item) if not entry.name.startswith("_")]
    lines = [
        f"| `{entry.name}` | `{_cell(str(entry.type))}` | {_default(entry)} | {_cell(text)} |" for entry, text in rows
    ]
    return ["", "| field | type | default | meaning |", "|---|---|---|---|", *lines, ""] if lines else []


def _field_docs(item: Any) -> dict[str, str]:
    """The strings below the fields of a class, which Python itself does not keep."""
    try:
        body = ast.parse(textwrap.dedent(inspect.getsource(item))).body[0]
    except (OSError, TypeError):
        return {}
    found = {}
    statements = body.body if isinstance(body, ast.ClassDef) else []
    for field, text in pairwise(statements):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(text, ast.Expr):
            found[field.target.id] = " ".join(str(ast.literal_eval(text.value)).split())
    return found


def _default(entry: Field[Any]) -> str:
    if entry.default is MISSING:
        return "required" if entry.default_factory is MISSING else "empty"
    value = entry.default
    return f"`{value.name if isinstance(value, Enum) else value!r}`"


def _doc(item: Any) -> str:
    """A docstring, whose examples become code."""
    parts, examples = [], ""
    for piece in doctest.DocTestParser().parse(inspect.getdoc(item) or ""):
        if isinstance(piece, doctest.Example):
            examples += f">>> {piece.source.rstrip().replace(chr(10), chr(10) + '... ')}\n{piece.want}"
        elif piece.strip():
            parts.append(piece.strip().replace("<", "&lt;"))
    return "\n\n".join([*parts, *([_code(examples.rstrip(), "pycon")] if examples else [])])


def _summary(item: Any) -> str:
    return " ".join((inspect.getdoc(item) or "").partition("\n\n")[0].split())


def _code(text: str, language: str) -> str:
    return f"```{language}\n{text}\n```"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")


if __name__ == "__main__":
    PAGE.write_text(reference(), encoding="utf-8")
