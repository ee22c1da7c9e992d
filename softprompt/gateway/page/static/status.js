// What both services say of themselves.
import { get, h, replace, table, time } from "./lib.js";

const line = (name, value) => (value === null || value === undefined || value === "" ? null : [name, typeof value === "object" ? JSON.stringify(value) : String(value)]);

export async function status(main, { signal }) {
  const { trainer, inference, replicas } = await get("/api/status", signal);
  const section = (title, { info, error }, lines) => h("section", { className: "panel" }, h("h2", {}, title),
    error ? h("p", { className: "bad" }, error) : h("p", { className: "good" }, "reachable"), info ? table(null, lines(info).filter(Boolean)) : null);
  replace(main, h("h1", {}, "Status"),
    section("Trainer", trainer, (info) => [line("Software", info.software_version), line("Base models", info.base_models.map((one) => one.id).join(", ")),
      line("Unavailable", info.unavailable_base_models.map((one) => `${one.id}: ${one.reason}`).join("; ")), line("Queued jobs", info.queued_jobs), line("Running jobs", info.running_jobs), line("Workers", info.num_workers),
      ...Object.entries(info.limits ?? {}).map(([name, value]) => line(name.replaceAll("_", " "), value))]),
    section("Inference", inference, (info) => [line("Base model", info.base_model?.id), ...Object.entries({ ...info, ...info.limits }).filter(([, value]) => typeof value !== "object").map(([name, value]) => line(name.replaceAll("_", " "), value))]),
    h("section", { className: "panel" }, h("h2", {}, "Replicas"), replicas.error ? h("p", { className: "bad" }, replicas.error)
      : table(["Replica", "Base model", "Last report"], replicas.info.map((one) => [one.id, one.base_model, time(one.update_time)]), "None is alive, or no prompt is published yet.")));
}
