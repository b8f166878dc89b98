// The review page: wires pictures, pens, draft and decision to the page's controls and keys.

import { Drafts, ask } from "/review/drafts.js";
import { Panes } from "/review/panes.js";
import { Strokes } from "/review/strokes.js";

const at = (id) => document.getElementById(id);
const all = (query) => [...document.querySelectorAll(query)];
const verdicts = all("#verdicts button");
let strokes;
let drafts;
let state;
let decided = false;
let overlay = 0.5;

const panes = new Panes({
  onStroke: () => { if (strokes.take()) changed(); },
  onPlace: (vox, dims, axis) => {
    at("place").textContent = `Slice ${vox[axis] + 1} of ${dims[axis]}`;
  },
});

function say(text) { at("status").textContent = text; }

/** Says what is wrong; after the server went away with a way to go on. */
function complain(text, code) {
  at("problem").textContent = text;
  at("problem").hidden = !text;
  if (code !== "gone" || !drafts) return;
  const again = document.createElement("button");
  again.textContent = "Try again";
  again.addEventListener("click", () => drafts.again());
  at("problem").append(document.createElement("br"), again);
}

function pen() {
  const value = document.querySelector("[name=pen]:checked").value;
  panes.setPen(value === "" ? null : Number(value), { size: Number(at("size").value), fill: at("fill").checked });
  at("size-said").textContent = at("size").value;
}

function choose(value) {
  document.querySelector(`[name=pen][value="${value}"]`).checked = true;
  pen();
}

function volumes() {
  const counts = strokes.counts();
  for (const row of all("#volumes tbody tr")) {
    const { value } = row.dataset;
    row.children[1].textContent = (state.opened_voxels[value] * state.voxel_ml).toFixed(2);
    row.children[2].textContent = (counts[value] * state.voxel_ml).toFixed(2);
  }
}

/** What may be decided: only what the server has, and only what is true of it. */
function offer() {
  const ready = !decided && drafts.clean;
  const same = drafts.sha256 === state.opened_sha256;
  for (const button of verdicts) {
    const { decision } = button.dataset;
    button.disabled = !ready || (decision === "accepted" && !same) || (decision === "corrected" && same);
  }
  at("undo").disabled = decided || !strokes.done.length;
  at("redo").disabled = decided || !strokes.undone.length;
}

function changed() {
  drafts.touch();
  volumes();
  offer();
}

function take(back) {
  if (decided || !(back ? strokes.undo() : strokes.redo())) return;
  panes.show();
  changed();
}

function heard(how, why) {
  if (how === "kept") { say("Draft kept."); complain(""); }
  if (how === "unsaved") say("Keeping the draft…");
  if (how === "failed") { say("Not kept."); complain(why.message, why.code); }
  offer();
}

async function decide(decision) {
  const name = at("reviewer");
  if (!name.reportValidity()) return;
  verdicts.forEach((button) => { button.disabled = true; });
  say("Saving…");
  try {
    await drafts.flush();
    const done = await ask("/decision", {
      method: "POST",
      headers: { "content-type": "application/json" },
      body: JSON.stringify({ decision, reviewer: name.value, comment: at("comment").value, seen: drafts.sha256 }),
    });
    decided = true;
    complain("");
    panes.setPen(null);
    all("#pens input, #decision input, #decision textarea").forEach((one) => { one.disabled = true; });
    say(`Saved as review ${done.number}, ${done.decision}, in ${done.folder}. ${done.told} `
      + "You can close this page; load it again to go on from this review.");
  } catch (error) {
    say("Not saved.");
    complain(error.message, error.code);
  }
  offer();
}

function plane(name) {
  panes.setPlane(name);
  all("#planes button").forEach((one) => one.setAttribute("aria-pressed", String(one.dataset.plane === name)));
}

function slide(id, change) {
  const slider = at(id);
  slider.value = Number(slider.value) + change;
  slider.dispatchEvent(new Event("input"));
}

function toggle() {
  const slider = at("opacity");
  if (Number(slider.value)) overlay = Number(slider.value);
  slider.value = Number(slider.value) ? 0 : overlay;
  slider.dispatchEvent(new Event("input"));
}

const KEYS = {
  ArrowUp: () => panes.step(1), ArrowDown: () => panes.step(-1),
  PageUp: () => panes.step(5), PageDown: () => panes.step(-5),
  1: () => choose("1"), 2: () => choose("2"), 3: () => choose("3"), e: () => choose("0"), 0: () => choose("0"), n: () => choose(""),
  "[": () => slide("size", -2), "]": () => slide("size", 2),
  f: () => { at("fill").checked = !at("fill").checked; pen(); },
  z: () => take(true), y: () => take(false), Z: () => take(false),
  a: () => plane("axial"), c: () => plane("coronal"), s: () => plane("sagittal"),
  o: toggle, w: () => panes.resetWindow(),
  "+": () => slide("zoom", 0.5), "=": () => slide("zoom", 0.5), "-": () => slide("zoom", -0.5),
  "?": () => { at("keys").open = !at("keys").open; at("keys").scrollIntoView(); },
};

function pressed(event) {
  const typing = event.target.closest?.("#reviewer, #comment");
  const key = event.key.length === 1 && !event.shiftKey ? event.key.toLowerCase() : event.key;
  if (typing || event.altKey || event.metaKey || (event.ctrlKey && !/^[zy]$/i.test(key)) || !KEYS[key]) return;
  if (decided && /^[0-3en[\]fzy]$/i.test(key)) return;
  event.preventDefault();
  event.stopPropagation(); // NiiVue's own keys are not the page's
  KEYS[key]();
}

function wire() {
  all("[name=pen]").forEach((one) => one.addEventListener("change", pen));
  at("size").addEventListener("input", pen);
  at("fill").addEventListener("change", pen);
  at("undo").addEventListener("click", () => take(true));
  at("redo").addEventListener("click", () => take(false));
  at("opacity").addEventListener("input", () => panes.setOpacity(at("opacity").value / 100));
  at("zoom").addEventListener("input", () => panes.setZoom(Number(at("zoom").value)));
  at("window").addEventListener("click", () => panes.resetWindow());
  all("#planes button").forEach((one) => one.addEventListener("click", () => plane(one.dataset.plane)));
  verdicts.forEach((one) => one.addEventListener("click", () => decide(one.dataset.decision)));
  at("decision").addEventListener("submit", (event) => event.preventDefault());
  document.addEventListener("keydown", pressed, { capture: true });
  window.addEventListener("beforeunload", (event) => { if (drafts && !drafts.clean) event.preventDefault(); });
}

async function open() {
  state = await ask("/state");
  await panes.open(state.sequences.map((one) => one.name), "/mask.nii");
  strokes = new Strokes(panes.bitmap);
  drafts = new Drafts({ file: () => panes.file(), sha256: state.sha256, told: heard });
  wire();
  volumes();
  panes.tell();
  offer();
  say(state.sha256 === state.opened_sha256 ? "Ready." : "Ready, with the draft of before.");
  document.body.dataset.ready = "true";
}

globalThis.gliofed = { panes, get strokes() { return strokes; }, get drafts() { return drafts; } };
open().catch((error) => { say("The page could not be opened."); complain(error.message); });
