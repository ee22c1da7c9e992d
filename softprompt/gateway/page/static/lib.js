// What all views use: building elements, calls, messages, formats, and the curve.

/** An element. Text is always set as text, so nothing that a user wrote is read as HTML. */
export function h(tag, props = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(props ?? {})) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name in node && name !== "list" && name !== "role") node[name] = value;
    else node.setAttribute(name === "className" ? "class" : name, value === true ? "" : value);
  }
  node.append(...children.flat(3).filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

let fields = 0;
/** A control with its label beside it, not around it: options would count as the label's text. */
export function field(title, control, ...more) {
  control.id ||= `field-${++fields}`;
  return h("div", { className: "field" }, h("label", { htmlFor: control.id }, title), more, control);
}

const named = (node) => `${node.tagName} ${node.name || node.ariaLabel || node.labels?.[0]?.textContent || node.textContent}`;
/** New children. If a removed one had the focus, the new one with its name gets it, or else the parent: the keyboard goes on from there. */
export function replace(parent, ...children) {
  const focused = document.activeElement, within = focused !== parent && parent.contains(focused);
  const details = [...parent.querySelectorAll("details[open] > summary")].map(named);
  parent.replaceChildren(...children.flat(3).filter(Boolean));
  for (const summary of parent.querySelectorAll("summary")) summary.parentElement.open ||= details.includes(named(summary));
  if (!within) return parent;
  const next = [...parent.querySelectorAll(focused.tagName)].find((node) => named(node) === named(focused)) ?? parent;
  if (next === parent && !parent.hasAttribute("tabindex")) parent.tabIndex = -1;
  next.focus({ preventScroll: true });
  return parent;
}

const token = () => sessionStorage.getItem("token") ?? "";
export const setToken = (value) => sessionStorage.setItem("token", value);
export const hasToken = token;

/** A call. Returns the response; throws an Error whose message is for people. */
export async function call(path, { body, signal, method = body === undefined ? "GET" : "POST" } = {}) {
  const headers = token() ? { Authorization: `Bearer ${token()}` } : {};
  if (body !== undefined && !(body instanceof Blob)) {
    headers["Content-Type"] = "application/json";
    body = JSON.stringify(body);
  }
  let response;
  try {
    response = await fetch(path, { method, headers, body, signal });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("The gateway can't be reached. Is it running?");
  }
  if (response.ok) return response;
  const text = await response.text();
  let message = text;
  try { message = JSON.parse(text).error.message; } catch { /* not in the API's shape */ }
  if (response.status === 401) message += " Enter your token at the top of the page.";
  throw new Error(message || `HTTP ${response.status}`);
}

export const get = async (path, signal) => (await call(path, { signal })).json();
export const post = async (path, body = {}) => (await call(path, { body })).json();

/** The JSON of each server-sent event. */
export async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      const blocks = (rest + value).split("\n\n");
      rest = blocks.pop();
      for (const block of blocks) {
        const data = block.split("\n").filter((line) => line.startsWith("data: ")).map((line) => line.slice(6)).join("\n");
        if (!data || data === "[DONE]") continue;
        const found = JSON.parse(data);
        if (found.error?.message) throw new Error(found.error.message);
        yield found;
      }
    }
  } finally {
    await reader.cancel().catch(() => {});
  }
}

let hiding;
export function showMessage(text) {
  const place = document.getElementById("message");
  place.textContent = text;
  place.hidden = !text;
  clearTimeout(hiding);
  hiding = setTimeout(() => { place.hidden = true; }, 10_000);
}

/** Runs an action of a button, once at a time, and shows its error. A button that is disabled would lose the focus. */
export const doing = (action) => async (event) => {
  event.preventDefault();
  const button = event.submitter ?? event.currentTarget;
  if (button.ariaDisabled === "true") return;
  button.ariaDisabled = "true";
  try { await action(event); } catch (error) { if (error.name !== "AbortError") showMessage(error.message); } finally { button.ariaDisabled = null; }
};

export const id = (name) => name.split("/")[1];
export const versionOf = (name) => Number(name.split("/").at(-1));
export const time = (text) => (text ? new Date(text).toLocaleString([], { dateStyle: "medium", timeStyle: "short" }) : "");
export function number(value, digits = 3) {
  if (value === null || value === undefined) return "";
  return Number.isInteger(value) ? String(value) : value.toFixed(digits);
}
export const counted = (number, thing) => `${number} ${thing}${number === 1 ? "" : "s"}`;
export function span(seconds) {
  if (seconds < 90) return `${Math.max(0, Math.round(seconds))} s`;
  return seconds < 5400 ? `${Math.round(seconds / 60)} min` : `${(seconds / 3600).toFixed(1)} h`;
}

