"""The page in a real browser: from a file to a published prompt, by mouse, and what it says of bad input."""

from __future__ import annotations

import json
import re
from pathlib import Path

from playwright.sync_api import Page, expect

from tests.softprompt.gateway.browser import NEEDS_CHROMIUM
from tests.softprompt.gateway.running import World

pytestmark = NEEDS_CHROMIUM
ROWS = [("positive", "lovely soup"), ("negative", "cold soup"), ("positive", "kind staff"), ("negative", "rude staff")]

DROPPED = """([name, text]) => {
    const files = new DataTransfer();
    files.items.add(new File([text], name));
    return files;
}"""


def examples(directory: Path) -> Path:
    """A sheet whose columns have other names than ours."""
    path = directory / "Our Reviews.csv"
    lines = [f"{index},{text} {index},{label}" for index in range(12) for label, text in ROWS]
    path.write_text("number,comment,mood\n" + "\n".join(lines) + "\n")
    return path


def tuned(page: Page) -> None:
    """Wait until the job on the page has been published."""
    expect(page.locator(".state")).to_have_text("succeeded")
    expect(page.get_by_role("heading", name="Published as")).to_be_visible()


def test_from_a_file_to_an_answer(page: Page, services: World, tmp_path: Path) -> None:
    sheet = examples(tmp_path)
    files = page.evaluate_handle(DROPPED, [sheet.name, sheet.read_text()])
    page.locator(".drop").dispatch_event("drop", {"dataTransfer": files})
    expect(page.get_by_role("heading", name="48 examples")).to_be_visible()
    expect(page.get_by_text("The columns are guessed")).to_be_visible()
    expect(page.locator("td").first).to_have_text("0")
    for role, column in (("Input", "comment"), ("Label", "mood")):
        expect(page.get_by_label(role, exact=True)).to_have_value(column)
    page.get_by_label("leave out other columns").uncheck()
    expect(page.get_by_role("heading", name="can't be used yet")).to_be_visible()
    page.get_by_label("leave out other columns").check()
    expect(page.get_by_role("heading", name="48 examples")).to_be_visible()
    expect(page.get_by_label("Name of the prompt")).to_have_value("our-reviews")
    page.get_by_label("Steps").fill("20")
    page.get_by_label("Name of the prompt").focus()
    expect(page.get_by_text("to train on")).to_be_visible()
    expect(page.get_by_text(re.compile(r"About [\d.]+ GiB of memory"))).to_be_visible()
    page.get_by_text("What is chosen for you").click()
    expect(page.get_by_role("row", name="num steps 20", exact=True)).to_be_visible()
    page.get_by_role("button", name="Start tuning").click()
    expect(page.get_by_role("heading", name="for our-reviews")).to_be_visible()
    first_job = page.get_by_role("heading", level=1).inner_text()
    tuned(page)
    expect(page.locator("svg.curve[role=img]")).to_have_attribute("aria-label", re.compile("held-out"))
    expect(page.locator("svg.curve[role=img] circle.s1").first).to_be_attached()
    expect(page.get_by_role("heading", name="held-out answers")).to_be_visible()
    expect(page.get_by_role("columnheader", name="Instructed")).to_be_visible()
    page.get_by_text("Correct", exact=True).first.click()
    page.locator("details[open] textarea").fill("positive")
    page.get_by_role("button", name="Continue training with the corrections").click()
    expect(page.get_by_role("heading", level=1)).not_to_have_text(first_job)
    tuned(page)
    services.loop.run(services.replica.state("prompts/our-reviews/versions/2", "LOADED"))
    page.get_by_role("link", name="Try it in the playground").click()
    expect(page.get_by_label("Left")).to_have_value("our-reviews")
    page.get_by_label("Input").fill("lovely staff")
    page.get_by_label("Tokens").fill("8")
    page.get_by_role("button", name="Send").click()
    expect(page.locator(".panel .hint").first).to_contain_text("tokens in")
    expect(page.locator(".answer")).to_have_count(2)
    page.get_by_text("curl", exact=True).click()
    assert json.dumps("lovely staff") in page.locator("details[open] pre").inner_text()


def test_an_alias_moves_and_moves_back(page: Page, services: World) -> None:
    page.goto(f"{services.url}/#/prompt/tone")
    expect(page.get_by_text("Requests for tone get version 1.")).to_be_visible()
    page.get_by_role("button", name="Use 2").click()
    expect(page.get_by_text("Requests for tone get version 2.")).to_be_visible()
    page.get_by_label("Its part of the requests").fill("25")
    page.get_by_role("button", name="Set", exact=True).click()
    expect(page.get_by_text("2 (75 %), 1 (25 %)")).to_be_visible()
    expect(page.get_by_label("Its part of the requests")).to_have_value("25")
    expect(page.locator("output")).to_have_text("25 %")
    page.get_by_role("button", name="Roll back to 1").click()
    expect(page.get_by_text("Requests for tone get version 1.")).to_be_visible()


def test_columns_that_can_not_be_guessed_are_chosen(page: Page, tmp_path: Path) -> None:
    path = tmp_path / "orders.csv"
    path.write_text("order,date,id\n" + "".join(f"{100000 + index},2026-03-05,{index}\n" for index in range(12)))
    page.get_by_label("Examples").set_input_files(path)
    expect(page.get_by_text("Choose below which column is the input")).to_be_visible()
    page.get_by_label("Input", exact=True).select_option("order")
    page.get_by_label("Label", exact=True).select_option("id")
    page.get_by_label("leave out other columns").check()
    expect(page.get_by_role("heading", name="12 examples")).to_be_visible()


def test_what_a_user_wrote_is_text(page: Page, services: World, tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    text = "<img src=x onerror=alert(1)><script>alert(2)</script>"
    path.write_text("".join(json.dumps({"input": f"{text}{index}", "output": text}) + "\n" for index in range(4)))
    page.get_by_label("Examples").set_input_files(path)
    expect(page.locator("td").first).to_have_text(f"{text}0")


def test_errors_say_what_to_do(page: Page, services: World, tmp_path: Path) -> None:
    page.get_by_label("Examples").set_input_files(
        {"name": "a.xlsx", "mimeType": "", "buffer": b"PK\x03\x04 no archive"}
    )
    expect(page.locator("main .bad")).to_contain_text("a.xlsx can't be used: file: the sheet is damaged")
    path = tmp_path / "broken.jsonl"
    path.write_text('{"input": "a", "output": "b"}\n{"input": "a"\n')
    page.get_by_label("Examples").set_input_files(path)
    expect(page.locator(".bad")).to_contain_text("line 2")
    page.goto(f"{services.url}/#/job/00000000000000000000000000000000")
    expect(page.get_by_role("heading", name="This did not work")).to_be_visible()
    expect(page.get_by_role("button", name="Try again")).to_be_visible()
