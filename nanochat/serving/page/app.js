"use strict";
// The page's state, how it is drawn, and what a person can do: switch, rename, export and delete conversations.
const SAVE_SECONDS = 3;

const question = $("question");
const scroll = $("scroll");
const log = $("log");
const store = openStore(tell);
const preferences = store.preferences();
const runs = new Map(); // a chat's id -> {controller, chat, message, notice, retryNow, frame, saved}
const drafts = new Map();
let model = null;
let leaving = false; // the page is being closed: its connections break

// What belongs to this tab alone; a browser that keeps nothing forgets it when the page is opened anew.
const tab = {};
function remembered(name, value) {
  if (value !== undefined) tab[name] = value;
  try {
    if (value !== undefined) sessionStorage.setItem(`nanochat:${name}`, value);
    tab[name] ??= sessionStorage.getItem(`nanochat:${name}`);
  } catch {}
  return tab[name] ?? "";
}

let chat = store.get(remembered("current")) ?? newChat(preferences);

// --- drawing

function drawChat() {
  const empty = chat.messages.length === 0;
  const run = runs.get(chat.id);
  $("welcome").hidden = !empty;
  $("more").hidden = $("fresh").hidden = empty;
  $("title").textContent = chat.title || "New chat";
  document.title = chat.title ? `${chat.title} · nanochat` : "nanochat";
  log.replaceChildren(...chat.messages.map((message, index) => turnOf(message, index)));
  drawRunning(run);
  drawList();
}

function turnOf(message, index) {
  const isLast = index === chat.messages.length - 1;
  if (message.role === "assistant") return answerTurn(message, isLast ? runs.get(chat.id) : undefined, isLast, turnActs);
  const turn = questionTurn(message, index, turnActs);
  turn.classList.toggle("unanswered", !isAnswered(chat.messages[index + 1]) && !(runs.has(chat.id) && index === chat.messages.length - 2));
  return turn;
}

const turnActs = {
  followers: (index) => chat.messages.length - index - 1,
  resend(index, text) {
    chat.messages.length = index;
    ask(text);
  },
  regenerate() {
    if (runs.has(chat.id)) return;
    chat.messages.pop();
    answer(chat);
  },
};

function drawRunning(run) {
  $("send").hidden = Boolean(run);
  $("stop").hidden = !run;
  log.classList.toggle("busy", Boolean(run));
  log.setAttribute("aria-busy", String(Boolean(run))); // a screen reader reads the whole answer, not each piece
}

function drawList() {
  $("chats").replaceChildren(
    ...store.newestFirst().map((one) => {
      const button = textButton(one.title, () => show(one), runs.has(one.id) ? "running" : "");
      if (one.id === chat.id) button.setAttribute("aria-current", "page");
      return element("li", "", button);
    }),
  );
}

const isAtEnd = () => scroll.scrollHeight - scroll.scrollTop - scroll.clientHeight < 80;

function toEnd() {
  scroll.scrollTop = scroll.scrollHeight;
}

// Keeps the newest line in view, unless the person has scrolled up to read.
function follow(change) {
  const atEnd = isAtEnd();
  change();
  if (atEnd) toEnd();
  $("latest").hidden = isAtEnd();
}

// At most once a frame: pieces may come faster than a screen shows them.
function redraw(run) {
  run.frame ||= requestAnimationFrame(() => {
    run.frame = 0;
    if (runs.get(chat.id) === run) follow(() => updateAnswer(log.lastElementChild, run.message, run));
    if (performance.now() - run.saved > SAVE_SECONDS * 1000) {
      run.saved = performance.now();
      store.save(run.chat);
    }
  });
}

// --- conversations

function show(other) {
  drafts.set(chat.id, question.value);
  chat = other;
  remembered("current", chat.id);
  question.value = drafts.get(chat.id) ?? "";
  say("");
  fitQuestion();
  closeSide();
  endRename();
  drawChat();
  toEnd();
  $("latest").hidden = true;
  focusQuestion();
}

function startNew() {
  if (chat.messages.length) show(newChat(preferences));
  else {
    closeSide();
    focusQuestion();
  }
  say("New chat.");
}

function forget(one) {
  const run = runs.get(one.id);
  if (run) {
    run.forgotten = true;
    run.controller.abort();
    runs.delete(one.id);
  }
  store.forget(one.id);
}

