"""Every view of the page in a real browser: by keyboard alone, on a phone, in light and dark; and jobs on it."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest
from playwright.sync_api import Page, Route, expect

from tests.softprompt.gateway.browser import NEEDS_CHROMIUM
from tests.softprompt.gateway.running import World

pytestmark = NEEDS_CHROMIUM
VIEWS = ["start", "jobs", "job", "compare", "play", "prompts", "prompt/tone", "status", "job/" + "0" * 26]
SHEET = "".join(
    f"{json.dumps({'input': f'question {n}', 'output': f'a long answer, number {n} ' * 9})}\n" for n in range(20)
)
TAB_STOPS = """() =>
    [...document.querySelectorAll("a[href], button:enabled, input, select, textarea, summary, [tabindex='0']")]
        .filter((one) => one.checkVisibility())
        .map((one, number) => { one.dataset.stop = number; return one.outerHTML.slice(0, 80); })"""
FOCUSED = """() => {
    const one = document.activeElement;
    return one.dataset.stop === undefined ? null : [Number(one.dataset.stop), getComputedStyle(one).outlineStyle];
}"""
FAINT = """() => {
    const channels = (text) => text.match(/[\\d.]+/g).map(Number);
    const linear = (value) => (value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4);
    const luminance = (text) => {
        const [red, green, blue] = channels(text).map((value) => linear(value / 255));
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
    };
    const ground = (node) => {
        for (let one = node; one; one = one.parentElement) {
            const color = getComputedStyle(one).backgroundColor;
            if ((channels(color)[3] ?? 1) > 0) return luminance(color);
        }
        return 1;
    };
    const hasText = (one) => one.matches("input, select, textarea")
        || [...one.childNodes].some((child) => child.nodeType === Node.TEXT_NODE && child.data.trim());
    const found = [`ground ${ground(document.body).toFixed(2)}`];
    for (const one of document.querySelectorAll("body *")) {
        if (!hasText(one) || one.matches(":disabled, .skip") || !one.checkVisibility()) continue;
        const { color, fill } = getComputedStyle(one);
        const both = [luminance(one instanceof SVGElement ? fill : color), ground(one)];
        const ratio = (Math.max(...both) + 0.05) / (Math.min(...both) + 0.05);
        if (ratio < 4.5) found.push(`${one.tagName} ${one.textContent.slice(0, 40)}: ${ratio.toFixed(1)}`);
    }
    return found;
}"""
"""The luminance of the page's ground, and each visible text whose contrast is below 4.5, which WCAG 2 asks for."""


def started(http: httpx.Client, prompt: str, num_steps: int) -> str:
    """The id of a new job."""
    query = {"filename": "a.jsonl", "prompt": prompt, "num_steps": str(num_steps)}
    made = http.post("/api/jobs", params=query, content=SHEET)
    assert made.status_code == 201, made.text
    return str(made.json()["name"].partition("/")[2])


def state(http: httpx.Client, job: str) -> str:
    return str(http.get(f"/api/jobs/{job}").json()["state"])


@pytest.fixture(scope="module")
def jobs(services: World, http: httpx.Client) -> list[str]:
    """The ids of two jobs that have ended, with different numbers of steps."""
    made = [started(http, "compared", num_steps) for num_steps in (4, 6)]
    for job in made:
        with http.stream("GET", f"/api/jobs/{job}/events") as events:
            for _ in events.iter_lines():
                pass
        assert state(http, job) == "SUCCEEDED"
    return made


