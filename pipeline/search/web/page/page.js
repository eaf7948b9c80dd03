"use strict";
// The state is the address: `#row=12&part=torso&camera=2&folder=hall&rerank=true&offset=20`, or `query=` and the
// name of an upload.  Every text of the gallery is set as text.

const PAGE_SIZE = 20;
const LIMITS = { bytes: 20 * 2 ** 20 }; // as upload.py
const $ = (id) => document.getElementById(id);
let gallery;
let shownQuery;
let asked = 0; // the latest request, whose answer alone is shown

const state = () => new URLSearchParams(location.hash.slice(1));

function go(changes) {
  const next = state();
  for (const [name, value] of Object.entries({ offset: "", ...changes })) {
    next.delete(name);
    for (const one of [value].flat()) if (one !== "") next.append(name, one);
  }
  location.hash = next;
}

function element(tag, text, properties = {}) {
  const made = Object.assign(document.createElement(tag), properties);
  if (text !== undefined) made.textContent = text;
  return made;
}

function fail(words) {
  $("error").textContent = words;
  $("error").hidden = !words;
}

async function ask(path, options) {
  let answer;
  try {
    answer = await fetch(path, options);
  } catch {
    throw new Error("The server does not answer. Is it still running?");
  }
  const content = await answer.json();
  if (!answer.ok) throw new Error(content.error);
  return content;
}

// ------------------------------------------------------------ pictures

function picture(path, alt, size) {
  const frame = element("span", undefined, { className: "frame" });
  const shown = element("img", undefined, { src: `${path}/picture${size}`, alt });
  shown.addEventListener("load", () => {
    frame.style.aspectRatio = `${shown.naturalWidth} / ${shown.naturalHeight}`; // a label map is stretched to it
    frame.classList.toggle("wide", 2 * shown.naturalWidth > shown.naturalHeight);
  });
  shown.addEventListener("error", async () => {
    const words = await ask(shown.src).then(() => "No picture.", (error) => error.message);
    frame.classList.add("wide");
    frame.replaceChildren(element("span", words, { className: "gone" }));
  });
  frame.append(shown);
  if (gallery.maps) frame.append(element("img", undefined, { src: `${path}/parts`, alt: "", className: "tint" }));
  return frame;
}

function chips(parts) {
  const list = element("ul", undefined, { className: "chips" });
  list.setAttribute("aria-label", "visible parts");
  list.append(...parts.map((name) => element("li", name)));
  return list;
}

const place = (hit) => [hit.camera === null ? "" : `camera ${hit.camera}`, hit.folder].filter(Boolean).join(", ");
const file = (hit) => hit.name.slice(hit.folder && hit.folder.length + 1);

function fileName(hit) {
  const shown = element("bdi");
  shown.append(...file(hit).split(/(?<=[-_. ])/).flatMap((piece) => [piece, element("wbr")]));
  return shown;
}

function card(hit) {
  const item = element("li");
  const link = element("a", undefined, { href: `#${searchFrom({ row: hit.row })}`, className: "picture" });
  const shows = hit.parts.length ? `; shows ${hit.parts.join(", ")}` : "";
  link.append(picture(`/api/rows/${hit.row}`, `Search from ${file(hit)}${shows}`, ""));
  item.append(link);
  if (hit.rank) {
    const line = element("div", undefined, { className: "rank" });
    const distance = hit.distance === null ? "no common part" : hit.distance.toFixed(3);
    line.append(element("b", hit.rank), element("span", distance, { title: "distance; 0 is equal" }));
    item.append(line);
  }
  item.append(fileName(hit), element("div", place(hit), { className: "dim" }));
  if (!gallery.maps) item.append(chips(hit.parts));
  return item;
}

function searchFrom(source) {
  const next = state();
  for (const name of ["row", "query", "offset"]) next.delete(name);
  for (const [name, value] of Object.entries(source)) next.append(name, value);
  return next;
}

function showQuery(query) {
  if (query?.row !== shownQuery?.row || query?.query !== shownQuery?.query) scrollTo(0, 0);
  shownQuery = query;
  $("query").hidden = !query;
  if (!query) return;
  const row = query.row !== undefined;
  const path = row ? `/api/rows/${query.row}` : `/api/queries/${encodeURIComponent(query.query)}`;
  const shows = query.parts.length ? `; shows ${query.parts.join(", ")}` : "";
  const name = row ? file(query) : "Your picture";
  $("query-picture").replaceChildren(picture(path, `${name}${shows}`, row ? "?size=large" : ""));
  $("query-text").replaceChildren(element("bdi", name), element("div", row ? place(query) : ""));
  if (!gallery.maps) $("query-text").append(chips(query.parts));
}

// ------------------------------------------------------------ asking

async function load() {
  const now = state();
  const number = ++asked;
  const searching = now.has("row") || now.has("query");
  const names = ["camera", "folder", "offset", ...(searching ? ["row", "query", "part", "rerank"] : [])];
  const wanted = new URLSearchParams([...now].filter(([name]) => names.includes(name)));
  wanted.set("top", PAGE_SIZE);
  showChoices(now);
  document.querySelector("main").classList.add("busy");
  try {
    const answer = await ask(`/api/${searching ? "nearest" : "rows"}?${wanted}`);
    if (number === asked) show(answer, searching, wanted);
  } catch (error) {
    if (number !== asked) return;
    show({ count: 0, offset: 0, hits: [], query: shownQuery }, false, wanted);
    fail(error.message);
  }
}

