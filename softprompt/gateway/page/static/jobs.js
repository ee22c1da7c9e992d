// Jobs: the list, one job with its live curve, and several jobs beside each other.
import { call, counted, curve, dataLine, doing, events, get, h, id, number, post, replace, span, table, time } from "./lib.js";

const MAX_COMPARED = 8; // each has its own line: four colours, whole and dashed
const QUIET_SECONDS = 20; // then the trainer is asked whether it still answers: a step may take longer
const FINAL = ["SUCCEEDED", "FAILED", "CANCELLED"];
/** The end of an id, which is random; its beginning is the time, so jobs of one second share it. */
const short = (name) => id(name).slice(-8);
const state = (value) => h("span", { className: `state ${value === "FAILED" ? "bad" : value === "SUCCEEDED" ? "good" : ""}` }, value.toLowerCase());

export async function jobs(main, { signal }) {
  const found = await get("/api/jobs", signal);
  const picked = new Set();
  const button = h("button", { type: "button", disabled: true, onclick: () => { location.hash = `#/compare?${[...picked].map((one) => `job=${one}`).join("&")}`; } }, "Compare");
  replace(main, h("h1", {}, "Jobs"),
    table(["Choose", "Prompt", "State", "Progress", "Created", "Job"], found.map((one) => [
      h("input", { type: "checkbox", "aria-label": `choose ${short(one.name)}`, onchange: (event) => { event.target.checked ? picked.add(id(one.name)) : picked.delete(id(one.name)); button.disabled = picked.size < 2 || picked.size > MAX_COMPARED; } }),
      one.spec?.prompt ?? "", state(one.state), one.progress ? `${one.progress.step} of ${one.progress.num_steps}` : "", time(one.create_time),
      h("a", { href: `#/job/${id(one.name)}` }, "Open")]), "No jobs yet."), found.length > 1 ? h("p", { className: "hint" }, `Choose two to ${MAX_COMPARED} jobs to compare.`) : null, button);
}

