// Prompts: the list, and one prompt with its versions, replicas, rollback and canary.
import { doing, field, get, h, id, number, post, replace, table, time, versionOf } from "./lib.js";

const share = (alias) => {
  const whole = alias.targets.reduce((sum, one) => sum + one.weight, 0);
  return alias.targets.toSorted((a, b) => b.weight - a.weight).map((one) => (alias.targets.length > 1 ? `${one.version} (${Math.round((100 * one.weight) / whole)} %)` : `${one.version}`)).join(", ");
};

export async function prompts(main, { signal }) {
  const found = await get("/api/prompts", signal);
  replace(main, h("h1", {}, "Prompts"), table(["Prompt", "Versions", "Aliases", "Changed"], found.map((one) => [
    h("a", { href: `#/prompt/${id(one.name)}` }, id(one.name)), one.num_versions, one.aliases.map((alias) => `${alias.name} = ${share(alias)}`).join("; "), time(one.update_time)]), "No prompts yet. Tune one first."));
}

export async function prompt(main, { rest: [name], signal }) {
  async function draw() {
    const { prompt: found, versions, status } = await get(`/api/prompts/${encodeURIComponent(name)}`, signal);
    const alias = found.aliases.find((one) => one.name === "default");
    const targets = alias?.targets.toSorted((a, b) => b.weight - a.weight || b.version - a.version) ?? [];
    const current = targets[0]?.version;
    const move = (targets) => doing(async () => {
      await post(`/api/prompts/${encodeURIComponent(name)}/aliases/default`, { targets, expected_revision: alias?.revision });
      await draw();
    });
    const serving = Object.fromEntries(status.versions.map((one) => [versionOf(one.version), one]));
    const places = (version) => {
      const one = serving[version];
      if (!one) return "";
      const refused = one.refused.map((item) => h("div", { className: "bad" }, `${item.replica}: ${item.reason}`));
      return [`${one.served.length} of ${one.num_replicas} replicas`, refused];
    };
    replace(main, h("h1", {}, name),
      h("p", {}, alias ? `Requests for ${name} get version ${share(alias)}.` : "No default version."),
      table(["Version", "Kind", "Created", "Loss", "Served by", "Job", "Default"], versions.toSorted((a, b) => versionOf(b.name) - versionOf(a.name)).map((one) => {
        const version = versionOf(one.name);
        return [version, one.kind.toLowerCase(), time(one.create_time), number(one.metrics.loss), h("td", {}, places(version)), one.job ? h("a", { href: `#/job/${id(one.job)}` }, "Verdict and answers") : "imported",
          version === current && alias.targets.length === 1 ? "current" : h("button", { type: "button", onclick: move([{ version, weight: 1 }]) }, version < Math.max(...targets.map((one) => one.version)) ? `Roll back to ${version}` : `Use ${version}`)];
      })),
      canary(versions.map((one) => versionOf(one.name)), targets, move));
  }
  await draw();
}

/** `targets`: where the default goes now, the largest part first. */
function canary(versions, targets, move) {
  const [current, second] = targets.map((one) => one.version);
  const whole = targets.reduce((sum, one) => sum + one.weight, 0), now = second ? Math.round((100 * targets[1].weight) / whole) : 10;
  const others = versions.filter((one) => one !== current).sort((a, b) => b - a);
  if (!current || !others.length) return null;
  const which = h("select", {}, others.map((one) => h("option", { value: one, selected: one === second }, one)));
  const part = h("input", { type: "range", min: 0, max: 100, step: 5, value: now, oninput: () => { shown.value = `${part.value} %`; } });
  const shown = h("output", {}, `${part.value} %`);
  return h("section", { className: "panel" }, h("h2", {}, "Canary"), h("div", { className: "row" }, field("Version", which), field("Its part of the requests", part, shown),
    h("button", { type: "button", onclick: (event) => move([{ version: current, weight: 100 - Number(part.value) }, { version: Number(which.value), weight: Number(part.value) }])(event) }, "Set")));
}
