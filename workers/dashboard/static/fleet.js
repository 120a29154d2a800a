// The Fleet page: numbers, banners and the table, asked for again every two seconds, drawn where they changed.
import { ago, age, ask, banner, byId, chip, el, now, poll, setNow, show, until, vmPath } from "./shared.js";

const EVERY_MS = 2000;
const BANNERS = 4; // the table must not be pushed off the screen
const STATES = ["failed", "orphaned", "unhealthy", "recovering", "unknown", "starting", "degraded", "healthy", "stopped"];
const filter = readAddress();
let drawn = "";

function readAddress() {
  const given = new URLSearchParams(location.search);
  const get = (name, other) => given.get(name) || other;
  return { q: get("q", ""), state: get("state", ""), host: get("host", ""), sort: get("sort", "state"), page: Number(get("page", "1")) || 1 };
}

function asked() {
  const query = new URLSearchParams();
  for (const [name, value] of Object.entries(filter)) {
    if (value && !(name === "sort" && value === "state") && !(name === "page" && value === 1)) query.set(name, value);
  }
  return query.toString();
}

async function refresh() {
  const query = asked();
  const overview = await ask("");
  if (overview) drawOverview(overview);
  if (overview || drawn !== query) {
    const page = await ask(`/vms?${query}`, { always: true });
    if (query === asked()) {
      drawTable(page);
      drawn = query;
    }
  }
  return EVERY_MS;
}

function drawOverview(fleet) {
  if (!fleet.error) setNow(fleet.now_ms);
  const away = fleet.error ? [{ level: "bad", words: `Redis does not answer; this is how the fleet was ${age(now() - fleet.now_ms)} ago` }] : [];
  const more = fleet.more_banners ? [el("p", { class: "muted" }, `and ${fleet.more_banners} more: see \`reliability status\``)] : [];
  const banners = [...away, ...fleet.banners].map(banner);
  const rest = [...banners.slice(BANNERS), ...more];
  const open = byId("banners").querySelector("details")?.open;
  show(byId("banners"), ...banners.slice(0, BANNERS), rest.length ? el("details", { open }, el("summary", {}, "More of it"), ...rest) : null);
  drawStates(fleet.vms);
  drawFigures(fleet.figures, fleet.recoveries);
  drawHosts(fleet.hosts);
}

function drawStates(vms) {
  const tiles = [tile("", "all", vms.total), ...STATES.map((state) => tile(state, state, vms.by_state[state]))];
  show(byId("states"), ...tiles);
}

function tile(state, words, number) {
  const pressed = filter.state === state;
  return el("button", { type: "button", class: `tile ${state} ${number ? "" : "none"}`, "data-state": state, "aria-pressed": String(pressed) },
    el("b", {}, number.toLocaleString("en")), el("span", {}, words));
}

function drawFigures(figures, recoveries) {
  const pair = (name, value) => el("div", {}, el("dt", {}, name), el("dd", {}, value));
  const running = pair("running now", String(recoveries.running));
  if (!figures) {
    show(byId("figures"), running, pair("last day", "being counted…"));
    return;
  }
  const rate = figures.success_rate === null ? "–" : `${(figures.success_rate * 100).toFixed(1)} %`;
  show(byId("figures"), running,
    pair("succeeded", rate),
    pair("recovered", String(figures.recovered)),
    pair("given up", String(figures.failed)),
    pair("mean time to recover", figures.mean_ms === null ? "–" : took(figures.mean_ms)),
    pair("95 % within", figures.p95_ms === null ? "–" : took(figures.p95_ms)),
    figures.from_ms ? pair("counted since", ago(figures.from_ms)) : null);
}

const took = (ms) => (ms < 10000 ? `${(ms / 1000).toFixed(1)} s` : age(ms));

function drawHosts(hosts) {
  const silent = hosts.total - hosts.live;
  const cut = hosts.total > hosts.shown.length ? `; the first ${hosts.shown.length} are shown, those in trouble before the others` : "";
  show(byId("hosts-words"), `${hosts.live} with a live worker, ${silent} without${cut}`);
  show(byId("hosts"), ...hosts.shown.map(host));
}

function host(each) {
  const words = [each.vms === 1 ? "1 VM" : `${each.vms} VMs`];
  if (each.in_trouble) words.push(`${each.in_trouble} in trouble`);
  if (each.held) words.push(each.held);
  const seen = each.live ? null : el("span", { class: "bad" }, each.seen_ms ? "silent, seen " : "never had a worker", each.seen_ms ? ago(each.seen_ms) : null);
  return el("li", {}, el("button", { type: "button", class: "link", "data-host": each.name }, el("bdi", {}, each.name)),
    " ", el("span", { class: "muted" }, words.join(", ")), " ", seen);
}

