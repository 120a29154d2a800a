// What both pages have in common: asking the API, making elements, writing times. Text only ever becomes text.

const meta = (name) => document.querySelector(`meta[name="${name}"]`).content;
export const fleetPath = meta("fleet");
const api = meta("api");
const SVG = "http://www.w3.org/2000/svg";

export const byId = (id) => document.getElementById(id);

// Characters that steer what is shown (controls, directions of writing) are shown themselves.
export function shown(value) {
  return String(value ?? "").replace(/[\p{C}\u2028\u2029]/gu, (letter) => `\\u{${letter.codePointAt(0).toString(16)}}`);
}

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    element.setAttribute(name, value === true ? "" : shown(value));
  }
  element.append(...children.filter((child) => child !== null && child !== undefined)
    .map((child) => (child instanceof Node ? child : shown(child))));
  return element;
}

export const el = (name, attributes = {}, ...children) => fill(document.createElement(name), attributes, children);
export const svg = (name, attributes = {}, ...children) =>
  fill(document.createElementNS(SVG, name), attributes, children);

// Replaces only the children that differ, so that focus, selection and scroll stay.
export function show(parent, ...children) {
  const active = parent.contains(document.activeElement) ? document.activeElement : null;
  const fresh = [...el("div", {}, ...children).childNodes];
  fresh.forEach((child, at) => {
    const old = parent.childNodes[at];
    if (!old) parent.append(child);
    else if (!old.isEqualNode(child)) old.replaceWith(child);
  });
  while (parent.childNodes.length > fresh.length) parent.lastChild.remove();
  if (active && !active.isConnected) counterpart(parent, active)?.focus();
}

const keyOf = (element) => element.getAttribute("href") ?? element.dataset.state ?? element.dataset.host ?? element.dataset.action;
const counterpart = (parent, gone) => [...parent.querySelectorAll(gone.localName)].find((each) => keyOf(each) === keyOf(gone));

export const chip = (state) => el("span", { class: `chip ${state}` }, state);
export const vmPath = (id) => `${fleetPath}/vm/${encodeURIComponent(id)}`;

let skew = 0; // server time less ours, in ms
export const now = () => Date.now() + skew;
export function setNow(ms) {
  skew = ms - Date.now();
}

export function age(ms) {
  const s = Math.max(0, Math.round(ms / 1000));
  if (s < 120) return `${s} s`;
  if (s < 7200) return `${Math.round(s / 60)} min`;
  if (s < 172800) return `${Math.round(s / 3600)} h`;
  return `${Math.round(s / 86400)} d`;
}

// A time that keeps itself up to date; see tick.
export function ago(ms, after = " ago") {
  if (!ms) return el("span", {}, "never");
  const written = el("time", { datetime: new Date(ms).toISOString(), title: new Date(ms).toISOString() });
  written.dataset.ms = ms;
  written.dataset.after = after;
  written.textContent = age(now() - ms) + after;
  return written;
}

export function until(ms) {
  const left = ms - now();
  return left > 0 ? `in ${age(left)}` : "now";
}

export function tick() {
  for (const each of document.querySelectorAll("time[data-ms]")) {
    const text = age(now() - Number(each.dataset.ms)) + each.dataset.after;
    if (each.textContent !== text) each.textContent = text;
  }
}
setInterval(tick, 5000);

const tags = new Map();

export class ApiError extends Error {
  constructor(status, words) {
    super(words);
    this.status = status;
  }
}

// Returns null where nothing has changed since the last time the same was asked for.
export async function ask(path, { always = false } = {}) {
  const headers = !always && tags.has(path) ? { "If-None-Match": tags.get(path) } : {};
  const answer = await fetch(api + path, { headers, cache: "no-store", redirect: "error" });
  if (answer.status === 304) return null;
  const document = await read(answer);
  const tag = answer.headers.get("ETag");
  if (tag) {
    tags.clear(); // one page asks for few things, and forgets what it asked before
    tags.set(path, tag);
  }
  return document;
}

export async function act(path, body) {
  const answer = await fetch(api + path, {
    method: "POST",
    headers: { "Content-Type": "application/json", "X-Fleet-Request": "1", "X-XSRFToken": meta("xsrf") },
    body: JSON.stringify(body),
    redirect: "error",
  });
  return read(answer);
}

async function read(answer) {
  let document = {};
  try {
    document = await answer.json();
  } catch {
    // whoever answered was not the API
  }
  if (!answer.ok) throw new ApiError(answer.status, document.error || `the dashboard answered ${answer.status}`);
  return document;
}

export function connection(words) {
  const bar = byId("connection");
  if (bar.textContent !== words) bar.textContent = words;
  bar.hidden = !words;
}

// Calls `work` now and again; a hidden page asks for nothing. `work` returns after how many ms it wants to be called.
export function poll(work) {
  let timer = 0;
  let busy = false;
  let wanted = false;
  async function round() {
    clearTimeout(timer);
    if (document.hidden) return;
    wanted = busy;
    if (busy) return;
    busy = true;
    let next = 5000;
    try {
      next = await work();
      connection("");
    } catch (error) {
      if (!(error instanceof ApiError)) connection("The dashboard does not answer; what is shown may be old. Trying again…");
      else connection(shown(error.message));
    }
    busy = false;
    timer = setTimeout(round, wanted ? 0 : next);
  }
  document.addEventListener("visibilitychange", round);
  round();
  return round;
}

export function banner(each) {
  const till = each.until_ms ? ` (until ${new Date(each.until_ms).toISOString().slice(0, 16).replace("T", " ")} UTC)` : "";
  return el("p", { class: `banner ${each.level}` }, el("bdi", {}, each.words), till);
}
