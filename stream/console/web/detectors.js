// Detectors: what there is, and a new one.
import { ago, chip, fill, h, num, percent, plural, short } from "./dom.js";
import { complain, get, post, toast } from "./api.js";
import { go, may } from "./app.js";
import { upload } from "./data.js";
import { keys } from "./keys.js";

export async function show(main, [what], { signal }) {
  if (what === "new") { create(main, signal); return; }
  const { items } = await get("api/v1/detectors");
  if (signal.aborted) return;
  if (may("operator")) keys({ create: () => go("detectors", "new") }, signal);
  const neu = may("operator") ? h("a", { class: "button primary", href: "#/detectors/new" }, "New detector") : null;
  fill(main, h("div", { class: "head" }, h("h1", {}, "Detectors"), h("span", { class: "soft" }, plural(items.length, "detector")), h("span", { class: "gap" }), neu),
    items.length ? h("div", { class: "cols" }, items.map(card)) : h("p", { class: "empty" }, "No detectors yet. A detector is one inspection task; it learns from images of good parts only. ", neu ? "Make one with the button above, or with " : "An operator makes one, here or with ", h("code", {}, "nearmiss detector create NAME"), "."));
}

function card(d) {
  const s = d.status || {}, f = d.facts, job = s.last_job;
  const state = s.release ? chip("live", "serving") : job && (job.state === "queued" || job.state === "running") ? chip("running", "learning") : s.normals && d.learn_frames && s.normals < d.learn_frames ? chip("learning", `${s.normals} of ${d.learn_frames} frames`) : chip("no_release");
  return h("section", { class: "panel" },
    h("div", { class: "head" }, h("h2", { style: { margin: 0, minWidth: 0, overflowWrap: "anywhere" } }, h("a", { href: `#/d/${d.name}/tune` }, d.name)), state, d.open ? h("a", { href: `#/alarms?detector=${d.name}` }, chip("open", plural(d.open, "open alarm"))) : null),
    d.description ? h("p", { class: "soft" }, d.description) : null,
    h("dl", { class: "facts" }, [
      ["Release", s.release ? h("span", {}, h("span", { class: "mono" }, short(s.release)), " since " + ago(s.promoted_at).replace(" ago", "")) : "none"],
      ["False alarms", f ? `${percent(f.promised_rate)} promised, ${percent(d.false_alarm_rate)} asked for` : percent(d.false_alarm_rate) + " asked for"],
      ["Method", d.method + (f ? ", k " + f.k : ", k " + d.k)],
      ["Normals", plural(s.normals || 0, "image") + (s.anomalies ? `, ${plural(s.anomalies, "labelled anomaly").replace("anomalys", "anomalies")}` : "")],
      ["Frames", `${num(d.frames_per_second)} a second, ${s.waiting || 0} wait`],
      job ? ["Last job", h("span", {}, chip(job.state), " ", job.error || "")] : null,
    ].filter(Boolean).map(([k, v]) => [h("dt", {}, k), h("dd", {}, v)])),
    (s.retrain || []).map((r) => h("p", {}, chip("warn", "retrain"), " ", r)));
}

const scores = [["", "Full", "every layer of the whole picture, and single patches: small and large differences (the default)"], ["class", "Class", "the paper's: faster, for things that differ in kind"], ["patch", "Patch", "single patches only: small defects on a surface that is always alike"], ["pooled", "Pooled", "the mean of all patches: faster, for changes of the whole picture"]];
const symmetries = [["", "None", "parts always lie alike, and a turned one counts as different"], ["flip", "Mirrored", "may be mirrored: twice the time"], ["dihedral", "Any way", "lies in any orientation, such as cells: eight times the time"], ["auto", "Find out", "looks how the normals lie"]];

