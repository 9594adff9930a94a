"use strict";
// The operator's panel.  The server renders; this puts what the event stream brings into its place.

const words = JSON.parse(document.body.dataset.words);
const $ = (id) => document.getElementById(id);
const status = $("status");

function tell(text) {
  status.textContent = text;
  status.hidden = !text;
}

// The answer of the server; where it refuses, `refusal` is its sentence, with `isLost` if it did not look at it.
async function send(path, body) {
  try {
    const response = await session.post(path, "application/json", JSON.stringify(body));
    if (response.ok) return await response.json();
    return { refusal: await response.text(), isLost: response.status === 401 || response.status >= 500 };
  } catch {
    return { refusal: words.offline, isLost: true };
  }
}

async function post(path, body) {
  const { notice, refusal } = await send(path, body);
  tell(refusal ?? notice);
}

// The event stream.

let source = null, isPaused = false, wasReplaced = false, isEnded = false;

async function start() {
  const response = await session.open().catch(() => null);
  isEnded = response?.status === 401;
  if (isEnded) session.offer(status);
  else connect();
}

function connect() {
  source?.close();
  wasReplaced = false;
  const mine = source = new EventSource("/admin/events");
  mine.onopen = () => { if ([words.offline, words.elsewhere].includes(status.textContent) || status.querySelector("a")) tell(""); };
  mine.onmessage = (event) => update(JSON.parse(event.data));
  mine.addEventListener("replaced", () => { mine.close(); wasReplaced = true; tell(words.elsewhere); });
  mine.onerror = () => {
    if (mine !== source || wasReplaced) return;
    tell(words.offline);
    // A refusal ends the stream; the browser tries again by itself only where no answer came.
    if (mine.readyState === EventSource.CLOSED) setTimeout(() => mine === source && start(), 1000);
  };
}

// What other scripts of the page show themselves, by the name of the part.
const shows = { is_paused: showPaused, log: addLines };

function update(parts) {
  for (const [id, part] of Object.entries(parts)) (shows[id] ?? ((html) => fill($(id), html)))(part);
}

// The fragments escape every text.  An element that had the focus or was scrolled has its successor in that state.
function fill(node, html) {
  const focused = node.contains(document.activeElement) ? document.activeElement.id : "";
  const left = node.querySelector(".table")?.scrollLeft;
  node.innerHTML = html;
  if (left) node.querySelector(".table").scrollLeft = left;
  if (focused) $(focused)?.focus({ preventScroll: true });
}

function showPaused(paused) {
  isPaused = paused;
  $("state").textContent = paused ? words.paused : words.accepting;
  $("pause").textContent = paused ? words.resume : words.pause;
  $("pause").disabled = false;
}

// The log.

const levels = ["debug", "info", "warning", "error", "critical"];
const log = $("log"), mostLines = 200;

function addLines({ is_first: isFirst, html }) {
  if (isFirst) log.replaceChildren();
  log.insertAdjacentHTML("afterbegin", html);
  while (log.children.length > mostLines) log.lastElementChild.remove();
  filter();
}

function filter() {
  const least = levels.indexOf($("level").value);
  for (const line of log.children) line.hidden = levels.indexOf(line.dataset.level) < least;
  $("none").hidden = log.querySelector("li:not([hidden])") !== null;
}

// The changes of settings.

function filterChanges() {
  const wanted = $("audit-filter").value.trim().toLowerCase().split(/\s+/);
  const rows = [...$("audit").querySelectorAll("tbody tr")];
  for (const row of rows) {
    const text = row.textContent.toLowerCase();
    row.hidden = !wanted.every((word) => text.includes(word));
  }
  $("audit-none").textContent = rows.length && rows.every((row) => row.hidden) ? words.no_change : "";
}

shows.audit = (html) => { fill($("audit"), html); filterChanges(); };

shows.backups = (html) => { $("backups-section").hidden = false; fill($("backups"), html); };

async function backUp() {
  $("backup").disabled = true;
  await post("/admin/backup", {});
  $("backup").disabled = false;
  $("backup").focus();
}

$("backup").addEventListener("click", backUp);
$("audit-filter").addEventListener("input", filterChanges);
$("level").addEventListener("change", filter);
addEventListener("click", ({ target }) => { if (target.matches?.(".undo")) post("/admin/undo", { ...target.dataset }); });
$("pause").addEventListener("click", () => post("/admin/pause", { paused: !isPaused }));
addEventListener("click", () => { if (wasReplaced) connect(); });
addEventListener("focus", () => { if (isEnded) start(); });
start();
