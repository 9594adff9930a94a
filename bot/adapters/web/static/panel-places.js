"use strict";
// The settings of a channel or thread: each is changed as soon as its field is left, with the command for it.

const placeDialog = $("place-dialog");
let opener = null, shownPlace = "";

async function openPlace(place, button) {
  const { fields, place: named, refusal } = await send("/admin/place", { place });
  if (refusal) return tell(refusal);
  opener = button;
  shownPlace = named;
  $("place-heading").textContent = words.settings_of.replace("{place}", named);
  $("place-said").textContent = "";
  $("place-fields").innerHTML = fields;
  placeDialog.showModal();
}

$("place-fields").addEventListener("change", async ({ target }) => {
  const { setting } = target.dataset;
  const { notice, fields, refusal } = await send("/admin/place", { place: shownPlace, setting, value: target.value });
  $("place-said").textContent = refusal ?? notice;
  if (!refusal) fillOthers($("place-fields"), fields, target.id);
});

// The answer may come while the next field is being written in: that one stays.
function fillOthers(node, html, changed) {
  const focused = node.contains(document.activeElement) ? document.activeElement : null;
  const kept = focused?.id === changed ? null : focused?.closest(".setting");
  const made = Object.assign(document.createElement("div"), { innerHTML: html });
  const successor = kept && made.querySelector(`#${focused.id}`)?.closest(".setting");
  if (!successor) {
    fill(node, html);
    return;
  }
  for (const field of [...node.children]) if (field !== kept) field.remove();
  const fields = [...made.children], place = fields.indexOf(successor);
  kept.before(...fields.slice(0, place));
  kept.after(...fields.slice(place + 1));
}

$("place-form").addEventListener("submit", (event) => {
  event.preventDefault();
  openPlace($("place").value, $("place-open"));
});
$("channels").addEventListener("click", ({ target }) => { if (target.matches(".place")) openPlace(target.dataset.place, target); });
$("place-done").addEventListener("click", () => placeDialog.close());
// The button may have been drawn again meanwhile.
placeDialog.addEventListener("close", () => $(opener.id)?.focus());
