// The page of one VM: asked for again while somebody looks, faster while a recovery is followed to its end.
import { buttons } from "./actions.js";
import { ApiError, age, ago, ask, banner, byId, chip, el, poll, setNow, show, shown, until } from "./shared.js";
import { picture } from "./timeline.js";

const EVERY_MS = 2000;
const FOLLOWING_MS = 500;
const WHY_MS = 10000;
const vmId = byId("vm").dataset.vm;
const { readOnly } = byId("vm").dataset;
const path = `/vms/${encodeURIComponent(vmId)}`;
let followed = null; // { after, request_id, words }
let whyAt = 0;
let whyAgain = 0; // rounds: an answer may be a moment older than the change that it is asked about
let lastLine = null;

async function refresh() {
  const query = followed ? `?after=${followed.after}&request=${followed.request_id}` : "";
  try {
    const answer = await ask(path + query);
    if (answer) draw(answer);
    whyAgain = answer ? 2 : whyAgain - 1;
    if (whyAgain >= 0 || Date.now() - whyAt > WHY_MS) await refreshWhy();
  } catch (error) {
    if (!(error instanceof ApiError && error.status === 404)) throw error;
    drawNothing(error.message);
    await refreshWhy();
  }
  return followed ? FOLLOWING_MS : EVERY_MS;
}

function drawNothing(words) {
  show(byId("where"), el("span", { class: "bad" }, el("bdi", {}, words)));
  show(byId("chip"));
  allow(false);
}

function allow(possible) {
  for (const button of byId("actions").children) button.disabled = !possible || Boolean(readOnly);
}

async function refreshWhy() {
  whyAt = Date.now();
  try {
    const said = await ask(`${path}/why`, { always: true });
    show(byId("why"), ...said.words.map((line) => el("li", {}, el("bdi", {}, line))));
  } catch (error) {
    show(byId("why"), el("li", { class: "bad" }, error.message));
  }
}

function draw(answer) {
  setNow(answer.now_ms);
  allow(true);
  const { vm } = answer;
  if (vm) {
    show(byId("chip"), chip(vm.state));
    const since = vm.since ? ["for ", ago(Date.parse(vm.since), "")] : [];
    show(byId("where"), ...since, " on host ", el("bdi", {}, vm.host), `, ${vm.driver}, meant to be ${vm.desired}`);
    drawEvidence(answer);
    drawEpisode(answer);
  } else {
    show(byId("where"), el("span", { class: "bad" }, el("bdi", {}, `its record cannot be read: ${answer.unreadable}`)));
  }
  drawHeld(answer.held);
  drawTimeline(answer.timeline);
  show(document.querySelector("#events tbody"), ...(answer.events.length ? answer.events.map(event) : [el("tr", {}, el("td", { colspan: "5", class: "empty" }, "No event is kept."))]));
  if (answer.followed) follow(answer);
}

function drawHeld(held) {
  show(byId("banners"), ...held.map((each) =>
    banner({ level: "calm", until_ms: each.until_ms, words: `${each.words} (by ${each.actor})` })));
}

function facts(list, pairs) {
  const kept = pairs.filter(([, value]) => value !== null && value !== undefined && value !== "");
  show(list, ...kept.map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, value instanceof Node ? value : el("bdi", {}, value)))));
}

function drawEvidence({ vm, waits_for }) {
  facts(byId("evidence"), [
    ["last check", vm.last_check ? ago(Date.parse(vm.last_check)) : "never"],
    ["failures in a row", vm.fails ? `${vm.fails} (${(vm.doubt ?? "").replaceAll("_", " ")})` : "none"],
    ["process", vm.process ? `pid ${vm.process.pid}` : "none"],
    ["generation", vm.generation || null],
    ["socket", vm.socket],
    ["last exit", vm.last_exit],
    ["lease", vm.lease_owner ? `held by ${vm.lease_owner}` : "free"],
    ["waits for", waits_for],
    ["priority", vm.priority],
  ]);
}

function drawEpisode({ vm }) {
  const { episode } = vm;
  if (!episode) {
    facts(byId("episode"), [["episode", "none"]]);
    return;
  }
  const next = Date.parse(episode.next_attempt);
  const stands = episode.running ? `attempt ${episode.attempt} runs`
    : episode.end ? `${episode.end} after ${episode.attempt} ${episode.attempt === 1 ? "attempt" : "attempts"}`
      : `attempt ${episode.attempt + 1} ${Number.isNaN(next) ? "is due" : until(next)}`;
  facts(byId("episode"), [
    ["reason", episode.reason.replaceAll("_", " ")],
    ["stands", stands],
    ["began", ago(Date.parse(episode.started))],
    ["ended", episode.ended ? ago(Date.parse(episode.ended)) : null],
    ["time in attempts", episode.spent_ms ? age(episode.spent_ms) : null],
    ["last error", episode.error],
    ["request", episode.request_id],
  ]);
}

function drawTimeline(line) {
  lastLine = line;
  drawPicture();
  show(byId("timeline-words"), ...(line.words.length ? line.words : ["Nothing is known of its past."]).map((words) => el("li", {}, el("bdi", {}, words))));
}

function drawPicture() {
  if (lastLine) byId("timeline").replaceChildren(picture(lastLine, byId("timeline").clientWidth));
}

function event(each) {
  const cell = (label, ...children) => el("td", { "data-label": label }, el("span", {}, ...children));
  const change = each.after ? [each.before ? `${each.before} → ` : "", chip(each.after)] : [];
  return el("tr", {},
    cell("When", ago(Date.parse(each.at))),
    cell("What", each.kind.replaceAll("_", " ")),
    cell("Change", ...change),
    cell("Who", el("bdi", {}, each.actor)),
    cell("Why", el("bdi", {}, each.why)));
}

function follow({ followed: state, events }) {
  const lines = events.slice(0, state.count).reverse().map((each) => `${each.at.slice(11, 19)} ${each.why}`);
  const box = byId("follow");
  box.hidden = false;
  const ending = state.end ? el("p", { class: state.end === "healthy" ? "good" : "bad", id: "outcome" }, ended(state.end)) : el("p", { class: "muted" }, "It is followed to its end…");
  show(box, el("h3", {}, followed.words), el("ol", {}, ...lines.map((line) => el("li", {}, el("bdi", {}, line)))), ending);
  if (state.end) followed = null;
}

const ended = (end) => (end === "healthy" ? `${shown(vmId)} is healthy.` : `It ended otherwise: ${shown(vmId)} is ${end}.`);

function done(action, answer) {
  const box = byId("follow");
  box.hidden = false;
  if (answer.after) followed = { after: answer.after, request_id: answer.request_id, words: answer.done };
  show(box, el("h3", {}, answer.done), followed ? el("p", { class: "muted" }, "It is followed to its end…") : null);
  again();
}

buttons(vmId, readOnly, done);
addEventListener("resize", drawPicture);
const again = poll(refresh);
