"""softprompt: tune soft prompts and stream answers from them, over gRPC. Start with `softprompt.Client` or
`softprompt.AsyncClient`.

Names are imported on first use: the command line starts without loading gRPC.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from softprompt import errors as errors
    from softprompt.client.async_client import AsyncClient as AsyncClient
    from softprompt.client.chat import AsyncChat as AsyncChat
    from softprompt.client.chat import Chat as Chat
    from softprompt.client.retraining_plan import PlannedRetraining as PlannedRetraining
    from softprompt.client.retraining_plan import RetrainingPlan as RetrainingPlan
    from softprompt.client.security import ClientSecurity as ClientSecurity
    from softprompt.client.stream import GenerationStream as GenerationStream
    from softprompt.client.stream import SyncGenerationStream as SyncGenerationStream
    from softprompt.client.sync_client import Client as Client
    from softprompt.types.common import BaseModelInfo as BaseModelInfo
    from softprompt.types.common import Comparison as Comparison
    from softprompt.types.common import Guide as Guide
    from softprompt.types.common import Message as Message
    from softprompt.types.common import Sampling as Sampling
    from softprompt.types.common import Template as Template
    from softprompt.types.common import TemplateFormat as TemplateFormat
    from softprompt.types.data import Data as Data
    from softprompt.types.data import Example as Example
    from softprompt.types.data import Location as Location
    from softprompt.types.data import PreparedData as PreparedData
    from softprompt.types.datasets import DatasetStatistics as DatasetStatistics
    from softprompt.types.datasets import StoredDataset as StoredDataset
    from softprompt.types.datasets import UploadedDataset as UploadedDataset
    from softprompt.types.events import CheckpointStored as CheckpointStored
    from softprompt.types.events import Evaluated as Evaluated
    from softprompt.types.events import JobEvent as JobEvent
    from softprompt.types.events import Note as Note
    from softprompt.types.events import ProgressMade as ProgressMade
    from softprompt.types.events import StateChanged as StateChanged
    from softprompt.types.generation import CandidateScore as CandidateScore
    from softprompt.types.generation import Completion as Completion
    from softprompt.types.generation import FinishReason as FinishReason
    from softprompt.types.generation import Generation as Generation
    from softprompt.types.generation import GenerationDelta as GenerationDelta
    from softprompt.types.generation import GenerationEnd as GenerationEnd
    from softprompt.types.generation import GenerationLimits as GenerationLimits
    from softprompt.types.generation import GenerationOutcome as GenerationOutcome
    from softprompt.types.generation import GenerationStart as GenerationStart
    from softprompt.types.generation import InputToken as InputToken
    from softprompt.types.generation import LoadedPrompt as LoadedPrompt
    from softprompt.types.generation import LoadedPrompts as LoadedPrompts
    from softprompt.types.generation import LoadedState as LoadedState
    from softprompt.types.generation import ModelInfo as ModelInfo
    from softprompt.types.generation import Scores as Scores
    from softprompt.types.generation import TokenAlternative as TokenAlternative
    from softprompt.types.generation import TokenCount as TokenCount
    from softprompt.types.generation import TokenIds as TokenIds
    from softprompt.types.generation import TokenLogprob as TokenLogprob
    from softprompt.types.history import HistoryPoint as HistoryPoint
    from softprompt.types.history import JobHistory as JobHistory
    from softprompt.types.jobs import DistillationResult as DistillationResult
    from softprompt.types.jobs import JobCheck as JobCheck
    from softprompt.types.jobs import JobOrder as JobOrder
    from softprompt.types.jobs import JobState as JobState
    from softprompt.types.jobs import NearestToken as NearestToken
    from softprompt.types.jobs import SearchCandidate as SearchCandidate
    from softprompt.types.jobs import TuningError as TuningError
    from softprompt.types.jobs import TuningJob as TuningJob
    from softprompt.types.jobs import TuningProgress as TuningProgress
    from softprompt.types.jobs import TuningResult as TuningResult
    from softprompt.types.keywords import SamplingKeywords as SamplingKeywords
    from softprompt.types.prompts import Alias as Alias
    from softprompt.types.prompts import AliasSet as AliasSet
    from softprompt.types.prompts import AliasTarget as AliasTarget
    from softprompt.types.prompts import Deleted as Deleted
    from softprompt.types.prompts import Prompt as Prompt
    from softprompt.types.prompts import PromptChange as PromptChange
    from softprompt.types.prompts import PromptStatus as PromptStatus
    from softprompt.types.prompts import PromptVersion as PromptVersion
    from softprompt.types.prompts import Published as Published
    from softprompt.types.prompts import ReplicaRefusal as ReplicaRefusal
    from softprompt.types.prompts import ReplicaServing as ReplicaServing
    from softprompt.types.prompts import ReplicaStatus as ReplicaStatus
    from softprompt.types.prompts import Snapshot as Snapshot
    from softprompt.types.prompts import VersionStatus as VersionStatus
    from softprompt.types.report import ConfusionCell as ConfusionCell
    from softprompt.types.report import Evaluation as Evaluation
    from softprompt.types.report import HeldOutAnswer as HeldOutAnswer
    from softprompt.types.report import JobCost as JobCost
    from softprompt.types.report import JobLineage as JobLineage
    from softprompt.types.report import JobReport as JobReport
    from softprompt.types.report import ModelAnswer as ModelAnswer
    from softprompt.types.report import TrainingPoint as TrainingPoint
    from softprompt.types.service import DeadLetter as DeadLetter
    from softprompt.types.service import ServiceInfo as ServiceInfo
    from softprompt.types.service import TuningLimits as TuningLimits
    from softprompt.types.service import UnavailableBaseModel as UnavailableBaseModel
    from softprompt.types.service import Webhook as Webhook
    from softprompt.types.spec import Distillation as Distillation
    from softprompt.types.spec import Hyperparameters as Hyperparameters
    from softprompt.types.spec import Init as Init
    from softprompt.types.spec import InitMethod as InitMethod
    from softprompt.types.spec import LearningRateSchedule as LearningRateSchedule
    from softprompt.types.spec import Metric as Metric
    from softprompt.types.spec import PrefixKind as PrefixKind
    from softprompt.types.spec import PublishGate as PublishGate
    from softprompt.types.spec import PublishPolicy as PublishPolicy
    from softprompt.types.spec import Reparameterisation as Reparameterisation
    from softprompt.types.spec import TaskKind as TaskKind
    from softprompt.types.spec import TooLong as TooLong
    from softprompt.types.spec import TuningSpec as TuningSpec
    from softprompt.types.usage import BudgetStatus as BudgetStatus
    from softprompt.types.usage import UsageDimension as UsageDimension
    from softprompt.types.usage import UsageRow as UsageRow

_MODULES = {
    "softprompt.client.async_client": "AsyncClient",
    "softprompt.client.chat": "AsyncChat Chat",
    "softprompt.client.security": "ClientSecurity",
    "softprompt.client.stream": "GenerationStream SyncGenerationStream",
    "softprompt.client.sync_client": "Client",
    "softprompt.client.retraining_plan": "PlannedRetraining RetrainingPlan",
    "softprompt.types.common": "BaseModelInfo Comparison Guide Message Sampling Template TemplateFormat",
    "softprompt.types.data": "Data Example Location PreparedData",
    "softprompt.types.datasets": "DatasetStatistics StoredDataset UploadedDataset",
    "softprompt.types.events": "CheckpointStored Evaluated JobEvent Note ProgressMade StateChanged",
    "softprompt.types.generation": (
        "CandidateScore Completion FinishReason Generation GenerationDelta GenerationEnd GenerationLimits "
        "GenerationOutcome GenerationStart InputToken LoadedPrompt LoadedPrompts LoadedState ModelInfo Scores "
        "TokenAlternative TokenCount TokenIds TokenLogprob"
    ),
    "softprompt.types.history": "HistoryPoint JobHistory",
    "softprompt.types.jobs": (
        "DistillationResult JobCheck JobOrder JobState NearestToken SearchCandidate TuningError TuningJob "
        "TuningProgress TuningResult"
    ),
    "softprompt.types.keywords": "SamplingKeywords",
    "softprompt.types.prompts": (
        "Alias AliasSet AliasTarget Deleted Prompt PromptChange PromptStatus PromptVersion Published "
        "ReplicaRefusal ReplicaServing ReplicaStatus Snapshot VersionStatus"
    ),
    "softprompt.types.report": (
        "ConfusionCell Evaluation HeldOutAnswer JobCost JobLineage JobReport ModelAnswer TrainingPoint"
    ),
    "softprompt.types.service": "DeadLetter ServiceInfo TuningLimits UnavailableBaseModel Webhook",
    "softprompt.types.spec": (
        "Distillation Hyperparameters Init InitMethod LearningRateSchedule Metric PrefixKind PublishGate PublishPolicy "
        "Reparameterisation TaskKind TooLong TuningSpec"
    ),
    "softprompt.types.usage": "BudgetStatus UsageDimension UsageRow",
}
_HOME = {name: module for module, names in _MODULES.items() for name in names.split()}
__all__ = ["errors", *sorted(_HOME)]


def __getattr__(name: str) -> Any:
    if name == "errors":
        return import_module("softprompt.errors")
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'softprompt' has no attribute {name!r}")
