"""Compares the runs in a result file: `python -m benchmarks.quality.report FILE`.

Differences are paired: both contestants answer the same test rows after training on the same examples with the same
seed. If one answered fewer rows, those are the first ones of the same draw (`sets.load_sets`), and only they count.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

RESAMPLES, INTERVAL = 2000, 0.95
OURS = "ours"
_SETTING = ("model", "dtype", "format", "set", "num_test", "size")


def main() -> None:
    runs = json.loads(Path(sys.argv[1]).read_text())
    for line in (*table(runs), *differences(runs)):
        print(line)


def table(runs: Sequence[dict[str, Any]]) -> list[str]:
    """One line per model, dataset, size and contestant: the mean over the seeds, its interval, costs, and the seeds."""
    names = ("model", "format", "set", "size", "contestant", "num_test")
    lines = []
    for key in dict.fromkeys(
        tuple(run[name] for name in names) for run in sorted(runs, key=lambda run: tuple(run[n] for n in names[:4]))
    ):
        some = [run for run in runs if tuple(run[name] for name in names) == key]
        low, high = interval([[int(mark) for mark in run["right"]] for run in some])
        mean = statistics.mean(run["value"] for run in some)
        text = f"{'  '.join(str(part) for part in key[:-1])}: {100 * mean:.1f} % [{100 * low:.1f}, {100 * high:.1f}]"
        text += f", loss {statistics.mean(run['loss'] for run in some):.3f}"
        if all("parameters" in run for run in some):
            text += f", {some[0]['parameters']:,} parameters, {some[0]['bytes'] / 1e6:.2f} MB"
        if all("seconds" in run for run in some):
            text += f", {statistics.mean(run['seconds'] for run in some):.0f} s"
        if all("cpu_seconds" in run for run in some):
            text += f" ({statistics.mean(run['cpu_seconds'] for run in some):.0f} s of processor time)"
        text += f", {len(some)} seeds, {some[0]['num_test']} test rows"
        if all("chrf" in run for run in some):
            text += f", chrF {statistics.mean(run['chrf'] for run in some):.1f}"
        lines.append(text)
    return lines


def differences(runs: Sequence[dict[str, Any]]) -> list[str]:
    """Each of ours minus each rival and each later one of ours, per dataset and size and as the mean of a size."""
    lines, by_size = [], dict[tuple[Any, ...], list[torch.Tensor]]()
    every = dict.fromkeys(run["contestant"] for run in runs)
    mine = sorted(name for name in every if name.startswith(OURS))
    for index, name in enumerate(mine):
        for rival in [rival for rival in every if rival not in mine[: index + 1]]:
            for setting in dict.fromkeys(_setting(run) for run in runs if run["contestant"] == name):
                if not (pairs := _pairs(runs, name, rival, setting)):
                    continue
                others = by_size.setdefault((name, rival, *setting[:3], setting[-1]), [])
                others.append(drawn := _means(pairs, stream=len(others)))
                where = f"{setting[3]} {setting[-1]}, {len(pairs)} seeds, {len(pairs[0])} test rows"
                mean = statistics.mean(map(statistics.mean, pairs))
                lines.append(f"{name} - {rival} on {where}: {_shown(drawn, mean)}")
    for (name, rival, *_, size), of_sets in by_size.items():
        if len(of_sets) > 1:
            drawn = torch.stack(of_sets).mean(0)
            lines.append(f"{name} - {rival} on {len(of_sets)} sets of {size}: {_shown(drawn, float(drawn.mean()))}")
    return lines


def interval(seeds: Sequence[Sequence[float]]) -> tuple[float, float]:
    """The middle 95 % of a bootstrap over seeds and test rows. `seeds[i][j]`: seed i, test row j."""
    return _middle(_means(seeds))


def p_value(seeds: Sequence[Sequence[float]]) -> float:
    """Two-sided, of the bootstrap: twice the share of means on the less likely side of 0, at most 1."""
    return _p_value(_means(seeds))


def _setting(run: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(run[name] for name in _SETTING)


def _pairs(runs: Sequence[dict[str, Any]], name: str, rival: str, setting: tuple[Any, ...]) -> list[list[int]]:
    """Per seed, of each common test row: 1 if only `name` is right, -1 if only the rival is, else 0."""
    found = dict[int, list[int]]()
    for ours in runs:
        for theirs in runs:
            # The untuned model has the same answers for every size and seed.
            fixed = theirs["size"] == 0 and _setting(theirs)[:-1] == setting[:-1]
            same = fixed or (_setting(theirs) == setting and theirs["seed"] == ours["seed"])
            if ours["contestant"] == name and theirs["contestant"] == rival and _setting(ours) == setting and same:
                marks = zip(ours["right"], theirs["right"], strict=True)
                found[ours["seed"]] = [int(one) - int(other) for one, other in marks]
    return list(found.values())


def _shown(drawn: torch.Tensor, mean: float) -> str:
    (low, high), p = _middle(drawn), _p_value(drawn)
    chance = f"p = {p:.3f}" if p >= 2 / RESAMPLES else f"p < {2 / RESAMPLES:.3f}"
    return f"{100 * mean:+.1f} points [{100 * low:+.1f}, {100 * high:+.1f}], {chance}"


def _middle(drawn: torch.Tensor) -> tuple[float, float]:
    outside, ordered = int((1 - INTERVAL) / 2 * RESAMPLES), drawn.sort().values
    return float(ordered[outside]), float(ordered[-1 - outside])


def _p_value(drawn: torch.Tensor) -> float:
    return min(1.0, 2 * min(float((drawn <= 0).float().mean()), float((drawn >= 0).float().mean())))


def _means(seeds: Sequence[Sequence[float]], stream: int = 0) -> torch.Tensor:
    """`[resamples]`: means over seeds and test rows that are drawn again. Other streams are independent draws."""
    generator = torch.Generator().manual_seed(stream)
    rows = torch.tensor([list(seed) for seed in seeds], dtype=torch.float32)  # [seeds, rows]
    drawn_seeds, drawn_rows = (_drawn(count, generator) for count in rows.shape)
    return ((drawn_seeds @ rows) * drawn_rows).sum(1)


def _drawn(count: int, generator: torch.Generator) -> torch.Tensor:
    """`[resamples, count]`: the share of `count` draws that select each of `count` items."""
    picks = torch.randint(0, count, (RESAMPLES, count), generator=generator)
    return torch.zeros(RESAMPLES, count).scatter_add_(1, picks, torch.full((RESAMPLES, count), 1 / count))


if __name__ == "__main__":
    main()
