"""Parameters of OpenAI's API that this gateway does not have, and why. They are refused by name, never ignored."""

from __future__ import annotations

from collections.abc import Mapping

_NOTHING_STORED = "the gateway stores no answers"
_TEXT_ONLY = "models here read and write text only"
_NO_TOOL_TURNS = "models here read no calls of tools and no results of tools"
_ONLY_SUPERVISED = "only supervised fine-tuning is offered"
_NO_BUILT_IN_TOOLS = "there are no built-in tools"
_CACHED = "inputs of one tenant are reused by themselves"
_NO_TIERS = "priorities belong to callers (docs/security.md)"

REFUSED_FIELDS: Mapping[str, str] = {
    "access_programs": _NO_BUILT_IN_TOOLS,
    "audio": _TEXT_ONLY,
    "background": _NOTHING_STORED,
    "background_options": _NOTHING_STORED,
    "best_of": "it is not offered; set n and choose",
    "context_management": _NOTHING_STORED,
    "conversation": _NOTHING_STORED,
    "dpo": _ONLY_SUPERVISED,
    "expires_after": "datasets are kept as the operator has set (docs/operations.md)",
    "function_call": "use tool_choice",
    "functions": "use tools",
    "image": _TEXT_ONLY,
    "include_obfuscation": "streams are not padded",
    "integrations": "follow the job's events instead",
    "max_tool_calls": _NO_BUILT_IN_TOOLS,
    "metadata": _NOTHING_STORED,
    "modalities": _TEXT_ONLY,
    "moderation": "models here only write",
    "name": "models here see roles and contents only",
    "parallel_tool_calls": "an answer has at most one tool call",
    "prediction": "it is not offered",
    "previous_response_id": f"{_NOTHING_STORED}; send the whole conversation as input",
    "prompt": "name the prompt as model, and send its text as messages or input",
    "prompt_cache_breakpoint": _CACHED,
    "prompt_cache_key": _CACHED,
    "prompt_cache_options": _CACHED,
    "prompt_cache_retention": _CACHED,
    "reasoning": "models here do not reason in separate tokens",
    "reasoning_effort": "models here do not reason in separate tokens",
    "reinforcement": _ONLY_SUPERVISED,
    "safety_identifier": "use user",
    "service_tier": _NO_TIERS,
    "suffix": "models here only continue a text",
    "tool_choice": "chat completions have it",
    "tools": "chat completions have them",
    "verbosity": "train the prompt on answers of the wanted length",
    "web_search_options": _NO_BUILT_IN_TOOLS,
    "wandb": "follow the job's events instead",
}
"""Reason by the parameter's name, a phrase for after a colon. Some are offered with one value that changes nothing."""
REFUSED_VALUES: Mapping[str, str] = {
    "store": _NOTHING_STORED,
    "messages.role=tool": _NO_TOOL_TURNS,
    "messages.role=function": _NO_TOOL_TURNS,
    "messages.tool_calls": _NO_TOOL_TURNS,
    "messages.function_call": _NO_TOOL_TURNS,
    "messages.audio": _TEXT_ONLY,
    "messages.content.type": _TEXT_ONLY,
    "input.role=tool": _NO_TOOL_TURNS,
    "input.type": "models here read messages only",
    "input.content.type": _TEXT_ONLY,
    "input.phase": "models here do not reason in separate messages",
    "include": _NO_BUILT_IN_TOOLS,
    "tools.type": "models here call functions only",
    "method.type": _ONLY_SUPERVISED,
    "integrations": "follow the job's events instead",
}
"""Reason by a parameter, without its numbers in brackets, not every value of which is offered, or by name and value."""
