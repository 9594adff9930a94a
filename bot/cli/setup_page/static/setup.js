"use strict";
// The set-up page.  Answers live in its fields only; the server checks them, and writes files when asked to.

const words = JSON.parse(document.body.dataset.words);
const $ = (id) => document.getElementById(id);
const form = $("form"), status = $("status");
// Milliseconds without a key before an answer is checked.
const pause = 500;

function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

function tell(text) {
  status.textContent = text;
  status.hidden = !text;
}

async function post(path, body) {
  let response;
  try {
    response = await fetch(`/setup/${path}`, {
      method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body),
    });
  } catch {
    throw new Error(words.offline);
  }
  if (!response.ok) throw new Error(await response.text());
  return response.status === 204 ? {} : response.json();
}

// Calls `act` when no key was pressed for a moment; one call at a time, the last one with the newest answers.
function debounced(act) {
  let timer = 0, isRunning = false, isWanted = false;
  async function run() {
    if (isRunning) { isWanted = true; return; }
    isRunning = true;
    do {
      isWanted = false;
      try {
        await act();
      } catch (error) {
        tell(error.message);
      }
    } while (isWanted);
    isRunning = false;
  }
  return (wait = pause) => { clearTimeout(timer); timer = setTimeout(run, wait); };
}

// Addresses in a sentence of a platform become links.
function linked(text) {
  return text.split(/(https:\/\/[^\s]+)/).map((part, number) => number % 2
    ? element("a", { href: part, textContent: part, target: "_blank", rel: "noopener noreferrer" }) : part);
}

function button(name, text, act) {
  const made = element("button", { type: "button", textContent: text, className: name });
  made.addEventListener("click", act);
  return made;
}

const kept = new Set();
// Below the fields of a platform or the model: what their check says, and what can be done about it.
function addResult(place, name, check) {
  const result = element("div", { className: "result" });
  result.setAttribute("role", "status");
  const box = element("input", { type: "checkbox" });
  box.addEventListener("change", () => { kept[box.checked ? "add" : "delete"](name); preview(0); });
  const keep = element("label", { className: "keep", hidden: true }, box, ` ${words.unchecked}`);
  const link = element("a", { className: "invite", hidden: true, target: "_blank", rel: "noopener noreferrer" });
  const again = button("quiet again", words.again, () => check(0));
  again.hidden = true;
  place.append(result, keep, again, link);
  return {
    // Lines with a mark each; `verdict` is empty while there is none.
    show(lines, verdict = "") {
      const items = lines.map(({ kind, text }) => element("li", { className: kind }, ...linked(text)));
      result.replaceChildren(...items.length ? [element("ul", {}, ...items)] : []);
      keep.hidden = verdict !== "unreachable";
      if (lines.length && !verdict) return;  // a check runs
      const hadFocus = document.activeElement === again;
      again.hidden = !verdict || verdict === "refused" || lines.every(({ kind }) => kind === "good");
      if (hadFocus && again.hidden) (link.hidden ? place.querySelector("input, select") : link).focus();
    },
    reset() { this.show([]); link.hidden = true; box.checked = false; kept.delete(name); },
    link, place,
  };
}

// Asks for a check; if it fails, nothing is being checked any more.
async function askedOf(shown, path, body) {
  try {
    return await post(path, body);
  } catch (error) {
    shown.show([]);
    throw error;
  }
}

// Platforms.

const platforms = [...form.querySelectorAll("[name=platform]")].map((box) => {
  const place = $(box.value), title = box.parentElement.textContent.trim();
  const fields = [...place.querySelectorAll("[data-token]")], shown = addResult(place, box.value, (wait) => check(wait));
  const tokens = () => Object.fromEntries(fields.map((field) => [field.dataset.token, field.value.trim()]));
  const check = debounced(async () => {
    const asked = JSON.stringify(tokens());
    if (!fields.every((field) => field.value.trim())) return;
    shown.show([{ kind: "busy", text: words.asking.replace("{platform}", title) }]);
    const { verdict, lines, link } = await askedOf(shown, "tokens", { platform: box.value, tokens: JSON.parse(asked) });
    if (JSON.stringify(tokens()) !== asked) return;
    shown.show(lines.map(({ is_ok, text }) => ({ kind: is_ok ? "good" : "bad", text })), verdict);
    shown.link.hidden = !link.startsWith("https://");
    if (!shown.link.hidden) Object.assign(shown.link, { href: link, textContent: words[`${box.value}_link`] || link });
    preview(0);
  });
  for (const field of fields) {
    field.addEventListener("input", () => { shown.reset(); check(); preview(); });
  }
  box.addEventListener("change", () => {
    place.hidden = !box.checked;
    if (box.checked) fields[0].focus();
    preview(0);
  });
  return { name: box.value, box, tokens };
});

// The model.

function choice(value, text, ...details) {
  const radio = element("input", { type: "radio", name: "model", value });
  return element("div", { className: "choice" }, element("label", {}, radio, ` ${text}`),
    element("div", { className: "details", hidden: true }, ...details));
}

function select(name, options) {
  const made = element("select", {}, ...options.map(([value, text]) => element("option", { value, textContent: text })));
  made.dataset.model = name;
  return made;
}

function field(text, input) {
  return element("label", { className: "field" }, `${text} `, input);
}

function quantization() {
  const kinds = [["auto", words.first_fitting], ["none", "none"], ["int8", "int8"], ["int4", "int4"]];
  return field(words.quantization, select("quantization", kinds));
}

const modelShown = addResult(element("div", { id: "model-result" }), "model", (wait) => checkModel(wait));

function chosen() {
  return form.querySelector("[name=model]:checked").closest(".choice");
}

