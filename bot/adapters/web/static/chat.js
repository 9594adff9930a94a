"use strict";
// The page of the web chat.  The server has the conversation: this shows what the event stream says, and
// keeps only what was not accepted yet, under an id that makes sending it again harmless.

const words = JSON.parse(document.body.dataset.words);
const $ = (id) => document.getElementById(id);
const log = $("log"), field = $("text"), scroller = $("scroll"), status = $("status");
const isId = (text) => /^[0-9a-f]{32}$/.test(text);
const newId = () => Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");

let chat = "", source = null, shown = new Map(), order = [], wasReplaced = false, isEnded = false;
let listed = Number(sessionStorage.getItem("listed") || 100);  // conversations in the list
let outbox = JSON.parse(sessionStorage.getItem("outbox") || "[]");

function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

function button(name, text, act) {
  const made = element("button", { type: "button", textContent: text, className: name });
  made.addEventListener("click", act);
  return made;
}

function tell(text) {
  status.textContent = text;
  status.hidden = !text;
}

// Requests.

async function post(path, body) {
  const response = await session.post(path, "application/json", JSON.stringify(body));
  if (!response.ok) throw Object.assign(new Error(await response.text()), { status: response.status });
  return response.status === 204 ? {} : response.json();
}

async function call(path, body) {
  try {
    const { notice } = await post(path, { chat, ...body });
    tell(notice || "");
    return true;
  } catch (error) {
    if (error.status === 401) end();
    else tell(error.status ? error.message : words.offline);
    return false;
  }
}

function store(name, value) {
  try {
    sessionStorage.setItem(name, JSON.stringify(value));
    return true;
  } catch {
    sessionStorage.removeItem(name);
    return false;
  }
}

const withoutPictures = (files) => files.filter(({ picture }) => !picture);

// Pictures may be larger than what a browser keeps; they are sent all the same.
function keep() {
  if (!store("outbox", outbox)) store("outbox", outbox.filter(({ files }) => files.length === withoutPictures(files).length));
}

// What is being written survives a reload and a sign-in.
function keepDraft() {
  if (!session.isOpen) return;
  const draft = { by: session.user, text: field.value, files };
  if (!store("draft", draft)) store("draft", { ...draft, files: withoutPictures(files) });
}

function restoreDraft() {
  const draft = JSON.parse(sessionStorage.getItem("draft"));
  if (draft?.by !== session.user) return;
  sessionStorage.removeItem("draft");
  if (field.value || files.length) return;
  [field.value, files] = [draft.text, draft.files];
  drawFiles();
  fit();
}

// Others may have signed in in this tab before: what they had not sent yet is theirs.
const mine = () => outbox.filter(({ by }) => by === undefined || by === session.user);

let isSending = false;
async function sendAll() {
  if (isSending || !session.isOpen) return;
  isSending = true;
  for (let message; ([message] = mine().filter(({ refused }) => !refused), message);) {
    message.by ??= session.user;
    try {
      await post("/web/ask", message);
      outbox = outbox.filter((other) => other !== message);
    } catch (error) {
      if (error.status === 401) {
        end();
        break;
      } else if (error.status && error.status < 500 && error.status !== 429) {
        refuse(message, error.message);
      } else {
        tell(error.status ? error.message : words.offline);
        await new Promise((done) => setTimeout(done, 1000));
      }
    }
    keep();
  }
  isSending = false;
}

// A refused question goes back to the field if that is free, else it stays where it is.
function refuse(message, why) {
  if (message.chat === chat && !field.value && !files.length && !reading) {
    outbox = outbox.filter((other) => other !== message);
    [field.value, files] = [message.text, message.files];
    drawFiles();
    fit();
  } else message.refused = why;
  draw();
  tell(why);
}

function sendAgain(id) {
  for (const message of outbox) if (message.id === id) delete message.refused;
  draw();
  field.focus();
  sendAll();
}

