"""The words of the protocol: each enum has the names of its message's enum, without the prefix and UNSPECIFIED."""

from __future__ import annotations

from enum import StrEnum


class TaskKind(StrEnum):
    """What examples teach."""

    GENERATION = "GENERATION"
    """`{input, output}`: the target is the output and the end of sequence."""
    CHAT = "CHAT"
    """`{messages}`: the target is the last assistant message."""
    CLASSIFICATION = "CLASSIFICATION"
    """`{input, label}`: the target is the label; evaluation scores the whole label set."""


class TooLong(StrEnum):
    """What happens to an example that is longer than the longest sequence."""

    REFUSE = "REFUSE"
    """The job fails and names the examples."""
    TRUNCATE = "TRUNCATE"
    """Its input is truncated from the left, as in serving; it is dropped if template and target leave no room."""
    DROP = "DROP"
    """The example is left out."""


class InitMethod(StrEnum):
    """Initialisation of the soft prompt."""

    TEXT = "TEXT"
    """The embeddings of a text's tokens, repeated to length."""
    LABELS = "LABELS"
    """The embeddings of the labels' tokens, repeated to length."""
    SAMPLE_VOCAB = "SAMPLE_VOCAB"
    """Embeddings sampled from the vocabulary's frequent tokens."""
    RANDOM = "RANDOM"
    """Normal, with the standard deviation of the embedding table."""
    FROM_PROMPT = "FROM_PROMPT"
    """Another version or a job's kept prompt; keys and values also start from a soft prompt, which they act as."""
    DEMONSTRATIONS = "DEMONSTRATIONS"
    """Training examples with their answers, as keys and values (CT-KV, Lu et al. 2025, arXiv:2507.04221)."""


class Reparameterisation(StrEnum):
    """What is trained in place of the matrix."""

    NONE = "NONE"
    RESIDUAL = "RESIDUAL"
    """A small residual network over the matrix, merged into it at the end (Razdaibiedina et al. 2023,
    arXiv:2305.03937).
    """


class PrefixKind(StrEnum):
    """What a version puts before every input."""

    PROMPT = "PROMPT"
    """A soft prompt: embeddings of virtual tokens."""
    PREFIX = "PREFIX"
    """Keys and values of each layer."""


class LearningRateSchedule(StrEnum):
    """The learning rate after the warm-up."""

    COSINE = "COSINE"
    LINEAR = "LINEAR"
    CONSTANT = "CONSTANT"


class Metric(StrEnum):
    """The metric that chooses the best checkpoint. For LOSS, lower is better; for all others, higher is better."""

    LOSS = "LOSS"
    TOKEN_ACCURACY = "TOKEN_ACCURACY"
    ACCURACY = "ACCURACY"
    MACRO_F1 = "MACRO_F1"
    CHRF = "CHRF"
    BLEU = "BLEU"
    EXACT_MATCH = "EXACT_MATCH"


CLASS_METRICS = frozenset({Metric.ACCURACY, Metric.MACRO_F1})
"""Of classification alone."""
TEXT_METRICS = frozenset({Metric.CHRF, Metric.BLEU, Metric.EXACT_MATCH})
"""Of generated texts."""


class TemplateFormat(StrEnum):
    """How a template becomes the model's text."""

    TEXT = "TEXT"
    """The text with `{input}` replaced; the answer follows."""
    CHAT = "CHAT"
    """The base model's own chat template around the text."""


class JobState(StrEnum):
    """The state of a tuning job. SUCCEEDED, FAILED and CANCELLED are final."""

    QUEUED = "QUEUED"
    """Waits for a worker."""
    RUNNING = "RUNNING"
    """On a worker, or trained and being published."""
    PAUSED = "PAUSED"
    """Taken off its worker; continues from its checkpoint when resumed."""
    CANCELLING = "CANCELLING"
    """Will be cancelled at its next step."""
    SUCCEEDED = "SUCCEEDED"
    """Trained and evaluated, and published unless its gate forbade it."""
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"

    @property
    def is_final(self) -> bool:
        """Whether the job has ended."""
        return self in (JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED)


class JobOrder(StrEnum):
    """Order of a list of jobs."""

    NEWEST_FIRST = "NEWEST_FIRST"
    OLDEST_FIRST = "OLDEST_FIRST"


class LoadedState(StrEnum):
    """The state of a version on one replica."""

    LOADED = "LOADED"
    """Its keys and values are in memory."""
    KNOWN = "KNOWN"
    """Checked; its keys and values are loaded on the next use."""
    QUARANTINED = "QUARANTINED"
    """Refused; its reason says why."""
