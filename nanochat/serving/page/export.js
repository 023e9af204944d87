"use strict";
// A conversation as others read it: the server, a file of messages, a document.

// The conversation as the server, nanochat's terminal and its training read it: roles alternate, so a question that was
// not answered is no part of it, unless it is the last message of all.
function plainMessages(chat) {
  const plain = chat.system.trim() ? [{ role: "system", content: chat.system }] : [];
  chat.messages.forEach((message, i) => {
    const answer = chat.messages[i + 1];
    if (message.role === "user" && (!answer || isAnswered(answer))) plain.push({ role: "user", content: message.text });
    if (message.role === "assistant" && isAnswered(message)) plain.push({ role: "assistant", content: plainContent(message) });
  });
  return plain;
}

// Without a call of the tool that was stopped before its result.
function finishedParts({ parts }) {
  return parts.slice(0, parts.findLastIndex((part) => part.type !== "python") + 1);
}

function plainContent(message) {
  const parts = finishedParts(message);
  return parts.every((part) => part.type === "text") ? spoken(parts) : parts;
}

const isAnswered = (message) => finishedParts(message).length > 0;
const spoken = (parts) => parts.map((part) => (part.type === "text" ? part.text : "")).join("");

// What `python -m scripts.chat_cli` loads and nanochat's training reads: one line, {"messages": [{role, content}, ...]}.
function exportJson(chat) {
  const messages = plainMessages(chat);
  if (messages.at(-1)?.role === "user") messages.pop();
  download(chat, "json", "application/json", `${JSON.stringify({ messages })}\n`);
}

function exportMarkdown(chat) {
  const fenced = ({ type, text }) => `\n\`\`\`${type === "python" ? "python" : ""}\n${text}\n\`\`\`\n`;
  const said = (message) => message.text ?? message.parts.map((part) => (part.type === "text" ? part.text : fenced(part))).join("");
  const turns = chat.messages.map((message) => `## ${message.role === "user" ? "You" : "nanochat"}\n\n${said(message).trim()}\n`);
  const system = chat.system.trim() ? [`## System\n\n${chat.system.trim()}\n`] : [];
  download(chat, "md", "text/markdown", [`# ${chat.title}\n`, ...system, ...turns].join("\n"));
}

function download(chat, extension, type, text) {
  const name = chat.title.replace(/[^\p{L}\p{N}]+/gu, "-").replace(/^-|-$/g, "").slice(0, 60) || "chat";
  const link = element("a");
  link.href = URL.createObjectURL(new Blob([text], { type }));
  link.download = `${name}.${extension}`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}
