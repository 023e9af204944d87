"use strict";
// Elements. Every text, whoever wrote it, enters the page through textContent and text nodes; markup is never parsed.
const $ = (id) => document.getElementById(id);

function element(tag, className, ...children) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  made.append(...children);
  return made;
}

function icon(name) {
  const space = "http://www.w3.org/2000/svg";
  const made = document.createElementNS(space, "svg");
  const use = document.createElementNS(space, "use");
  use.setAttribute("href", `#icon-${name}`);
  made.setAttribute("aria-hidden", "true");
  made.append(use);
  return made;
}

// A button of an icon alone has its name as label; `press` is what it does.
function iconButton(name, label, press) {
  const made = element("button", "icon small", icon(name));
  made.type = "button";
  made.setAttribute("aria-label", label);
  made.title = label;
  made.addEventListener("click", press);
  return made;
}

function textButton(text, press, className = "plain") {
  const made = element("button", className, text);
  made.type = "button";
  made.addEventListener("click", press);
  return made;
}

// Copies what `text()` gives; a page that came without https has no clipboard, and takes the older way.
function copyButton(label, text) {
  const made = iconButton("copy", label, async () => {
    try {
      await (navigator.clipboard ? navigator.clipboard.writeText(text()) : copyBySelection(text()));
    } catch {
      tell("The browser does not allow copying here.");
      return;
    }
    made.replaceChildren(icon("done"));
    say("Copied.");
    setTimeout(() => made.replaceChildren(icon("copy")), 1500);
  });
  return made;
}

function copyBySelection(text) {
  const area = element("textarea", "hidden");
  const before = document.activeElement;
  area.value = text;
  document.body.append(area);
  area.select();
  const copied = document.execCommand("copy");
  area.remove();
  before?.focus();
  if (!copied) throw new Error("not copied");
}

// For screen readers: one short sentence about what has just happened.
function say(text) {
  $("status").textContent = text;
}

// For everybody: a note at the foot of the page that goes by itself, with at most one thing to do about it.
let toastTimer = 0;
function tell(text, action = "", act = () => {}) {
  const [line, button] = $("toast").children;
  line.textContent = text;
  button.textContent = action;
  button.hidden = !action;
  button.onclick = () => {
    $("toast").hidden = true;
    act();
  };
  $("toast").hidden = false;
  clearTimeout(toastTimer);
  toastTimer = setTimeout(() => ($("toast").hidden = true), action ? 10000 : 6000);
}

// `text` as a sentence: the server's messages begin small and end without a full stop.
function sentence(text) {
  const trimmed = text.trim();
  return trimmed.charAt(0).toUpperCase() + trimmed.slice(1) + (/[.!?]$/.test(trimmed) ? "" : ".");
}
