"""The examples in `examples/`, each by its command: the tuned prompt compared with the bare model.

    python -m benchmarks.examples [NAME ...]

Runs `softprompt example NAME --json` one after the other, writes the outcomes, with the machine, to
benchmarks/results/examples.json, and the table of each to its README. Outcomes of examples that were not named stay.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.machine import machine
from softprompt.demo.example import examples_dir, find_example, known_examples

RESULTS = Path(__file__).parent / "results" / "examples.json"
_TABLE = re.compile(r"^\| model \|.*?\n\n", re.MULTILINE | re.DOTALL)
_UNITS = {"chrf": (1, "chrF, 0 to 100"), "token_accuracy": (100, "tokens predicted correctly, %")}
_UNITS |= {"accuracy": (100, "correct, %"), "exact_match": (100, "answers equal to the expected one, %")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="all by default")
    for name in parser.parse_args().names or [example.name for example in known_examples()]:
        command = [sys.executable, "-m", "softprompt.cli", "example", find_example(name).name, "--json"]
        keep(json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout))


def keep(outcome: dict[str, Any]) -> None:
    """Put an outcome into the file of results, with this machine, and its table into the example's README."""
    known = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    known[outcome["example"]] = {"machine": machine(), **outcome}
    RESULTS.write_text(json.dumps(dict(sorted(known.items())), ensure_ascii=False, indent=1) + "\n")
    readme = examples_dir() / outcome["example"] / "README.md"
    readme.write_text(_TABLE.sub(lambda _: table(outcome) + "\n", readme.read_text(), count=1))
    print(f"{outcome['example']} is in {RESULTS} and {readme}")


def table(outcome: dict[str, Any]) -> str:
    """The outcome as a Markdown table, ending with a line break."""
    scale, unit = _UNITS[outcome["metric"]]

    def spread(found: dict[str, Any]) -> str:
        return f"({scale * found['low']:.1f} to {scale * found['high']:.1f})"

    lines = [f"| model | {unit} | tuned is better by (95 % interval) |", "|---|---|---|"]
    for rival in outcome["rivals"]:
        better = f"{scale * rival['difference']:.1f} {spread(rival)}"
        lines.append(f"| {rival['model']} | {scale * rival['value']:.1f} | {better} |")
    lines.append(f"| **tuned** | **{scale * outcome['tuned']['value']:.1f}** {spread(outcome['tuned'])} | |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
