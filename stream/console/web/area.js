// What of the picture is looked at: one region, and parts that are ignored.
import { chip, fill, h } from "./dom.js";
import { doing, get, patch, post } from "./api.js";
import { may } from "./app.js";

const round = (v) => Math.round(v * 1000) / 1000;

export async function show(root, d, { signal }) {
  const { items } = await get("api/v1/cameras");
  const cameras = items.filter((c) => c.detector === d.name).sort((a, b) => new Date(b.last_frame || 0) - new Date(a.last_frame || 0));
  if (signal.aborted) return;
  let rects = [...(d.region ? [{ ...d.region, region: true }] : []), ...(d.ignore || []).map((r) => ({ ...r }))], on = -1, drawing = "ignore", start = null;
  const img = h("img", { alt: "the latest frame", draggable: "false" }), stage = h("div", { class: "area", tabindex: 0, role: "application", "aria-label": "Drawing of masked parts. Drag, or press a for a new one and use the arrow keys." }, img);
  const list = h("div"), save = h("button", { class: "primary", disabled: true }, "Save"), note = h("p", { class: "soft" });
  const camera = h("select", { "aria-label": "Camera", onchange: picture }, cameras.map((c) => h("option", {}, c.camera)));
  function picture() {
    if (!cameras.length) return;
    img.onerror = () => {
      if (save.disabled) note.textContent = "The camera sends no frame now: it is asked again. Choose another, or type the numbers.";
      setTimeout(() => { if (!signal.aborted) picture(); }, 3000);
    };
    img.onload = () => { if (save.disabled) note.textContent = ""; };
    img.src = `api/v1/cameras/${d.name}/${camera.value}/frame?w=1280&t=${Date.now()}`;
  }

  const clamp = (r) => { r.width = round(Math.min(1, Math.max(0.01, r.width))); r.height = round(Math.min(1, Math.max(0.01, r.height))); r.x = round(Math.min(1 - r.width, Math.max(0, r.x))); r.y = round(Math.min(1 - r.height, Math.max(0, r.y))); return r; };
  function changed() { save.disabled = !may("operator"); fill(note, chip("warn", "not saved")); draw(); }
  function draw() {
    stage.querySelectorAll(".mask").forEach((e) => e.remove());
    rects.forEach((r, i) => {
      const e = h("button", { type: "button", class: "mask" + (r.region ? " region" : "") + (i === on ? " on" : ""), "aria-label": name(r, i), style: { left: 100 * r.x + "%", top: 100 * r.y + "%", width: 100 * r.width + "%", height: 100 * r.height + "%" } }, i === on ? h("i", {}) : null);
      e.addEventListener("pointerdown", (ev) => grab(ev, i, ev.target.tagName === "I"));
      e.addEventListener("focus", () => { if (on !== i) { on = i; draw(); stage.querySelectorAll(".mask")[i].focus(); } });
      stage.append(e);
    });
    if (list.contains(document.activeElement)) return;
    fill(list, rects.map((r, i) => h("fieldset", { style: { border: 0, padding: 0, margin: "0 0 12px" } }, h("legend", {}, h("b", {}, name(r, i))), h("div", { style: { display: "grid", gridTemplateColumns: "repeat(4, minmax(0, 1fr)) auto", gap: "8px", alignItems: "end" } },
      ["x", "y", "width", "height"].map((k) => h("label", { class: "field" }, k, h("input", { type: "number", min: 0, max: 1, step: 0.01, value: r[k], oninput: (e) => { r[k] = Number(e.target.value); clamp(r); changed(); } }))),
      h("button", { type: "button", "aria-label": "Remove " + name(r, i), onclick: () => { rects.splice(i, 1); on = -1; changed(); } }, "✕")))),
    rects.length ? null : h("p", { class: "soft" }, "The whole picture is looked at. Drag over a part that is to be ignored: a clock, a label, a reflection."));
  }
  const name = (r, i) => (r.region ? "region" : "ignored " + (rects.slice(0, i + 1).filter((x) => !x.region).length));
  const where = (e) => { const b = img.getBoundingClientRect(); return [Math.min(1, Math.max(0, (e.clientX - b.left) / b.width)), Math.min(1, Math.max(0, (e.clientY - b.top) / b.height))]; };
  const drag = (ev, move) => {
    const f = (e) => { move(where(e)); changed(); }, end = () => { removeEventListener("pointermove", f); };
    addEventListener("pointermove", f);
    addEventListener("pointerup", end, { once: true });
  };
  function grab(ev, i, size) {
    ev.stopPropagation();
    if (!may("operator")) return;
    ev.preventDefault();
    on = i;
    const r = rects[i], [x0, y0] = where(ev), was = { ...r };
    drag(ev, ([x, y]) => { if (size) { r.width = was.width + x - x0; r.height = was.height + y - y0; } else { r.x = was.x + x - x0; r.y = was.y + y - y0; } clamp(r); });
    draw();
    stage.querySelectorAll(".mask")[i]?.focus();
  }
  stage.addEventListener("pointerdown", (e) => {
    if (!may("operator") || e.button) return;
    e.preventDefault();
    stage.focus();
    start = where(e);
    const r = add({ x: start[0], y: start[1], width: 0.01, height: 0.01 });
    drag(e, ([x, y]) => { Object.assign(r, { x: Math.min(x, start[0]), y: Math.min(y, start[1]), width: Math.abs(x - start[0]), height: Math.abs(y - start[1]) }); clamp(r); });
  });
  function add(r) {
    if (drawing === "region") { rects = rects.filter((x) => !x.region); rects.unshift({ ...r, region: true }); on = 0; drawing = "ignore"; } else { rects.push(r); on = rects.length - 1; }
    changed();
    return rects[on];
  }
  stage.addEventListener("keydown", (e) => {
    if (!may("operator")) return;
    const r = rects[on], by = { ArrowLeft: [-0.01, 0], ArrowRight: [0.01, 0], ArrowUp: [0, -0.01], ArrowDown: [0, 0.01] }[e.key];
    if (e.key === "r") { drawing = "region"; note.textContent = "Now drag the region that is looked at, or press a."; }
    else if (e.key === "a") { add({ x: 0.4, y: 0.4, width: 0.2, height: 0.2 }); stage.focus(); }
    else if ((e.key === "Delete" || e.key === "Backspace") && r) { rects.splice(on, 1); on = -1; changed(); stage.focus(); }
    else if (by && r) { if (e.shiftKey) { r.width += by[0]; r.height += by[1]; } else { r.x += by[0]; r.y += by[1]; } clamp(r); changed(); (stage.querySelectorAll(".mask")[on] || stage).focus(); }
    else return;
    e.preventDefault();
    e.stopPropagation();
  });
  save.addEventListener("click", doing(async () => {
    const plain = ({ x, y, width, height }) => ({ x, y, width, height });
    const region = rects.find((r) => r.region), ignore = rects.filter((r) => !r.region).map(plain);
    d = await patch(`api/v1/detectors/${d.name}`, { region: region ? plain(region) : null, ignore: ignore.length ? ignore : null }, d.revision);
    save.disabled = true;
    fill(note, chip("ok", "saved"), " It acts with the next training.");
  }));
  const now = h("button", { disabled: !may("operator"), onclick: doing(async () => { await post(`api/v1/detectors/${d.name}/train`); location.hash = `#/d/${d.name}/train`; }) }, "Train now");
  fill(root, h("div", { class: "cols" },
    h("section", { class: "panel" }, h("div", { class: "head" }, h("h2", { style: { margin: 0 } }, "Area"), h("span", { class: "gap" }), cameras.length ? camera : null, cameras.length ? h("button", { onclick: picture }, "New frame") : null),
      cameras.length ? stage : h("p", { class: "empty" }, "No camera has sent a frame to this detector. Type the numbers, or start a camera."), note),
    h("section", { class: "panel" }, h("h2", {}, "Parts"), list, h("p", { class: "small soft" }, "Drag: ignore a part. ", h("kbd", {}, "r"), " then drag: the region that is looked at. ", h("kbd", {}, "a"), " adds one; arrows move, Shift and arrows resize, Delete removes. Numbers are shares of the picture's width and height."),
      h("div", { class: "actions" }, now, h("button", { disabled: !may("operator"), onclick: () => { add({ x: 0.4, y: 0.4, width: 0.2, height: 0.2 }); } }, "Add"), save))));
  picture();
  draw();
}
