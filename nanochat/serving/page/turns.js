"use strict";
// One turn of a conversation as an element: what was said, what came of it, and what can be done with it.

// A question; `acts.edit(form)` is asked to put an editor in its place.
function questionTurn(message, index, acts) {
  const bubble = element("div", "bubble", message.text);
  const actions = element("div", "actions");
  const turn = element("article", "turn user", element("span", "hidden", "You said:"), bubble, actions);
  const edit = iconButton("edit", "Edit and send again", () => {
    turn.classList.add("editing");
    bubble.replaceWith(editor(message.text, acts.followers(index), send, cancel));
    turn.querySelector("textarea").focus();
  });
  const send = (text) => acts.resend(index, text);
  const cancel = () => {
    turn.classList.remove("editing");
    turn.querySelector("form").replaceWith(bubble);
    edit.focus();
  };
  actions.append(edit);
  return turn;
}

function editor(text, followers, send, cancel) {
  const area = element("textarea", "", text);
  area.setAttribute("aria-label", "Edit your message");
  area.maxLength = 32000;
  const submit = element("button", "primary", "Send");
  const warning = followers > 1 ? `What follows is replaced (${followers} messages).` : "";
  const buttons = element("div", "buttons", element("span", "note", warning), textButton("Cancel", cancel), submit);
  const form = element("form", "editor", area, buttons);
  const fit = () => {
    area.style.height = "auto";
    area.style.height = `${area.scrollHeight + 2}px`;
    submit.disabled = !area.value.trim();
  };
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    if (area.value.trim()) send(area.value.trim());
  });
  form.addEventListener("keydown", (event) => {
    if (event.key === "Escape") {
      event.stopPropagation();
      cancel();
    } else if (event.target === area && isSendKey(event)) {
      event.preventDefault();
      form.requestSubmit();
    }
  });
  area.addEventListener("input", fit);
  area.setSelectionRange(text.length, text.length);
  requestAnimationFrame(fit); // a height is known only on the page
  return form;
}

const isSendKey = (event) => event.key === "Enter" && !event.shiftKey && !event.isComposing;

// An answer that is whole, or with `run` one that is being written: that one is ended later.
function answerTurn(message, run, isLast, acts) {
  const turn = element("article", "turn assistant", element("span", "hidden", "nanochat said:"), element("div", "body"));
  updateAnswer(turn, message, run);
  if (!run) endAnswer(turn, message, isLast, acts);
  return turn;
}

// What came of it, and what can be done with it.
function endAnswer(turn, message, isLast, acts) {
  if (message.end === "failed") turn.append(problemBox(message.problem ?? "", isLast && acts.regenerate));
  const note = { length: "The answer was cut at its length limit.", stopped: "Stopped.", stop: message.parts.length ? "" : "The model said nothing." }[message.end];
  if (note) turn.append(element("p", "note", note));
  const actions = element("div", "actions");
  if (message.parts.length) actions.append(copyButton("Copy the answer", () => spoken(message.parts)));
  if (isLast && message.end !== "failed") actions.append(iconButton("again", "Answer again", acts.regenerate));
  if (message.tokens) actions.append(element("span", "speed", speed(message)));
  if (actions.childElementCount) turn.append(actions);
}

// Tokens a second are counted from the first piece to the last: what one waits for before is another matter.
function speed({ tokens, seconds }) {
  const count = `${tokens} ${tokens === 1 ? "token" : "tokens"}`;
  if (tokens < 2 || !seconds) return count;
  const rate = (tokens - 1) / seconds;
  return `${count}, ${rate < 10 ? rate.toFixed(1) : Math.round(rate).toLocaleString("en")} tokens/s`;
}

function problemBox(problem, retry) {
  const box = element("div", "problem", element("p", "", problem));
  box.setAttribute("role", "alert");
  if (retry) box.append(textButton("Try again", retry));
  return box;
}

// Redraws what has changed: the last block of a growing text, a card that got its result, the line that says we wait.
function updateAnswer(turn, message, run) {
  const body = turn.querySelector(".body");
  const wanted = blocksOf(message.parts);
  const drawn = body.drawn ?? [];
  let same = 0;
  while (same < wanted.length && drawn[same]?.key === wanted[same].key) same++;
  for (const block of drawn.slice(same)) block.node.remove();
  for (const block of wanted.slice(same)) block.node = block.make();
  body.append(...wanted.slice(same).map((block) => block.node));
  body.drawn = [...drawn.slice(0, same), ...wanted.slice(same)];
  updatePending(turn, run, run && (run.notice || !message.parts.length));
}

// The line stays the same one while it counts down: a button that is replaced can hardly be pressed.
function updatePending(turn, run, waits) {
  let line = turn.querySelector(".pending");
  if (!waits) return line?.remove();
  if (!line) turn.append((line = element("p", "pending", element("span", "dot"), element("span", "note"))));
  line.children[1].textContent = run.notice;
  const button = line.querySelector("button");
  if (run.retryNow && !button) line.append(textButton("Try now", () => run.retryNow?.()));
  if (!run.retryNow) button?.remove();
}

function blocksOf(parts) {
  const blocks = [];
  parts.forEach((part, i) => {
    if (part.type === "text") {
      for (const { source, make } of markdownBlocks(part.text)) blocks.push({ key: `text ${source}`, make });
    } else if (part.type === "python" || parts[i - 1]?.type !== "python") {
      const [input, result] = part.type === "python" ? [part, parts[i + 1]] : [null, part];
      const output = result?.type === "python_output" ? result.text : null;
      blocks.push({ key: `tool ${JSON.stringify([input?.text, output])}`, make: () => toolCard(input?.text ?? "", output) });
    }
  });
  return blocks;
}

function toolCard(input, output) {
  const card = element("div", "tool", icon("tool"), element("span", "hidden", "The calculator was given"), element("code", "input", input));
  if (output !== null) card.append(element("span", "equals", "="), element("code", "result", output));
  return card;
}
