// Jobs: what trainers do, did, and why it failed.
import { ago, chip, fill, h, num, plural, short, span, table, when } from "./dom.js";
import { complain, doing, get, remove, toast } from "./api.js";
import * as live from "./live.js";
import { confirm, may } from "./app.js";

/** What a job is for. */
export function purpose(j) {
  if (j.extend?.length) return `${plural(j.extend.length, "frame")} into the bank`;
  if (j.retract?.length) return `${plural(j.retract.length, "frame")} out of the bank`;
  if (j.readjust) return "new threshold";
  return "training";
}

/** How far a job is, on a line. */
export function progress(p) {
  if (!p) return "";
  return [p.phase, p.steps ? `${p.step} of ${p.steps}` : "", p.loss !== undefined ? "loss " + num(p.loss) : "", p.frechet !== undefined ? "Fréchet " + num(p.frechet) : "", seconds(p.left) ? seconds(p.left) + " left" : ""].filter(Boolean).join(", ");
}

// Go writes times as 1h2m3.5s.
function seconds(left) {
  const m = /^(?:(\d+)h)?(?:(\d+)m)?(?:([\d.]+)s)?$/.exec(left || "");
  const ms = m ? 1000 * ((m[1] || 0) * 3600 + (m[2] || 0) * 60 + Number(m[3] || 0)) : 0;
  return ms ? span(ms) : "";
}

export function result(j) {
  if (j.error) return [h("b", {}, j.code), " ", j.error, j.attempts ? ` (attempt ${j.attempts} of 5)` : ""];
  return [j.release ? h("a", { class: "mono", href: `#/d/${j.detector}/releases` }, short(j.release)) : null, j.release ? (j.promoted ? " serves or served" : " not promoted") : "",
    j.held ? h("div", {}, j.held) : null, (j.notes || []).map((n) => h("div", { class: "soft" }, n))];
}

export const cancel = (j, after) => doing(async () => {
  if (!await confirm("Cancel the job", `${j.job} ends; what it has learnt since its last checkpoint is lost.`, { word: "Cancel it", danger: true })) return;
  await remove("api/v1/jobs/" + encodeURIComponent(j.job));
  toast("The job is asked to end.");
  after();
});

export async function show(main, _, { signal }) {
  const list = h("div");
  async function draw() {
    const { items } = await get("api/v1/jobs");
    if (signal.aborted) return;
    fill(list, items.length ? h("section", { class: "panel" }, table(["State", "Detector", "For", "Asked", "By", "Result", ""], items.map((j) => [
      chip(j.state), h("a", { href: `#/d/${j.detector}/train` }, j.detector), purpose(j), h("span", { title: when(j.at) }, ago(j.at)), j.by || "",
      h("div", {}, j.state === "running" ? progress(j.progress) : result(j), j.state === "running" && j.progress?.steps ? h("progress", { max: j.progress.steps, value: j.progress.step, "aria-label": "progress" }) : null),
      may("operator") && (j.state === "queued" || j.state === "running") ? h("button", { onclick: cancel(j, () => draw().catch(complain)) }, "Cancel") : "",
    ]))) : h("p", { class: "empty" }, "No jobs yet. A detector's page has the button that trains it; ", h("code", {}, "nearmiss train DETECTOR"), " does the same."));
  }
  fill(main, h("div", { class: "head" }, h("h1", {}, "Jobs")), list);
  await draw();
  let timer = 0;
  live.on("job", () => { timer ||= setTimeout(() => { timer = 0; draw().catch(() => {}); }, 500); }, signal);
  live.on("status", () => draw().catch(() => {}), signal);
}