function discard(id) {
  outbox = outbox.filter((message) => message.id !== id);
  keep();
  draw();
  field.focus();
}

function ask() {
  const text = field.value.trim();
  if (reading || !(text || files.length)) return;
  outbox.push({ chat, id: newId(), text, files });
  keep();
  field.value = "";
  files = [];
  drawFiles();
  fit();
  draw();
  scroller.scrollTop = scroller.scrollHeight;
  if (location.hash.slice(1) !== chat) history.replaceState(null, "", `#${chat}`);
  sendAll();
}

// Files: the server reads a chosen one at once, and its text, or its picture, goes with the question.

const mostFiles = 10;
let files = [], reading = 0, attaching = Promise.resolve();

// One after the other: the server takes few at once.
function attach(chosen) {
  attaching = attaching.then(() => readAll(chosen));
}

async function readAll(chosen) {
  const said = [], fitting = chosen.slice(0, mostFiles - files.length);
  for (const file of fitting) {
    reading += 1;
    tell(words.reading.replace("{name}", file.name));
    try {
      const path = `/web/read?chat=${chat}&name=${encodeURIComponent(file.name)}`;
      const response = await session.post(path, file.type || "application/octet-stream", file);
      if (!response.ok) throw Object.assign(new Error(await response.text()), { status: response.status });
      const { notice, file: read } = await response.json();
      if (notice) said.push(notice);
      else files.push(read);
    } catch (error) {
      isEnded ||= error.status === 401;
      said.push(error.status ? error.message : words.lost.replace("{name}", file.name));
    }
    reading -= 1;
    drawFiles();
  }
  if (fitting.length < chosen.length) said.push(words.many.replace("{count}", mostFiles));
  if (isEnded) end();
  else tell(said.join(" "));
  field.focus();
}

function drawFiles() {
  $("files").replaceChildren(...files.map((file) => {
    const remove = button("icon", "✕", () => { files = files.filter((other) => other !== file); drawFiles(); field.focus(); });
    remove.setAttribute("aria-label", `${words.remove}: ${file.name}`);
    return element("li", {}, element("span", { textContent: file.name }), remove);
  }));
}

$("attach").addEventListener("click", () => $("chosen").click());
$("chosen").addEventListener("change", () => { attach([...$("chosen").files]); $("chosen").value = ""; });
const hasFiles = (event) => event.dataTransfer?.types.includes("Files");
addEventListener("dragover", (event) => hasFiles(event) && event.preventDefault());
addEventListener("drop", (event) => { if (hasFiles(event)) { event.preventDefault(); attach([...event.dataTransfer.files]); } });

// The event stream.

function connect() {
  source?.close();
  wasReplaced = false;
  const mine = source = new EventSource(`/web/events?chat=${chat}&listed=${listed}`);
  mine.onopen = () => tell("");
  mine.onmessage = (event) => update(JSON.parse(event.data));
  mine.addEventListener("replaced", () => { mine.close(); wasReplaced = true; tell(words.elsewhere); });
  mine.onerror = () => {
    if (mine !== source || wasReplaced) return;
    tell(words.offline);
    // A refusal ends the stream; the browser tries again by itself only where no answer came.
    if (mine.readyState === EventSource.CLOSED) setTimeout(() => mine === source && start(), 1000);
  };
}

async function start() {
  const response = await session.open().catch(() => null);
  isEnded = response?.status === 401;
  if (isEnded) {
    end();
    return;
  }
  if (!response?.ok) {
    tell(response ? await response.text() : words.offline);
    setTimeout(start, 1000);
    return;
  }
  restoreDraft();
  connect();
  sendAll();
}

// What is unsent and where one was is kept; after a sign-in, also in another tab, the page goes on.
function end() {
  isEnded = true;
  sessionStorage.setItem("place", location.hash);
  session.offer(status);
}

