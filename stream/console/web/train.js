// Training: the job that runs, what the last one found, and a button for the next.
import { ago, chip, facts, fill, h, plural, when } from "./dom.js";
import { complain, doing, get, post, toast } from "./api.js";
import * as live from "./live.js";
import { chart, colour } from "./chart.js";
import { cancel, progress, purpose, result } from "./jobs.js";
import { may } from "./app.js";

export async function show(root, d, { signal }) {
  const job = h("div"), curves = h("div");
  let drawn = "";
  const method = h("select", { "aria-label": "Method" }, [["", "as configured: " + d.method], ["knn", "knn: seconds"], ["fitymi", "fitymi: tunes the model on near-normal fakes, minutes"]].map(([v, w]) => h("option", { value: v }, w)));
  const force = h("input", { type: "checkbox" });
  const start = doing(async () => {
    const j = await post(`api/v1/detectors/${d.name}/train`, { ...(method.value && { method: method.value }), ...(force.checked && { force: true }) });
    toast("job " + j.job + " is in the queue");
    await draw();
  });

  async function draw() {
    const { items } = await get("api/v1/jobs?detector=" + d.name);
    if (signal.aborted) return;
    const j = items.find((x) => x.state === "running" || x.state === "queued") || items[0];
    if (!j) { fill(job, h("p", { class: "soft" }, "This detector has never been trained.")); return; }
    const p = j.progress, busy = j.state === "running" || j.state === "queued";
    fill(job, h("p", {}, chip(j.state), ` ${purpose(j)}, asked for ${ago(j.at)}${j.by ? " by " + j.by : ""}${j.reason ? ": " + j.reason : ""}`),
      busy && p ? [h("p", {}, progress(p)), p.steps ? h("progress", { max: p.steps, value: p.step, "aria-label": p.phase }) : null] : null,
      !busy ? h("div", {}, result(j)) : null,
      facts(["Job", h("span", { class: "mono" }, j.job)], ["Trainer", j.trainer], ["Normals", j.normals], ["Left out", j.skipped ? plural(j.skipped, "image") + " that could not be read" : ""], ["Attempts", j.attempts > 1 ? j.attempts + " of 5" : ""], ["Ended", j.finished_at ? when(j.finished_at) : ""]),
      busy && may("operator") ? h("div", { class: "actions" }, h("button", { class: "danger", onclick: cancel(j, () => draw().catch(complain)) }, "Cancel …")) : null);
    const h1 = await get(`api/v1/jobs/${encodeURIComponent(j.job)}/history`);
    if (signal.aborted) return;
    const key = j.job + h1.items.length;
    if (key === drawn) return;
    drawn = key;
    const points = h1.items, has = (k) => points.filter((x) => x[k] !== undefined).length > 1;
    const parts = [];
    for (const [k, word] of [["loss", "Loss"], ["frechet", "Fréchet distance"], ["ratio", "Ratio: 0 as two halves of the normals, 1 as noise"]]) {
      if (!has(k)) continue;
      const e = h("div", { class: "chart" }), some = points.filter((x) => x[k] !== undefined);
      parts.push(h("h3", {}, word), e);
      setTimeout(() => !signal.aborted && chart(e, { time: true, height: 160, signal, label: word, data: [some.map((x) => new Date(x.at) / 1000), some.map((x) => x[k])], series: [{ label: word, colour: colour("--accent") }] }));
    }
    const sheet = points.some((x) => x.frechet !== undefined) ? h("section", { class: "panel" }, h("h2", {}, "What the generator draws"), h("img", { alt: "contact sheet of the generator's samples", style: { maxWidth: "100%" }, src: `api/v1/jobs/${encodeURIComponent(j.job)}/sheet.jpg?t=${points.length}`, onerror: (e) => e.target.closest("section").remove() })) : null;
    fill(curves, parts.length ? h("section", { class: "panel" }, h("h2", {}, "Curves"), parts) : null, sheet);
  }
  const s = d.status || {};
  fill(root, h("div", { class: "cols" },
    h("section", { class: "panel" }, h("h2", {}, "Job"), job),
    h("section", { class: "panel" }, h("h2", {}, "Train"), facts(["Normals", s.normals || 0], ["Labelled anomalies", s.anomalies || 0], ["New since the last training", s.last_job?.normals ? Math.max(0, (s.normals || 0) - s.last_job.normals) : ""], ["Learns with", `score ${d.score || "full"}, symmetry ${d.symmetry || "none"}`]),
      may("operator") ? h("div", { class: "form", style: { marginTop: "12px" } }, h("label", { class: "field" }, "Method", method), h("label", {}, force, " also replace a release that would be better by its own promise"),
        h("div", { class: "actions" }, h("button", { class: "primary", onclick: start, disabled: !s.normals }, "Train"))) : null,
      s.normals ? null : h("p", { class: "soft" }, "There is nothing to learn from yet: add normals on the Data tab."))), curves);
  await draw();
  let timer = 0;
  live.on("job", (p) => { if (p.detector === d.name) timer ||= setTimeout(() => { timer = 0; draw().catch(() => {}); }, 500); }, signal);
  live.on("status", () => draw().catch(() => {}), signal);
}
