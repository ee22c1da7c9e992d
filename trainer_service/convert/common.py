"""Messages that tuning and prompts both use: base model, template, sampling defaults."""

from __future__ import annotations

from prompttuning.v1 import common_pb2

from shared.caller import current_caller
from shared.model.base_model import BaseModelInfo
from shared.names import DEFAULT_ALIAS
from shared.security.methods import prompt_of
from shared.wire.mirror import write

NO_ALIAS = "-"
"""How a caller writes that no alias is to be moved; an empty string means the default alias."""
JOB_PREFIX = "tuningJobs/"


def alias_from_wire(alias: str) -> str:
    """The trainer's own way: an empty string where no alias is to be moved."""
    return "" if alias == NO_ALIAS else alias or DEFAULT_ALIAS


def source_to_wire(source: str) -> str:
    """What a prompt was started from; nothing if that is another prompt, which the caller may not name. A job's id
    names no prompt.
    """
    return source if source.startswith(JOB_PREFIX) or current_caller().may_use(prompt_of(source)) else ""


def base_model_to_wire(info: BaseModelInfo) -> common_pb2.BaseModel:
    """The message of a base model."""
    return write(info, common_pb2.BaseModel())