export async function job(main, { rest: [name], signal }) {
  const path = `/api/jobs/${encodeURIComponent(name)}`;
  let now = await get(path, signal);
  const steps = [], heldOut = [], notes = [];
  const head = h("div"), trouble = h("p", { className: "bad", role: "status" }), picture = h("div"), body = h("div", { "aria-live": "polite" }), written = h("div");
  replace(main, h("h1", {}, `Job ${name.slice(-8)} for ${now.spec?.prompt ?? ""}`), head, trouble, picture, body, written);

  // the new state comes with the events: an answer that they overtook would show an old one
  const act = (action) => h("button", { type: "button", hidden: true, onclick: doing(() => post(`${path}/${action}`)) }, action[0].toUpperCase() + action.slice(1));
  const [pause, resume, cancel] = ["pause", "resume", "cancel"].map(act);
  const status = h("span", { className: "row" }), below = h("div");
  replace(head, h("p", { className: "row" }, status, pause, resume, cancel), below); // the buttons stay, because a new one would not have the focus
  function draw() {
    const { progress, result, error } = now;
    const over = FINAL.includes(now.state);
    const left = progress?.estimated_end_time && !over ? (new Date(progress.estimated_end_time) - Date.now()) / 1000 : null;
    replace(status, state(now.state),
      now.state === "QUEUED" && now.queue_position ? h("span", {}, `${now.queue_position} ahead in the queue`) : null,
      progress?.num_models && !over ? h("span", {}, progress.num_measured < progress.num_models ? `evaluating: ${progress.num_measured} of ${progress.num_models} models measured` : "evaluating: writing answers") : null,
      left > 0 ? h("span", {}, `about ${span(left)} left`) : null);
    const focused = document.activeElement;
    for (const [button, shown] of [[pause, !over && now.state !== "PAUSED"], [resume, now.state === "PAUSED"], [cancel, !over]]) button.hidden = !shown;
    if (focused.hidden && head.contains(focused)) [resume, pause, cancel].find((button) => !button.hidden)?.focus(); // a hidden button loses the focus
    replace(below, progress?.num_steps ? h("label", {}, `${progress.step} of ${counted(progress.num_steps, "step")}`, h("progress", { max: progress.num_steps, value: progress.step })) : null,
      error ? h("p", { className: "bad" }, `${error.code}: ${error.message}`) : null);
    replace(picture, curve([{ name: "training", points: steps }, { name: "held-out", points: heldOut }]));
    const others = notes.filter((text) => text !== result?.verdict);
    replace(body, result ? outcome(result) : null,
      others.length ? [h("h2", {}, "Notes"), h("ul", { className: "plain" }, others.map((text) => h("li", {}, text)))] : null,
      now.dataset_statistics ? h("p", { className: "hint" }, dataLine(now.dataset_statistics, true)) : null);
  }
  draw();
  let heard = Date.now();
  const quiet = setInterval(async () => {
    if (signal.aborted) clearInterval(quiet);
    const seconds = Math.round((Date.now() - heard) / 1000);
    if (signal.aborted || seconds < QUIET_SECONDS) return;
    try {
      await get(path, AbortSignal.any([signal, AbortSignal.timeout(5000)]));
      heard = Date.now();
      trouble.textContent = "";
    } catch {
      trouble.textContent = `No answer from the trainer for ${span(seconds)}. The page asks again every 5 seconds.`;
    }
  }, 5000);
  (async () => {
    let after = 0;
    while (!signal.aborted) {
      try {
        for await (const one of events(await call(`${path}/events?after=${after}`, { signal }))) {
          after = one.number;
          heard = Date.now();
          trouble.textContent = "";
          if (one.kind === "ProgressMade") { if (one.progress.step && !one.progress.num_models) steps.push([one.progress.step, one.progress.train_loss]); now = { ...now, progress: one.progress }; }
          if (one.kind === "Evaluated") heldOut.push([one.step, one.metrics.loss]);
          if (one.kind === "Note") notes.push(one.text);
          if (one.kind === "StateChanged") now = one.job;
          soon(draw);
        }
        now = await get(path, signal);
        trouble.textContent = "";
        draw();
        if (FINAL.includes(now.state)) {
          clearInterval(quiet);
          return await answers(written, path, signal);
        }
      } catch (error) { // the events go on after the last number
        if (!signal.aborted) trouble.textContent = `This view is not up to date: ${error.message} It tries again each second.`;
      }
      await new Promise((done) => setTimeout(done, 1000));
    }
  })();
}

let drawing = false;
/** At most one drawing for each frame: past events arrive by the thousand. */
function soon(draw) {
  if (drawing) return;
  drawing = true;
  requestAnimationFrame(() => { drawing = false; draw(); });
}

function outcome(result) {
  return h("section", { className: "panel" }, h("h2", {}, result.published ? `Published as ${result.version.split("/")[1]}@${result.version.split("/").at(-1)}` : "Not published"),
    h("p", { className: "verdict" }, result.verdict), result.gate_decision && result.gate_decision !== "no gate" ? h("p", { className: "hint" }, result.gate_decision) : null, result.serving ? h("p", { className: "hint" }, result.serving) : null,
    table(["Compared with", "Metric", "This prompt", "The other", "Better by", "95 % interval"], result.comparisons.map((one) => [one.rival.replaceAll("_", " "), one.metric, number(one.value), number(one.rival_value),
      h("td", { className: one.beats ? "good" : one.difference < 0 ? "bad" : "" }, number(one.difference)), one.low === null ? "too few examples" : `${number(one.low)} to ${number(one.high)}`]), "No comparisons."),
    result.published ? h("a", { href: `#/play?left=${encodeURIComponent(result.version.split("/")[1])}` }, "Try it in the playground") : null);
}

