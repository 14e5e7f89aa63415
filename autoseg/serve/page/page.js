// The page of `autoseg serve`: it asks the server for everything and keeps nothing. Without a framework.
import { View } from "/view.js";

const $ = (id) => document.getElementById(id);
const POLL = 200; // ms between two looks at what is computed
const STILL = 4; // pixels that a click may move
const HINTS = {
  look: "A click moves the crosshair; drag with the right button for contrast, scroll for slices.",
  click: "Choose the right label above and click a voxel that is wrong. Hold Shift and drag to scribble.",
  scribble: "Draw along voxels that have the label chosen above.",
  box: "Draw a box around an object of the label chosen above. It is as deep as it is narrow.",
};
const state = { about: null, cases: new Map(), folder: [], shown: null, label: null, tool: "look", channel: 0, hidden: new Set() };
const view = new View($("canvas"), showPlace);
let answers = Promise.resolve(); // of prompts, in their order
let drawing = null; // a scribble or a box: where it goes

// ---- asking

class Refusal extends Error {
  constructor(document, status) {
    super(document.error || `the server answered ${status}`);
    this.remedy = document.remedy || "";
    this.status = status;
    this.exists = document.exists === true;
  }
}

async function ask(method, path, body, raw = false) {
  let answer;
  try {
    const json = body === undefined ? {} : { body: JSON.stringify(body), headers: { "Content-Type": "application/json" } };
    answer = await fetch(path, { method, ...json });
  } catch {
    throw new Refusal({ error: "the server does not answer", remedy: "start it again: autoseg serve" }, 0);
  }
  if (!answer.ok) {
    let found = {};
    try {
      found = await answer.json();
    } catch {
      found = { error: `the server answered ${answer.status}` };
    }
    throw new Refusal(found, answer.status);
  }
  if (raw) return answer;
  return answer.status === 204 ? null : answer.json();
}

// A file to the server; fetch would not say how far it is.
function put(path, file, onProgress) {
  return new Promise((done, failed) => {
    const request = new XMLHttpRequest();
    request.open("PUT", path);
    request.upload.onprogress = (event) => onProgress(event.loaded);
    request.onload = () => {
      let found = {};
      try {
        found = JSON.parse(request.responseText);
      } catch { /* not of the server */ }
      if (request.status < 300) done(found);
      else failed(new Refusal(found, request.status));
    };
    request.onerror = () => failed(new Refusal({ error: `${file.name} could not be sent`, remedy: "the upload may be too large, or the server has ended" }, 0));
    request.send(file);
  });
}

function say(what, remedy = "", bad = false) {
  $("status-what").textContent = what;
  $("status-remedy").textContent = remedy;
  $("status").classList.toggle("bad", bad);
  $("status").setAttribute("role", bad ? "alert" : "status");
  $("status").hidden = !what;
}

function refuse(error) {
  if (!(error instanceof Refusal)) console.warn(error);
  say(error.message, error.remedy || "", true);
}

// Run something that may be refused, and say so; what was said before is over when something new begins.
async function attempt(run) {
  say("");
  try {
    return await run();
  } catch (error) {
    refuse(error);
    return undefined;
  }
}

function busy(text) {
  $("busy").hidden = !text;
  $("busy-text").textContent = text || "";
}

// ---- images

async function dropped(items) {
  const files = [];
  const entries = [...items].map((item) => item.webkitGetAsEntry && item.webkitGetAsEntry()).filter(Boolean);
  for (const entry of entries) await gather(entry, "", files);
  return files;
}

async function gather(entry, before, files) {
  const path = `${before}${entry.name}`;
  if (entry.isFile) {
    files.push([path, await new Promise((done, failed) => entry.file(done, failed))]);
    return;
  }
  const reader = entry.createReader();
  for (;;) {
    const part = await new Promise((done, failed) => reader.readEntries(done, failed));
    if (!part.length) return;
    for (const inside of part) await gather(inside, `${path}/`, files);
  }
}

const named = (list) => [...list].map((file) => [file.webkitRelativePath || file.name, file]);

