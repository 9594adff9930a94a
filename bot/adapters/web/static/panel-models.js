"use strict";
// The dialog that changes a model, by way of config.toml.  How far it is comes with the event stream.

const modelDialog = $("model-dialog");
const modelFields = { model: $("model-name"), quantization: $("model-quantization") };
let changed = null;

// The settings that the button names are those that this person may change.
const settingsOf = ({ dataset: { name, ...values } }) => values;

function openModel(button) {
  changed = button;
  $("model-heading").textContent = button.getAttribute("aria-label");
  for (const [name, value] of Object.entries(settingsOf(button))) modelFields[name].value = value;
  $("model-said").textContent = "";
  modelDialog.showModal();
}

async function changeModel(event) {
  event.preventDefault();
  $("model-save").disabled = true;
  $("model-said").textContent = words.checking;
  const values = Object.fromEntries(Object.keys(settingsOf(changed)).map((name) => [name, modelFields[name].value]));
  const { notice, refusal } = await send("/admin/model", { name: changed.dataset.name, values });
  $("model-save").disabled = false;
  $("model-said").textContent = refusal ?? "";
  if (refusal) return;
  modelDialog.close();
  tell(notice);
}

$("models").addEventListener("click", ({ target }) => {
  if (target.matches(".change")) openModel(target);
  if (target.matches(".back")) post("/admin/model", { name: target.dataset.name, values: settingsOf(target) });
});
$("model-form").addEventListener("submit", changeModel);
$("model-cancel").addEventListener("click", () => modelDialog.close());
// The button may have been drawn again meanwhile.
modelDialog.addEventListener("close", () => $(changed.id)?.focus());
