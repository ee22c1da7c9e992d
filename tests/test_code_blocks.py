"""Every code block on the pages is checked: its syntax, and that what it names exists. `test_pages.py` of the gateway
runs some of them.
"""

from __future__ import annotations

import ast
import contextlib
import itertools
import json
import re
import shlex
import shutil
import subprocess
from typing import Any

import prompttuning.v1.generation_pb2
import prompttuning.v1.prompts_pb2
import prompttuning.v1.tuning_pb2  # noqa: F401  (fills the pool of descriptors)
import pytest
import typer
import yaml
from google.protobuf import descriptor_pool, json_format, message_factory

import softprompt
from softprompt.cli.main import app
from tests.code_blocks import CodeBlock, code_blocks

BLOCKS = list(code_blocks())
COMMAND: Any = typer.main.get_command(app)
LANGUAGES = {"console", "go", "java", "js", "json", "pycon", "python", "sh", "text", "yaml"}
"""`text` is for output and drawings. Go is not checked: it is not installed where the tests run."""


def of(*languages: str) -> pytest.MarkDecorator:
    found = [block for block in BLOCKS if block.language in languages]
    return pytest.mark.parametrize("block", found, ids=[block.name for block in found])


def test_every_block_says_its_language() -> None:
    assert [block.name for block in BLOCKS if block.language not in LANGUAGES] == []


def test_shell_blocks_are_shell() -> None:
    """One process for all of them: none is run, because an error of syntax anywhere ends the script at its start."""
    functions = [f"block{number}() {{\n:\n{block.commands}\n}}" for number, block in enumerate(BLOCKS)]
    done = subprocess.run(["bash", "-n"], input="\n".join(functions), capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@of("sh", "console")
def test_commands_and_their_options_exist(block: CodeBlock) -> None:
    wrong = []
    for words in softprompt_commands(block.commands):
        command, options = COMMAND, set[str]()
        for before, word in itertools.pairwise(["", *words]):
            options |= {name for item in command.params for name in (*item.opts, *item.secondary_opts)}
            if word.startswith("--"):
                if word.partition("=")[0] not in {*options, "--help"}:
                    wrong.append(f"{word} of {shlex.join(words)}")
            elif hasattr(command, "commands") and not before.startswith("--"):  # not the value of an option
                if word not in command.commands:
                    wrong.append(f"{word} of {shlex.join(words)}")
                    break
                command = command.commands[word]
    assert wrong == []


def softprompt_commands(text: str) -> list[list[str]]:
    """The arguments of each call of `softprompt`: at the start of a line, or after `;`, `|`, `&&` or `$(`."""
    found: list[list[str]] = []
    for line in text.replace("\\\n", " ").splitlines():
        for call in re.findall(r"(?:^|[;|(]|&& )\s*softprompt (.*)", line):
            lexer = shlex.shlex(call, posix=True, punctuation_chars=";|&()")
            lexer.whitespace_split = True
            with contextlib.suppress(ValueError):  # a quote that goes on in the next line
                words = itertools.takewhile(lambda word: word not in (";", "|", "&", "&&", ")", ')"'), lexer)
                found.append(list(words))
    return found


@of("python")
def test_python_blocks_are_python(block: CodeBlock) -> None:
    tree = ast.parse(block.text)
    wrong = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module == "softprompt":
            wrong += [item.name for item in node.names if not hasattr(softprompt, item.name)]
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            if node.value.id == "softprompt" and not hasattr(softprompt, node.attr):
                wrong.append(node.attr)
            if node.value.id == "client" and "softprompt" in block.text and not hasattr(softprompt.Client, node.attr):
                wrong.append(f"client.{node.attr}")
    assert wrong == []


@of("json")
def test_json_blocks_are_json(block: CodeBlock) -> None:
    try:
        json.loads(block.text)
    except json.JSONDecodeError:  # JSON lines
        for line in block.text.splitlines():
            json.loads(line)


@of("yaml")
def test_yaml_blocks_are_yaml(block: CodeBlock) -> None:
    assert list(yaml.safe_load_all(block.text))


@of("js")
@pytest.mark.skipif(shutil.which("node") is None, reason="NODE IS NOT INSTALLED: its blocks are not checked")
def test_javascript_blocks_are_javascript(block: CodeBlock) -> None:
    checked = ["node", "--input-type=module", "--check"]
    done = subprocess.run(checked, input=block.text, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_calls_by_grpcurl_are_calls() -> None:
    pattern = r"grpcurl -plaintext -d '(.*?)'.*?(prompttuning\.v1\.\w+)/(\w+)"
    calls = [call for block in BLOCKS for call in re.findall(pattern, block.commands, re.DOTALL)]
    assert calls
    pool: Any = descriptor_pool.Default()
    for body, service, method in calls:
        request = pool.FindServiceByName(service).FindMethodByName(method).input_type
        json_format.Parse(body, message_factory.GetMessageClass(request)())