function update(news) {
  if (news.reset) shown = new Map();
  if (news.order) order = news.order;
  for (const exchange of news.exchanges) shown.set(exchange.id, exchange);
  if (news.order) {
    const there = new Set(order);
    for (const id of shown.keys()) if (!there.has(id)) shown.delete(id);
    outbox = outbox.filter((message) => !there.has(message.id));
    keep();
  }
  if (news.chats) drawChats(news.chats, news.older);
  draw(news.reset ? null : new Set(news.exchanges.map((exchange) => exchange.id)));
}

// Drawing.

function draw(changed = null) {
  const isAtEnd = scroller.scrollHeight - scroller.scrollTop - scroller.clientHeight < 80;
  const waiting = mine().filter((message) => message.chat === chat && !shown.has(message.id));
  const exchanges = [
    ...order.filter((id) => shown.has(id)).map((id) => shown.get(id)),
    ...waiting.map(({ id, text, files, refused }) => ({ id, question: text, files, html: "", text: "", notice: "", open: !refused, chat: !refused, reply: null, refused })),
  ];
  drawList(log, exchanges, exchangeNode, (node, exchange, isMoved) => {
    if (isMoved || !changed || changed.has(exchange.id)) drawExchange(node, exchange);
  });
  $("empty").hidden = exchanges.length > 0;
  $("stop").hidden = !exchanges.some((exchange) => exchange.open && exchange.reply);
  if (isAtEnd) scroller.scrollTop = scroller.scrollHeight;
}

// Drawing a list again leaves its nodes where they are: a pressed key or a selection is not lost.
function drawList(list, items, make, fill) {
  const focused = document.activeElement;
  const wanted = new Set(items.map(({ id }) => id));
  for (const node of [...list.children]) if (!wanted.has(node.dataset.id)) node.remove();
  items.forEach((item, number) => {
    let node = list.children[number];
    const isMoved = node?.dataset.id !== item.id;
    if (isMoved) {
      node = [...list.children].find((other) => other.dataset.id === item.id) || make(item);
      node.dataset.id = item.id;
      list.insertBefore(node, list.children[number] || null);
    }
    fill(node, item, isMoved);
  });
  if (focused !== document.activeElement && list.contains(focused)) focused.focus({ preventScroll: true });
}

function drawActions(node, actions) {
  const names = actions.map(([text, , , , isPressed]) => text + (isPressed ?? "")).join("\n");
  if (node.dataset.names === names) return;
  node.dataset.names = names;
  const focused = [...node.children].indexOf(document.activeElement);
  node.replaceChildren(...actions.map(([text, act, name = "quiet", label = null, isPressed = null]) => Object.assign(button(name, text, act), label && { ariaLabel: label, title: label, ariaPressed: isPressed })));
  node.children[focused]?.focus();
}

function exchangeNode() {
  const node = element("article", { className: "exchange" });
  node.append(
    element("div", { className: "question" },
      element("h2", { className: "hidden", textContent: words.you }),
      element("div", { className: "bubble" }),
      element("div", { className: "actions" }),
      element("ul", { className: "files" })),
    element("div", { className: "reply" },
      element("h2", { className: "hidden", textContent: words.bot }),
      element("div", { className: "answer" }), element("div", { className: "notice" }),
      element("div", { className: "actions" })),
  );
  return node;
}

