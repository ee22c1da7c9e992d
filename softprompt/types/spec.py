"""What a tuning job should train, as a caller writes it."""

from __future__ import annotations

from os import PathLike

from shared.values.enums import InitMethod as InitMethod
from shared.values.enums import LearningRateSchedule as LearningRateSchedule
from shared.values.enums import Metric as Metric
from shared.values.enums import PrefixKind as PrefixKind
from shared.values.enums import Reparameterisation as Reparameterisation
from shared.values.enums import TaskKind as TaskKind
from shared.values.enums import TooLong as TooLong
from shared.values.hyperparameters import Hyperparameters as Hyperparameters
from shared.values.hyperparameters import Init as Init
from shared.values.spec import Distillation as Distillation
from shared.values.spec import PublishGate as PublishGate
from shared.values.spec import PublishPolicy as PublishPolicy
from shared.values.spec import TuningSpec as TuningSpec
from softprompt.types.data import Data, Examples, PreparedData

Dataset = str | PathLike[str] | Examples | Data | PreparedData
"""Data as `Data.source` accepts it, a dataset name ("datasets/sha256-..."), or a URI that the trainer reads
("file:///...").
"""