function show(answer, searching, wanted) {
  const { count, offset, hits, query } = answer;
  const last = offset + hits.length;
  fail("");
  showQuery(query);
  document.querySelector("main").classList.remove("busy");
  const range = hits.length ? `${offset + 1} to ${last} of ${count}` : `none of ${count}`;
  $("status").textContent = `${searching ? "Nearest pictures" : "Pictures"}: ${range}`;
  $("hits").replaceChildren(...hits.map(card));
  $("previous").disabled = offset === 0;
  $("next").disabled = last >= count;
  $("previous").onclick = () => go({ offset: Math.max(0, offset - PAGE_SIZE) || "" });
  $("next").onclick = () => go({ offset: last });
  $("download").hidden = !searching || !hits.length;
  const top = Math.min(last, 1000);
  $("download-text").textContent = `the nearest ${top}`;
  for (const form of ["csv", "json"]) {
    const whole = new URLSearchParams(wanted);
    for (const [name, value] of Object.entries({ offset: 0, top, form })) whole.set(name, value);
    $(form).href = `/api/nearest?${whole}`;
  }
}

async function upload(picked) {
  if (!picked) return;
  if (picked.size > LIMITS.bytes) return fail(`${picked.name}: over ${LIMITS.bytes / 2 ** 20} MB. Save it smaller.`);
  $("status").textContent = "Reading the picture.";
  try {
    const headers = { "Content-Type": "application/octet-stream" };
    location.hash = searchFrom(await ask("/api/queries", { method: "POST", body: picked, headers }));
  } catch (error) {
    $("status").textContent = "";
    fail(`${picked.name}: ${error.message}`);
  }
}

// ------------------------------------------------------------ choices

const isSame = (a, b) => a.length === b.length && a.every((name) => b.includes(name));

function showChoices(now) {
  const parts = now.getAll("part");
  for (const box of $("parts").querySelectorAll("input")) box.checked = !parts.length || parts.includes(box.value);
  for (const button of $("presets").children)
    button.setAttribute("aria-pressed", isSame(parts, presets()[button.textContent]));
  $("camera").value = now.get("camera") ?? "";
  $("folder").value = now.get("folder") ?? "";
  $("rerank").checked = now.get("rerank") === "true";
  $("rerank").disabled = !!gallery.no_rerank;
}

const presets = () => ({ all: [], ...gallery.presets });

function partsChosen() {
  const boxes = [...$("parts").querySelectorAll("input")];
  const chosen = boxes.filter((box) => box.checked).map((box) => box.value);
  if (!chosen.length) return fail("Choose at least one part.");
  go({ part: chosen.length === boxes.length ? [] : chosen });
}

function addChoices() {
  for (const [name, parts] of Object.entries(presets())) {
    const button = element("button", name, { type: "button" });
    button.addEventListener("click", () => go({ part: parts }));
    $("presets").append(button);
  }
  for (const name of gallery.parts) {
    const label = element("label");
    const box = element("input", undefined, { type: "checkbox", value: name });
    box.addEventListener("change", partsChosen);
    label.append(box, name === "global" ? "whole picture" : name);
    $("parts").append(label);
  }
  $("part-choice").hidden = gallery.parts.length < 2;
  $("camera").append(element("option", "all", { value: "" }));
  $("camera").append(...gallery.cameras.map((camera) => element("option", camera, { value: camera })));
  $("camera-choice").hidden = !gallery.cameras.length;
  $("folders").append(...gallery.folders.map((value) => element("option", undefined, { value })));
  if (gallery.no_rerank) $("rerank-text").textContent = `Not possible. ${gallery.no_rerank}`;
  $("legend-box").hidden = !gallery.maps;
  for (const [name, colour] of Object.entries(gallery.colours)) {
    const item = element("li");
    const patch = element("i");
    patch.style.background = colour;
    item.append(patch, name);
    $("legend").append(item);
  }
}

function listen() {
  $("choices").addEventListener("submit", (event) => event.preventDefault());
  $("camera").addEventListener("change", () => go({ camera: $("camera").value }));
  $("folder").addEventListener("change", () => go({ folder: $("folder").value }));
  $("rerank").addEventListener("change", () => go({ rerank: $("rerank").checked ? "true" : "" }));
  $("tint").addEventListener("change", () => document.body.classList.toggle("plain", !$("tint").checked));
  $("clear").addEventListener("click", () => go({ row: "", query: "" }));
  $("file").addEventListener("change", async () => {
    await upload($("file").files[0]);
    $("file").value = ""; // the same may be chosen again
  });
  addEventListener("dragover", (event) => {
    event.preventDefault();
    $("drop").classList.add("over");
  });
  addEventListener("dragleave", () => $("drop").classList.remove("over"));
  addEventListener("drop", (event) => {
    event.preventDefault();
    $("drop").classList.remove("over");
    upload(event.dataTransfer.files[0]);
  });
  addEventListener("hashchange", load);
}

async function start() {
  try {
    gallery = await ask("/api/gallery");
  } catch (error) {
    return fail(error.message);
  }
  const hidden = gallery.guessed ? "What a picture hides is guessed by the model." : "";
  $("about").textContent = `${gallery.count.toLocaleString("en")} pictures of ${gallery.root}. ${hidden}`;
  $("more").open = !matchMedia("(max-width: 720px)").matches;
  addChoices();
  listen();
  load();
}

start();