async function upload(files) {
  const chosen = files.filter(([path]) => !path.split("/").some((part) => part.startsWith(".")));
  if (!chosen.length) return;
  const total = chosen.reduce((sum, [, file]) => sum + file.size, 0) || 1;
  const draft = await ask("POST", "/api/drafts");
  try {
    if (total > draft.room) throw new Refusal({ error: `these files have ${size(total)}, and ${size(draft.room)} are left`, remedy: "close other cases, or start autoseg serve with a larger --max-upload" }, 413);
    const sent = new Map();
    const todo = [...chosen];
    const next = async () => {
      for (let one = todo.shift(); one; one = todo.shift()) {
        const [path, file] = one;
        await put(`/api/drafts/${draft.id}/${path.split("/").map(encodeURIComponent).join("/")}`, file, (bytes) => {
          sent.set(path, bytes);
          busy(`sending ${Math.round((100 * [...sent.values()].reduce((a, b) => a + b, 0)) / total)} %`);
        });
      }
    };
    await Promise.all([next(), next(), next()]);
    busy("reading");
    await opened(await ask("POST", `/api/drafts/${draft.id}`));
  } catch (error) {
    ask("DELETE", `/api/drafts/${draft.id}`).catch(() => {});
    throw error;
  } finally {
    busy("");
  }
}

async function opened(found) {
  for (const one of found.cases) state.cases.set(one.id, one);
  const bad = found.problems.filter((problem) => problem.severity === "error");
  if (bad.length) say(`${bad[0].file}: ${bad[0].error}`, `${bad[0].remedy}${bad.length > 1 ? ` (and ${bad.length - 1} more)` : ""}`, true);
  await choose(found.cases[0].id);
}

async function openListed(name) {
  const there = [...state.cases.values()].find((one) => one.source === "folder" && one.name === name);
  if (there) return choose(there.id);
  busy("reading");
  try {
    return await opened(await ask("POST", "/api/cases", { image: name }));
  } finally {
    busy("");
  }
}

async function readFolder() {
  const found = await ask("GET", "/api/folder");
  state.folder = found.images;
  $("folder-name").textContent = found.folder;
  $("listed").hidden = false;
  listFolder();
}

function listFolder() {
  const wanted = $("folder-search").value.trim().toLowerCase();
  const shown = state.folder.filter((one) => one.name.toLowerCase().includes(wanted));
  $("folder-search").hidden = state.folder.length < 9;
  $("folder").replaceChildren(...shown.slice(0, 500).map((one) => {
    const button = made("button", { type: "button", className: "name", textContent: one.name });
    button.addEventListener("click", () => attempt(() => openListed(one.name)));
    const parts = one.saved ? [button, made("span", { className: "mark", textContent: "saved", title: `${one.name}_seg is beside it` })] : [button];
    return item(parts, state.shown && state.shown.source === "folder" && state.shown.name === one.name);
  }));
}

function listCases() {
  $("opened").hidden = state.cases.size === 0;
  $("cases").replaceChildren(...[...state.cases.values()].map((one) => {
    const button = made("button", { type: "button", className: "name", textContent: one.name });
    button.addEventListener("click", () => attempt(() => choose(one.id)));
    const close = made("button", { type: "button", className: "quiet", textContent: "\u00d7", title: "Close" });
    close.setAttribute("aria-label", `Close ${one.name}`);
    close.addEventListener("click", () => attempt(() => closeCase(one.id)));
    const mark = one.segmented ? [made("span", { className: "dot", title: "segmented" })] : [];
    return item([button, ...mark, close], state.shown && state.shown.id === one.id);
  }));
  listFolder();
}

function item(parts, chosen) {
  const found = made("li", { className: chosen ? "chosen" : "" });
  found.append(...parts);
  return found;
}

async function closeCase(id) {
  await ask("DELETE", `/api/cases/${id}`);
  state.cases.delete(id);
  if (state.shown && state.shown.id === id) {
    const next = state.cases.keys().next();
    if (next.done) blank();
    else return choose(next.value);
  }
  listCases();
  return undefined;
}

function blank() {
  state.shown = null;
  view.clear();
  $("work").hidden = true;
  $("empty").hidden = false;
  $("place").textContent = "\u00a0";
  document.body.dataset.state = "empty";
}

// ---- the case that is shown

async function choose(id) {
  const one = state.cases.get(id);
  state.shown = one;
  state.channel = 0;
  document.body.dataset.state = "loading";
  $("channel").replaceChildren(...one.channels.map((name, n) => made("option", { value: n, textContent: name })));
  $("channel-part").hidden = one.channels.length < 2;
  $("planes").hidden = one.flat;
  $("name").value = one.name;
  $("saved").hidden = true;
  $("why").checked = false;
  $("last").textContent = "";
  $("empty").hidden = true;
  $("work").hidden = false;
  if (!correctable(one)) setTool("look");
  listCases();
  render();
  await view.show(one, 0);
  document.body.dataset.state = "shown";
  if (["waiting", "running"].includes(one.state)) await follow(id);
}

