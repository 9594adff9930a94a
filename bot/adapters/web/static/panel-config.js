"use strict";
// config.toml as a form and as text: both change one draft, which the server checks while it is written.

// Milliseconds without a key until a draft is checked.
const quietTime = 300;
const file = { draft: "", saved: "", revision: "", table: [], isRight: false, isFixed: false };
let waiting = null, unsent = [], isAsking = false, timer = 0;

const isChanged = () => file.draft !== file.saved;

// One request at a time: each starts from the draft that the one before has returned.
async function ask(body) {
  waiting = { ...waiting, ...body, changes: [...unsent, ...(waiting?.changes ?? []), ...(body.changes ?? [])] };
  unsent = [];
  if (isAsking) return;
  isAsking = true;
  while (waiting) {
    const { isFresh, ...sent } = waiting;
    waiting = null;
    if (!isFresh) sent.text = file.draft;
    const answer = await send("/admin/config", { table: file.table, ...sent });
    $("config-said").textContent = answer.refusal ?? "";
    if (!answer.refusal) showDraft(answer);
    else if (answer.isLost && waiting) waiting.changes = [...sent.changes, ...waiting.changes];
    else if (answer.isLost) unsent = sent.changes;
  }
  isAsking = false;
  showButtons();
}

function showDraft(answer) {
  if (answer.revision) Object.assign(file, { saved: answer.text, revision: answer.revision });
  // What was typed meanwhile is sent next.
  if (document.activeElement !== $("config-text") || answer.revision) {
    file.draft = answer.text;
    if ($("config-text").value !== answer.text) $("config-text").value = answer.text;
  }
  Object.assign(file, { table: answer.table, isRight: answer.is_right, isFixed: answer.fixed !== "" });
  $("config-fixed").textContent = answer.fixed;
  $("config-table").innerHTML = answer.tables;
  fillFields(answer.fields);
  for (const part of ["mistakes", "effect"]) if ($(`config-${part}`).innerHTML !== answer[part]) $(`config-${part}`).innerHTML = answer[part];
}

// A field that has the focus keeps what is written in it.
function fillFields(html) {
  const fields = $("config-fields"), focused = fields.contains(document.activeElement) ? document.activeElement : null;
  const { id, value, selectionStart: start, selectionEnd: end } = focused ?? {};
  fill(fields, html);
  const again = focused && $(id);
  if (!again || again.localName === "select") return;
  again.value = value;
  again.setSelectionRange(start, end);
}

function showButtons() {
  $("config-save").disabled = !isChanged() || !file.isRight || file.isFixed || isAsking || unsent.length > 0;
  $("config-discard").disabled = !isChanged();
}

async function save() {
  $("config-save").disabled = true;
  const { draft } = file;
  const { notice, revision, refusal } = await send("/admin/config/save", { text: draft, revision: file.revision });
  $("config-said").textContent = refusal ?? "";
  if (!refusal) {
    Object.assign(file, { saved: draft, revision });
    tell(notice);
  }
  showButtons();
}

function read() {
  clearTimeout(timer);
  waiting = null;
  unsent = [];
  ask({ isFresh: true });
}

// Several fields may have changed when the time is over.
const written = new Map();

function checkWritten() {
  const changes = [...written.values()];
  written.clear();
  ask({ changes });
}

$("config-fields").addEventListener("input", ({ target }) => {
  written.set(target.id, [JSON.parse(target.dataset.key), target.value]);
  clearTimeout(timer);
  timer = setTimeout(checkWritten, quietTime);
});
$("config-text").addEventListener("input", () => {
  file.draft = $("config-text").value;
  clearTimeout(timer);
  timer = setTimeout(() => ask({}), quietTime);
  showButtons();
});
$("config-table").addEventListener("change", () => ask({ table: JSON.parse($("config-table").value) }));
$("config-view").addEventListener("click", () => {
  const isText = $("config-text").hidden;
  $("config-text").hidden = !isText;
  $("config-fields").hidden = isText;
  $("config-table").disabled = isText;
  $("config-view").setAttribute("aria-pressed", isText);
});
$("config-save").addEventListener("click", save);
$("config-discard").addEventListener("click", read);
addEventListener("beforeunload", (event) => { if (isChanged()) event.preventDefault(); });

shows.config = (revision) => {
  $("config").hidden = false;
  if (unsent.length) ask({});
  if (revision === file.revision) return;
  if (isChanged()) $("config-said").textContent = words.config_changed;
  else read();
};
