"""A report as HTML, JSON and CSV: complete, harmless, and readable in a real browser."""

from __future__ import annotations

import csv
import io
import json
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from prompttuning.v1 import tuning_pb2

from shared.errors import InvalidInput
from shared.wire.mirror import read
from softprompt.report.comparison import cautions, differing_settings
from softprompt.report.data import guarded
from softprompt.types.report import JobReport
from tests.softprompt.reports import FORMULA, HARM, full_report

REPORT = read(JobReport, full_report())
VOID = {"meta", "br", "line", "circle", "path"}


class Page(HTMLParser):
    """Checks that elements are closed in order, and collects tags with their attributes and the text."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_a_page_has_everything_and_nothing_of_a_user_becomes_markup() -> None:
    page = Page()
    page.feed(REPORT.to_html())
    assert not page.open
    for wanted in (
        "tone", "beats the bare model", "12-shot", "Held-out answers", "Confusion matrix", " word3", "0.025",
        "12,345", "sha256:1111", "texts were generated for 11 of 12", "0.5 to 1", FORMULA, HARM,
    ):  # fmt: skip
        assert wanted in page.text, wanted
    assert [tag for tag, _ in page.tags].count("script") == 1
    names = {tag for tag, _ in page.tags}
    assert not names & {"img", "link", "iframe", "object", "base", "form"}
    addresses = [value for _, found in page.tags for name, value in found.items() if name in ("src", "href", "action")]
    assert not addresses
    assert not [name for _, found in page.tags for name in found if name.startswith("on")]


def test_a_report_without_result_or_answers_is_a_page_too() -> None:
    message: Any = full_report()
    for field in ("answers", "confusion", "training", "evaluations", "lineage", "cost"):
        message.ClearField(field)
    for field in ("result", "effective_spec", "dataset_statistics", "spec"):
        message.job.ClearField(field)
    report = read(JobReport, message)
    page = Page()
    page.feed(report.to_html())
    assert not page.open
    assert "There are no points yet." in page.text
    assert report.to_csv().count("\r\n") == 1
    assert json.loads(report.to_json())["answers"] == []


def test_json_is_strict_and_has_the_fields_of_the_protocol() -> None:
    message = full_report()
    message.training[0].loss = float("nan")
    plain: dict[str, Any] = json.loads(read(JobReport, message).to_json())
    assert plain["training"][0]["loss"] is None
    assert plain["answers"][0]["tuned"] == {"text": "good", "loss": 0.1, "correct": False}
    assert plain["cost"]["num_tokens"] == 12345
    assert plain["job"]["result"]["comparisons"][1]["low"] == 0.5


def test_no_cell_of_the_csv_is_a_formula() -> None:
    rows = list(csv.DictReader(io.StringIO(REPORT.to_csv(), newline="")))
    assert rows[0]["reference"] == f"'{FORMULA}"
    assert (rows[0]["bare"], rows[0]["few_shot"], rows[0]["tuned_correct"]) == ("'\tbad", "'-1+1", "no")
    assert rows[0]["instructed"] == ""
    assert float(rows[11]["tuned_loss"]) == 1.2
    for text in ("=1", "+1", "-1", "@x", "\tx", "\r=1", " =1", "\n@x", "＝1"):
        assert guarded(text) == f"'{text}", text
    for text in ("", "1-1", "a=b", "it's", "   "):
        assert guarded(text) == text


def test_the_name_of_the_file_says_the_format(tmp_path: Path) -> None:
    assert REPORT.save(tmp_path / "r.html").read_text(encoding="utf-8") == REPORT.to_html()
    assert json.loads(REPORT.save(str(tmp_path / "r.JSON")).read_bytes())["job"]["name"] == "tuningJobs/job1"
    with pytest.raises(InvalidInput, match=r"\.html, \.json, \.csv"):
        REPORT.save(tmp_path / "r.pdf")


def test_a_browser_sorts_the_answers_and_makes_no_request(tmp_path: Path) -> None:
    browser_path = shutil.which("chromium")
    sync_api = pytest.importorskip("playwright.sync_api")
    if browser_path is None:
        pytest.skip("chromium is not installed")
    path = REPORT.save(tmp_path / "report.html")
    asked, said = list[str](), list[str]()
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=browser_path, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 360, "height": 800}, color_scheme="dark")
        page.on("request", lambda request: asked.append(request.url))
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.goto(path.as_uri())

        def lines() -> list[int]:
            return [int(text) for text in page.locator(".answers tbody tr > td:first-child").all_inner_texts()]

        assert lines()[:3] == [2, 1, 12], "only the version before was right, then the largest rise of the loss"
        assert lines()[-1] == 5
        page.get_by_role("button", name="best first").focus()
        page.keyboard.press("Enter")
        assert lines() == list(range(1, 13))
        page.get_by_role("button", name="worst first").click()
        assert lines()[0] == 12
        assert page.get_by_role("button", name="worst first").get_attribute("aria-pressed") == "true"
        assert page.evaluate("document.documentElement.scrollWidth") == 360
        assert page.evaluate("window.harmed === undefined")
        dark = page.evaluate("getComputedStyle(document.body).backgroundColor")
        page.emulate_media(color_scheme="light")
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") != dark
        browser.close()
    assert asked == [path.as_uri()]
    assert said == []


def test_numbers_are_never_minus_zero() -> None:
    message = full_report()
    message.job.result.comparisons[1].difference = message.job.result.comparisons[1].low = -0.0
    assert "by 0 (0 to 1)" in read(JobReport, message).to_html()


def test_jobs_are_compared_with_all_settings_and_a_caution() -> None:
    message = full_report()
    message.job.effective_spec.template.system = "Be kind."
    message.job.effective_spec.too_long = tuning_pb2.TOO_LONG_DROP
    message.lineage.base_model.tokenizer_digest = "sha256:" + "2" * 64
    other = read(JobReport, message)
    message.lineage.base_model.tokenizer_digest = "sha256:" + "3" * 64
    third = read(JobReport, message)
    assert differing_settings([REPORT, other])["template_system"] == ["", "Be kind."]
    assert differing_settings([REPORT, other])["too_long"] == ["–", "drop"]
    assert cautions([REPORT, other]) == []
    assert cautions([other, third]) == [
        "their base models have different tokenizers: loss and token_accuracy can't be compared"
    ]
    message.lineage.dataset = "datasets/sha256-" + "b" * 64
    assert "same held-out examples" in cautions([third, read(JobReport, message)])[0]
    message.job.ClearField("result")
    assert cautions([third, read(JobReport, message)]) == [], "it has no metrics"