const correctable = (one) => state.about.prompts && one.open;

function noted(one) {
  state.cases.set(one.id, one);
  if (state.shown && state.shown.id === one.id) {
    state.shown = one;
    render();
  }
}

function render() {
  const one = state.shown;
  $("title").textContent = one.name;
  const spacing = (one.flat ? one.spacing.slice(1) : one.spacing).map((mm) => Number(mm.toPrecision(3))).join(" \u00d7 ");
  const shape = (one.flat ? one.shape.slice(1) : one.shape).join(" \u00d7 ");
  $("facts").textContent = [`${shape} voxels`, one.sized ? `${spacing} mm` : "", ...one.remarks].filter(Boolean).join(" \u00b7 ");
  const working = one.doing === "segment" && ["waiting", "running"].includes(one.state);
  $("segment").disabled = working;
  $("segment").classList.toggle("first", !one.segmented);
  $("segment").textContent = one.segmented ? "Segment again" : "Segment";
  $("progress").hidden = $("progress-text").hidden = !working;
  if (working) {
    $("progress").value = one.progress || 0;
    $("progress-text").textContent = one.place ? `waiting, ${one.place} before it` : `segmenting, ${Math.round(100 * (one.progress || 0))} %`;
  }
  $("undo").disabled = !one.prompts;
  for (const radio of document.querySelectorAll('input[name="tool"]')) radio.disabled = working && radio.value !== "look";
  const some = one.segmented || one.prompts > 0;
  $("save-download").disabled = !some;
  $("save-beside").disabled = !some || !one.beside;
  $("save-beside").title = one.beside ? `writes ${one.beside}` : "uploaded images have no place here";
  $("save-training").disabled = !some || !state.about.training_set;
  $("save-training").title = state.about.training_set ? `copies image and labels into ${state.about.training_set}` : state.about.no_training_set;
  renderLabels();
}

function renderLabels() {
  const rows = [{ name: "background", colour: null }, ...state.shown.labels];
  if (!rows.some((row) => row.name === state.label)) state.label = state.shown.labels[0].name;
  const list = $("labels");
  if (list.childElementCount !== rows.length) list.replaceChildren(...rows.map(labelRow));
  rows.forEach((row, n) => {
    const line = list.children[n];
    line.classList.toggle("chosen", state.tool !== "look" && row.name === state.label);
    line.querySelector(".pick input").checked = row.name === state.label;
    line.querySelector(".size").textContent = row.colour ? amount(row) : "";
  });
}

function labelRow(row, n) {
  const line = made("div", { className: "label" });
  const pick = made("label", { className: "pick", title: n < 10 ? `key ${n}` : "" });
  const radio = made("input", { type: "radio", name: "label", value: row.name });
  radio.addEventListener("change", () => setLabel(row.name));
  const swatch = made("span", { className: "swatch" });
  swatch.style.background = row.colour || "transparent";
  pick.append(radio, swatch, made("span", { className: "called", textContent: row.name }), made("span", { className: "size" }));
  line.append(pick);
  if (row.colour) {
    const eye = made("label", { className: "eye", title: `Show ${row.name}` });
    const box = made("input", { type: "checkbox", checked: !state.hidden.has(row.name) });
    box.setAttribute("aria-label", `Show ${row.name}`);
    box.addEventListener("change", () => {
      state.hidden[box.checked ? "delete" : "add"](row.name);
      view.hidden = state.hidden;
      view.paintLabels();
    });
    const shape = made("span");
    shape.append(eyeShape());
    eye.append(box, shape);
    line.append(eye);
  }
  return line;
}

function eyeShape() {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("viewBox", "0 0 20 14");
  svg.setAttribute("aria-hidden", "true");
  const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
  path.setAttribute("d", "M1 7c2-4 5.3-6 9-6s7 2 9 6c-2 4-5.3 6-9 6s-7-2-9-6zm9-2.7a2.7 2.7 0 1 0 0 5.400a2.7 2.7 0 1 0 0-5.400z");
  svg.append(path);
  return svg;
}

