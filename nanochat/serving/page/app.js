"use strict";
// All text from the model, the server or the person enters the page through textContent and text nodes only.
const $ = (id) => document.getElementById(id);
const [scroll, log, welcome, composer, question, send, stop, fresh, status] =
  ["scroll", "log", "welcome", "composer", "question", "send", "stop", "new", "status"].map($);

let messages = []; // what the server is sent: {role, content}, an assistant's content as parts
let running = null; // the AbortController of the answer under way

function element(tag, className, text) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text) made.textContent = text;
  return made;
}

function addTurn(role, text) {
  const turn = element("article", `turn ${role}`);
  turn.append(element("span", "hidden", role === "user" ? "You: " : "nanochat: "));
  if (text) turn.append(text);
  log.append(turn);
  welcome.hidden = true;
  fresh.hidden = false;
  return turn;
}

// Keeps the newest line in view, unless the person has scrolled up to read.
function follow(change) {
  const atEnd = scroll.scrollHeight - scroll.scrollTop - scroll.clientHeight < 80;
  change();
  if (atEnd) scroll.scrollTop = scroll.scrollHeight;
}

// Draws pieces into a turn and collects them as parts; pieces of one kind run together.
function answerWriter(turn) {
  const parts = [];
  let card = null;
  return {
    parts,
    add(type, text) {
      const last = parts.at(-1);
      const same = last && last.type === type;
      if (same) last.text += text;
      else parts.push({ type, text });
      turn.classList.remove("waiting");
      if (type === "text") {
        // A card has its own margins: line breaks around it would only widen the gap.
        const shown = same ? text : card ? text.replace(/^\n+/, "") : text;
        if (turn.lastChild.nodeType === Node.TEXT_NODE) turn.lastChild.appendData(shown);
        else turn.append(document.createTextNode(shown));
        if (!same) card = null;
        return;
      }
      if (!card || (type === "python" && !same)) {
        card = element("span", "tool");
        card.append(element("b", "", "Calculator"), element("code"));
        turn.append(card);
      }
      let line = card.querySelector(type === "python" ? "code" : "output");
      if (!line) card.append((line = element("output")));
      line.append(text);
    },
  };
}

// Yields the objects of a stream of server-sent events; returns at [DONE], throws when the stream breaks off before.
async function* serverEvents(response) {
  const decoder = new TextDecoder();
  const reader = response.body.getReader();
  let buffer = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) throw new Error("the connection ended in the middle of the answer");
    const lines = (buffer + decoder.decode(value, { stream: true })).split("\n\n");
    buffer = lines.pop();
    for (const line of lines) {
      if (!line.startsWith("data: ")) continue;
      if (line === "data: [DONE]") return;
      yield JSON.parse(line.slice(6));
    }
  }
}

async function stream(signal, onPiece) {
  let response;
  try {
    response = await fetch("chat/completions", {
      method: "POST",
      signal,
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify({ messages, stream: true }),
    });
  } catch (failure) {
    if (failure.name === "AbortError") throw failure;
    throw new Error("The server cannot be reached. Is it still running?");
  }
  if (!response.ok) {
    const body = await response.json().catch(() => ({}));
    throw new Error(body.error?.message ?? `The server answered with status ${response.status}.`);
  }
  let reason = "stop";
  for await (const chunk of serverEvents(response)) {
    if (chunk.error) throw new Error(chunk.error.message);
    const { delta, finish_reason } = chunk.choices[0];
    if (delta.content) onPiece("text", delta.content);
    if (delta.tool) onPiece(delta.tool.type, delta.tool.text);
    reason = finish_reason ?? reason;
  }
  return reason;
}

function setRunning(controller) {
  running = controller;
  send.hidden = Boolean(controller);
  stop.hidden = !controller;
  log.setAttribute("aria-busy", String(Boolean(controller))); // a screen reader reads the whole answer, not each piece
}

async function ask(text) {
  log.querySelectorAll(".failed").forEach((old) => old.remove());
  const asked = addTurn("user", text);
  const turn = addTurn("assistant waiting");
  scroll.scrollTop = scroll.scrollHeight;
  messages.push({ role: "user", content: text });
  const writer = answerWriter(turn);
  const controller = new AbortController();
  setRunning(controller);
  status.textContent = "The answer is being written.";
  let note = "";
  let problem = "";
  try {
    const reason = await stream(controller.signal, (type, piece) => follow(() => writer.add(type, piece)));
    if (reason === "length") note = "The answer was cut at its length limit.";
  } catch (failure) {
    if (failure.name === "AbortError") note = "Stopped.";
    else problem = failure.message;
  }
  if (running !== controller) return; // a new chat was started meanwhile
  turn.classList.remove("waiting");
  const answered = writer.parts.length > 0 && !problem;
  if (answered) messages.push({ role: "assistant", content: writer.parts });
  else messages.pop(); // an unanswered question is no part of the conversation, and goes when the next one is asked
  for (const shown of [asked, turn]) shown.classList.toggle("failed", !answered);
  follow(() => {
    if (note) turn.append(element("div", "note", note));
    if (problem) turn.append(errorWithRetry(problem, text));
  });
  status.textContent = problem ? "" : note || "The answer is complete.";
  setRunning(null);
  focusQuestion();
}

function errorWithRetry(problem, text) {
  const box = element("div", "error", problem);
  const again = element("button", "again", "Try again");
  again.type = "button";
  again.addEventListener("click", () => running || ask(text));
  box.setAttribute("role", "alert");
  box.append(again);
  return box;
}

function focusQuestion() {
  if (matchMedia("(pointer: fine)").matches) question.focus(); // on a phone it would open the keyboard
}

function fitQuestion() {
  question.style.height = "auto";
  question.style.height = `${question.scrollHeight + 2}px`;
  send.disabled = !question.value.trim();
}

function submit(text) {
  if (running || !text.trim()) return;
  question.value = "";
  fitQuestion();
  ask(text.trim());
}

composer.addEventListener("submit", (event) => {
  event.preventDefault();
  submit(question.value);
});
question.addEventListener("input", fitQuestion);
question.addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  submit(question.value);
});
stop.addEventListener("click", () => running?.abort());
document.addEventListener("keydown", (event) => event.key === "Escape" && running?.abort());
fresh.addEventListener("click", () => {
  const controller = running;
  setRunning(null);
  controller?.abort();
  messages = [];
  log.replaceChildren();
  status.textContent = "New chat.";
  welcome.hidden = false;
  fresh.hidden = true;
  focusQuestion();
});
$("ideas").addEventListener("click", (event) => event.target.matches("button") && submit(event.target.textContent));
focusQuestion();
