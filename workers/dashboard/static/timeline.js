// The timeline of a VM as a picture: a bar of states, above it the attempts. The words for it stand beside it.
import { age, svg } from "./shared.js";

const LEAST_WIDTH = 280;
const LANE = { attempts: 22, states: 56, height: 26 };
const HEIGHT = 118;
const LEAST = 4; // what lasted a moment can still be seen and pointed at
const TICKS = 5;

// Time runs faster where little happens: each span gets its share of the root of how long it lasted.
function scale(line, width) {
  const marks = new Set([line.from_ms, line.to_ms]);
  for (const each of [...line.states, ...line.attempts]) marks.add(each.from_ms).add(each.to_ms);
  const times = [...marks].sort((a, b) => a - b);
  const at = new Map();
  let sum = 0;
  times.forEach((time, index) => {
    if (index) sum += Math.sqrt(time - times[index - 1]);
    at.set(time, sum);
  });
  return { x: (time) => (sum ? (at.get(time) / sum) * width : 0), times, width };
}

function bar(x, width, y, name, title, text) {
  const group = svg("g", { class: name });
  group.append(svg("rect", { x: x.toFixed(1), y, width: Math.max(LEAST, width).toFixed(1), height: LANE.height, rx: 3 }, svg("title", {}, title)));
  if (width > text.length * 8.5 + 8) group.append(svg("text", { x: (x + width / 2).toFixed(1), y: y + 17.5, "text-anchor": "middle" }, text));
  return group;
}

function ticks(line, { x, times, width }) {
  const apart = Math.max(90, width / TICKS);
  const picked = [];
  for (let at = times.length - 1; at >= 0 && picked.length < TICKS; at -= 1) {
    if (!picked.length || x(picked.at(-1)) - x(times[at]) > apart) picked.push(times[at]);
  }
  return picked.map((time) => {
    const left = x(time);
    const anchor = left < 60 ? "start" : left > width - 60 ? "end" : "middle";
    const words = time === line.to_ms ? "now" : `${age(line.to_ms - time)} ago`;
    return svg("g", { class: "tick" },
      svg("line", { x1: left.toFixed(1), x2: left.toFixed(1), y1: LANE.attempts, y2: LANE.states + LANE.height + 6 }),
      svg("text", { x: left.toFixed(1), y: HEIGHT - 14, "text-anchor": anchor }, words));
  });
}

export function picture(line, wide) {
  const width = Math.max(LEAST_WIDTH, wide);
  const scaled = scale(line, width);
  const { x } = scaled;
  const states = line.states.map((each) =>
    bar(x(each.from_ms), x(each.to_ms) - x(each.from_ms), LANE.states, `state ${each.state}`,
      `${each.state} for ${age(each.to_ms - each.from_ms)}${each.why ? `: ${each.why}` : ""}`, each.state));
  const attempts = line.attempts.map((each) =>
    bar(x(each.from_ms), x(each.to_ms) - x(each.from_ms), LANE.attempts, `attempt ${each.outcome}`,
      `attempt ${each.number}: ${each.outcome}${each.why ? `: ${each.why}` : ""}`, String(each.number)));
  return svg("svg", { viewBox: `0 0 ${width} ${HEIGHT}`, role: "img", "aria-labelledby": "picture-title" },
    svg("title", { id: "picture-title" }, `States and attempts; ${line.words[0] ?? "nothing is known"}. All of it is told in words below.`),
    ...ticks(line, scaled),
    svg("text", { class: "lane", x: 0, y: LANE.attempts - 7 }, line.attempts.length ? "attempts" : "no attempt"),
    ...states, ...attempts);
}
