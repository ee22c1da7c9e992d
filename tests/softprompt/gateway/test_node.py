"""A client in Node without packages: `fetch`, a form, and server-sent events."""

from __future__ import annotations

import json
import shutil
import subprocess

import pytest

from tests.softprompt.gateway.running import World

PROGRAM = """
const base = process.argv[1] + "/v1";
const post = (path, body) => fetch(base + path, {
  method: "POST", headers: {"Content-Type": "application/json"}, body: JSON.stringify(body)});
const messages = [{role: "user", content: "hello"}];
const parameters = {model: "tone", messages, max_tokens: 6, temperature: 0};
const out = {};
out.models = (await (await fetch(base + "/models")).json()).data.map((model) => model.id);
out.whole = (await (await post("/chat/completions", parameters)).json()).choices[0].message.content;
let buffer = "", text = "";
const response = await post("/chat/completions", {...parameters, stream: true});
out.type = response.headers.get("content-type");
for await (const piece of response.body.pipeThrough(new TextDecoderStream())) {
  buffer += piece;
  let end;
  while ((end = buffer.indexOf("\\n\\n")) >= 0) {
    const event = buffer.slice(0, end);
    buffer = buffer.slice(end + 2);
    if (!event.startsWith("data: ") || event === "data: [DONE]") { out.done = event; continue; }
    text += JSON.parse(event.slice(6)).choices[0].delta.content ?? "";
  }
}
out.streamed = text;
const form = new FormData();
const line = (n) => JSON.stringify({prompt: `number ${n}`, completion: `it is ${n}`});
form.append("purpose", "fine-tune");
form.append("file", new Blob([[1, 2, 3].map(line).join("\\n")]), "numbers.jsonl");
out.file = await (await fetch(base + "/files", {method: "POST", body: form})).json();
out.refused = await (await post("/chat/completions", {...parameters, modalities: ["audio"]})).json();
console.log(JSON.stringify(out));
"""


@pytest.mark.skipif(shutil.which("node") is None, reason="NODE IS NOT INSTALLED: its client is not tested")
def test_a_client_in_node(services: World) -> None:
    done = subprocess.run(["node", "--input-type=module", "-e", PROGRAM, services.url], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    out = json.loads(done.stdout)
    assert "tone@1" in out["models"]
    assert out["streamed"] == out["whole"]
    assert (out["type"], out["done"]) == ("text/event-stream; charset=utf-8", "data: [DONE]")
    assert (out["file"]["filename"], out["file"]["status"]) == ("numbers.jsonl", "processed")
    assert out["refused"]["error"]["param"] == "modalities"
