"""The programs that the page shows for a call, in a real browser."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import subprocess

import pytest
from playwright.sync_api import Page, expect

from tests.softprompt.gateway.browser import NEEDS_CHROMIUM
from tests.softprompt.gateway.running import World

pytestmark = NEEDS_CHROMIUM


def test_the_same_call_elsewhere(page: Page, services: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The programs that the playground offers give its answer."""
    monkeypatch.setenv("SOFTPROMPT_INFERENCE", f"127.0.0.1:{services.replica.port}")
    for model in ("tone@1", "tiny-llama"):
        page.goto(f"{services.url}/#/play?left={model}&right={model}")
        page.get_by_label("Input").fill('it\'s "here" \\ for $1,\nor not')
        page.get_by_label("Tokens").fill("6")
        page.get_by_role("button", name="Send").click()
        expect(page.locator(".panel .hint")).to_contain_text("tokens in")
        answer = page.locator(".answer").inner_text().strip()
        code = {
            part.locator("summary").inner_text(): part.locator("pre").text_content() or ""
            for part in page.locator("details").all()
        }
        said = {name: printed(code.pop(name)) for name in ("OpenAI client", "Python")}
        said["curl"] = json.loads(run("bash", "-c", f"{code.pop('curl')} -sS"))["choices"][0]["message"]["content"]
        assert code.keys() == {"Node"}
        if shutil.which("node"):
            said["Node"] = run("node", "--input-type=module", "-e", code["Node"])
        assert {name: text.strip() for name, text in said.items()} == dict.fromkeys(said, answer)


def test_the_same_call_reads_the_token_from_the_environment(page: Page, services: World) -> None:
    """The programs of a page that was opened with a token name a variable, and never the token."""
    page.evaluate("sessionStorage.setItem('token', 'a-secret')")
    page.goto(f"{services.url}/#/play?left=tone@1&right=tone@1")
    page.get_by_label("Input").fill("hello")
    page.get_by_label("Tokens").fill("2")
    page.get_by_role("button", name="Send").click()
    expect(page.locator(".panel .hint")).to_contain_text("tokens in")
    code = {
        part.locator("summary").inner_text(): part.locator("pre").text_content() or ""
        for part in page.locator("details").all()
    }
    assert '-H "Authorization: Bearer $SOFTPROMPT_TOKEN"' in code["curl"]
    assert "Authorization: `Bearer ${process.env.SOFTPROMPT_TOKEN}`" in code["Node"]
    assert 'api_key=os.environ["SOFTPROMPT_TOKEN"]' in code["OpenAI client"]
    assert "a-secret" not in "".join(code.values())


def printed(program: str) -> str:
    with contextlib.redirect_stdout(io.StringIO()) as output:
        exec(compile(program, "playground", "exec"), {})
    return output.getvalue()


def run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout
