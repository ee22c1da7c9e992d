"""The kinds of prefixes by the name in a manifest. A version's file is read and written by the class of its kind."""

from __future__ import annotations

from shared.prompt.key_values import KeyValuePrefix
from shared.prompt.prefix import Prefix
from shared.prompt.soft_prompt import SoftPrompt
from shared.values.enums import PrefixKind

KINDS: dict[PrefixKind, type[Prefix]] = {PrefixKind.PROMPT: SoftPrompt, PrefixKind.PREFIX: KeyValuePrefix}
