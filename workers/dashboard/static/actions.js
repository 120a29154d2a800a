// The buttons of a VM's page: each asks why, some ask for more, and all say what came of it.
import { act, byId, el, shown } from "./shared.js";

const ACTIONS = [
  { name: "recover", label: "Recover", words: "Ask for a recovery now. A VM that serves is left alone; caps, breakers, storms and modes are kept to." },
  { name: "recover", force: "force", label: "Recover by force", danger: true, words: "Goes before caps, breakers, storms, pause and maintenance. Use it when what holds the recovery back is known to be wrong." },
  { name: "recover", force: "kill-healthy", label: "Kill and restart", danger: true, words: "Kills the VM even if it is healthy, and starts it again. What its guest has not written to disk is lost." },
  { name: "pause", label: "Pause", lasts: "optional", words: "The VM is neither judged nor acted on. Without a time it lasts until somebody resumes it." },
  { name: "maintenance", label: "Maintenance", lasts: "required", words: "The VM is judged, and nothing is done. It ends by itself, then one interval of orphan detection is only observed." },
  { name: "resume", label: "Resume", words: "Lifts every hold that stands on this VM itself. What holds its host or the fleet stays." },
  { name: "reset", label: "Reset", words: "Clears a finished episode and its count of attempts: a VM that was given up is watched, and recovered, again." },
];

let asked = null;

export function buttons(vmId, readOnly, done) {
  const row = ACTIONS.map((action) => {
    const button = el("button", { type: "button", class: action.danger ? "danger" : "", "data-action": action.force ?? action.name,
      disabled: Boolean(readOnly), title: readOnly ? readOnly : action.words, "aria-describedby": readOnly ? "why-disabled" : null }, action.label);
    button.addEventListener("click", () => open(vmId, action, done));
    return button;
  });
  byId("actions").replaceChildren(...row);
}

function open(vmId, action, done) {
  asked = { vmId, action, done };
  byId("ask-title").textContent = `${action.label}: ${shown(vmId)}`;
  byId("ask-words").textContent = action.words;
  byId("ask-do").textContent = action.label;
  byId("ask-do").className = action.danger ? "danger" : "";
  byId("ask-for-label").hidden = !action.lasts;
  byId("ask-for").required = action.lasts === "required";
  byId("ask-confirm-label").hidden = !action.force;
  byId("ask-confirm").required = Boolean(action.force);
  byId("ask-confirm-id").textContent = shown(vmId);
  for (const id of ["ask-for", "ask-confirm", "ask-reason"]) byId(id).value = "";
  byId("ask-error").textContent = "";
  byId("ask").showModal();
  byId("ask-reason").focus();
}

function body({ action }) {
  const given = { reason: byId("ask-reason").value.trim() };
  if (action.force) Object.assign(given, { force: action.force, confirm: byId("ask-confirm").value.trim() });
  if (action.lasts && byId("ask-for").value.trim()) given.for = byId("ask-for").value.trim();
  if (action.name === "resume") given.all = true;
  return given;
}

async function submit(event) {
  event.preventDefault();
  const { vmId, action, done } = asked;
  byId("ask-do").disabled = true;
  byId("ask-error").textContent = "";
  try {
    const answer = await act(`/vms/${encodeURIComponent(vmId)}/${action.name}`, body(asked));
    byId("ask").close();
    done(action, answer);
  } catch (error) {
    byId("ask-error").textContent = shown(error.message);
  }
  byId("ask-do").disabled = false;
}

byId("ask").querySelector("form").addEventListener("submit", submit);
byId("ask-cancel").addEventListener("click", () => byId("ask").close());