function drawExchange(node, exchange) {
  const [question, reply] = node.children;
  const isDone = exchange.chat && !exchange.open;
  const now = () => shown.get(exchange.id) || exchange;
  if (!question.querySelector("textarea")) {
    question.children[1].textContent = exchange.question;
    drawActions(question.children[2], isDone ? [[words.edit, () => edit(node, now())]] : []);
  }
  question.children[3].replaceChildren(...exchange.files.map(({ name }) => element("li", { textContent: name })));
  drawAnswer(reply.children[1], exchange);
  if (exchange.refused) reply.children[2].textContent = exchange.refused;
  else reply.children[2].innerHTML = exchange.notice;
  reply.classList.toggle("open", exchange.open);
  reply.setAttribute("aria-busy", exchange.open);
  const actions = exchange.refused ? [[words.again, () => sendAgain(exchange.id)], [words.remove, () => discard(exchange.id)]] : [];
  if (isDone && exchange.text) actions.push([words.copy, (event) => copy(event.target, now().text)]);
  const press = (action) => () => call("/web/press", { reply: now().reply, action });
  if (isDone && exchange.reply) actions.push([words.retry, press("retry")]);
  const vote = (symbol, name, label) => [symbol, press(name), "quiet", label, exchange.vote === name];
  if (isDone && exchange.reply && exchange.rated) actions.push(vote("👍", "up", words.up), vote("👎", "down", words.down));
  drawActions(reply.children[3], actions);
}

function drawAnswer(answer, exchange) {
  const isWaiting = exchange.open && !exchange.html;
  if (answer.drawn === exchange.html && !isWaiting && !answer.querySelector(".dots")) return;
  answer.drawn = exchange.html;
  answer.innerHTML = exchange.html;  // rendered by the server, without HTML of its own
  if (isWaiting) answer.append(element("span", { className: "dots", role: "img", ariaLabel: words.answering }));
  for (const block of answer.querySelectorAll("pre")) {
    const wrapped = element("div", { className: "code" });
    block.replaceWith(wrapped);
    wrapped.append(block, button("copy", words.copy, (event) => copy(event.target, block.textContent)));
  }
}

function drawChats(chats, hasOlder) {
  drawList($("chats"), chats, chatNode, (node, { id, title }) => {
    const [link, remove] = node.children;
    link.textContent = title;
    if (id === chat) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
    remove.setAttribute("aria-label", `${words.delete}: ${title}`);
  });
  $("older").hidden = !hasOlder;
  const current = chats.find(({ id }) => id === chat);
  $("heading").textContent = current ? current.title : words.new;
  document.title = current ? `${current.title} – ${words.title}` : words.title;
}

function chatNode({ id }) {
  return element("li", {}, element("a", { href: `#${id}` }), button("icon", "✕", () => remove(id)));
}

async function remove(id) {
  if (!confirm(words.sure)) return;
  try {
    const { notice } = await post("/web/delete", { chat: id });
    tell(notice);
  } catch (error) {
    tell(error.status ? error.message : words.offline);
    return;
  }
  if (id === chat) begin();
  else field.focus();
}

async function copy(pressed, text) {
  await navigator.clipboard.writeText(text);
  pressed.textContent = words.copied;
  setTimeout(() => { pressed.textContent = words.copy; }, 1500);
}

function edit(node, exchange) {
  const question = node.children[0];
  const area = element("textarea", { value: exchange.question, ariaLabel: words.edit, rows: 3 });
  const end = () => { question.classList.remove("edited"); area.remove(); drawExchange(node, shown.get(exchange.id) || exchange); };
  const save = async () => { if (area.value.trim() && await call("/web/edit", { id: exchange.id, text: area.value.trim(), files: exchange.files })) end(); };
  area.addEventListener("keydown", (event) => {
    if (event.key === "Escape") end();
    if (isSend(event)) { event.preventDefault(); save(); }
  });
  question.classList.add("edited");
  question.children[1].replaceChildren(area);
  drawActions(question.children[2], [[words.save, save, "primary"], [words.cancel, end]]);
  area.focus();
}

// The settings of the conversation.

const ranges = { temperature: [0, 2, 0.05], top_p: [0.05, 1, 0.05] };