function deleteChat() {
  const gone = chat;
  forget(gone);
  show(newChat(preferences));
  tell(`“${gone.title.slice(0, 40)}” is deleted.`, "Undo", () => {
    store.save(gone);
    show(gone);
  });
}

function rename() {
  $("title").hidden = true;
  $("rename").hidden = false;
  $("name").value = chat.title;
  $("name").select();
}

function endRename() {
  $("title").hidden = false;
  $("rename").hidden = true;
}

function closeSide() {
  if ($("side").matches(":popover-open")) $("side").hidePopover();
}

// --- the field, the keys, the start

function focusQuestion() {
  if (matchMedia("(pointer: fine)").matches) question.focus(); // on a phone it would open the keyboard
}

function fitQuestion() {
  question.style.height = "auto";
  question.style.height = `${question.scrollHeight + 2}px`;
  $("send").disabled = !question.value.trim();
}

function submit(text) {
  if (runs.has(chat.id) || !text.trim()) return;
  question.value = "";
  fitQuestion();
  ask(text.trim());
}

function editLast() {
  const turns = log.querySelectorAll(".user");
  if (turns.length && !runs.has(chat.id)) turns[turns.length - 1].querySelector("[aria-label^=Edit]").click();
}

async function meetModel() {
  try {
    model = await fetchModel(remembered("key"));
    $("model").textContent = model.id;
    $("model").className = "here";
    drawer.suggest(model.defaults ?? {});
  } catch (failure) {
    $("model").textContent = failure.status === 401 ? "This server asks for a key." : failure.message;
    $("model").className = "";
  }
}

function fold(folded) {
  preferences.folded = folded;
  store.savePreferences(preferences);
  document.body.classList.toggle("folded", folded);
  $("unfold").hidden = !folded;
  $(folded ? "unfold" : "fold").focus();
}

const drawer = openDrawer(preferences, {
  chat: () => chat,
  key: () => remembered("key"),
  changed() {
    store.savePreferences(preferences);
    if (store.get(chat.id)) store.save(chat);
  },
  keyChanged(key) {
    remembered("key", key);
    meetModel();
  },
  forgetAll() {
    store.newestFirst().forEach(forget);
    show(newChat(preferences));
    tell("All conversations are deleted.");
  },
});

$("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  submit(question.value);
});
question.addEventListener("input", fitQuestion);
question.addEventListener("keydown", (event) => {
  if (event.key === "ArrowUp" && question.value === "") editLast();
  else if (isSendKey(event)) submit(question.value);
  else return;
  event.preventDefault();
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && !drawer.isOpen() && !document.querySelector(":popover-open")) stop();
});
scroll.addEventListener("scroll", () => ($("latest").hidden = isAtEnd()), { passive: true });
$("latest").addEventListener("click", toEnd);
$("stop").addEventListener("click", stop);
$("new").addEventListener("click", startNew);
$("fresh").addEventListener("click", startNew);
$("settings").addEventListener("click", () => drawer.open());
$("fold").addEventListener("click", () => fold(true));
$("unfold").addEventListener("click", () => fold(false));
$("ideas").addEventListener("click", (event) => event.target.matches("button") && submit(event.target.textContent));
$("menu").addEventListener("click", ({ target }) => {
  $("menu").hidePopover();
  const acts = { rename, markdown: () => exportMarkdown(chat), json: () => exportJson(chat), delete: deleteChat };
  acts[target.dataset.act]?.();
});
$("rename").addEventListener("submit", (event) => {
  event.preventDefault();
  chat.title = $("name").value.trim() || chat.title;
  store.save(chat);
  endRename();
  drawChat();
});
$("rename").addEventListener("keydown", (event) => {
  if (event.key !== "Escape") return;
  event.stopPropagation();
  endRename();
  $("more").focus();
});
window.addEventListener("storage", ({ key }) => {
  const id = store.changedElsewhere(key);
  if (id === chat.id && !runs.has(id) && chat.messages.length) {
    chat = store.get(id) ?? newChat(preferences);
    drawChat();
  } else if (id) drawList();
});
window.addEventListener("beforeunload", () => {
  leaving = true;
  setTimeout(() => (leaving = false), 1000);
});
window.addEventListener("pagehide", () => runs.forEach((run) => store.save(run.chat)));

applyLook(preferences);
document.body.classList.toggle("folded", preferences.folded === true);
$("unfold").hidden = preferences.folded !== true;
drawChat();
toEnd();
focusQuestion();
meetModel();
