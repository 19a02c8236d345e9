// Audit: who changed what.
import { chip, fill, h, table, when } from "./dom.js";
import { complain, doing, get } from "./api.js";
import { dialog, may } from "./app.js";

export async function show(main, _, { signal }) {
  if (!may("admin")) { fill(main, h("div", { class: "head" }, h("h1", {}, "Audit")), h("p", { class: "empty" }, "Only an admin sees this.")); return; }
  const list = h("div"), foot = h("div");
  let items = [], next = "";
  const by = h("input", { type: "search", placeholder: "Person, identity", "aria-label": "Person or identity", onchange: () => load().catch(complain) });
  const object = h("input", { type: "search", placeholder: "detector/bolts", "aria-label": "Object", onchange: () => load().catch(complain) });
  const failed = h("input", { type: "checkbox", onchange: () => load().catch(complain) });
  const path = (cursor) => "api/v1/audit?" + new URLSearchParams({ limit: 100, ...(by.value.trim() && { by: by.value.trim() }), ...(object.value.trim() && { object: object.value.trim() }), ...(failed.checked && { failed: "true" }), ...(cursor && { cursor }) });
  const json = (v) => h("pre", { class: "mono scroll", tabindex: 0 }, JSON.stringify(v, null, 2));
  const look = (e) => dialog(`${e.action} ${e.object}`, (close) => [
    e.error ? h("p", {}, chip("failed", e.result), " ", e.error) : null, e.before ? [h("h3", {}, "Before"), json(e.before)] : null, e.after ? [h("h3", {}, "After"), json(e.after)] : null,
    h("div", { class: "actions" }, h("button", { class: "primary", onclick: () => close() }, "Close"))]);
  async function load() {
    const v = await get(path());
    if (signal.aborted) return;
    items = v.items; next = v.next || "";
    draw();
  }
  async function older() {
    const v = await get(path(next));
    items.push(...v.items);
    next = v.next || "";
    draw();
  }
  function draw() {
    fill(list, items.length ? h("section", { class: "panel" }, table(["When", "Who", "What", "Object", "Result", ""], items.map((e) => [
      when(e.at), [h("b", {}, e.by || "–"), e.user || e.identity ? h("div", { class: "soft" }, "proven: " + (e.user || e.identity.slice(0, 12))) : null], e.action, h("span", { class: "mono" }, e.object),
      e.result === "done" ? chip("done") : chip("failed", e.result), e.before || e.after || e.error ? h("button", { onclick: () => look(e) }, "Look") : "",
    ]))) : h("p", { class: "empty" }, "Nothing has been changed yet, or nothing fits."));
    fill(foot, next ? h("button", { onclick: doing(older) }, "Older") : null);
  }
  fill(main, h("div", { class: "head" }, h("h1", {}, "Audit"), h("span", { class: "gap" }), by, object, h("label", {}, failed, " refused only")), list, foot);
  await load();
}