def opened(page: Page, services: World, view: str, jobs: list[str]) -> None:
    """Open a view and wait for what it shows last."""
    address = {"job": f"job/{jobs[1]}", "compare": f"compare?job={jobs[0]}&job={jobs[1]}"}.get(view, view)
    page.goto(f"{services.url}/#/{address}")
    if view == "start":
        page.get_by_label("Examples").set_input_files(
            {"name": "a.jsonl", "mimeType": "application/json", "buffer": SHEET.encode()}
        )
        expect(page.get_by_text("to train on")).to_be_visible()
    elif view == "job":
        expect(page.get_by_role("heading", name="held-out answers")).to_be_visible()
    elif view == "compare":
        expect(page.locator("svg.curve[role=img] polyline")).to_have_count(2)
    elif view == "play":
        page.get_by_label("Input").fill("x" * 80)
        page.get_by_label("Tokens").fill("4")
        page.get_by_role("button", name="Send").click()
        for number in range(2):
            expect(page.locator(".panel .hint").nth(number)).to_contain_text("tokens in")
    elif view == "status":
        expect(page.get_by_role("columnheader", name="Last report")).to_be_visible()
        expect(page.get_by_role("cell", name="tiny-llama", exact=True)).to_have_count(3)
        expect(page.get_by_role("rowheader", name="max new tokens")).to_be_visible()
    expect(page.get_by_role("heading", level=1)).to_be_visible()


@pytest.mark.parametrize("view", VIEWS)
def test_every_view_by_keyboard_on_a_phone_and_in_both_schemes(
    page: Page, services: World, jobs: list[str], view: str
) -> None:
    page.set_viewport_size({"width": 360, "height": 740})
    opened(page, services, view, jobs)
    page.evaluate("() => new Promise(requestAnimationFrame)")  # and for what waits for a frame
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    expect(page.locator("th:empty")).to_have_count(0)
    for scheme, ground in (("dark", "ground 0.01"), ("light", "ground 1.00")):
        page.emulate_media(color_scheme=scheme)
        assert page.evaluate(FAINT) == [ground], scheme
    stops: list[str] = page.evaluate(TAB_STOPS)
    page.locator("[data-stop='0']").focus()
    reached = [0]
    for _ in stops[1:]:
        page.keyboard.press("Tab")
        focused: Any = page.evaluate(FOCUSED)
        if focused is None:
            break
        assert focused[1] != "none", f"no one sees that {stops[focused[0]]} has the focus"
        reached.append(focused[0])
    assert reached == list(range(len(stops))), [stop for number, stop in enumerate(stops) if number not in reached]


def test_a_running_job_is_paused_resumed_and_cancelled(page: Page, services: World, http: httpx.Client) -> None:
    job = started(http, "long", 50_000)
    try:
        page.goto(f"{services.url}/#/job/{job}")
        pause, resume, cancel = (page.get_by_role("button", name=name) for name in ("Pause", "Resume", "Cancel"))
        expect(page.locator(".state")).to_have_text("running")
        pause.focus()
        steps = page.get_by_text("of 50000 steps")
        for _ in range(2):  # the page draws what is new
            expect(steps).not_to_have_text(steps.inner_text())
        expect(pause).to_be_focused()
        expect(resume).to_be_hidden()
        page.keyboard.press("Enter")
        expect(page.locator(".state")).to_have_text("paused")
        assert state(http, job) == "PAUSED"
        expect(pause).to_be_hidden()
        expect(resume).to_be_focused()
        page.keyboard.press("Enter")
        expect(page.locator(".state")).to_have_text("running")
        cancel.click()
        expect(page.locator(".state")).to_have_text("cancelled")
        for button in (pause, resume, cancel):
            expect(button).to_be_hidden()
        assert state(http, job) == "CANCELLED"
    finally:
        http.post(f"/api/jobs/{job}/cancel")


def test_jobs_are_compared(page: Page, services: World, jobs: list[str]) -> None:
    page.goto(f"{services.url}/#/jobs")
    compare = page.get_by_role("button", name="Compare")
    for job in jobs:
        expect(compare).to_be_disabled()
        page.get_by_label(f"choose {job[-8:]}").focus()
        page.keyboard.press("Space")
    compare.focus()
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="Compare jobs")).to_be_visible()
    expect(page.locator("svg.curve[role=img] polyline")).to_have_count(2)
    assert page.locator(".legend li").all_inner_texts() == [job[-8:] for job in jobs]
    expect(page.get_by_role("row", name="num steps 4 6", exact=True)).to_be_visible()
    losses = page.get_by_role("row").filter(has=page.get_by_text("loss", exact=True)).locator("td").all_inner_texts()
    assert all(float(loss) > 0 for loss in losses[1:])
    assert len(losses) == 3