function drawTable(page) {
  filter.page = page.page;
  const body = document.querySelector("#vms tbody");
  const rows = page.vms.map(row);
  show(body, ...(rows.length ? rows : [el("tr", {}, el("td", { colspan: "6", class: "empty" }, nothing()))]));
  const first = (page.page - 1) * page.per_page;
  show(byId("found"), page.total ? `${page.total.toLocaleString("en")} ${page.total === 1 ? "VM" : "VMs"}, ${first + 1} to ${first + page.vms.length} shown` : "No VM");
  byId("page").textContent = `Page ${page.page} of ${page.pages}`;
  byId("previous").disabled = page.page <= 1;
  byId("next").disabled = page.page >= page.pages;
  for (const head of document.querySelectorAll("#vms th[data-key]")) {
    const key = filter.sort.replace("-", "");
    const order = filter.sort.startsWith("-") ? "descending" : "ascending";
    if (head.dataset.key === key) head.setAttribute("aria-sort", order);
    else head.removeAttribute("aria-sort");
  }
}

function nothing() {
  return asked() ? "No VM fits: clear the filter to see all." : "No VM is registered: declare some with `reliability apply -f FILE`.";
}

function row(vm) {
  const cell = (label, ...children) => el("td", { "data-label": label }, el("span", {}, ...children));
  return el("tr", {},
    cell("VM", el("a", { href: vmPath(vm.id) }, el("bdi", {}, vm.id))),
    cell("State", chip(vm.state), vm.held ? el("span", { class: "held" }, ` ${vm.held}`) : null),
    cell("Since", vm.since_ms ? ago(vm.since_ms, "") : ""),
    cell("Host", el("bdi", {}, vm.host)),
    cell("Driver", vm.driver),
    el("td", { "data-label": "What is going on", class: "going" }, el("bdi", {}, going(vm))));
}

function going(vm) {
  if (!vm.reason) return "";
  const said = [vm.reason.replaceAll("_", " ")];
  if (vm.running) said.push(`attempt ${vm.attempt} runs`);
  else if (vm.state === "failed") said.push(`${vm.attempt} attempts failed`);
  else if (vm.waits_for) said.push(`waits for ${vm.waits_for}`);
  else if (vm.next_attempt_ms) said.push(`attempt ${vm.attempt + 1} ${until(vm.next_attempt_ms)}`);
  return said.join(", ") + (vm.error ? `: ${vm.error}` : "");
}

function change(changes) {
  Object.assign(filter, { page: 1 }, changes);
  for (const name of ["q", "state", "host"]) {
    if (byId(name).value !== filter[name]) byId(name).value = filter[name];
  }
  for (const each of document.querySelectorAll(".tile")) {
    each.setAttribute("aria-pressed", String(each.dataset.state === filter.state));
  }
  const query = asked();
  history.replaceState(null, "", query ? `?${query}` : location.pathname);
  again();
}

let typing = 0;
function typed() {
  clearTimeout(typing);
  typing = setTimeout(() => change({ q: byId("q").value.trim(), host: byId("host").value.trim(), state: byId("state").value }), 200);
}

function keyed(event) {
  const writing = event.target instanceof HTMLInputElement;
  if (event.key === "/" && !writing) {
    event.preventDefault();
    byId("q").focus();
  } else if (event.key === "Escape" && writing) {
    event.preventDefault();
    change({ q: "", host: "", state: "" });
  }
}

for (const state of STATES) byId("state").append(el("option", { value: state }, state));
for (const name of ["q", "state", "host"]) byId(name).value = filter[name];
byId("filter").addEventListener("input", typed);
byId("filter").addEventListener("submit", (event) => event.preventDefault());
byId("filter").addEventListener("reset", () => change({ q: "", host: "", state: "" }));
byId("previous").addEventListener("click", () => change({ page: filter.page - 1 }));
byId("next").addEventListener("click", () => change({ page: filter.page + 1 }));
document.addEventListener("keydown", keyed);
document.addEventListener("click", (event) => {
  const target = event.target.closest("[data-state], [data-host], th[data-key] button");
  if (!target) return;
  if (target.dataset.state !== undefined) change({ state: filter.state === target.dataset.state ? "" : target.dataset.state });
  else if (target.dataset.host !== undefined) change({ host: filter.host === target.dataset.host ? "" : target.dataset.host });
  else {
    const key = target.closest("th").dataset.key;
    change({ sort: filter.sort === key ? `-${key}` : key });
  }
});

const again = poll(refresh);
