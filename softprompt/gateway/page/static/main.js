// The address after # chooses the view. A view gets its element, its arguments and a signal that ends with it.
import { h, hasToken, replace, setToken, showMessage } from "./lib.js";
import { start } from "./start.js";
import { compare, job, jobs } from "./jobs.js";
import { play } from "./play.js";
import { prompt, prompts } from "./prompts.js";
import { status } from "./status.js";

const VIEWS = { start, jobs, job, compare, play, prompts, prompt, status };
let leaving = new AbortController();

async function show() {
  leaving.abort();
  leaving = new AbortController();
  const [path, query = ""] = (location.hash.slice(2) || "start").split("?");
  const [name, ...rest] = path.split("/").map(decodeURIComponent);
  const main = document.getElementById("main");
  for (const link of document.querySelectorAll("nav a")) {
    const here = link.getAttribute("href").slice(2);
    if (here === name || here === `${name}s`) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  showMessage("");
  const view = VIEWS[name] ?? start;
  const signal = leaving.signal;
  replace(main, h("p", { className: "hint" }, "Loading ..."));
  try {
    await view(main, { rest, query: new URLSearchParams(query), signal });
    document.title = `${main.querySelector("h1")?.textContent ?? "softprompt"} - softprompt`;
  } catch (error) {
    if (signal.aborted) return;
    replace(main, h("h1", {}, "This did not work"), h("p", {}, error.message), h("button", { type: "button", onclick: show }, "Try again"));
  }
}

const token = document.getElementById("token");
token.value = hasToken();
token.addEventListener("change", () => { setToken(token.value.trim()); show(); });
addEventListener("hashchange", () => { show(); document.getElementById("main").focus(); });
show();