function amount(label) {
  if (label.objects !== null) return `${label.objects} objects`;
  if (!label.voxels) return "\u2013";
  if (label.ml !== null) return `${label.ml >= 100 ? label.ml.toFixed(0) : label.ml.toPrecision(3)} ml`;
  if (label.mm2 !== null) return `${label.mm2.toPrecision(3)} mm\u00b2`;
  return `${label.voxels} px`;
}

function setLabel(name) {
  state.label = name;
  if (state.tool === "look" && state.shown && correctable(state.shown)) setTool("click");
  if (state.shown) renderLabels();
  if ($("why").checked) attempt(why);
}

function setTool(tool) {
  state.tool = tool;
  for (const radio of document.querySelectorAll('input[name="tool"]')) radio.checked = radio.value === tool;
  $("hint").textContent = HINTS[tool];
  $("stage").classList.toggle("correcting", tool !== "look");
  if (state.shown) renderLabels();
}

// ---- segmenting

async function segment() {
  const id = state.shown.id;
  $("last").textContent = "";
  noted(await ask("POST", `/api/cases/${id}/segment`));
  await follow(id);
}

async function follow(id) {
  for (;;) {
    const one = await ask("GET", `/api/cases/${id}`);
    noted(one);
    if (one.state === "failed") throw new Refusal(one, 422);
    if (one.state === "ready") break;
    await new Promise((done) => setTimeout(done, POLL));
  }
  listCases();
  if (state.shown && state.shown.id === id) {
    await view.update(state.shown, null);
    $("why").checked = false;
    if (correctable(state.shown) && state.tool === "look") setTool("click");
  }
}

// ---- where the network looked

async function why() {
  const asked = $("why").checked;
  view.hideWhy();
  if (!asked || !state.shown) return;
  try {
    const note = await view.why(state.shown, state.label);
    if (note) say(note);
  } catch (error) {
    $("why").checked = false;
    throw error;
  }
}

// ---- correcting

function correct(kind, points) {
  const { id } = state.shown;
  const label = state.label;
  const answer = ask("POST", `/api/cases/${id}/prompts`, { kind, points, label });
  return answered(id, answer);
}

function undo() {
  if (!state.shown || !state.shown.prompts) return Promise.resolve();
  return answered(state.shown.id, ask("POST", `/api/cases/${state.shown.id}/undo`), true);
}

// What a prompt changed is drawn in the order of the prompts.
function answered(id, answer, undone = false) {
  say("");
  document.body.dataset.pending = Number(document.body.dataset.pending || 0) + 1;
  const before = answers;
  answers = (async () => {
    try {
      const found = await answer;
      await before;
      noted(found.case);
      if (state.shown && state.shown.id === id) {
        await view.update(found.case, found.changed || { voxels: 0 });
        $("why").checked = Boolean(view.looked);
        const voxels = found.changed ? found.changed.voxels : 0;
        $("last").textContent = `${undone ? "undone, " : ""}${voxels} voxel${voxels === 1 ? "" : "s"} changed \u00b7 ${found.seconds.toFixed(2)} s`;
      }
    } catch (error) {
      refuse(error);
    } finally {
      marks([]);
      document.body.dataset.pending = Number(document.body.dataset.pending) - 1;
    }
  })();
  return answers;
}

const usable = () => state.shown && state.tool !== "look" && correctable(state.shown)
  && !(state.shown.doing === "segment" && state.shown.state !== "ready" && state.shown.state !== "failed");

function pointed(event) {
  const box = $("canvas").getBoundingClientRect();
  return [event.clientX - box.left, event.clientY - box.top];
}

function begin(event) {
  if (event.button !== 0 || !event.isPrimary || !usable()) return;
  const at = pointed(event);
  const voxel = view.voxelAt(...at);
  if (!voxel) return;
  const kind = state.tool === "click" && event.shiftKey ? "scribble" : state.tool;
  drawing = { kind, tile: view.tileAt(...at), from: at, path: [at], voxels: [voxel], still: true };
  if (kind !== "click") $("stage").setPointerCapture(event.pointerId);
}

function move(event) {
  if (!drawing) return;
  const at = pointed(event);
  if (Math.hypot(at[0] - drawing.from[0], at[1] - drawing.from[1]) > STILL) drawing.still = false;
  if (drawing.kind === "click") return;
  const voxel = view.voxelAt(...at);
  if (!voxel || view.tileAt(...at) !== drawing.tile) return;
  drawing.path.push(at);
  if (drawing.kind === "box") drawing.voxels[1] = voxel;
  else if (String(voxel) !== String(drawing.voxels[drawing.voxels.length - 1])) drawing.voxels.push(voxel);
  marks(drawing.path, drawing.kind);
}

