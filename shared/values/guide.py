"""The form that an answer must have: one of some texts, a regular expression, a JSON Schema or a grammar."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields

from shared.violations import Violations

MAX_CHOICES = 256
MAX_GUIDE_BYTES = 65_536
MAX_BYTES = {"choices": 16_384, "regex": 8_192, "json_schema": MAX_GUIDE_BYTES, "grammar": 16_384}
"""Largest size of each kind. Compiling a regular expression takes time by the square of its length."""


@dataclass(frozen=True)
class Guide:
    """Exactly one of the fields is set. `docs/engine.md` describes the syntax of each and what a guide guarantees."""

    choices: tuple[str, ...] = ()
    """The answer is one of these texts."""
    regex: str | None = None
    """The whole answer matches this expression, in the syntax of Rust's regex crate."""
    json_schema: str | Mapping[str, object] | bool | None = None
    """The answer is JSON that is valid under this schema. Stored as text; a mapping is converted."""
    grammar: str | None = None
    """The answer is a text of this context-free grammar in Lark's syntax."""

    def __post_init__(self) -> None:
        if isinstance(self.json_schema, Mapping | bool):
            object.__setattr__(self, "json_schema", json.dumps(self.json_schema, ensure_ascii=False))

    @property
    def kinds(self) -> tuple[str, ...]:
        """The names of the fields that are set."""
        return tuple(item.name for item in fields(self) if getattr(self, item.name) not in (None, ()))

    @property
    def num_bytes(self) -> int:
        """Size of the guide's text in UTF-8."""
        texts = (*self.choices, self.regex, self.json_schema, self.grammar)
        return sum(len(text.encode(errors="replace")) for text in texts if isinstance(text, str))

    def check(self, path: str, violations: Violations, max_bytes: int = MAX_GUIDE_BYTES) -> None:
        """Add what is wrong with its size and its form. Whether it can be compiled is known to the service alone."""
        if len(self.kinds) != 1:
            kinds = ", ".join(item.name for item in fields(self))
            found = ", ".join(self.kinds) or "none of them"
            violations.add(path, f"must have exactly one of {kinds}; it has {found}")
            return
        (kind,) = self.kinds
        if (size := self.num_bytes) > (most := min(MAX_BYTES[kind], max_bytes)):
            violations.add(f"{path}.{kind}", f"has {size} bytes; at most {most} are allowed")
        elif kind == "choices":
            self._check_choices(f"{path}.choices", violations)
        elif not getattr(self, kind):
            violations.add(f"{path}.{kind}", "must not be empty")
        elif kind == "json_schema":
            _check_json(str(self.json_schema), f"{path}.json_schema", violations)

    def _check_choices(self, path: str, violations: Violations) -> None:
        if len(self.choices) > MAX_CHOICES:
            violations.add(path, f"at most {MAX_CHOICES} are allowed, {len(self.choices)} were given")
        for index, text in enumerate(self.choices[:MAX_CHOICES]):
            if not text:
                violations.add(f"{path}[{index}]", "must not be empty")


def _check_json(text: str, path: str, violations: Violations) -> None:
    try:
        schema = json.loads(text)
    except ValueError as error:
        violations.add(path, f"is not JSON: {error}")
    except RecursionError:
        violations.add(path, "is nested too deeply")
    else:
        if not isinstance(schema, dict | bool):
            violations.add(path, "must be a JSON object, true or false")
