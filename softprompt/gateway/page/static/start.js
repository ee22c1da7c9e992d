// From a file to a job: drop it, see how it is read, correct the columns, start.
import { counted, call, dataLine, doing, field, h, id, number, replace, span, table } from "./lib.js";

const ROLES = [["input", "Input"], ["output", "Output"], ["label", "Label"], ["messages", "Conversation"]];

export async function start(main) {
  const found = h("div", { "aria-live": "polite" });
  const input = h("input", { type: "file", id: "file", accept: ".csv,.tsv,.xlsx,.jsonl,.json", onchange: () => take(input.files[0]) });
  const drop = h("div", { className: "drop" },
    h("p", {}, "Drop a file with examples here, or choose one."), field("Examples", input),
    h("p", { className: "hint" }, "CSV, TSV, XLSX, JSON or JSON lines. Each row is a question with the answer that you want, or a text with its label. Some hundred rows are a good start."));
  drop.addEventListener("dragover", (event) => { event.preventDefault(); drop.classList.add("over"); });
  drop.addEventListener("dragleave", () => drop.classList.remove("over"));
  drop.addEventListener("drop", (event) => { event.preventDefault(); drop.classList.remove("over"); take(event.dataTransfer.files[0]); });
  replace(main, h("h1", {}, "Tune a prompt"), h("p", { className: "lead" }, "Your examples teach the model a tone, a format or a choice. The model itself does not change."), drop, found);

  const choice = {};
  let guessed = false;
  async function take(file) {
    if (!file) return;
    for (const key of Object.keys(choice)) delete choice[key];
    guessed = false;
    await preview(file);
  }

  let asked = 0;
  /** Shows how the file is read. Only the newest question's answer is shown. */
  async function preview(file, changed = false) {
    const mine = ++asked;
    if (!changed) replace(found, h("p", { className: "hint" }, `Reading ${file.name} ...`));
    try {
      const query = new URLSearchParams({ filename: file.name, ...choice });
      const data = await (await call(`/api/preview?${query}`, { body: file })).json();
      if (mine !== asked) return;
      if (!guessed && !Object.keys(choice).length && Object.keys(data.guess).length) {
        guessed = true;
        Object.assign(choice, data.guess);
        return preview(file, changed);
      }
      show(file, data);
    } catch (error) {
      if (mine !== asked) return;
      replace(found, h("p", { className: "bad" }, `${file.name} can't be used: ${error.message}`)); // it stays until the next file
    }
  }

  function show(file, data) {
    const selects = ROLES.map(([role, title]) => {
      const select = h("select", { name: role, onchange: () => choose(role, select.value) }, h("option", { value: "" }, "-"),
        data.columns.map((column) => h("option", { value: column, selected: (choice[role] ?? data.used[role]) === column }, column)));
      return field(title, select);
    });
    const unused = h("input", { type: "checkbox", name: "drop_extra", checked: choice.drop_extra === "true", onchange: () => choose("drop_extra", unused.checked ? "true" : "") });
    function choose(name, value) {
      for (const [role] of ROLES) if (data.used[role] && !(role in choice)) choice[role] = data.used[role];
      if (name === "label" && value) choice.output = "";
      if (name === "output" && value) choice.label = "";
      choice[name] = value;
      for (const key of Object.keys(choice)) if (!choice[key]) delete choice[key];
      preview(file, true);
    }
    const can = !data.problems.length, unclear = data.columns.length && !data.used.input && !data.used.messages;
    const advice = unclear ? "Choose below which column is the input, and which is the output (a text) or the label (one of a few words)." : data.advice;
    replace(found,
      h("h2", {}, can ? `${counted(data.num_examples, "example")} in ${file.name}` : `${file.name} can't be used yet`),
      data.problems.length ? h("div", { className: "panel" }, h("ul", { className: "plain bad" }, data.problems.map((text) => h("li", {}, text))), advice && h("p", {}, advice)) : null,
      data.report.length ? h("ul", { className: "plain hint" }, data.report.map((text) => h("li", {}, text))) : null,
      guessed ? h("p", { className: "hint" }, "The columns are guessed from the first row. Change them if they are wrong.") : null,
      data.columns.length ? h("div", { className: "row" }, selects, h("label", {}, unused, " leave out other columns")) : null,
      data.rows.length ? table(data.columns, data.rows.map((row) => data.columns.map((column) => h("td", { className: "text" }, (row[column] ?? "").slice(0, 200))))) : null,
      can ? form(file) : null);
  }

  function form(file) {
    const suggested = file.name.toLowerCase().replace(/\.[a-z.]*$/, "").replace(/[^a-z0-9]+/g, "-").replace(/^-+|-+$/g, "").slice(0, 40) || "my-prompt";
    const name = h("input", { name: "prompt", value: suggested, required: true, pattern: "[a-z0-9]([a-z0-9\\-]*[a-z0-9])?", title: "lower-case letters, digits and hyphens" });
    const steps = h("input", { name: "num_steps", type: "number", min: 1, placeholder: "automatic" });
    const query = () => {
      const all = new URLSearchParams({ filename: file.name, prompt: name.value, ...choice });
      if (steps.value) all.set("num_steps", steps.value);
      return all;
    };
    const plan = h("div", { "aria-live": "polite" });
    const made = h("form", { className: "panel", onsubmit: doing(async () => {
      const job = await (await call(`/api/jobs?${query()}`, { body: file })).json();
      location.hash = `#/job/${id(job.name)}`;
    }) }, h("div", { className: "row" }, field("Name of the prompt", name), field("Steps", steps), h("button", { className: "main", type: "submit" }, "Start tuning")), plan);
    let asked = 0;
    /** What the job would be. Only the newest question's answer is shown. */
    async function check() {
      const mine = ++asked;
      let shown = null;
      if (made.checkValidity()) {
        replace(plan, h("p", { className: "hint" }, "Estimating ..."));
        try {
          shown = estimate(await (await call(`/api/check?${query()}`, { body: file })).json());
        } catch (error) {
          shown = h("p", { className: "bad" }, error.message);
        }
      }
      if (mine === asked) replace(plan, shown);
    }
    for (const control of [name, steps]) control.addEventListener("change", check);
    check();
    return made;
  }
}

/** The time, the data, and what the recipe chose, of a job that does not exist yet. */
function estimate({ job, estimated_seconds: seconds, estimated_memory_bytes: bytes }) {
  const data = job.dataset_statistics, chosen = job.effective_spec?.hyperparameters ?? {};
  const text = (value) => (typeof value === "number" ? number(value, 4) : value?.method ?? String(value)).toLowerCase().replaceAll("_", " ");
  const settings = Object.entries(chosen).filter(([, value]) => value !== null && (typeof value !== "object" || value.method));
  return [
    h("p", {}, h("strong", {}, seconds === null ? "Time unknown: no job has been measured yet." : `About ${span(seconds)} of training.`), " ",
      h("strong", {}, bytes === null ? "Memory unknown until the first job has run." : `About ${(bytes / 2 ** 30).toFixed(1)} GiB of memory.`), data ? ` ${dataLine(data)}` : ""),
    h("details", {}, h("summary", {}, "What is chosen for you"), table(["Setting", "Value"], settings.map(([key, value]) => [key.replaceAll("_", " "), text(value)]))),
  ];
}