function end(event) {
  if (!drawing) return;
  const { kind, voxels, path, still } = drawing;
  drawing = null;
  if (event.type === "pointercancel") return marks([]);
  if (kind === "click") {
    if (!still) return undefined; // the crosshair was dragged
    marks(path, "click");
    return correct("click", [voxels[0]]);
  }
  marks(path, kind);
  if (kind === "box") {
    if (voxels.length < 2) return marks([]);
    return correct("box", deepened(voxels));
  }
  return correct("scribble", voxels.slice(0, 2000));
}

// A box drawn in a plane reaches as far out of it as it is narrow, in mm.
function deepened([one, other]) {
  const { shape, spacing, flat } = state.shown;
  const low = one.map((i, axis) => Math.min(i, other[axis]));
  const high = one.map((i, axis) => Math.max(i, other[axis]));
  if (flat) return [low, high];
  const edges = low.map((i, axis) => (high[axis] - i + 1) * spacing[axis]);
  const thin = low.map((i, axis) => high[axis] === i);
  if (thin.filter(Boolean).length !== 1) return [low, high];
  const axis = thin.indexOf(true);
  const reach = Math.round(Math.min(...edges.filter((_, n) => n !== axis)) / 2 / spacing[axis]);
  low[axis] = Math.max(0, low[axis] - reach);
  high[axis] = Math.min(shape[axis] - 1, high[axis] + reach);
  return [low, high];
}

function marks(path, kind) {
  const canvas = $("marks");
  const dpr = window.devicePixelRatio || 1;
  canvas.width = canvas.offsetWidth * dpr;
  canvas.height = canvas.offsetHeight * dpr;
  if (!path.length) return undefined;
  const pen = canvas.getContext("2d");
  const label = state.shown.labels.find((one) => one.name === state.label);
  pen.scale(dpr, dpr);
  pen.strokeStyle = label ? label.colour : "#ffffff";
  pen.lineWidth = 2.5;
  pen.lineJoin = pen.lineCap = "round";
  pen.beginPath();
  const [first, last] = [path[0], path[path.length - 1]];
  if (kind === "click") pen.arc(first[0], first[1], 7, 0, 7);
  else if (kind === "box") pen.rect(first[0], first[1], last[0] - first[0], last[1] - first[1]);
  else path.forEach(([x, y], n) => (n ? pen.lineTo(x, y) : pen.moveTo(x, y)));
  pen.stroke();
  return undefined;
}

function showPlace(voxel, place) {
  if (!state.shown || !voxel) return;
  const value = place && place.values && place.values[0] ? place.values[0].value : null;
  const number = Number.isFinite(value) ? Number(value.toPrecision(5)) : "";
  const names = new Map(state.shown.labels.map((label) => [label.value, label.name]));
  const label = place && place.values && place.values[1] ? names.get(place.values[1].value) : undefined;
  const axes = state.shown.flat ? `y ${voxel[1]}, x ${voxel[2]}` : `z ${voxel[0]}, y ${voxel[1]}, x ${voxel[2]}`;
  $("place").textContent = [axes, `value ${number}`, label].filter(Boolean).join(" \u00b7 ");
}

// ---- saving

async function save(where, more = {}) {
  const { id, beside } = state.shown;
  const body = { where, name: $("name").value.trim(), ...more };
  if (where === "download") {
    const answer = await ask("POST", `/api/cases/${id}/save`, body, true);
    const called = decodeURIComponent((answer.headers.get("Content-Disposition") || "").split("''")[1] || "segmentation");
    const link = made("a", { href: URL.createObjectURL(await answer.blob()), download: called });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
    return savedAs(`Downloaded as ${called}`);
  }
  try {
    const found = await ask("POST", `/api/cases/${id}/save`, body);
    if (where === "beside") {
      savedAs(`Saved as ${found.saved}`);
      await readFolder();
    } else {
      savedAs("Added to the training set. To train on it, plan again:", found.command);
    }
  } catch (error) {
    if (!(error.exists && where === "beside")) throw error;
    $("overwrite-text").textContent = `${beside} exists. Overwrite it?`;
    $("overwrite").showModal();
  }
  return undefined;
}

function savedAs(text, command = "") {
  $("saved").replaceChildren(text, ...(command ? [made("code", { textContent: command })] : []));
  $("saved").hidden = false;
}