const MODELS = [["tuned", "Tuned"], ["current", "Version before"], ["few_shot", "Few-shot"], ["instructed", "Instructed"], ["bare", "Bare"]];

async function answers(body, path, signal) {
  const report = await get(`${path}/report`, signal);
  const inputs = new Set(); // a correction holds for every example of its input, so that repeats are shown once
  const found = (report.answers ?? []).filter((one) => !inputs.has(one.input) && inputs.add(one.input));
  if (!found.length) return;
  const shown = MODELS.filter(([key]) => found.some((one) => one[key]));
  const base = (one) => (one.current ?? one.bare)?.loss ?? 0;
  found.sort((a, b) => (b.tuned?.loss ?? 0) - base(b) - ((a.tuned?.loss ?? 0) - base(a)));
  const labels = report.confusion.length > 0; // of free texts, few good ones equal the expected one
  const cell = (answer) => h("td", { className: `text ${!labels ? "" : answer?.correct === true ? "good" : answer?.correct === false ? "bad" : ""}` }, answer ? (answer.text ?? `loss ${number(answer.loss)}`) : "");
  const distilled = report.job.spec?.distillation; // its examples come from a text and are not stored
  const corrected = new Map();
  const go = h("button", { type: "button", className: "main", disabled: true, onclick: doing(async () => {
    const examples = [...corrected].map(([line, text]) => ({ line, text }));
    location.hash = `#/job/${id((await post(`${path}/continue`, { examples })).name)}`;
  }) }, "Continue training with the corrections");
  const correct = (one) => {
    const text = h("textarea", { "aria-label": `better answer to ${one.input.slice(0, 60)}`, value: one.reference, oninput: () => {
      if (text.value.trim()) corrected.set(one.line, text.value); else corrected.delete(one.line);
      go.disabled = !corrected.size;
    } });
    return h("details", {}, h("summary", {}, "Correct"), text);
  };
  const unwritten = found.some((one) => shown.some(([key]) => one[key] && one[key].text === null));
  body.append(h("h2", {}, `${counted(found.length, "held-out answer")}, those that became worse first`),
    unwritten ? h("p", { className: "hint" }, "“loss” and a number: for this example no text was generated, to limit the cost. It measures how unlikely the expected answer is; lower is better.") : null,
    table(["Input", "Expected", ...shown.map(([, title]) => title)], found.slice(0, 200).map((one) => [h("td", { className: "text" }, one.input), h("td", { className: "text" }, one.reference, distilled ? null : correct(one)), ...shown.map(([key]) => cell(one[key]))])), distilled ? "" : go);
}

export async function compare(main, { query, signal }) {
  const reports = await Promise.all(query.getAll("job").slice(0, MAX_COMPARED).map((name) => get(`/api/jobs/${encodeURIComponent(name)}/report`, signal)));
  const all = reports.map((one) => one.job);
  const series = reports.map((one) => ({ name: short(one.job.name), points: one.evaluations.map((at) => [at.step, at.metrics.loss]) }));
  const flat = (one) => one.effective_spec?.hyperparameters ?? {};
  const keys = [...new Set(all.flatMap((one) => Object.keys(flat(one))))].filter((key) => new Set(all.map((one) => JSON.stringify(flat(one)[key]))).size > 1);
  replace(main, h("h1", {}, "Compare jobs"), curve(series, { y: "held-out loss" }), h("h2", {}, "Hyperparameters that differ"),
    table(["Setting", ...all.map((one) => short(one.name))], keys.map((key) => [key.replaceAll("_", " "), ...all.map((one) => JSON.stringify(flat(one)[key]) ?? "")]), "None."),
    h("h2", {}, "Results"),
    table(["Metric", ...all.map((one) => short(one.name))], [...new Set(all.flatMap((one) => Object.keys(one.result?.metrics ?? {})))].map((key) => [key, ...all.map((one) => number(one.result?.metrics?.[key]))])));
}
