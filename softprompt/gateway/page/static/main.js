// The address after # chooses the view. A view gets its element, its arguments and a signal that ends with it.
import { h, hasToken, replace, setToken, showMessage } from "./lib.js";
import { start } from "./start.js";
import { compare, job, jobs } from "./jobs.js";
import { play } from "./play.js";
import { prompt, prompts } from "./prompts.js";
import { status } from "./status.js";

const VIEWS = { __proto__: null, start, jobs, job, compare, play, prompts, prompt, status };
const main = document.getElementById("main");
let leaving = new AbortController();

async function show() {
  leaving.abort();
  leaving = new AbortController();
  const [, path, query] = /^#?\/?([^?]*)\??(.*)$/s.exec(location.hash);
  const name = path.split("/")[0] || "start";
  for (const link of document.querySelectorAll("nav a")) {
    const here = link.getAttribute("href").slice(2);
    if (here === name || here === `${name}s`) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  showMessage("");
  const signal = leaving.signal;
  replace(main, h("p", { className: "hint" }, "Loading ..."));
  try {
    const rest = path.split("/").slice(1).map(decodeURIComponent);
    if (!(name in VIEWS)) throw new Error(`There is no page ${name}.`);
    await VIEWS[name](main, { rest, query: new URLSearchParams(query), signal });
    document.title = `${main.querySelector("h1")?.textContent ?? "softprompt"} - softprompt`;
  } catch (error) {
    if (signal.aborted) return;
    const message = error instanceof URIError ? "The address is damaged: a % in it begins no character's code." : error.message;
    replace(main, h("h1", {}, "This did not work"), h("p", {}, message), h("button", { type: "button", onclick: show }, "Try again"));
  }
}

const token = document.getElementById("token");
token.value = hasToken();
token.addEventListener("change", () => { setToken(token.value.trim()); show(); });
addEventListener("hashchange", () => { show(); main.focus(); });
document.querySelector(".skip").addEventListener("click", (event) => { event.preventDefault(); main.focus(); }); // its address is not a view
show();
