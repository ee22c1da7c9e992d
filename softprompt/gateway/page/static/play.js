// The playground: one input, two models beside each other, streamed; and the same call for other programs.
import { call, counted, doing, events, field, get, h, hasToken, replace, showMessage } from "./lib.js";

export async function play(main, { query, signal }) {
  const models = (await get("/v1/models", signal)).data.map((one) => one.id);
  // a model that the address names is asked for also if it is not listed yet
  const choose = (label, wanted) => field(label, h("select", {}, [...new Set([...models, wanted])].map((one) => h("option", { value: one, selected: one === wanted }, one))));
  const left = choose("Left", query.get("left") ?? models[1] ?? models[0]), right = choose("Right", query.get("right") ?? models[0]);
  const input = h("textarea", { required: true, value: query.get("input") ?? "" });
  const tokens = h("input", { type: "number", min: 1, max: 4096, value: 128 }), heat = h("input", { type: "number", min: 0, max: 2, step: 0.1, value: 0 });
  const answers = h("div", { className: "columns", "aria-live": "polite" }), code = h("div");
  let running = new AbortController();
  signal.addEventListener("abort", () => running.abort());
  const body = (model) => ({ model, messages: [{ role: "user", content: input.value }], max_tokens: Number(tokens.value), temperature: Number(heat.value) });

  async function answer(model) {
    const text = h("div", { className: "answer" }), note = h("p", { className: "hint" });
    answers.append(h("section", { className: "panel" }, h("h2", {}, model), text, note));
    const started = performance.now();
    try {
      for await (const part of events(await call("/v1/chat/completions", { body: { ...body(model), stream: true, stream_options: { include_usage: true } }, signal: running.signal }))) {
        const choice = part.choices?.[0];
        if (choice?.delta?.content) text.append(choice.delta.content);
        if (choice?.finish_reason) note.textContent = `ended: ${choice.finish_reason}`;
        if (part.usage) note.textContent += `, ${counted(part.usage.completion_tokens, "token")} in ${((performance.now() - started) / 1000).toFixed(1)} s`;
      }
      if (!text.textContent.trim()) text.textContent = "(no text)";
    } catch (error) {
      if (error.name !== "AbortError") note.textContent = error.message;
    }
  }

  const form = h("form", { className: "panel", onsubmit: doing(async () => {
    running.abort();
    running = new AbortController();
    replace(answers);
    replace(code, snippets(body(left.querySelector("select").value), models[0]));
    await Promise.all([...new Set([left, right].map((one) => one.querySelector("select").value))].map(answer));
  }) }, field("Input", input), h("div", { className: "row" }, left, right, field("Tokens", tokens), field("Temperature", heat),
    h("button", { className: "main", type: "submit" }, "Send"), h("button", { type: "button", onclick: () => running.abort() }, "Stop")));
  replace(main, h("h1", {}, "Playground"), form, answers, code);
}

/** `base`: the base model, which a call of the Python client does not name.
 *  If the page was opened with a token, the programs read theirs from SOFTPROMPT_TOKEN, as the Python client does; the token itself is never shown. */
function snippets(body, base) {
  const json = JSON.stringify(body, null, 2), at = location.origin;
  const quoted = json.replaceAll("'", "'\\''"); // a shell reads all other characters between single quotes as they are
  const text = JSON.stringify(body.messages[0].content), secret = hasToken();
  const all = {
    curl: `curl ${at}/v1/chat/completions -H 'Content-Type: application/json'${secret ? ' -H "Authorization: Bearer $SOFTPROMPT_TOKEN"' : ""} -d '${quoted}'`,
    "OpenAI client": `${secret ? "import os\n\n" : ""}from openai import OpenAI\n\nclient = OpenAI(base_url="${at}/v1", api_key=${secret ? 'os.environ["SOFTPROMPT_TOKEN"]' : '"unused"'})\nanswer = client.chat.completions.create(\n    model="${body.model}", messages=[{"role": "user", "content": ${text}}], max_tokens=${body.max_tokens}, temperature=${body.temperature}\n)\nprint(answer.choices[0].message.content)`,
    Python: `import softprompt\n\nwith softprompt.Client() as client:\n    print(client.generate(${text}, ${body.model === base ? "" : `prompt="${body.model}", `}max_new_tokens=${body.max_tokens}, temperature=${body.temperature}).text)`,
    Node: `const response = await fetch("${at}/v1/chat/completions", {\n  method: "POST",\n  headers: { "Content-Type": "application/json"${secret ? ", Authorization: `Bearer ${process.env.SOFTPROMPT_TOKEN}`" : ""} },\n  body: JSON.stringify(${json}),\n});\nconsole.log((await response.json()).choices[0].message.content);`,
  };
  return [h("h2", {}, "The same call elsewhere"), Object.entries(all).map(([name, code]) => h("details", {}, h("summary", {}, name), h("pre", { tabIndex: 0 }, code),
    h("button", { type: "button", onclick: doing(async () => { await navigator.clipboard.writeText(code); showMessage("Copied."); }) }, `Copy ${name}`)))];
}