function modelAnswer() {
  const [place, answer] = [chosen(), { way: chosen().querySelector("[name=model]").value }];
  if (place.dataset.url) answer.url = place.dataset.url;
  for (const each of place.querySelectorAll("[data-model]")) {
    if (each.dataset.model === "other") { if (!answer.name) answer.name = each.value; } else answer[each.dataset.model] = each.value;
  }
  return answer;
}

const checkModel = debounced(async () => {
  const answer = modelAnswer(), asked = JSON.stringify(answer);
  modelShown.show([{ kind: "busy", text: words.checking }]);
  const { verdict, text, models } = await askedOf(modelShown, "model", answer);
  if (JSON.stringify(modelAnswer()) !== asked) return;
  modelShown.show([{ kind: verdict === "accepted" ? "good" : "bad", text }], verdict);
  const place = chosen(), names = place.querySelector("select[data-model=name]"), other = place.querySelector("[data-model=other]");
  if (other) {
    names.parentElement.hidden = !models.length;
    other.parentElement.hidden = verdict !== "unreachable";
    if ([...names.options].map((each) => each.value).join("\n") !== models.join("\n")) {
      names.replaceChildren(...models.map((name) => element("option", { value: name, textContent: name })));
      if (models.length) checkModel(0);
    }
  }
  preview(0);
});

function modelChanged(wait) {
  modelShown.reset();
  checkModel(wait);
}

function chooseModel() {
  for (const each of $("models").querySelectorAll(".choice")) each.querySelector(".details").hidden = each !== chosen();
  chosen().querySelector(".details").append(modelShown.place);
  $("memory").open = ["folder", "hub"].includes(modelAnswer().way);
  modelChanged(0);
}

async function findModels() {
  const { servers, cached, folders, fits } = await post("local", {});
  $("looking").hidden = true;
  for (const server of servers) {
    const names = select("name", server.models.map((name) => [name, name]));
    const made = choice("server", words.served.replace("{name}", `${server.name}, ${server.url}`), field(words.model_name, names));
    made.dataset.url = server.url;
    $("looking").before(made);
  }
  if (cached.length) {
    const names = select("name", cached.map((name) => [name, name]));
    $("looking").before(choice("hub", words.cached, field(words.model_name, names), quantization()));
  }
  $("folders").replaceChildren(...folders.map((value) => element("option", { value })));
  $("fits").replaceChildren(...fits.map((text) => element("li", { textContent: text })));
  $("memory").hidden = false;
}

$("models").addEventListener("change", (event) => {
  if (event.target.name === "model") chooseModel();
  else if (event.target.matches("select[data-model]")) modelChanged(0);
});
$("models").addEventListener("input", (event) => { if (event.target.matches("input[data-model]")) modelChanged(); });

// Files.

function answers() {
  const wanted = platforms.filter(({ box }) => box.checked);
  return {
    platforms: Object.fromEntries(wanted.map(({ name, tokens }) => [name, tokens()])),
    model: modelAnswer(), language: $("language").value, unchecked: [...kept],
    replaces: $("replaces").firstElementChild.checked,
  };
}

const preview = debounced(async () => {
  const { files, config, missing, notes, replaces } = await post("files", answers());
  $("files").replaceChildren(...files.map(({ path, is_private }) =>
    element("li", {}, element("code", { textContent: path }), is_private ? ` (${words.private})` : "")));
  $("config").textContent = config || words.defaults;
  $("missing").hidden = !missing.length;
  $("missing").lastElementChild.replaceChildren(...missing.map((text) => element("li", { textContent: text })));
  $("notes").hidden = !notes.length;
  $("notes").replaceChildren(...notes.map((text) => element("li", { textContent: text })));
  $("replaces").hidden = !replaces;
});

form.addEventListener("submit", async (event) => {
  event.preventDefault();
  $("write").disabled = true;
  try {
    const { written, commands, chat } = await post("write", answers());
    tell("");
    form.hidden = true;
    $("written").replaceChildren(...written.map((path) => element("li", {}, element("code", { textContent: path }))));
    $("commands").textContent = commands.join("\n");
    $("done").hidden = false;
    $("done").dataset.chat = chat;
    $("done-heading").focus();
  } catch (error) {
    tell(error.message);
  }
  $("write").disabled = false;
});

async function end(starts) {
  try {
    await post("end", { starts });
    tell("");
    $("ends").hidden = true;
    const chat = $("done").dataset.chat;
    $("ended").textContent = !starts ? words.closed : chat ? `${words.starting_chat} ` : words.starting;
    if (starts && chat) $("ended").append(element("a", { href: chat, textContent: words.open_chat }));
  } catch (error) {
    tell(error.message);
  }
}

$("start").addEventListener("click", () => end(true));
$("later").addEventListener("click", () => end(false));
$("language").addEventListener("change", () => preview(0));
$("replaces").addEventListener("change", () => preview(0));
$("create-slack").href += `&manifest_yaml=${encodeURIComponent($("manifest").textContent)}`;
$("copy").addEventListener("click", async () => {
  await navigator.clipboard.writeText($("manifest").textContent);
  $("copy").textContent = words.copied;
});
for (const place of form.querySelectorAll("[data-quantization]")) place.replaceWith(quantization());

async function begin() {
  const link = new URLSearchParams(location.search).get("link");
  if (link) {
    try {
      await post("enter", { link });
    } catch (error) {
      // A reload of the address with the link: the cookie of this browser is what counts.
      if (error.message === words.offline) throw error;
    }
    history.replaceState(null, "", "/");
  }
  form.hidden = false;
  chooseModel();
  await findModels();
}

begin().catch((error) => { $("looking").hidden = true; tell(error.message); });
