// The inbox: alarms, newest first; judge one and the next is there. A row is an
// incident, all of a camera without a pause, or a frame; seq names either.
import { chip, facts, fill, h, num, percent, plural, short, when, words } from "./dom.js";
import { complain, doing, get, post, remove, toast } from "./api.js";
import * as live from "./live.js";
import { keys } from "./keys.js";
import { confirm, dialog, may, undoFor } from "./app.js";

const verdicts = { normal: ["false_alarm", "false alarm"], anomalous: ["confirmed", "confirmed"], seen: ["seen", "seen"], withdrawn: ["open", "taken back"] };
const reasons = [["reflection", "Reflection"], ["dirt", "Dirt"], ["other_product", "Other product"], ["too_sensitive", "Too sensitive"], ["other", "Other"]];
const noPictures = { privacy: "no pictures: the detector keeps none", busy: "no pictures: too many at once", failed: "no pictures: they could not be made", storage: "no pictures: the store was full", expired: "pictures no longer kept" };

export async function show(main, _, { signal, query }) {
  let items = [], next = "", at = -1, open = 0, anchor = -1;
  let rows_ = query.get("rows") ?? "incidents", looked = 0; // looked: the alarm of the incident that is looked at, 0: its peak
  let state = query.get("state") ?? "open", kind = query.get("kind") ?? "anomaly", detector = query.get("detector") || "", camera = query.get("camera") || "", since = 0; // hours
  let heat = Number(localStorage.getItem("nm-heat") ?? 0.7), hidden = false, zoomed = false, shown = 0;
  const picked = new Set();
  let undoing = null; // {events, was: their states, sent: the answer with the token, said: the toast}

  const list = h("div", { role: "listbox", "aria-label": "Alarms", tabindex: 0 }), older = h("div"), view = h("div", { class: "view" });
  const count = h("span", { class: "soft num" });
  const which = (v, f, pairs, label) => h("select", { "aria-label": label, onchange: (e) => { f(e.target.value); load(); } }, pairs.map(([x, w]) => h("option", { value: x, selected: x === v }, w)));
  const detectors = h("select", { "aria-label": "Detector", onchange: (e) => { detector = e.target.value; camera = ""; drawCameras(); load(); } }, h("option", { value: "" }, "All detectors"));
  const cameras = h("select", { "aria-label": "Camera", onchange: (e) => { camera = e.target.value; load(); } });
  function drawCameras() {
    const names = new Set((live.last.cams || []).filter(([d]) => !detector || d === detector).map(([, c]) => c));
    if (camera) names.add(camera);
    fill(cameras, h("option", { value: "" }, "All cameras"), [...names].sort().map((c) => h("option", { value: c, selected: c === camera }, c)));
  }
  drawCameras();
  live.on("cams", drawCameras, signal);
  main.className = "fill";
  fill(main, h("div", { class: "inbox" }, h("div", { class: "head bar" }, h("h1", {}, "Alarms"), count, h("span", { class: "gap" }),
    which(state, (v) => { state = v; }, [["open", "Open"], ["", "All states"], ["confirmed", "Confirmed"], ["false_alarm", "False alarms"], ["seen", "Seen"]], "State"),
    which(rows_, (v) => { rows_ = v; }, [["incidents", "Incidents"], ["frames", "Each frame"]], "Rows"),
    which(kind, (v) => { kind = v; if (v !== "anomaly") state = ""; }, [["anomaly", "Alarms"], ["rejected", "Rejected frames"], ["drift", "Drift"], ["release", "Releases"], ["disagreement", "Disagreements"], ["camera,lost,store", "Cameras and store"], ["", "All events"]], "Kind"),
    detectors, cameras, which("", (v) => { since = Number(v); }, [["", "Any time"], ["1", "Last hour"], ["24", "Last day"], ["168", "Last week"]], "Since")), h("div", { class: "list" }, list, older), view));

  const grouped = () => rows_ === "incidents" && kind === "anomaly";
  const face = (a) => a.peak || a; // the alarm that a row shows
  const path = (cursor) => (grouped() ? "api/v1/incidents?" : "api/v1/events?") + new URLSearchParams({ limit: 100, ...(kind && !grouped() && { kind }), ...(state && kind === "anomaly" && { state }), ...(detector && { detector }), ...(camera && { camera }), ...(since && { since: new Date(Date.now() - 36e5 * since).toISOString().slice(0, 19) + "Z" }), ...(cursor && { cursor }) });
  let late = []; // what came while the list was asked for
  async function load() {
    late = [];
    looked = 0;
    const e = await get(path());
    if (signal.aborted) return;
    items = e.items; next = e.next || ""; open = e.open; picked.clear();
    at = items.length ? 0 : -1;
    if (grouped()) late.forEach(taken);
    else late.forEach(take);
    drawList();
    await look();
  }
  async function more() {
    if (!next) return;
    const e = await get(path(next));
    next = e.next || "";
    items.push(...e.items.filter((x) => !items.some((y) => y.sequence === x.sequence)));
    drawList();
  }

  const rows = new Map(); // sequence → [what it shows, element]: pictures are not loaded again
  function row(a, i) {
    const shows = [i === at, picked.has(a.sequence), a.state, a.pending, a.alarms, a.open, face(a).sequence, a.ongoing, a.last_at].join();
    const old = rows.get(a.sequence);
    if (old?.[0] === shows) return old[1];
    const e = makeRow(a, i === at);
    if (old?.[1].firstChild.tagName === "IMG" && old[1].firstChild.dataset.of === String(face(a).sequence)) e.firstChild.replaceWith(old[1].firstChild);
    rows.set(a.sequence, [shows, e]);
    return e;
  }
  function makeRow(a, on) {
    const f = face(a), ratio = f.score !== undefined && f.threshold ? num(f.score / f.threshold) + " × threshold" : "";
    const many = a.peak && (a.alarms > 1 || a.rejected) ? plural(a.alarms, "alarm") + (a.open && a.open < a.alarms ? `, ${a.open} open` : "") + (a.rejected ? `, ${a.rejected} unreadable` : "") : "";
    return h("div", {
      class: "row" + (on ? " on" : "") + (picked.has(a.sequence) ? " picked" : ""), role: "option", id: "row-" + a.sequence, "aria-selected": String(on),
      onclick: (e) => {
        const i = items.indexOf(a);
        if (e.shiftKey) extend(i);
        else { at = i; looked = 0; drawList(); look().catch(complain); }
      },
    },
    thumb(f),
    h("div", { style: { minWidth: 0 } }, h("div", { class: "who", title: a.detector + " / " + a.camera }, a.camera === "-" ? a.detector : a.camera), h("div", { class: "what" }, [a.camera === "-" ? "" : a.detector, a.reason].filter(Boolean).join(": ")),
      h("div", { class: "what num" }, many ? many + " · " : "", ratio, f.p_value !== undefined && !many ? " · p " + num(f.p_value) : "")),
    h("div", { class: "side" }, h("span", { class: "num" }, when(a.last_at || a.scored_at)), f.kind === "anomaly" ? chip(a.state, a.pending ? words[a.state] + " …" : null) : null, a.ongoing ? h("span", {}, "goes on") : null));
  }
  const thumb = (a) => a.pictures ? h("img", { class: "thumb", alt: "", loading: "lazy", "data-of": a.sequence, src: `api/v1/events/${a.sequence}/pictures/thumbnail.jpg`, onerror: (e) => e.target.replaceWith(h("span", { class: "thumb" }, "no picture")) })
    : h("span", { class: "thumb" }, a.kind === "anomaly" ? (noPictures[a.no_pictures] || "no pictures").replace("no pictures: ", "no picture: ") : words[a.kind] || a.kind);
  function drawList() {
    fill(count, kind === "anomaly" ? (grouped() ? plural(open, "incident") : open.toLocaleString("en")) + " open" + (picked.size ? `, ${picked.size} selected` : "") : "");
    fill(list, items.map(row));
    fill(older, next ? h("button", { onclick: doing(more), style: { margin: "12px" } }, "Older") : null);
    if (!items.length) {
      const none = h("p", { class: "empty" }, state === "open" && kind === "anomaly" ? "No open alarms." : "Nothing here.");
      fill(older, none);
      if (state === "open" && kind === "anomaly") get("api/v1/events?kind=anomaly&limit=1").then(({ items: [a] }) => a && none.append(` The last alarm was at ${when(a.scored_at)}.`)).catch(() => {});
    }
    list.setAttribute("aria-activedescendant", at >= 0 ? "row-" + items[at].sequence : "");
    list.querySelector(".row.on")?.scrollIntoView({ block: "nearest" });
  }
  function move(by) {
    if (!items.length) return;
    at = Math.max(0, Math.min(items.length - 1, at + by));
    looked = 0;
    drawList();
    look().catch(complain);
    if (at > items.length - 5) more().catch(complain);
  }
  function extend(to) {
    if (anchor < 0) anchor = at;
    const [a, b] = [Math.min(anchor, to), Math.max(anchor, to)];
    for (let i = a; i <= b; i++) picked.add(items[i].sequence);
    at = to;
    looked = 0;
    drawList();
    look().catch(complain);
  }

  async function look() {
    const a = items[at];
    if (!a) {
      shown = 0;
      fill(view, h("div", { class: "empty" }, h("p", {}, state === "open" && kind === "anomaly" ? "No open alarms. New ones appear here by themselves." : "Nothing to show."), h("p", {}, "To see one, hold something unusual before a camera, or run ", h("code", {}, "nearmiss camera synthetic:parts --detector parts --camera line1 --defects 0.3"))));
      return;
    }
    const n = looked || face(a).sequence;
    if (shown === n) return;
    if (!view.childElementCount) fill(view, h("p", { class: "empty" }, "Loading …"));
    const [e, whole] = await Promise.all([get(`api/v1/events/${n}`), a.peak && a.alarms > 1 && get(`api/v1/incidents/${a.sequence}`)]);
    if (signal.aborted || items[at]?.sequence !== a.sequence || n !== (looked || face(a).sequence)) return;
    shown = n;
    drawView(e, a, whole);
  }
  // The alarms of an incident, to look at each.
  const strip = h("div");
  function drawStrip(whole) {
    const had = strip.contains(document.activeElement) && document.activeElement.dataset.of;
    const all = whole.events.filter((x) => x.kind === "anomaly");
    fill(strip, h("p", { class: "soft small" }, `${plural(whole.alarms, "alarm")} from ${when(whole.opened_at)} to ${when(whole.last_at)}: a verdict is about ${whole.open && whole.open < whole.alarms ? `the ${whole.open} that are open` : "all of them"}.`,
      all.length < whole.alarms ? ` The last ${all.length} are shown.` : ""),
    h("div", { class: "strip", role: "group", "aria-label": "Alarms of the incident" }, all.map((x) => h("button", {
      "data-of": x.sequence, "aria-pressed": String(x.sequence === shown), title: `${when(x.scored_at)}, ${words[x.state]}`, "aria-label": `${num(x.score / x.threshold)} × threshold at ${when(x.scored_at)}, ${words[x.state]}`,
      onclick: () => { looked = x.sequence; look().catch(complain); },
    }, thumb(x), h("span", { class: "num" }, num(x.score / x.threshold), " ×")))));
    if (had) strip.querySelector(`[data-of="${had}"]`)?.focus();
  }

  function drawView(e, a, whole) {
    const overlay = e.files.find((f) => f.name === "heat.png") || e.files.find((f) => f.name === "overlay.jpg"), normals = e.files.filter((f) => f.name.startsWith("normal-"));
    const image = e.evidence ? `api/v1/events/${e.sequence}/image` : e.files.some((f) => f.name === "thumbnail.jpg") ? `api/v1/events/${e.sequence}/pictures/thumbnail.jpg` : "";
    const file = (n) => `api/v1/events/${e.sequence}/pictures/${n}`;
    const over = overlay && h("img", { class: "over", alt: "", src: file(overlay.name), style: { opacity: hidden ? 0 : heat } });
    const slider = h("input", { type: "range", min: 0, max: 1, step: 0.05, value: heat, "aria-label": "How strong the heat is shown", oninput: (x) => { heat = Number(x.target.value); hidden = false; localStorage.setItem("nm-heat", heat); if (over) over.style.opacity = heat; } });
    const boxes = e.width ? (e.regions || []).map((r, i) => h("span", { class: "box", style: { left: 100 * r.x / e.width + "%", top: 100 * r.y / e.height + "%", width: 100 * r.width / e.width + "%", height: 100 * r.height / e.height + "%" } }, h("b", {}, `${i + 1} · ${num(r.peak)}${r.faint ? " faint" : ""}`))) : [];
    const stage = h("div", { class: "stage", tabindex: 0, role: "region", "aria-label": "The frame" }, image ? h("div", { class: "sheet", style: { width: zoomed || !e.width ? "" : `min(100%, calc(60vh * ${e.width} / ${e.height}))` } }, h("img", { class: "base", alt: `frame ${e.frame_id || ""} of ${e.camera}`, src: image, onerror: () => fill(stage, h("span", {}, "the picture is no longer kept")) }), over, boxes) : h("span", {}, noPictures[e.no_pictures] || "no picture"));
    const panes = e.kind === "anomaly" || image ? h("div", { class: "panes" + (zoomed ? " zoomed" : "") },
      h("section", { class: "pane", "aria-label": "Frame" }, h("header", {}, h("b", {}, "Frame"), overlay ? h("label", {}, "heat ", slider, h("kbd", {}, "h")) : h("span", { class: "soft" }, noPictures[e.no_pictures] || ""), h("span", { class: "gap" })), stage),
      h("section", { class: "pane", "aria-label": "Nearest normals" }, h("header", {}, h("b", {}, "Nearest normals")),
        normals.length ? h("div", { class: "normals", tabindex: 0, role: "group", "aria-label": "Pictures" }, normals.map((f, i) => h("figure", {}, h("img", { alt: f.about, src: file(f.name) }), h("figcaption", {}, e.nearest?.[i] ? "distance " + num(e.nearest[i].distance) : f.about)))) : h("p", { class: "empty" }, "There are no pictures of them."))) : null;
    const job = e.job;
    if (whole) drawStrip(whole); else fill(strip);
    fill(view,
      e.kind === "anomaly" ? h("div", { class: "verdict" }, chip(a.state, a.pending ? words[a.state] + " …" : null), e.by && e.state === a.state ? h("span", { class: "soft small" }, `by ${e.by}${e.note ? ": " + e.note : ""}`) : null, h("span", { class: "gap" }),
        may("operator") ? [
          h("button", { "data-verdict": "normal", onclick: () => judge("normal") }, "False alarm ", h("kbd", {}, "f")), h("button", { onclick: () => judge("anomalous") }, "Confirm ", h("kbd", {}, "c")), h("button", { onclick: () => judge("seen") }, "Seen ", h("kbd", {}, "s")),
          a.state !== "open" && !a.pending ? h("button", { onclick: () => judge("withdrawn") }, "Take back ", h("kbd", {}, "u")) : null,
        ] : null) : null,
      e.state === "false_alarm" && !e.pending ? h("p", { class: "small soft" }, job ? `Enters the bank: job ${words[job.state] || job.state}${job.release ? ", release " + short(job.release) : ""}${job.held ? " – " + job.held : ""}${job.error ? " – " + job.error : ""}` : "Enters the bank with the next job; it did when a later release serves.", " ", e.evidence && may("operator") ? h("button", { onclick: again(e) }, "Score it again") : null) : null,
      strip, panes,
      h("section", { class: "panel" }, h("h2", {}, e.kind === "anomaly" ? "Facts" : words[e.kind] || e.kind), e.reason ? h("p", {}, e.reason) : null, facts(
        ["Camera", e.camera === "-" ? "" : h("a", { href: `#/camera/${e.detector}/${e.camera}` }, e.camera)], ["Detector", h("a", { href: `#/d/${e.detector}/tune` }, e.detector)],
        ["Score", e.score !== undefined ? `${num(e.score)}, threshold ${num(e.threshold)}${e.threshold_by ? " set by " + e.threshold_by : ""}` : ""],
        ["p", e.p_value !== undefined ? `${num(e.p_value)}: ${percent(e.p_value)} of normal images look at least as strange` : ""], ["Smoothed", e.smoothed !== undefined ? num(e.smoothed) : ""],
        ["Taken", e.captured_at ? when(e.captured_at) : ""], ["Scored", when(e.scored_at)], ["Frame", e.frame_id ? h("span", { class: "mono" }, e.frame_id) : ""], ["Source", e.source],
        ["Release", e.release ? h("a", { class: "mono", href: `#/d/${e.detector}/releases` }, short(e.release)) : ""], ["k", e.k], ["Image", e.width ? `${e.width} × ${e.height}` : ""], ["Code", e.code], ["Truth", truth(e.truth)],
        ["Event", h("span", { class: "mono" }, e.id)], ["Alone", whole ? h("a", { href: `#/alarms?rows=frames&event=${e.sequence}` }, "judge this frame by itself") : ""],
      )));
    if (panes && zoomed) together(panes);
  }
  // Would the frame still alarm?
  const again = (e) => doing(async () => {
    const r = await post(`api/v1/events/${e.sequence}/score`), t = `${num(r.score / r.threshold)} × threshold, release ${short(r.release)}`;
    toast(r.anomalous ? `It would still alarm: ${t}` : `It would not alarm any more: ${t}`, { bad: r.anomalous });
  });
  function truth(t) {
    if (!t) return "";
    try { const v = JSON.parse(t); return v.anomalous ? `${v.severity || ""} ${v.defect || "anomalous"}`.trim() : "normal"; } catch { return t; }
  }
  function together(panes) {
    const s = panes.querySelectorAll(".stage, .normals");
    s.forEach((a) => a.addEventListener("scroll", () => s.forEach((b) => { if (a !== b && a.scrollHeight > a.clientHeight) { b.scrollTop = a.scrollTop / (a.scrollHeight - a.clientHeight) * (b.scrollHeight - b.clientHeight); b.scrollLeft = a.scrollLeft; } })));
  }

  // Whoever is first, the answer or the live stream: an alarm is counted once.
  function becomes(a, state, pending) {
    open += (state === "open") - (a.state === "open");
    a.state = state;
    a.pending = pending;
  }
  async function judge(verdict, reason) {
    if (!may("operator")) return;
    const chosen = picked.size ? items.filter((a) => picked.has(a.sequence) && face(a).kind === "anomaly") : items[at] && face(items[at]).kind === "anomaly" ? [items[at]] : [];
    if (!chosen.length) return;
    const many = chosen.reduce((n, a) => n + (a.peak ? (verdict === "withdrawn" ? 0 : a.open) || a.alarms : 1), 0);
    if (many > 20 && !await confirm("Many at once", `${plural(many, "alarm")} become ${verdicts[verdict][1]}.`, { word: words[verdicts[verdict][0]] })) return;
    // On the screen at once; who undoes it before the answer is there waits for that.
    const mine = (undoing = { events: chosen, was: chosen.map((a) => a.state) });
    for (const a of chosen) becomes(a, verdicts[verdict][0], true);
    mine.sent = post("api/v1/verdicts", { [grouped() ? "incidents" : "events"]: chosen.map((a) => a.sequence), verdict, hold: undoFor(), ...(reason && { reason }) });
    picked.clear();
    anchor = -1;
    mine.said = toast(`${many > 1 ? plural(many, "alarm") + ": " : ""}${verdicts[verdict][1]}`, { action: ["Undo (u)", () => undo(mine)], ms: 1000 * Math.max(4, undoFor()) });
    let after = items.findIndex((a, i) => i > at && a.state === "open");
    if (after < 0) after = items.findLastIndex((a, i) => i < at && a.state === "open");
    if (verdict !== "withdrawn" && after >= 0) { at = after; looked = 0; } else shown = 0;
    drawList();
    try {
      const [{ left }] = await Promise.all([mine.sent, look()]);
      if (left) toast(`${plural(left, "alarm")} more of that: say it again for them`);
    } catch (e) {
      complain(e);
      mine.sent.catch(() => notSaid(mine));
    }
  }
  // What was said counts no longer; the first of it is looked at.
  function notSaid(u) {
    if (undoing === u) undoing = null;
    u.said.remove();
    u.events.forEach((a, i) => becomes(a, u.was[i], false));
    at = Math.max(0, items.findIndex((a) => a.sequence === u.events[0].sequence));
    shown = looked = 0;
    drawList();
    return look();
  }
  async function undo(what) {
    const u = what || undoing;
    if (!u) { if (items[at] && items[at].state !== "open") await judge("withdrawn"); return; }
    undoing = null;
    u.said.remove();
    try {
      const { token } = await u.sent;
      await remove("api/v1/verdicts/" + token);
      await notSaid(u);
      toast("taken back");
    } catch (e) {
      if (e.status !== 409) { complain(e); return; }
      picked.clear();
      for (const a of u.events) picked.add(a.sequence);
      await judge("withdrawn");
    }
  }
  const because = () => dialog("Why is it a false alarm?", (close) => {
    const box = h("div", { class: "form" }, reasons.map(([id, word], i) => h("button", { onclick: () => { close(); judge("normal", id); } }, h("kbd", {}, String(i + 1)), word)));
    box.addEventListener("keydown", (e) => { const r = reasons[Number(e.key) - 1]; if (r) { e.preventDefault(); close(); judge("normal", r[0]); } });
    return box;
  });
  function toggleHeat() {
    hidden = !hidden;
    const over = view.querySelector("img.over");
    if (over) over.style.opacity = hidden ? 0 : heat;
  }
  function zoom() {
    zoomed = !zoomed;
    const p = view.querySelector(".panes");
    if (!p) return;
    p.classList.toggle("zoomed", zoomed);
    shown = 0;
    look().catch(complain);
    if (zoomed) together(p);
  }

  function take(e) {
    if (kind && !kind.split(",").includes(e.kind) || detector && e.detector !== detector || camera && e.camera !== camera || state && kind === "anomaly" && e.state !== state) return false;
    if (items.some((a) => a.sequence >= e.sequence)) return false;
    items.unshift(e);
    if (e.kind === "anomaly") open++;
    at = items.length > 1 ? at + 1 : 0; // what is looked at stays
    if (items.length > 2000) items.length = 2000;
    return true;
  }
  function taken(e) {
    if (grouped()) { if (e.incident) touch(e.incident); return; }
    if (!take(e)) return;
    drawList();
    look().catch(complain);
  }
  // What happened to incidents is asked for, several at once.
  const touched = new Set();
  let asking = false;
  async function touch(n) {
    touched.add(n);
    if (asking) return;
    asking = true;
    try {
      while (touched.size && !signal.aborted && grouped()) {
        const all = [...touched];
        touched.clear();
        const got = await get(path());
        const others = all.filter((i) => !got.items.some((x) => x.sequence === i) && items.some((x) => x.sequence === i));
        const more = await Promise.all(others.slice(0, 20).map((i) => get("api/v1/incidents/" + i)));
        if (signal.aborted || !grouped()) return;
        merge([...got.items, ...more]);
        open = got.open;
        drawList();
        look().catch(complain);
        await new Promise((f) => setTimeout(f, 400));
      }
    } catch (e) { if (e.status) complain(e); else throw e; } finally { asking = false; }
  }
  function merge(all) {
    const here = items[at];
    for (const n of all) {
      const a = items.find((x) => x.sequence === n.sequence);
      if (!a) { items.push(n); continue; }
      if (a === here && a.state + a.pending !== n.state + n.pending) { looked ||= shown; shown = 0; } // what is looked at stays
      else if (a === here && a.alarms !== n.alarms) { looked ||= shown; get("api/v1/incidents/" + n.sequence).then((w) => { if (items[at] === a && !signal.aborted) drawStrip(w); }).catch(complain); }
      Object.assign(a, { pending: false, by: "" }, n);
    }
    items.sort((x, y) => (x.last_at < y.last_at ? 1 : x.last_at > y.last_at ? -1 : y.sequence - x.sequence));
    if (items.length > 2000) items.length = 2000;
    at = items.length ? Math.max(0, items.indexOf(here)) : -1;
  }
  live.on("event", (e) => { late.push(e); if (late.length > 500) late.shift(); taken(e); }, signal);
  // What was stored between the list and the beginning of the live stream.
  live.on("hello", () => (grouped() ? touch(0) : get(path()).then((e) => { if (!signal.aborted) [...e.items].reverse().forEach(taken); })).catch(complain), signal);
  live.on("verdict", (v) => {
    if (grouped()) { if (v.incident) touch(v.incident); return; }
    const i = items.findIndex((a) => a.id === v.event);
    if (i < 0) return;
    const was = items[i];
    if (was.state === v.state && Boolean(was.pending) === Boolean(v.pending)) return;
    becomes(was, v.state, v.pending);
    was.by = v.by;
    drawList();
    if (i === at) { shown = 0; look().catch(complain); }
  }, signal);
  live.on("resync", () => load().catch(complain), signal);
  live.on("back", () => load().catch(complain), signal);
  live.on("job", (p) => { if (p.state === "done" && items[at]?.detector === p.detector && items[at]?.state === "false_alarm") { looked ||= grouped() ? shown : 0; shown = 0; look().catch(() => {}); } }, signal);

  keys({
    next: (e) => (e.shiftKey ? extend(Math.min(items.length - 1, at + 1)) : move(1)), previous: (e) => (e.shiftKey ? extend(Math.max(0, at - 1)) : move(-1)),
    falseAlarm: () => judge("normal"), confirm: () => judge("anomalous"), seen: () => judge("seen"), undo: () => undo(), reason: because, heat: toggleHeat, zoom,
    select: () => { const a = items[at]; if (!a) return; if (!picked.delete(a.sequence)) picked.add(a.sequence); anchor = at; drawList(); },
    nearest: () => { const all = [...view.querySelectorAll(".normals figure")]; const i = all.findIndex((x) => x.classList.contains("on")); all.forEach((x) => x.classList.remove("on")); const n = all[(i + 1) % all.length]; n?.classList.add("on"); n?.scrollIntoView({ block: "nearest" }); },
  }, signal);
  list.addEventListener("keydown", (e) => { const by = { ArrowDown: 1, ArrowUp: -1 }[e.key]; if (by) { e.preventDefault(); move(by); } });

  get("api/v1/detectors").then((d) => detectors.append(...d.items.map((x) => h("option", { value: x.name, selected: x.name === detector }, x.name)))).catch(() => {});
  if (query.get("event")) {
    const e = await get("api/v1/events/" + encodeURIComponent(query.get("event")));
    state = "";
    if (e.kind !== "anomaly") kind = "";
    await load();
    if (grouped() && e.incident) looked = e.sequence;
    at = items.findIndex((a) => a.sequence === (grouped() ? e.incident : e.sequence));
    if (at < 0) { items.unshift(looked ? await get("api/v1/incidents/" + e.incident) : e); at = 0; }
    drawList();
    await look();
    return;
  }
  await load();
}
