"""Types of both services: plain frozen dataclasses without protobuf. Field names are the protocol's."""

from __future__ import annotations

from shared.values.base_model import BaseModelInfo as BaseModelInfo
from shared.values.enums import TemplateFormat as TemplateFormat
from shared.values.guide import Guide as Guide
from shared.values.message import Message as Message
from shared.values.results import Comparison as Comparison
from shared.values.sampling import Sampling as Sampling
from shared.values.template import Template as Template