// ---- small things

function made(tag, properties) {
  return Object.assign(document.createElement(tag), properties);
}

function size(bytes) {
  return bytes >= 1e9 ? `${(bytes / 1e9).toPrecision(3)} GB` : `${(bytes / 1e6).toPrecision(3)} MB`;
}

function listen() {
  $("files").addEventListener("change", (event) => {
    const files = named(event.target.files);
    event.target.value = "";
    attempt(() => upload(files));
  });
  $("directory").addEventListener("change", (event) => {
    const files = named(event.target.files);
    event.target.value = "";
    attempt(() => upload(files));
  });
  for (const kind of ["dragenter", "dragover"]) document.addEventListener(kind, (event) => {
    event.preventDefault();
    document.body.classList.add("over");
  });
  document.addEventListener("dragleave", (event) => {
    if (!event.relatedTarget) document.body.classList.remove("over");
  });
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    document.body.classList.remove("over");
    const files = named(event.dataTransfer.files); // read before the first wait: the list is emptied then
    const entries = dropped(event.dataTransfer.items);
    attempt(async () => {
      const found = await entries;
      await upload(found.length ? found : files);
    });
  });
  const stage = $("stage");
  stage.addEventListener("pointerdown", begin, true);
  stage.addEventListener("pointermove", move, true);
  stage.addEventListener("pointerup", end, true);
  stage.addEventListener("pointercancel", end, true);
  for (const kind of ["mousedown", "mousemove", "touchstart", "touchmove"]) stage.addEventListener(kind, (event) => {
    if (drawing && drawing.kind !== "click") event.stopPropagation(); // the viewer would move its crosshair
  }, { capture: true, passive: false });
  $("segment").addEventListener("click", () => attempt(segment));
  $("undo").addEventListener("click", undo);
  $("why").addEventListener("change", () => attempt(why));
  $("save-beside").addEventListener("click", () => attempt(() => save("beside")));
  $("save-download").addEventListener("click", () => attempt(() => save("download")));
  $("save-training").addEventListener("click", () => attempt(() => save("training set")));
  $("overwrite-yes").addEventListener("click", () => {
    $("overwrite").close();
    attempt(() => save("beside", { overwrite: true }));
  });
  $("overwrite-no").addEventListener("click", () => $("overwrite").close());
  $("status-close").addEventListener("click", () => say(""));
  $("opacity").addEventListener("input", () => view.setOpacity(Number($("opacity").value)));
  $("channel").addEventListener("change", () => attempt(() => view.show(state.shown, Number($("channel").value))));
  $("folder-again").addEventListener("click", () => attempt(readFolder));
  $("folder-search").addEventListener("input", listFolder);
  for (const radio of document.querySelectorAll('input[name="plane"]')) radio.addEventListener("change", () => view.setPlane(radio.value));
  for (const radio of document.querySelectorAll('input[name="tool"]')) radio.addEventListener("change", () => setTool(radio.value));
  document.addEventListener("keydown", keyed, true);
}

function keyed(event) {
  const typing = event.target.matches && event.target.matches('input[type="text"], input[type="search"], select');
  if (typing || event.altKey) return;
  if ((event.ctrlKey || event.metaKey) && event.key.toLowerCase() === "z" && !event.shiftKey) {
    event.preventDefault();
    undo();
  } else if (!event.ctrlKey && !event.metaKey && /^[0-9]$/.test(event.key) && state.shown) {
    const names = ["background", ...state.shown.labels.map((label) => label.name)];
    if (names[Number(event.key)]) setLabel(names[Number(event.key)]);
  }
}

async function start() {
  history.replaceState(null, "", "/"); // the token stays out of the history
  listen();
  setTool("look");
  state.about = await ask("GET", "/api/about");
  $("about").textContent = `${state.about.dataset} \u00b7 ${state.about.models.join(" and ")}`;
  $("correct").hidden = !state.about.prompts;
  $("no-prompts").hidden = state.about.prompts;
  $("no-prompts").textContent = state.about.no_prompts;
  for (const one of (await ask("GET", "/api/cases")).cases) if (one.open) state.cases.set(one.id, one);
  if (state.about.folder) await readFolder();
  listCases();
  document.body.dataset.state = "empty";
  if (state.cases.size) await choose(state.cases.keys().next().value);
}

window.page = { state, view, upload }; // for tests, and for whoever looks inside
attempt(start);
