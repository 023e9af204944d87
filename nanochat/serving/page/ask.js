"use strict";
// Asking: a question and its answer join the conversation, and the answer grows until it ends, fails or is stopped.
const SLOW_SECONDS = 5; // without a word for so long, the page says that it still waits
const MOST_RETRIES = 3;
const LONGEST_RETRY_SECONDS = 60;

function ask(text) {
  if (chat.messages.length && !isAnswered(chat.messages.at(-1))) chat.messages.splice(-2); // a question without an answer makes way
  chat.title ||= text.split("\n", 1)[0].slice(0, 120);
  chat.messages.push({ role: "user", text });
  answer(chat);
}

async function answer(asked) {
  const body = { ...(model && { model: model.id }), messages: plainMessages(asked), ...asked.sampling };
  const message = { role: "assistant", parts: [], end: "stopped", tokens: 0, seconds: 0 };
  const run = { controller: new AbortController(), chat: asked, message, notice: "", retryNow: null, frame: 0, saved: performance.now() };
  asked.messages.push(message);
  asked.updated = Date.now();
  runs.set(asked.id, run);
  remembered("current", asked.id);
  store.save(asked);
  drawChat();
  toEnd();
  say("The answer is being written.");
  try {
    await receive(run, body);
  } catch (failure) {
    if (failure.name !== "AbortError" && !leaving) Object.assign(message, { end: "failed", problem: problemOf(failure) });
    if (failure.status === 401) drawer.open("key");
  }
  runs.delete(asked.id);
  if (run.forgotten) return;
  asked.updated = Date.now();
  store.save(asked);
  if (asked !== chat) return drawList();
  const turn = log.lastElementChild;
  follow(() => {
    updateAnswer(turn, message);
    endAnswer(turn, message, true, turnActs);
    turn.previousElementSibling.classList.toggle("unanswered", !isAnswered(message));
    drawRunning();
  });
  drawList();
  const { activeElement } = document;
  if (getSelection().isCollapsed && (activeElement === document.body || log.contains(activeElement))) focusQuestion();
  say({ stop: "The answer is complete.", length: "The answer was cut at its length limit.", stopped: "Stopped.", failed: "" }[message.end]);
  if (!model && message.end === "stop") meetModel();
}

// Fills the run's message; tries again where a busy server says when.
async function receive(run, body) {
  const { message, controller } = run;
  const slow = setTimeout(() => {
    if (message.parts.length || run.notice) return;
    run.notice = "Still waiting for the first word.";
    say(run.notice);
    redraw(run);
  }, SLOW_SECONDS * 1000);
  let first = 0;
  const take = (type, text) => {
    const last = message.parts.at(-1);
    if (last?.type === type) last.text += text;
    else message.parts.push({ type, text });
    run.notice = "";
    first ||= performance.now();
    message.seconds = (performance.now() - first) / 1000;
    redraw(run);
  };
  try {
    for (let tries = 0; ; tries++) {
      try {
        const { reason, usage } = await streamAnswer(body, remembered("key"), controller.signal, take);
        message.end = reason === "length" ? "length" : "stop";
        message.tokens = usage?.completion_tokens ?? 0;
        return;
      } catch (failure) {
        const wait = failure.retryAfter;
        if (wait === undefined || wait > LONGEST_RETRY_SECONDS || tries >= MOST_RETRIES || message.parts.length) throw failure;
        await countDown(run, failure.message, wait);
      }
    }
  } finally {
    clearTimeout(slow);
    run.notice = "";
  }
}

function countDown(run, message, seconds) {
  say(`${message} Trying again in ${seconds} seconds.`);
  const { signal } = run.controller;
  return new Promise((resolve, reject) => {
    const show = () => {
      run.notice = `${message} Trying again in ${seconds} s.`;
      redraw(run);
    };
    const tick = setInterval(() => (--seconds > 0 ? show() : leave(resolve)), 1000);
    const aborted = () => leave(() => reject(signal.reason));
    const leave = (settle) => {
      clearInterval(tick);
      signal.removeEventListener("abort", aborted);
      Object.assign(run, { notice: "", retryNow: null });
      redraw(run);
      settle();
    };
    run.retryNow = () => leave(resolve);
    signal.addEventListener("abort", aborted);
    show();
  });
}

function problemOf(failure) {
  if (failure.status === 401) return "This server asks for a key: type it in the settings, then try again.";
  if (!(failure instanceof Failure)) throw failure; // ours
  if (failure.retryAfter > LONGEST_RETRY_SECONDS) return `${failure.message} It asks for ${Math.ceil(failure.retryAfter / 60)} minutes.`;
  return failure.message;
}

function stop() {
  runs.get(chat.id)?.controller.abort();
}
