"""What a trainer can train, how busy it is, and its webhooks: plain frozen dataclasses."""

from __future__ import annotations

from shared.values.service import ServiceInfo as ServiceInfo
from shared.values.service import TuningLimits as TuningLimits
from shared.values.service import UnavailableBaseModel as UnavailableBaseModel
from shared.values.webhooks import DeadLetter as DeadLetter
from shared.values.webhooks import Webhook as Webhook
