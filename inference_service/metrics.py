"""The inference service's Prometheus series; the only module of the service that imports Prometheus.

Per-request series have the prompt's name as a label, for a bounded number of prompts: the first `max_prompt_labels`
prompts have their own value, all others share `other`, and the bare model is `none`. Versions are not labels because
their number is unbounded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from inference_service.engine.core.stats import EngineObserver, EngineStats, FinishedRequest, StepStats
from inference_service.guides import GuideStats
from inference_service.prompts.registry import PromptRegistry
from inference_service.prompts.version import RefusalReason
from shared.store.index import VersionRecord

PREFIX = "softprompt_inference"
BARE_MODEL, OTHER = "none", "other"

_TTFT = (0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.15, 0.25, 0.5, 0.75, 1, 2.5, 5, 10, 30)
_INTER_TOKEN = (0.005, 0.01, 0.015, 0.02, 0.03, 0.04, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1, 2.5)
_REQUEST = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 30, 60, 120, 300)
_STEP = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.2, 0.5, 1, 2.5)
_LOAD = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
_PUBLISH_TO_SERVED = (0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1, 2, 5, 10, 30, 60, 300)

_ENGINE_GAUGES = {
    "requests_running": ("running", "Requests in the engine's steps."),
    "requests_waiting": ("waiting", "Requests waiting for a place."),
    "waiting_tokens": ("waiting_tokens", "Input tokens of waiting requests."),
    "kv_cache_usage_ratio": ("kv_usage", "Share of the KV cache that running requests hold."),
    "prefix_kv_bytes": ("prefix_kv_bytes", "Memory of the soft prompts' keys and values."),
    "prefix_kv_max_bytes": ("prefix_kv_max_bytes", "Budget of that memory."),
    "prefixes_resident": ("prefixes_loaded", "Soft prompts whose keys and values are in memory."),
}
"""Of each series below: the attribute with its value, and what it is."""
_STANDARD_GAUGES = {
    "vllm:num_requests_running": "requests_running",
    "vllm:num_requests_waiting": "requests_waiting",
    "vllm:kv_cache_usage_perc": "kv_cache_usage_ratio",
}
"""The same by the names that routers such as llm-d's look for."""
_ENGINE_COUNTERS = {
    "preemptions": ("preemptions", "Requests that were preempted and computed again."),
    "prefix_kv_hits": ("prefix_kv_hits", "Uses of a soft prompt whose keys and values were in memory."),
    "prefix_kv_loads": ("prefix_kv_loads", "Computations of a soft prompt's keys and values."),
    "prefix_kv_evictions": ("prefix_kv_evictions", "Evictions of a soft prompt's keys and values."),
}
_GUIDE_COUNTERS = {
    "guides_compiled": ("num_compiled", "Guides that were compiled."),
    "guides_reused": ("num_reused", "Uses of a guide that was already compiled."),
    "guides_refused": ("num_refused", "Guides that could not be compiled."),
}
_GUIDE_GAUGES = {"guides_kept_bytes": ("kept_bytes", "Estimated memory of the compiled guides that are kept.")}
_VERSION_GAUGES = {
    "versions_loaded": ("num_loaded", "Versions ready to serve."),
    "versions_quarantined": ("num_quarantined", "Versions refused permanently."),
    "versions_known": ("num_known", "Versions in the store."),
    "aliases_behind": ("num_aliases_behind", "Aliases that serve something else than the store says."),
}


class PromptLabels:
    """Values of the `prompt` label, at most `limit` besides `none` and `other`."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._known: set[str] = set()

    def of(self, prompt: str | None) -> str:
        """The label of a prompt, or of the bare model (None)."""
        if prompt is None:
            return BARE_MODEL
        if prompt in self._known:
            return prompt
        if len(self._known) >= self._limit:
            return OTHER
        self._known.add(prompt)
        return prompt


class EngineMetrics(EngineObserver):
    """An engine observer that updates the series; called in the engine's thread."""

    def __init__(
        self,
        registry: CollectorRegistry,
        max_prompt_labels: int,
        prompt_of: Callable[[str | None], str | None],
        record: Callable[[FinishedRequest], None] = lambda request: None,
    ) -> None:
        """`prompt_of` maps a prefix id of the engine to its prompt. `record` gets each request before it is counted."""
        self._record = record
        self._labels, self._prompt_of = PromptLabels(max_prompt_labels), prompt_of

        def histogram(name: str, about: str, buckets: tuple[float, ...], labels: tuple[str, ...] = ()) -> Histogram:
            return Histogram(f"{PREFIX}_{name}", about, labels, registry=registry, buckets=buckets)

        def counter(name: str, about: str, labels: tuple[str, ...]) -> Counter:
            return Counter(f"{PREFIX}_{name}", about, labels, registry=registry)

        self.ttft = histogram(
            "time_to_first_token_seconds", "From a request's arrival to its first token.", _TTFT, ("prompt",)
        )
        self.inter_token = histogram("inter_token_seconds", "Between two tokens of a request.", _INTER_TOKEN)
        self.queue = histogram("queue_seconds", "From a request's arrival to its first step.", _TTFT)
        self.request = histogram("request_seconds", "From a request's arrival to its end.", _REQUEST, ("prompt",))
        self.step = histogram("step_seconds", "One step of the engine.", _STEP)
        self.positions = counter("step_positions", "Positions computed in the engine's steps.", ())
        self.finished = counter("requests_finished", "Requests by how they ended.", ("prompt", "finish_reason"))
        self.scores = counter("scores_finished", "Score requests that ended.", ("prompt",))
        self.tokens = counter(
            "tokens", "Tokens by kind: input, virtual, cached (part of input), generated.", ("prompt", "kind")
        )

    def on_step(self, step: StepStats) -> None:
        self.step.observe(step.seconds)
        self.positions.inc(step.num_positions)

    def on_finished(self, request: FinishedRequest) -> None:
        name = self._prompt_of(request.prefix_id)
        if not request.tenant:  # a golden replay is not a caller's request
            return
        self._record(request)
        prompt, usage = self._labels.of(name), request.usage
        if request.is_score:
            self.scores.labels(prompt).inc()
        else:
            self.finished.labels(prompt, request.finish_reason.value).inc()
        if request.ttft_seconds is not None:
            self.ttft.labels(prompt).observe(request.ttft_seconds)
        self.queue.observe(request.queue_seconds)
        self.request.labels(prompt).observe(request.e2e_seconds)
        for seconds in request.inter_token_seconds:
            self.inter_token.observe(seconds)
        for kind, count in (
            ("input", usage.read_tokens),
            ("virtual", usage.virtual_tokens),
            ("cached", usage.cached_tokens),
            ("generated", usage.generated_tokens),
        ):
            self.tokens.labels(prompt, kind).inc(count)


