"""How an input becomes the model's text: a caller's choice, stored in a version's manifest with the prompt."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date
from typing import Any, ClassVar, Self

from shared.values.enums import TemplateFormat
from shared.violations import Violations

INPUT_FIELD = "{input}"
MAX_TEMPLATE_CHARS = 32_768
MAX_ARGUMENTS = 32
_MAX_LEAD_CHARS, _MAX_END_CHARS = 1000, 200
_INTERNAL = {"internal": True}
"""A field that a service adds for itself: in no message, and not shown to callers."""
_DATE = re.compile(r"\d{4}-\d{2}-\d{2}")
_RESERVED_ARGUMENTS = frozenset(
    {"messages", "conversation", "chat_template", "tokenize", "add_generation_prompt", "continue_final_message",
     "return_tensors", "return_dict", "return_assistant_tokens_mask", "padding", "truncation", "max_length",
     "tokenizer_kwargs", "strftime_now", "sanitize_control_tokens"}
)  # fmt: skip


@dataclass(frozen=True)
class Template:
    """How inputs are rendered. A prompt is served with the template that it was trained with.

    Callers set the fields up to `date`; the service adds the others when it trains a prompt (`shared.text.template`).
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid", "allow_inf_nan": False}

    text: str = INPUT_FIELD
    """Contains `{input}` exactly once. Empty in a message: the input alone."""
    format: TemplateFormat | None = None
    """None: the base model's own, CHAT if it has a chat template. A stored template without a format has TEXT."""
    system: str = ""
    system_override: bool = False
    """Whether a conversation may replace `system` with its own system message. If not, such a message is rejected."""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    """Arguments of the model's chat template besides the messages, such as {"enable_thinking": False}."""
    date: str = ""
    """The date that a chat template shows as today's, YYYY-MM-DD, so that rendering doesn't change. Empty: the day of
    the job for a prompt, today for the bare model.
    """
    lead: str = field(default="", metadata=_INTERNAL)
    """The text between the header of the assistant's turn and the answer, such as an empty thought."""
    end: str = field(default="", metadata=_INTERNAL)
    """The control token that ends an answer; empty: the tokenizer's end of sequence."""
    rendering: int = field(default=1, metadata=_INTERNAL)
    """2: targets are tokenized as continuations of the input; 1 (older versions): as separate texts. 3: with TEXT, the
    input begins with all that the tokenizer puts before a text; up to 2, with a BOS at most. 4: unless `text` does.
    """

    def check(self, path: str = "template") -> Self:
        """Return itself. Raises InvalidInput naming every field below `path` whose value doesn't fit."""
        violations = Violations()
        longest = {"text": MAX_TEMPLATE_CHARS, "system": MAX_TEMPLATE_CHARS, "lead": _MAX_LEAD_CHARS}
        for name, most in {**longest, "end": _MAX_END_CHARS}.items():
            if (length := len(getattr(self, name))) > most:
                violations.add(f"{path}.{name}", f"has {length} characters; at most {most} are allowed")
        if (count := self.text.count(INPUT_FIELD)) != 1:
            violations.add(f"{path}.text", f"must contain {INPUT_FIELD} exactly once, found {count}")
        for name in ("system", "arguments"):
            if getattr(self, name) and self.format is not TemplateFormat.CHAT:
                violations.add(f"{path}.{name}", "needs the CHAT format")
        self._check_arguments(f"{path}.arguments", violations)
        if self.date and not _is_day(self.date):
            violations.add(f"{path}.date", f"{self.date[:40]!r} is not a day (YYYY-MM-DD)")
        if self.rendering not in (1, 2, 3, 4):
            violations.add(f"{path}.rendering", f"must be from 1 to 4, is {self.rendering}")
        violations.raise_if_any()
        return self

    def render(self, text: str) -> str:
        """The template text with `{input}` replaced by `text`."""
        before, _, after = self.text.partition(INPUT_FIELD)
        return before + text + after

    @property
    def target_prefix(self) -> str:
        """The spaces at the beginning of targets, because a byte-pair token includes the space before it."""
        if self.format is TemplateFormat.CHAT:
            return self.lead[len(self.lead.rstrip(" ")) :]
        return "" if self.text[-1:].isspace() else " "

    def _check_arguments(self, path: str, violations: Violations) -> None:
        if len(self.arguments) > MAX_ARGUMENTS:
            violations.add(path, f"has {len(self.arguments)} entries; at most {MAX_ARGUMENTS} are allowed")
        try:
            size = len(json.dumps(dict(self.arguments), allow_nan=False))
        except (ValueError, TypeError) as error:  # NaN, infinity, or an object of a Python caller
            violations.add(path, f"must be JSON: {str(error)[:80]}")
            return
        if size > MAX_TEMPLATE_CHARS:
            violations.add(path, f"must have at most {MAX_TEMPLATE_CHARS} characters as JSON")
        for name in list(self.arguments)[:MAX_ARGUMENTS]:
            is_stored = name == "sanitize_control_tokens" and self.rendering > 1  # by a build where it had no effect
            if not name.isidentifier() or (name in _RESERVED_ARGUMENTS and not is_stored):
                violations.add(path, f"{name[:40]!r} can't be the name of an argument")


def _is_day(text: str) -> bool:
    try:
        date.fromisoformat(text)
    except ValueError:
        return False
    return _DATE.fullmatch(text) is not None
