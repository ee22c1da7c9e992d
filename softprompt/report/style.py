"""The page's style sheet and script. Both are inside the page; its policy allows exactly this script and no request."""

from __future__ import annotations

import base64
import hashlib

STYLE = """
:root { color-scheme: light dark; --ink: #1d2430; --soft: #5c6675; --line: #d9dee6; --back: #fff; --card: #f5f7fa;
  --good: #17703c; --bad: #b3261e; --train: #8a94a3; --held: #1f6fd0; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6eaf0; --soft: #9aa5b4; --line: #333c49; --back: #14181e;
  --card: #1c222b; --good: #5fca8b; --bad: #ff8a80; --train: #76808f; --held: #6fb1ff; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 76rem; padding: 1rem; background: var(--back); color: var(--ink);
  font: 15px/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.4rem; margin: 0; } h2 { font-size: 1.1rem; margin: 2rem 0 .5rem; }
p { margin: .4rem 0; } .soft { color: var(--soft); } .good { color: var(--good); } .bad { color: var(--bad); }
.verdict { border-left: 4px solid var(--held); background: var(--card); padding: .6rem .8rem; margin: 1rem 0; }
.scroll { overflow-x: auto; } .scroll th { overflow-wrap: normal; }
table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; vertical-align: top; padding: .35rem .6rem; border-bottom: 1px solid var(--line); }
th { font-weight: 600; } thead th { color: var(--soft); } td.n, th.n { text-align: right; white-space: nowrap; }
.facts th { width: 15rem; color: var(--soft); font-weight: 400; }
.answers td { white-space: pre-wrap; min-width: 9rem; } .answers td.n { min-width: 0; }
.answers small { display: block; color: var(--soft); white-space: nowrap; }
.sort { display: flex; flex-wrap: wrap; gap: .4rem; margin: .5rem 0; }
button { font: inherit; color: inherit; background: var(--card); border: 1px solid var(--line); border-radius: .4rem;
  padding: .25rem .7rem; cursor: pointer; } button[aria-pressed=true] { border-color: var(--held); color: var(--held); }
:focus-visible { outline: 2px solid var(--held); outline-offset: 2px; }
svg { width: 100%; max-width: 46rem; height: auto; display: block; } svg text { fill: var(--soft); font-size: 12px; }
svg .grid { stroke: var(--line); } svg path { fill: none; stroke-width: 2; } svg .train { stroke: var(--train); }
svg .held { stroke: var(--held); } svg circle.held { fill: var(--held); stroke: none; }
.key span::before { content: ""; display: inline-block; width: 1rem; height: .25rem; margin: 0 .4rem .2rem 0;
  background: var(--train); } .key span.k-held::before { background: var(--held); } .key span { margin-right: 1rem; }
.tokens span { display: inline-block; background: var(--card); border-radius: .3rem; padding: 0 .4rem; margin: .15rem;
  white-space: pre; max-width: 100%; overflow: hidden; text-overflow: ellipsis; vertical-align: top; }
@media (max-width: 640px) { body { padding: .6rem; } svg text { font-size: 20px; }
  .facts th, .facts td { display: block; width: auto; border: 0;
  padding: .1rem 0; } .facts tr { display: block; border-bottom: 1px solid var(--line); padding: .3rem 0; }
  .answers thead { display: none; } .answers tr { display: block; border: 1px solid var(--line); border-radius: .4rem;
  margin: .6rem 0; padding: .3rem .6rem; }
  .answers td { display: block; border: 0; padding: .2rem 0; text-align: left; }
  .answers td::before { content: attr(data-title); display: block; color: var(--soft); font-size: 12px; } }
@media print { .sort { display: none; } }
"""

SCRIPT = """
const body = document.querySelector('.answers tbody');
const buttons = document.querySelectorAll('.sort button');
function value(row, key) { const text = row.dataset[key]; return text === undefined ? -Infinity : Number(text); }
function sort(button) {
  const key = button.dataset.key, sign = button.dataset.order === 'up' ? 1 : -1;
  const rows = Array.from(body.rows);
  rows.sort((one, other) => sign * (value(one, key) - value(other, key)) || value(one, 'line') - value(other, 'line'));
  body.append(...rows);
  for (const each of buttons) each.setAttribute('aria-pressed', String(each === button));
}
for (const button of buttons) button.addEventListener('click', () => sort(button));
if (buttons.length) sort(buttons[0]);
"""

_DIGEST = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
POLICY = f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{_DIGEST}'; base-uri 'none'"
"""Content security policy: a text that slipped through the escaping could still run nothing and load nothing."""