def test_many_jobs_are_compared_also_while_they_run(
    page: Page, services: World, http: httpx.Client, jobs: list[str]
) -> None:
    running = started(http, "long", 50_000)
    try:
        page.goto(f"{services.url}/#/job/{running}")
        expect(page.locator("svg.curve[role=img] .s1").first).to_be_attached()
        page.goto(f"{services.url}/#/compare?{'&'.join(f'job={job}' for job in [*jobs, *jobs, running])}")
        expect(page.locator(".legend li")).to_have_count(5)
        expect(page.locator("svg.curve[role=img] circle.dashed").first).to_be_attached()
    finally:
        http.post(f"/api/jobs/{running}/cancel")


def test_a_job_view_says_that_it_has_lost_its_connection(page: Page, services: World, http: httpx.Client) -> None:
    job = started(http, "long", 50_000)
    lost = 'data: {"error": {"message": "the trainer is restarting."}}\n\n'
    try:
        page.route("**/events*", lambda route: route.fulfill(body=lost, content_type="text/event-stream"))
        page.goto(f"{services.url}/#/job/{job}")
        trouble = page.get_by_text("This view is not up to date: the trainer is restarting.")
        expect(trouble).to_be_visible()
        page.unroute("**/events*")
        expect(page.locator("svg.curve[role=img]")).to_be_visible()
        expect(trouble).to_be_hidden()
    finally:
        http.post(f"/api/jobs/{job}/cancel")


def test_a_job_view_says_that_the_trainer_is_silent(page: Page, services: World, http: httpx.Client) -> None:
    job = started(http, "long", 50_000)
    try:
        page.clock.install()
        page.goto(f"{services.url}/#/job/{job}")
        expect(page.locator("svg.curve[role=img]")).to_be_visible()
        http.post(f"/api/jobs/{job}/pause")
        expect(page.get_by_role("button", name="Resume")).to_be_visible()  # no events from now on
        page.route(f"**/api/jobs/{job}", lambda route: route.fulfill(status=404, body="no answer"))
        page.clock.run_for(30_000)
        trouble = page.get_by_text("No answer from the trainer for")
        expect(trouble).to_be_visible()
        page.unroute(f"**/api/jobs/{job}")
        page.clock.run_for(6_000)
        expect(trouble).to_be_hidden()
    finally:
        http.post(f"/api/jobs/{job}/cancel")


def test_answers_that_were_not_written_are_losses_with_an_explanation(
    page: Page, services: World, jobs: list[str]
) -> None:
    hint = page.get_by_text("for this example no text was generated, to limit the cost")
    opened(page, services, "job", jobs)
    expect(hint).to_be_hidden()

    def without_a_text(route: Route) -> None:
        report = route.fetch().json()
        report["answers"][0]["bare"] |= {"text": None, "loss": 1.5}
        route.fulfill(json=report)

    page.route("**/report", without_a_text)
    page.reload()
    expect(page.get_by_role("cell", name="loss 1.500", exact=True)).to_be_visible()
    expect(hint).to_be_visible()


def test_a_distilled_prompt_offers_no_corrections(
    page: Page, services: World, http: httpx.Client, jobs: list[str]
) -> None:
    def distilled(route: Route) -> None:
        report = route.fetch().json()
        report["job"]["spec"]["distillation"] = {"num_questions": 12, "max_answer_tokens": None}
        route.fulfill(json=report)

    page.route("**/report", distilled)
    opened(page, services, "job", jobs)
    expect(page.get_by_text("Correct", exact=True)).to_have_count(0)
    expect(page.get_by_role("button", name="Continue training")).to_have_count(0)


