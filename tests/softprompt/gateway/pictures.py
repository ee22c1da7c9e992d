"""Takes the pictures of docs/images on a running page: `python -m tests.softprompt.gateway.pictures URL EXAMPLES.csv`.

It tunes a prompt from the file and trains on with a correction, so it takes as long as two trainings. Look at the
pictures before you commit them.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

from playwright.sync_api import Locator, Page, expect, sync_playwright

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
FOLDER = Path(__file__).parents[3] / "docs/images"
WIDE, PHONE = {"width": 1000, "height": 760}, {"width": 360, "height": 740}
HOUR = 3_600_000
STEPS = 48
"""Few, because the pictures show the page and not the best prompt."""
CORRECTION = "Thanks for asking! "
"""Begins a better answer."""


def main(url: str, examples: Path) -> None:
    """Take all pictures. Two trainings that have been done before are shown; then the running job has no picture."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport=WIDE, color_scheme="light")
        page.set_default_timeout(HOUR)
        expect.set_options(timeout=HOUR)
        if len(page.request.get(f"{url}/api/jobs").json()) < 2:
            train(page, url, examples)
        found = page.request.get(f"{url}/api/jobs").json()
        second, first = (job["name"].split("/")[1] for job in found[:2])
        ended = next(job["name"].split("/")[1] for job in found if job["state"] == "SUCCEEDED")
        show(page, url, f"job/{ended}")
        tuned(page)
        prompt = page.get_by_role("heading", level=1).inner_text().split(" for ")[1]
        save(page, "page-result", below=page.locator("section.panel"))
        open_correction(page)
        save(page, "page-answers", below=page.get_by_role("heading", name="held-out answers"))
        choose(page, url, examples)
        save(page, "page-tune", height=980)
        views = {"prompt": f"prompt/{prompt}", "compare": f"compare?job={first}&job={second}", "status": "status"}
        for name, view in views.items():
            show(page, url, view)
            save(page, f"page-{name}")
        question = "Customer: My tent pole snapped in the wind.\nNotes: spare pole 9 pounds; posted today"
        for name, size, scheme in (("playground", WIDE, "light"), ("dark", WIDE, "dark"), ("phone", PHONE, "light")):
            page.set_viewport_size(size)
            page.emulate_media(color_scheme=scheme)
            ask(page, url, prompt, question)
            save(page, f"page-{name}", height=1000 if size == PHONE else 680)
        browser.close()


def train(page: Page, url: str, examples: Path) -> None:
    """Two trainings, the second with a correction. Takes the picture of a running job."""
    choose(page, url, examples)
    page.get_by_label("Steps").fill(str(STEPS))
    page.get_by_role("button", name="Start tuning").click()
    expect(page.locator("svg.curve[role=img] circle.s1").nth(2)).to_be_visible()  # a curve with some evaluations
    save(page, "page-job", height=640)
    tuned(page)
    first = page.url
    open_correction(page)
    page.get_by_role("button", name="Continue training with the corrections").click()
    page.wait_for_url(lambda now: now != first)
    tuned(page)


def tuned(page: Page) -> None:
    """Wait until the job on the page has been published."""
    expect(page.locator(".state")).to_have_text("succeeded")
    expect(page.get_by_role("heading", name="Published as")).to_be_visible()


def open_correction(page: Page) -> None:
    """Write a better answer to the first held-out example."""
    page.get_by_text("Correct", exact=True).first.click()
    box = page.locator("details[open] textarea")
    box.fill(CORRECTION + box.input_value())


def choose(page: Page, url: str, examples: Path) -> None:
    """Drop the file, choose its two columns and wait for the estimate."""
    show(page, url, "start")
    page.get_by_label("Examples").set_input_files(examples)
    for role, column in (("Input", 1), ("Output", 2)):
        page.get_by_label(role, exact=True).select_option(index=column)
    expect(page.get_by_role("heading", name="examples in")).to_be_visible()
    expect(page.get_by_text("to train on")).to_be_visible()


def show(page: Page, url: str, view: str) -> None:
    """Open a view anew."""
    page.goto("about:blank")
    page.goto(f"{url}/#/{view}")
    expect(page.get_by_role("heading", level=1)).to_be_visible()
    page.wait_for_load_state("networkidle")


def ask(page: Page, url: str, prompt: str, text: str) -> None:
    """Two answers beside each other in the playground: those of the newest version and of the base model."""
    show(page, url, "play")
    page.get_by_label("Input").fill(text)
    names = page.get_by_label("Right").locator("option").all_inner_texts()
    page.get_by_label("Left").select_option(next(name for name in reversed(names) if name.startswith(f"{prompt}@")))
    page.get_by_label("Right").select_option(next(name for name in names if not name.startswith(prompt)))
    page.get_by_label("Tokens").fill("64")
    page.get_by_role("button", name="Send").click()
    for number in range(2):
        expect(page.locator(".panel .hint").nth(number)).to_contain_text("tokens in")


def save(page: Page, name: str, height: int = 720, below: Locator | None = None) -> None:
    """Save the upper part of a view, or the part that begins with an element."""
    size = page.viewport_size or WIDE
    page.set_viewport_size({**size, "height": height})
    top = 0 if below is None else below.evaluate("element => element.getBoundingClientRect().top + scrollY - 16")
    page.evaluate("top => scrollTo(0, top)", top)
    path = FOLDER / f"{name}.png"
    page.screenshot(path=path)
    page.set_viewport_size(size)
    print(path.name, path.stat().st_size)


if __name__ == "__main__":
    main(sys.argv[1].rstrip("/"), Path(sys.argv[2]))
