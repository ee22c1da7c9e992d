"""What a service really exports, as Prometheus would store it, and as series for promtool over a longer time.

A fault is scraped four times: twice before it and twice while it lasts. The difference between two scrapes is taken for
what happens in a minute, so that a rule of half an hour is tried on the service's own series without waiting for half
an hour.
"""

from __future__ import annotations

import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

NAMESPACE = "softprompt"
MINUTES_BEFORE = 10

Series = tuple[str, tuple[tuple[str, str], ...]]


@dataclass(frozen=True)
class Scrape:
    """Samples by name and labels, `at` a time. `up` is among them, as Prometheus adds it."""

    at: float
    samples: Mapping[Series, float]


ONLY_UP = 0


def scrape(targets: Mapping[str, int | None], only: str = "") -> Scrape:
    """Read the metrics ports by job name. A port that does not answer is a target that is down; None is a job without a
    target.

    ONLY_UP is a target of which nothing but `up` matters. `only`: the beginning of the names that are wanted, for tests
    that wait for a value, because reading all series takes tens of milliseconds.
    """
    samples: dict[Series, float] = {}
    for job, port in targets.items():
        if port is None:
            continue
        labels = {
            "job": job,
            "namespace": NAMESPACE,
            "pod": f"{job}-0",
            "instance": f"10.0.0.1:{'9091' if job == 'trainer' else '9092'}",
        }
        if port == ONLY_UP:
            samples[_series("up", labels)] = 1.0
            continue
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as response:
                text = response.read().decode()
        except (OSError, urllib.error.URLError):
            samples[_series("up", labels)] = 0.0
            continue
        samples[_series("up", labels)] = 1.0
        if only:
            text = "".join(line for line in text.splitlines(keepends=True) if line.startswith(only))
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                samples[_series(sample.name, {**sample.labels, **labels})] = float(sample.value)
    return Scrape(time.time(), samples)


def series_over_time(
    before: tuple[Scrape, Scrape], during: tuple[Scrape, Scrape], minutes: int, wanted: Callable[[str], bool]
) -> Any:
    """promtool's `input_series`, a sample a minute: ten minutes as before the fault, then `minutes` during it."""
    names = {series for moment in (*before, *during) for series in moment.samples if wanted(series[0])}
    return [{"series": _text(series), "values": _values(series, before, during, minutes)} for series in sorted(names)]


def _values(series: Series, before: tuple[Scrape, Scrape], during: tuple[Scrape, Scrape], minutes: int) -> str:
    values = _minutes(series, *before, MINUTES_BEFORE, in_fault=False) + _minutes(
        series, *during, minutes, in_fault=True
    )
    return " ".join("_" if value is None else f"{value:.6f}" for value in values)


def _minutes(series: Series, first: Scrape, second: Scrape, count: int, *, in_fault: bool) -> list[float | None]:
    if series not in second.samples:
        return [None] * count
    name, now = series[0], second.samples[series]
    counts = name.endswith(("_total", "_bucket", "_count", "_sum"))
    then = first.samples.get(series, 0.0 if counts else now)
    begun = MINUTES_BEFORE if in_fault else 0
    if name.endswith("_timestamp_seconds"):
        if then == now:  # it stands still while time goes on
            return [60.0 * begun + now - second.at] * count
        return [60.0 * (begun + minute) for minute in range(count)]
    if counts:
        grown = now - then
        if not in_fault:  # up to what it is when the fault begins
            return [max(0.0, now - grown * (count - 1 - minute)) for minute in range(count)]
        return [then + grown * (minute + 1) for minute in range(count)]
    if name.endswith("_seconds") and now > then:  # an age, which grows with time
        return [60.0 * minute for minute in range(count)]
    return [now] * count


def _series(name: str, labels: Mapping[str, str]) -> Series:
    return name, tuple(sorted(labels.items()))


def _text(series: Series) -> str:
    name, labels = series
    return name + "{" + ",".join(f'{key}="{value}"' for key, value in labels) + "}"