def test_a_canary_and_a_rollback_by_keyboard(page: Page, services: World) -> None:
    page.goto(f"{services.url}/#/prompts")
    page.get_by_role("link", name="tone", exact=True).press("Enter")
    use = page.get_by_role("button", name="Use 2")
    use.press("Enter")
    expect(page.get_by_text("Requests for tone get version 2.")).to_be_visible()
    expect(page.locator("#main")).to_be_focused()  # the button is gone
    slider = page.get_by_label("Its part of the requests")
    for _ in range(3):
        slider.press("ArrowRight")
    expect(page.locator("output")).to_have_text("25 %")
    page.get_by_role("button", name="Set", exact=True).press("Enter")
    expect(page.get_by_text("2 (75 %), 1 (25 %)")).to_be_visible()
    expect(page.get_by_role("button", name="Set", exact=True)).to_be_focused()
    page.get_by_role("button", name="Roll back to 1").press("Enter")
    expect(page.get_by_text("Requests for tone get version 1.")).to_be_visible()


@pytest.mark.parametrize("address", ["job/%", "prompt/%E0%A4%A", "constructor", "nothing", "prompt/none", "job"])
def test_a_bad_address_is_explained_and_tried_again_by_keyboard(page: Page, services: World, address: str) -> None:
    page.goto(f"{services.url}/#/{address}")
    expect(page.get_by_role("heading", name="This did not work")).to_be_visible()
    page.get_by_role("button", name="Try again").press("Enter")
    expect(page.get_by_role("heading", name="This did not work")).to_be_visible()
    expect(page.locator("#main")).to_be_focused()


def test_skipping_to_the_content_stays_on_the_view(page: Page, services: World) -> None:
    page.goto(f"{services.url}/#/prompts")
    page.get_by_text("Skip to content").press("Enter")
    expect(page.locator("#main")).to_be_focused()
    expect(page.get_by_role("heading", level=1)).to_have_text("Prompts")


def test_sending_again_keeps_the_focus_and_the_open_program(page: Page, services: World) -> None:
    """The address may name a model that is not listed yet, and its input may hold any character."""
    page.goto(f"{services.url}/#/play?left=tone@1&right=later@9&input=what?")
    expect(page.get_by_label("Right")).to_have_value("later@9")
    expect(page.get_by_label("Input")).to_have_value("what?")
    page.get_by_label("Tokens").fill("2")
    send = page.get_by_role("button", name="Send")
    for _ in range(2):
        send.press("Enter")
        expect(page.locator(".panel .hint").first).to_contain_text("tokens in")
        expect(page.locator(".panel .hint").last).to_contain_text("later")
        expect(send).to_be_focused()
        expect(send).to_be_enabled()
        page.locator("details").first.evaluate("one => { one.open = true; }")
    expect(page.locator("details[open] summary")).to_have_text(["curl"])


def test_answers_stay_on_a_page_that_was_in_the_background(page: Page, services: World, jobs: list[str]) -> None:
    """A browser draws no frame of a hidden page: it comes after the answers."""
    page.add_init_script("window.requestAnimationFrame = (draw) => { window.draw = draw; };")
    page.reload()
    opened(page, services, "job", jobs)
    page.evaluate("window.draw()")
    expect(page.get_by_role("heading", name="held-out answers")).to_be_visible()


def test_a_file_is_chosen_and_read_by_keyboard(page: Page) -> None:
    with page.expect_file_chooser() as chooser:
        page.get_by_label("Examples").press("Enter")
    chooser.value.set_files({"name": "a.jsonl", "mimeType": "application/json", "buffer": SHEET.encode()})
    label = page.get_by_label("Label", exact=True)
    for column, heading in (("input", "can't be used yet"), ("output", "20 examples")):
        label.press("ArrowDown")
        expect(page.get_by_role("heading", name=heading)).to_be_visible()
        # each choice is read at once, stays also where it can't be used, and the next key goes to the same control
        expect(label).to_have_value(column)
        expect(label).to_be_focused()
    expect(page.get_by_label("Output", exact=True)).to_have_value("")