function create(main, signal) {
  const name = h("input", { required: true, pattern: "[A-Za-z0-9_\\-]{1,64}", maxlength: 64, autocomplete: "off" }), rule = h("span", { class: "small soft" }, "1 to 64 letters, digits, - and _");
  name.addEventListener("input", () => { const ok = name.validity.valid; rule.textContent = ok || !name.value ? "1 to 64 letters, digits, - and _" : "Only letters, digits, - and _ please"; rule.className = "small " + (ok || !name.value ? "soft" : ""); });
  let files = [];
  const chosen = h("p", { class: "soft" }), report = h("div", { role: "status" });
  const pick = h("input", { type: "file", multiple: true, accept: "image/*,.tif,.tiff,.bmp", "aria-label": "Images of good parts", onchange: () => { files = [...pick.files]; told(); } });
  const drop = h("div", { class: "drop" }, h("p", {}, "Drop images of good parts here, or choose them."), pick, chosen);
  const told = () => { chosen.textContent = files.length ? plural(files.length, "image") + (files.length < 40 ? ": some hundred make a better detector" : "") : ""; };
  drop.addEventListener("dragover", (e) => { e.preventDefault(); drop.classList.add("over"); });
  drop.addEventListener("dragleave", () => drop.classList.remove("over"));
  drop.addEventListener("drop", (e) => { e.preventDefault(); drop.classList.remove("over"); files = [...e.dataTransfer.files]; told(); });
  const frames = h("input", { type: "number", min: 10, max: 100000, value: 120 });
  const radio = (group, v, word, about, on) => h("label", {}, h("input", { type: "radio", name: group, value: v, checked: on }), " ", h("b", {}, word), h("span", { class: "soft" }, about ? ": " + about : ""));
  const from = h("div", { class: "form" }, radio("from", "images", "From images", "that you have", true), drop, radio("from", "camera", "From a camera", "its first frames count as normal"), h("label", { class: "field" }, "Frames to learn from", frames));
  const checked = (g) => form.querySelector(`input[name=${g}]:checked`).value;
  const model = h("select", { "aria-label": "Backbone" }, h("option", { value: "" }, "the trainer's own"));
  get("api/v1/choices").then((c) => {
    model.firstChild.textContent = `the trainer's own: ${c.default}`;
    model.append(...c.backbones.filter((b) => b !== c.default).map((b) => h("option", { value: b }, b)));
  }).catch(() => {}); // no trainer runs: it takes its own
  const button = h("button", { class: "primary" }, "Create and train");
  const form = h("form", {
    class: "panel form", style: { maxWidth: "760px" },
    onsubmit: async (e) => {
      e.preventDefault();
      button.disabled = true;
      try {
        const images = checked("from") === "images";
        if (images && !files.length) { fill(report, chip("warn", "no images"), " Choose images of good parts first."); return; }
        const d = { name: name.value, ...(checked("score") && { score: checked("score") }), ...(checked("symmetry") && { symmetry: checked("symmetry") }), ...(model.value && { backbone: model.value }), ...(!images && { learn_frames: Number(frames.value) }) };
        await post("api/v1/detectors", d);
        if (images) {
          const r = await upload(d.name, files, false, (n) => fill(report, h("progress", { max: files.length, value: n }), ` ${n} of ${files.length} images`));
          if (!r.added) { fill(report, chip("failed", "no image could be read"), r.refused.map((x) => h("div", {}, `${x.file}: ${x.reason}`))); return; }
          await post(`api/v1/detectors/${d.name}/train`);
          if (r.refused.length) toast(`${plural(r.refused.length, "image")} refused: ${r.refused[0].file}: ${r.refused[0].reason}`, { bad: true, ms: 15000 });
        }
        if (!signal.aborted) go("d", d.name, "train");
      } catch (x) { complain(x); } finally { button.disabled = false; }
    },
  }, h("label", { class: "field" }, "Name", name), rule, h("h2", {}, "Learn what is normal"), from,
  h("h2", {}, "What is compared"), scores.map(([v, w, a], i) => radio("score", v, w, a, i === 0)), h("h2", {}, "How parts lie"), symmetries.map(([v, w, a], i) => radio("symmetry", v, w, a, i === 0)), h("label", { class: "field" }, "Backbone, the model that it begins with", model), report, h("div", { class: "actions" }, h("a", { class: "button", href: "#/detectors" }, "Cancel"), button));
  fill(main, h("div", { class: "head" }, h("h1", {}, "New detector")), form);
  name.focus();
}
