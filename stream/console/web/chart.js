// Charts: the strip of a tile, drawn here, and everything with axes, by uPlot.
import { num } from "./dom.js";

// What light-dark() comes to is known of an element only.
const probe = document.createElement("span");
probe.hidden = true;
document.body.append(probe);
export function colour(name) {
  probe.style.color = `var(${name})`;
  return getComputedStyle(probe).color;
}

/** Draws a tile's strip: ticks are [highest score, threshold, alarms]. */
export function strip(canvas, ticks) {
  const ratio = devicePixelRatio || 1, w = canvas.clientWidth, hgt = canvas.clientHeight;
  if (!w) return;
  if (canvas.width !== Math.round(w * ratio)) { canvas.width = Math.round(w * ratio); canvas.height = Math.round(hgt * ratio); }
  const g = canvas.getContext("2d");
  g.setTransform(ratio, 0, 0, ratio, 0, 0);
  g.clearRect(0, 0, w, hgt);
  if (!ticks.length) return;
  const threshold = ticks[ticks.length - 1][1];
  let most = threshold * 1.5 || 0;
  for (const t of ticks) most = Math.max(most, t[0]);
  const top = 10, y = (v) => hgt - 2 - (hgt - top - 2) * Math.min(1, v / (most || 1)), step = w / 240, x0 = w - ticks.length * step;
  const c = { line: colour("--soft"), alarm: colour("--alarm"), accent: colour("--accent") };
  g.strokeStyle = c.accent;
  g.lineWidth = 1.25;
  g.beginPath();
  ticks.forEach((t, i) => g.lineTo(x0 + i * step, y(t[0])));
  g.stroke();
  if (threshold) {
    g.strokeStyle = c.line;
    g.lineWidth = 1;
    g.setLineDash([4, 3]);
    g.beginPath();
    g.moveTo(0, y(threshold));
    g.lineTo(w, y(threshold));
    g.stroke();
    g.setLineDash([]);
  }
  g.fillStyle = c.alarm;
  ticks.forEach((t, i) => {
    if (!t[2]) return;
    const x = x0 + i * step;
    g.beginPath();
    g.moveTo(x, 1);
    g.lineTo(x - 4, 8);
    g.lineTo(x + 4, 8);
    g.fill();
    g.fillRect(x - 0.75, y(t[0]), 1.5, hgt - y(t[0]));
  });
}

const two = (n) => String(n).padStart(2, "0");
function clock(u, all) {
  const seconds = all.length > 1 && all[1] - all[0] < 60;
  return all.map((t) => { const d = new Date(t * 1000); return two(d.getHours()) + ":" + two(d.getMinutes()) + (seconds ? ":" + two(d.getSeconds()) : ""); });
}

/** A chart with axes in e; series: [{label, colour, dash, fill, bars, points}, …].
    Returns the uPlot, which goes when signal ends. */
export function chart(e, { data, series, x = {}, y = {}, height = 200, time = false, log = false, marks, signal, label }) {
  const axis = (o) => ({ stroke: colour("--soft"), grid: { stroke: colour("--line"), width: 1 }, ticks: { stroke: colour("--line"), width: 1 }, font: "12px system-ui", ...o });
  e.setAttribute("role", "img");
  if (label) e.setAttribute("aria-label", label);
  const opts = {
    width: Math.max(240, e.clientWidth), height, cursor: { drag: { x: false, y: false } }, legend: { live: false },
    scales: { x: { time, distr: log ? 3 : 1, ...(x.range ? { range: x.range } : {}) }, y: { range: y.range || ((u, lo, hi) => [Math.min(0, lo ?? 0), (hi || 1) * 1.08]) } },
    axes: [axis({ label: x.label, labelSize: x.label ? 20 : 0, labelFont: "12px system-ui", ...(time ? { values: clock } : { values: (u, v) => v.map((n) => n === null ? "" : num(n)) }), ...(log ? { space: 48 } : {}) }),
      axis({ size: 52, label: y.label, labelSize: y.label ? 20 : 0, labelFont: "12px system-ui", values: (u, v) => v.map(num) })],
    series: [{}, ...series.map((s) => ({
      label: s.label, stroke: s.colour, width: s.width ?? 1.5, dash: s.dash, fill: s.fill, points: { show: !!s.points, size: 8, fill: s.colour },
      paths: s.bars ? uPlot.paths.bars({ size: [0.95, 60], align: 1 }) : s.points === "only" ? () => null : undefined,
    }))],
    hooks: { draw: marks ? [(u) => marks(u)] : [] },
  };
  e.replaceChildren();
  const u = new uPlot(opts, data, e);
  const watch = new ResizeObserver(() => u.setSize({ width: Math.max(240, e.clientWidth), height }));
  watch.observe(e);
  signal?.addEventListener("abort", () => { watch.disconnect(); u.destroy(); });
  return u;
}

/** Draws a vertical line at a value, with a word. */
export function mark(u, v, word, c, dash = []) {
  const x = Math.round(u.valToPos(v, "x", true)), g = u.ctx, b = u.bbox;
  if (!(x >= b.left && x <= b.left + b.width)) return;
  g.save();
  g.strokeStyle = g.fillStyle = c;
  g.lineWidth = 2 * devicePixelRatio;
  g.setLineDash(dash);
  g.beginPath();
  g.moveTo(x, b.top);
  g.lineTo(x, b.top + b.height);
  g.stroke();
  g.font = `600 ${12 * devicePixelRatio}px system-ui`;
  const left = x > b.left + b.width * 0.7;
  g.textAlign = left ? "right" : "left";
  g.fillText(word, x + (left ? -6 : 6) * devicePixelRatio, b.top + 14 * devicePixelRatio);
  g.restore();
}

/** Counts of values between edges, which ascend. */
export function histogram(values, edges) {
  const counts = edges.map(() => 0);
  for (const v of values) {
    let i = 0;
    while (i + 1 < edges.length && v >= edges[i + 1]) i++;
    if (v >= edges[0]) counts[Math.min(i, edges.length - 1)]++;
  }
  return counts;
}

/** Edges of n bins, evenly apart; in logarithm where the values span a wide range. */
export function edgesOf(lo, hi, n) {
  lo = Math.max(lo, 1e-9);
  const wide = hi / lo > 30;
  return { log: wide, edges: Array.from({ length: n + 1 }, (_, i) => (wide ? lo * (hi / lo) ** (i / n) : lo + (hi - lo) * i / n)) };
}
