"""What a trainer can train, and how busy it is: plain frozen dataclasses."""

from __future__ import annotations

from shared.values.service import ServiceInfo as ServiceInfo
from shared.values.service import TuningLimits as TuningLimits
from shared.values.service import UnavailableBaseModel as UnavailableBaseModel