/** What was counted in a job's data, as a sentence. */
export function dataLine(data, isNoted = false) { // a job's notes say what is repeated
  const parts = [`${counted(data.num_train, "example")} to train on`, `${data.num_validation} held out`];
  if (isNoted) return `${parts.join(", ")}.`;
  if (data.num_duplicates) parts.push(`${data.num_duplicates} repeated`);
  if (data.num_contradictions) parts.push(`${data.num_contradictions} contradict each other`);
  const overlapping = data.num_overlapping;
  if (overlapping) parts.push(`${counted(overlapping, "held-out example")} ${overlapping === 1 ? "repeats" : "repeat"} an input of the training part`);
  return [`${parts.join(", ")}.`, ...(data.label_notes ?? [])].join(" ");
}

/** Without heads, the first cell of each row is its head. */
export function table(heads, rows, empty = "Nothing yet.") {
  if (!rows.length) return h("p", { className: "hint" }, empty);
  if (!heads) rows = rows.map(([head, ...cells]) => [h("th", { scope: "row" }, head), ...cells]);
  return h("div", { className: "scroll", tabIndex: 0, role: "region", "aria-label": "Table" },
    h("table", {}, heads && h("thead", {}, h("tr", {}, heads.map((head) => h("th", { scope: "col" }, head)))),
      h("tbody", {}, rows.map((row) => h("tr", {}, row.map((cell) => cell instanceof HTMLTableCellElement ? cell : h("td", {}, cell)))))));
}

const SVG = "http://www.w3.org/2000/svg";
function s(tag, props, ...children) {
  const node = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(props)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

const look = (index) => `s${index % 4}${index < 4 ? "" : " dashed"}`;
/** A line chart. `series`: [{name, points: [[x, y], ...]}]; points that are not finite are left out. */
export function curve(series, { x = "step", y = "loss" } = {}) {
  const known = series.map((one) => ({ ...one, points: one.points.filter(([a, b]) => Number.isFinite(a) && Number.isFinite(b)) }));
  const all = known.flatMap((one) => one.points);
  if (!all.length) return h("p", { className: "hint" }, "No measurements yet.");
  const [w, t, left, bottom] = [640, 260, 48, 24];
  const xs = all.map(([a]) => a), ys = all.map(([, b]) => b);
  const [x0, x1] = [Math.min(0, ...xs), Math.max(1, ...xs)];
  let [y0, y1] = [Math.min(...ys), Math.max(...ys)];
  if (y1 - y0 < 1e-9) [y0, y1] = [y0 - 0.5, y1 + 0.5];
  const px = (value) => left + ((w - left - 8) * (value - x0)) / (x1 - x0);
  const py = (value) => 8 + ((t - bottom - 8) * (y1 - value)) / (y1 - y0);
  const parts = [0, 0.5, 1].map((part) => y0 + part * (y1 - y0)).flatMap((value) => [
    s("line", { class: "axis", x1: left, x2: w - 8, y1: py(value), y2: py(value) }),
    s("text", { x: left - 6, y: py(value) + 4, "text-anchor": "end" }, number(value, 2))]);
  parts.push(s("text", { x: w - 8, y: t - 6, "text-anchor": "end" }, `${x} ${number(x1)}`));
  known.forEach((one, index) => {
    const style = look(index);
    if (one.points.length > 1) parts.push(s("polyline", { class: `line ${style}`, points: one.points.map(([a, b]) => `${px(a)},${py(b)}`).join(" ") }));
    if (one.points.length < 40) parts.push(...one.points.map(([a, b]) => s("circle", { class: style, cx: px(a), cy: py(b), r: 3 })));
  });
  const last = known.filter((one) => one.points.length).map((one) => `${one.name} ${number(one.points.at(-1)[1])}`);
  const picture = s("svg", { class: "curve", viewBox: `0 0 ${w} ${t}`, role: "img", "aria-label": `${y} by ${x}. Last values: ${last.join(", ")}` }, ...parts);
  const legend = known.map((one, index) => h("li", {}, s("svg", { class: "curve", viewBox: "0 0 16 12", "aria-hidden": "true" }, s("circle", { class: look(index), cx: 8, cy: 6, r: 5 })), `${one.name}`));
  return h("figure", {}, picture, h("ul", { className: "legend" }, legend));
}