class PromptMetrics:
    """A prompt observer that updates the series; called on the event loop."""

    def __init__(self, registry: CollectorRegistry, on_news: Callable[[], None]) -> None:
        """`on_news` is called after each version that was loaded or refused."""
        self._on_news = on_news
        self.loads = Counter(f"{PREFIX}_version_loads", "Versions loaded and checked.", registry=registry)
        self.failures = Counter(
            f"{PREFIX}_version_load_failures", "Versions not loaded, by reason.", ["reason"], registry=registry
        )
        self.load_seconds = Histogram(
            f"{PREFIX}_version_load_seconds",
            "Fetch, checks, prefix KV and golden replay.",
            registry=registry,
            buckets=_LOAD,
        )
        self.publish_to_served = Histogram(
            f"{PREFIX}_publish_to_served_seconds",
            "From a version's publication until this replica could serve it.",
            registry=registry,
            buckets=_PUBLISH_TO_SERVED,
        )
        self.revision = Gauge(
            f"{PREFIX}_store_revision", "Store revision that this replica has seen.", registry=registry
        )
        self.last_contact = Gauge(
            f"{PREFIX}_store_last_contact_timestamp_seconds", "When the store last answered.", registry=registry
        )
        self.last_contact.set_to_current_time()  # the store was opened just now
        self.errors = Counter(f"{PREFIX}_store_errors", "Failed polls of the store.", registry=registry)
        for reason in (*RefusalReason, "unavailable"):
            self.failures.labels(str(reason))

    def version_loaded(
        self, record: VersionRecord, load_seconds: float, publish_to_served_seconds: float | None
    ) -> None:
        self.loads.inc()
        self.load_seconds.observe(load_seconds)
        if publish_to_served_seconds is not None:
            self.publish_to_served.observe(publish_to_served_seconds)
        self._on_news()

    def version_refused(self, record: VersionRecord, reason: RefusalReason) -> None:
        self.failures.labels(str(reason)).inc()
        self._on_news()

    def version_unavailable(self, record: VersionRecord) -> None:
        self.failures.labels("unavailable").inc()

    def store_polled(self, revision: int) -> None:
        self.revision.set(revision)
        self.last_contact.set_to_current_time()

    def store_failed(self) -> None:
        self.errors.inc()


class StateCollector(Collector):
    """The state of the engine, the registry and the guides, read at the time of a scrape."""

    def __init__(
        self, stats: Callable[[], EngineStats], prompts: PromptRegistry, guides: Callable[[], GuideStats]
    ) -> None:
        self._stats, self._prompts, self._guides = stats, prompts, guides

    def collect(self) -> Iterator[Metric]:
        """Yield the gauges and counters of the current state."""
        stats, guides = self._stats(), self._guides()
        yield from _families(GaugeMetricFamily, _ENGINE_GAUGES, stats)
        for name, same in _STANDARD_GAUGES.items():
            value = getattr(stats, _ENGINE_GAUGES[same][0])
            yield GaugeMetricFamily(name, f"The same as {PREFIX}_{same}.", value=value)
        yield from _families(CounterMetricFamily, _ENGINE_COUNTERS, stats)
        yield from _families(CounterMetricFamily, _GUIDE_COUNTERS, guides)
        yield from _families(GaugeMetricFamily, _GUIDE_GAUGES, guides)
        yield from _families(GaugeMetricFamily, _VERSION_GAUGES, self._prompts)


def _families(
    kind: type[GaugeMetricFamily | CounterMetricFamily], table: Mapping[str, tuple[str, str]], source: object
) -> Iterator[Metric]:
    for name, (attribute, about) in table.items():
        yield kind(f"{PREFIX}_{name}", about, value=getattr(source, attribute))


class UsageCollector(Collector):
    """Records of usage that were lost."""

    def __init__(self, num_lost: Callable[[], int]) -> None:
        self._num_lost = num_lost

    def collect(self) -> Iterator[Metric]:
        """Yield the counter."""
        about = "Records of usage that could not be written."
        yield CounterMetricFamily(f"{PREFIX}_usage_records_lost", about, value=self._num_lost())
