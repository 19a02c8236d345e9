// The live stream: one EventSource a browser, not a tab. The tab that holds the lock
// listens and tells the others; a browser allows a host six connections, and a stream
// in each tab would leave none for the seventh.

const name = "nm-live " + location.pathname;
const target = new EventTarget();
const kinds = ["hello", "cams", "scores", "event", "verdict", "job", "status", "resync", "away", "back"];
const remembered = {}; // of those that a new tab needs
let channel = null, source = null, away = false, stopped = false;

/** Last values: cams, status, hello. */
export const last = remembered;

export function on(kind, f, signal) { target.addEventListener(kind, (e) => f(e.detail), { signal }); }

function tell(kind, data) {
  if (kind === "hello" || kind === "cams" || kind === "status") remembered[kind] = data;
  if (kind === "away") away = true;
  if (kind === "back" || kind === "hello" || kind === "scores") away = false;
  target.dispatchEvent(new CustomEvent(kind, { detail: data }));
}

export const isAway = () => away;

function listen() {
  source = new EventSource("api/v1/live");
  for (const k of kinds) {
    source.addEventListener(k, (m) => {
      const data = JSON.parse(m.data);
      tell(k, data);
      channel?.postMessage([k, data]);
    });
  }
  let broken = false;
  source.onerror = () => {
    if (!broken) for (const f of [tell, (k, d) => channel?.postMessage([k, d])]) f("away", {});
    broken = true;
    if (source.readyState === EventSource.CLOSED && !stopped) setTimeout(() => !stopped && listen(), 2000);
  };
  source.onopen = () => {
    if (broken) for (const f of [tell, (k, d) => channel?.postMessage([k, d])]) f("back", {});
    broken = false;
  };
}

export function start() {
  if (source || channel) return;
  stopped = false;
  if (!navigator.locks || !window.BroadcastChannel) { listen(); return; } // plain HTTP
  channel = new BroadcastChannel(name);
  channel.onmessage = (m) => {
    const [k, data] = m.data;
    if (k === "who") {
      if (source) for (const [kind, v] of Object.entries(remembered)) channel.postMessage([kind, v]);
    } else tell(k, data);
  };
  channel.postMessage(["who"]);
  navigator.locks.request(name, () => new Promise((done) => {
    if (stopped) { done(); return; }
    listen();
    addEventListener("nm-live-stop", done, { once: true });
  }));
}

/** Ends it: who signs out hears nothing. */
export function stop() {
  stopped = true;
  source?.close();
  channel?.close();
  source = channel = null;
  dispatchEvent(new Event("nm-live-stop"));
}