async function settings(change = {}) {
  try {
    const { notice, fields } = await post("/web/settings", { chat, ...change });
    const control = (name) => $(`setting-${name}`);
    if (!fields.every(({ name }) => control(name))) $("fields").replaceChildren(...fields.map(settingNode));
    for (const { name, value } of fields) {
      control(name).value = value || "clear";
      const number = control(name).nextElementSibling;
      if (number) number.textContent = value;
    }
    const isRefused = change.value && change.value !== "clear" && !fields.some(({ name, value }) => name === change.setting && value === change.value);
    $("said").textContent = isRefused ? notice : "";
    return fields;
  } catch (error) {
    $("said").textContent = error.status ? error.message : words.offline;
    return [];
  }
}

function settingNode({ name, options }) {
  const id = `setting-${name}`;
  let control;
  if (options.length) {
    control = element("select", { id });
    control.append(...["clear", ...options].map((value) => element("option", { value, textContent: value === "clear" ? words.default : value })));
    if (name === "persona") control.append(element("option", { value: "*", textContent: words.own, hidden: true }));
  } else if (name in ranges) {
    const [min, max, step] = ranges[name];
    control = element("input", { id, type: "range", min, max, step });
  } else control = element("input", { id, type: "number", min: 0, step: 1 });
  control.addEventListener("change", () => settings({ setting: name, value: control.type === "number" && !Number(control.value) ? "clear" : control.value }));
  const parts = [element("label", { htmlFor: id, textContent: words[name] }), control];
  if (control.type === "range") {
    const number = element("output", { htmlFor: id });
    control.addEventListener("input", () => { number.textContent = control.value; });
    parts.push(number);
  }
  return element("div", { className: "setting" }, ...parts);
}

$("tune").addEventListener("click", async () => { await settings(); $("settings").showModal(); });
$("defaults").addEventListener("click", async () => {
  for (const { name } of await settings()) await settings({ setting: name, value: "clear" });
});

// The field, the list and the keyboard.

function isSend(event) {
  return event.key === "Enter" && !event.shiftKey && !event.isComposing && event.keyCode !== 229;
}

function fit() {
  field.style.height = "auto";
  field.style.height = `${Math.min(field.scrollHeight, innerHeight / 3)}px`;
}

function menu(isOpen) {
  document.body.classList.toggle("menu", isOpen);
  $("menu").setAttribute("aria-expanded", isOpen);
}

function begin() {
  history.pushState(null, "", location.pathname);
  open();
}

function open() {
  const named = (location.hash || sessionStorage.getItem("place") || "").slice(1);
  sessionStorage.removeItem("place");
  if (isId(named)) history.replaceState(null, "", `#${named}`);
  chat = isId(named) ? named : newId();
  shown = new Map();
  order = [];
  menu(false);
  $("heading").textContent = words.new;
  draw();
  start();
  field.focus();
}

$("form").addEventListener("submit", (event) => { event.preventDefault(); ask(); });
field.addEventListener("keydown", (event) => { if (isSend(event)) { event.preventDefault(); ask(); } });
field.addEventListener("input", fit);
$("new").addEventListener("click", begin);
$("older").addEventListener("click", () => { listed = Math.min(listed + 100, 10000); sessionStorage.setItem("listed", listed); connect(); });
$("menu").addEventListener("click", () => { menu(true); $("close").focus(); });
$("close").addEventListener("click", () => { menu(false); $("menu").focus(); });
$("shade").addEventListener("click", () => menu(false));
$("stop").addEventListener("click", () => {
  for (const exchange of shown.values()) if (exchange.open && exchange.reply) call("/web/press", { reply: exchange.reply, action: "stop" });
});
status.addEventListener("click", () => wasReplaced && connect());
document.querySelector(".skip").addEventListener("click", (event) => { event.preventDefault(); field.focus(); });
addEventListener("keydown", (event) => { if (event.key === "Escape") menu(false); });
addEventListener("pagehide", keepDraft);
addEventListener("focus", () => { if (isEnded) start(); else if (wasReplaced) connect(); });
addEventListener("hashchange", () => { if (isId(location.hash.slice(1)) && location.hash.slice(1) !== chat) open(); });
addEventListener("popstate", () => { if (!location.hash) open(); });
open();
