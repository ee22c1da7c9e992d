"""The examples of docstrings and the notebook of docs/, run against a trainer that trains and a replica that serves."""

from __future__ import annotations

import doctest
import inspect
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

import softprompt
from softprompt import Client, Hyperparameters, TuningSpec
from softprompt.client.examples import EXAMPLES
from tests.both_services import both_in_a_process

ROOT = Path(__file__).parents[2]
Endpoints = tuple[str, str]


@pytest.fixture(scope="module")
def endpoints(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Endpoints]:
    with both_in_a_process(tiny_model_dir, tmp_path_factory.mktemp("both"), "--train") as found:
        yield found


@pytest.fixture(scope="module")
def client(endpoints: Endpoints) -> Iterator[Client]:
    """With a prompt `tone`, as the examples assume."""
    with Client(*endpoints) as made:
        examples = [{"input": f"item {number}", "output": f"Number {number}!"} for number in range(8)]
        made.tune(TuningSpec("tone", examples, hyperparameters=Hyperparameters(num_steps=2, num_virtual_tokens=4)))
        yield made


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_example_of_a_method_does_what_it_says(client: Client, name: str) -> None:
    text = inspect.getdoc(getattr(Client, name))
    assert text is not None
    globs = {**{item: getattr(softprompt, item) for item in softprompt.__all__}, "client": client}
    example = doctest.DocTestParser().get_doctest(text, globs, name, None, 0)
    assert example.examples
    failures: list[str] = []
    doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(example, out=failures.append)
    assert failures == []


def test_the_notebook_runs(endpoints: Endpoints, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOFTPROMPT_TRAINER", endpoints[0])
    monkeypatch.setenv("SOFTPROMPT_INFERENCE", endpoints[1])
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    notebook = nbformat.read(ROOT / "docs/notebook.ipynb", as_version=4)
    assert all(not cell.get("outputs") for cell in notebook.cells), "the page is kept without outputs"
    done = NotebookClient(notebook, timeout=None, kernel_name="python3", resources={"metadata": {"path": tmp_path}})
    executed = done.execute()
    outputs = [output for cell in executed.cells for output in cell.get("outputs", ())]
    kinds = {kind for output in outputs for kind in output.get("data", {})}
    assert {"text/html", "image/png"} <= kinds
    shown = " ".join(str(output.get("data", {}).get("text/html", "")) for output in outputs)
    assert "succeeded" in shown, "the progress below the cell ends with the last state"
    assert "<svg" in shown
