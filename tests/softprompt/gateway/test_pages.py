"""Code blocks of the pages, run as they stand against the real services: Python, curl, Node, Java, Go. Only addresses,
the model's name and the length of trainings differ.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from shared.text.template import Template, TemplateFormat
from shared.values.sampling import Sampling
from tests.code_blocks import CodeBlock, code_blocks
from tests.inference_service.replica import blob, matrix, publish
from tests.softprompt.gateway.running import World

PROMPTS = ("product-descriptions", "product-facts", "support-tone")
SHORTER = {
    '"n_epochs": "auto"': '"n_epochs": 1',
    "time.sleep(2)": "time.sleep(0.05)",
    "messages=question)": "messages=question, max_tokens=8)",
    "dataset=data.dataset)": (
        "dataset=data.dataset, hyperparameters=softprompt.Hyperparameters(num_steps=2, num_virtual_tokens=4), "
        "sampling_defaults=softprompt.Sampling(max_new_tokens=8))"
    ),
}


@pytest.fixture(scope="module")
def prompts(services: World) -> None:
    """The prompts that the pages name are served. Their answers are short."""
    for number, prompt in enumerate(PROMPTS, 1):
        template = Template(text="{input}", format=TemplateFormat.CHAT)
        defaults = Sampling(max_new_tokens=8)
        made = blob(services.model_dir, matrix(number), prompt, template, sampling_defaults=defaults)
        version = publish(services.store, made, prompt=prompt, alias="default")
        services.loop.run(services.replica.state(f"prompts/{prompt}/versions/{version.version}", "LOADED"))


@pytest.fixture
def folder(services: World, prompts: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory of the pages' readers, with their files."""
    (tmp_path / "examples/product-descriptions").mkdir(parents=True)
    for name in ("train", "heldout", "examples/product-descriptions/train"):
        turns = [
            [{"role": "user", "content": f"{name} {n}"}, {"role": "assistant", "content": f"number {n}"}]
            for n in range(12)
        ]
        (tmp_path / f"{name}.jsonl").write_text("".join(f"{json.dumps({'messages': turn})}\n" for turn in turns))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SOFTPROMPT_TRAINER", f"127.0.0.1:{services.trainer.port}")
    monkeypatch.setenv("SOFTPROMPT_INFERENCE", f"127.0.0.1:{services.replica.port}")
    return tmp_path


def blocks(page: str, language: str, *with_texts: str) -> list[CodeBlock]:
    """The blocks that contain one of these texts; without texts, all of the page."""
    found = [block for block in code_blocks(page) if block.language == language]
    chosen = [block for block in found if not with_texts or any(text in block.text for text in with_texts)]
    assert chosen
    return chosen


def here(services: World, text: str) -> str:
    """A block for the services of this test."""
    text = text.replace("http://127.0.0.1:8000", services.url).replace("smollm2-135m-instruct", "tiny-llama")
    for long, short in SHORTER.items():
        text = text.replace(long, short)
    return text


@pytest.mark.parametrize("page", ["docs/clients.md", "docs/gateway.md"])
def test_curl(services: World, folder: Path, page: str) -> None:
    for block in blocks(page, "sh", "curl -s", "curl -N"):
        said = run("bash", "-ec", here(services, block.text))
        assert '"object":' in said
        assert '"error"' not in said


@pytest.mark.skipif(shutil.which("node") is None, reason="NODE IS NOT INSTALLED: its block is not run")
def test_node(services: World, folder: Path) -> None:
    for block in blocks("docs/clients.md", "js"):
        assert run("node", "--input-type=module", "-e", here(services, block.text)).strip()


@pytest.mark.skipif(shutil.which("javac") is None, reason="NO JAVA COMPILER: its block is not run")
def test_java(services: World, folder: Path) -> None:
    for block in blocks("docs/clients.md", "java"):
        (folder / "Ask.java").write_text(here(services, block.text))
        assert run("java", "Ask.java").startswith('200 {"id":')


@pytest.mark.skipif(shutil.which("go") is None, reason="GO IS NOT INSTALLED: its block is not run")
def test_go(services: World, folder: Path) -> None:
    for block in blocks("docs/clients.md", "go"):
        (folder / "ask.go").write_text(here(services, block.text))
        assert run("gofmt", "-l", "ask.go") == ""
        assert run("go", "run", "ask.go").startswith('200 {"id":')


@pytest.mark.parametrize(
    ("page", "texts"),
    [
        ("docs/gateway.md", ("OpenAI(",)),
        ("docs/prompts.md", ("json_schema",)),
        ("README.md", ("softprompt.Client()",)),
        ("docs/migration.md", ()),  # last, because its new version of support-tone has longer answers
    ],
)
def test_python(services: World, folder: Path, page: str, texts: tuple[str, ...]) -> None:
    names: dict[str, object] = {}
    for block in blocks(page, "python", *texts):
        exec(compile(here(services, block.text), block.name, "exec"), names)
    if page == "docs/migration.md":
        assert getattr(names["answer"], "model", "") == getattr(names["job"], "fine_tuned_model", "")


def run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "LC_ALL": "C.UTF-8"})
    assert done.returncode == 0, done.stderr
    return done.stdout
