// Images that a detector learns from, and labelled anomalies.
import { bytes, chip, fill, h, num, plural, when } from "./dom.js";
import { Problem, complain, doing, get, remove, toast } from "./api.js";
import { keys } from "./keys.js";
import { confirm, dialog, may } from "./app.js";

/** Sends files, a few at a time; told gets how many have gone. */
export async function upload(detector, files, anomalies, told) {
  const all = { added: 0, refused: [] };
  for (let i = 0; i < files.length; i += 8) {
    const form = new FormData();
    for (const f of files.slice(i, i + 8)) form.append("image", f, f.webkitRelativePath || f.name);
    const r = await fetch(`api/v1/detectors/${detector}/normals${anomalies ? "?anomalies=true" : ""}`, { method: "POST", body: form });
    const v = await r.json();
    if (!r.ok) throw new Problem(r.status, v);
    all.added += v.added;
    all.refused.push(...v.refused);
    told(Math.min(files.length, i + 8));
  }
  return all;
}

export async function show(root, d, { signal }) {
  let anomalies = false, items = [], next = "", total = 0;
  const picked = new Set();
  const grid = h("div", { class: "grid" }), count = h("span", { class: "soft" }), report = h("div", { role: "status" });
  const tab = (v, word) => h("button", { "aria-pressed": String(v === anomalies), onclick: (e) => { anomalies = v; for (const b of e.currentTarget.parentNode.querySelectorAll("[aria-pressed]")) b.setAttribute("aria-pressed", b === e.currentTarget); load().catch(complain); } }, word);
  const path = (cursor) => `api/v1/detectors/${d.name}/normals?limit=200${anomalies ? "&anomalies=true" : ""}${cursor ? "&cursor=" + cursor : ""}`;
  const strange = h("select", { "aria-label": "Order", onchange: () => load().catch(complain) }, h("option", { value: "" }, "Newest first"), h("option", { value: "strange" }, "Strangest first"));
  const drop = h("button", { class: "danger", disabled: true, onclick: doing(removePicked) }, "Remove selected");

  // Of the serving bank, by how unlike the rest each is.
  async function strangest() {
    const o = await get(`api/v1/detectors/${d.name}/outliers?limit=200`);
    return { total: o.total, items: o.outliers.filter((n) => n.sequence).map((n) => ({ sequence: n.sequence, origin: `score ${num(n.score)} against the rest of the bank`, score: n.score })) };
  }
  async function load() {
    strange.hidden = anomalies;
    const v = strange.value && !anomalies ? await strangest() : await get(path());
    if (signal.aborted) return;
    items = v.items; next = v.next || ""; total = v.total; picked.clear();
    draw();
  }
  async function older() {
    const v = await get(path(next));
    items.push(...v.items);
    next = v.next || "";
    draw();
  }
  function draw() {
    fill(count, strange.value && !anomalies ? `the ${items.length} strangest of ${plural(total, "normal")} in the bank` : plural(total, anomalies ? "labelled image" : "normal"), picked.size ? `, ${picked.size} selected` : "");
    drop.disabled = !picked.size;
    fill(grid, items.map((n) => h("button", {
      class: "cell", "aria-pressed": String(picked.has(n.sequence)), title: [n.origin, n.source, n.stored_at && when(n.stored_at), n.bytes && bytes(n.bytes)].filter(Boolean).join(", "),
      "aria-label": `image ${n.sequence}: ${n.origin}`,
      onclick: () => { if (!picked.delete(n.sequence)) picked.add(n.sequence); draw(); },
      ondblclick: () => big(n),
    }, n.problem ? h("span", { class: "chip failed" }, n.problem) : h("img", { alt: "", loading: "lazy", src: `api/v1/detectors/${d.name}/normals/${n.sequence}?w=160`, onerror: (e) => e.target.replaceWith(h("span", { class: "chip failed" }, "no longer there")) }), n.score !== undefined ? h("span", { class: "num score" }, num(n.score)) : null)));
    if (!items.length) fill(grid);
    fill(foot, items.length ? next ? h("button", { onclick: doing(older) }, "Older") : null : h("p", { class: "empty" }, anomalies ? "None. Confirmed alarms come here; they help to judge the next model." : "No normals yet. Drop images of good parts above, take frames of a camera on its page, or run nearmiss normals add."));
  }
  const big = (n) => dialog("Image " + n.sequence, (close) => [h("div", { class: "stage" }, h("div", { class: "sheet" }, h("img", { alt: n.origin, src: `api/v1/detectors/${d.name}/normals/${n.sequence}` }))), h("p", { class: "soft small" }, [n.origin, n.source, n.camera, n.stored_at && when(n.stored_at), n.bytes && bytes(n.bytes)].filter(Boolean).join(" · ")), h("div", { class: "actions" }, h("button", { class: "primary", onclick: () => close() }, "Close"))]);
  async function removePicked() {
    if (!picked.size || !may("operator")) return;
    if (!await confirm("Remove images", `${plural(picked.size, "image")} go for good. The next training does without them; the serving bank keeps them until then.`, { word: "Remove", danger: true })) return;
    for (const s of picked) await remove(`api/v1/detectors/${d.name}/normals/${s}`);
    toast(plural(picked.size, "image") + " removed");
    await load();
  }
  const foot = h("div");
  const add = doing(async (e) => {
    const files = [...(e.dataTransfer?.files || pick.files)];
    if (!files.length) return;
    const r = await upload(d.name, files, anomalies, (n) => fill(report, h("progress", { max: files.length, value: n }), ` ${n} of ${files.length}`));
    fill(report, r.added ? h("p", {}, chip("ok", plural(r.added, "image") + " added")) : null, r.refused.map((x) => h("p", {}, chip("failed", "refused"), ` ${x.file}: ${x.reason}`)));
    pick.value = "";
    await load();
  });
  const pick = h("input", { type: "file", multiple: true, accept: "image/*,.tif,.tiff,.bmp", onchange: add, "aria-label": "Images to add" });
  const zone = h("div", { class: "drop" }, h("p", {}, "Drop images here, or choose them."), pick);
  zone.addEventListener("dragover", (e) => { e.preventDefault(); zone.classList.add("over"); });
  zone.addEventListener("dragleave", () => zone.classList.remove("over"));
  zone.addEventListener("drop", (e) => { e.preventDefault(); zone.classList.remove("over"); add(e); });
  fill(root, h("div", { class: "head" }, tab(false, "Normals"), tab(true, "Labelled anomalies"), count, h("span", { class: "gap" }), strange, may("operator") ? [h("button", { onclick: () => { location.href = `api/v1/detectors/${d.name}/normals.zip${anomalies ? "?anomalies=true" : ""}`; } }, "Download all"), drop] : null), may("operator") ? h("div", { class: "panel" }, zone, report) : null, grid, foot);
  await load();
  keys({ select: () => document.activeElement?.classList.contains("cell") && document.activeElement.click() }, signal);
  addEventListener("keydown", (e) => { if (e.key === "Delete" && !document.querySelector("dialog[open]") && !/^(INPUT|SELECT)$/.test(e.target.tagName)) removePicked().catch(complain); }, { signal });
}
