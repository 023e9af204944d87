"use strict";
// The conversations and preferences that this browser keeps: one entry each, so that two tabs do not undo one another.
//
// A chat: {version, id, title, created, updated, system, sampling: {}, messages}. A message is {role: "user", text} or
// {role: "assistant", parts: [{type, text}], end, problem, tokens, seconds}; `end` is stop, length, stopped or failed.
// While an answer is being written its end is "stopped": that is what it is if the tab is closed now.
const CHAT_PREFIX = "nanochat:chat:";
const PREFERENCES = "nanochat:preferences";
const VERSION = 1;
const MOST_CHATS = 200;
const ENDS = ["stop", "length", "stopped", "failed"];
const PART_TYPES = ["text", "python", "python_output"];

// `notice(text)` tells the person what could not be kept or read.
function openStore(notice) {
  const chats = new Map();
  let storage = null;
  try {
    storage = window.localStorage;
    storage.setItem("nanochat:probe", "");
    storage.removeItem("nanochat:probe");
  } catch {
    storage = null;
    notice("This browser keeps nothing for this page: conversations are lost when it closes.");
  }

  // An entry of a later version of the page is left where it is; what cannot be read is taken away.
  function read(key) {
    const text = storage.getItem(key);
    let chat = null;
    try {
      chat = JSON.parse(text);
    } catch {}
    if (Number.isInteger(chat?.version) && chat.version > VERSION) return null;
    if (isChat(chat) && key === CHAT_PREFIX + chat.id) return chat;
    if (text !== null) storage.removeItem(key);
    return undefined;
  }

  const keys = () => Object.keys(storage ?? {}).filter((key) => key.startsWith(CHAT_PREFIX));
  let broken = 0;
  for (const key of keys()) {
    const chat = read(key);
    if (chat) chats.set(chat.id, chat);
    else if (chat === undefined) broken++;
  }
  if (broken === 1) notice("One conversation could not be read and was left out.");
  if (broken > 1) notice(`${broken} conversations could not be read and were left out.`);

  // The oldest conversations make room; they come back where even that is not enough.
  function write(key, text, sparing) {
    const dropped = [];
    for (;;) {
      try {
        storage.setItem(key, text);
        break;
      } catch {
        const oldest = newestFirst().findLast((chat) => chat.id !== sparing);
        if (!oldest) {
          notice("This browser has no room left: what is new here is lost when the page closes.");
          storage.removeItem(key);
          for (const chat of dropped) {
            chats.set(chat.id, chat);
            storage.setItem(CHAT_PREFIX + chat.id, JSON.stringify(chat));
          }
          return;
        }
        forget(oldest.id);
        dropped.push(oldest);
      }
    }
    const gone = dropped.length === 1 ? "the oldest conversation" : `the ${dropped.length} oldest conversations`;
    if (dropped.length) notice(`This browser has no room left: ${gone} had to go.`);
  }

  const newestFirst = () => [...chats.values()].sort((one, other) => other.updated - one.updated);

  function forget(id) {
    chats.delete(id);
    storage?.removeItem(CHAT_PREFIX + id);
  }

  return {
    newestFirst,
    get: (id) => chats.get(id),
    forget,
    save(chat) {
      chats.set(chat.id, chat);
      for (const old of newestFirst().slice(MOST_CHATS)) forget(old.id);
      if (storage) write(CHAT_PREFIX + chat.id, JSON.stringify(chat), chat.id);
    },
    // Another tab has changed an entry; the id of the chat it is about.
    changedElsewhere(key) {
      if (!key?.startsWith(CHAT_PREFIX)) return null;
      const id = key.slice(CHAT_PREFIX.length);
      const chat = read(key);
      if (chat) chats.set(id, chat);
      else chats.delete(id);
      return id;
    },
    preferences() {
      try {
        const kept = JSON.parse(storage?.getItem(PREFERENCES) ?? "{}");
        return kept && typeof kept === "object" ? kept : {};
      } catch {
        return {};
      }
    },
    savePreferences(preferences) {
      if (storage) write(PREFERENCES, JSON.stringify(preferences), null);
    },
  };
}

const isText = (value) => typeof value === "string";

function isChat(chat) {
  return (
    chat?.version === VERSION && isText(chat.id) && isText(chat.title) && isText(chat.system) &&
    Number.isFinite(chat.created) && Number.isFinite(chat.updated) && isSampling(chat.sampling) &&
    Array.isArray(chat.messages) && chat.messages.length > 0 &&
    chat.messages.every((message, i) => (i % 2 ? isAnswer(message) : message?.role === "user" && isText(message.text)))
  );
}

function isAnswer(message) {
  return (
    message?.role === "assistant" && ENDS.includes(message.end) && isText(message.problem ?? "") &&
    Number.isFinite(message.tokens ?? 0) && Number.isFinite(message.seconds ?? 0) && Array.isArray(message.parts) &&
    message.parts.every((part) => PART_TYPES.includes(part?.type) && isText(part.text))
  );
}

function isSampling(sampling) {
  return sampling !== null && typeof sampling === "object" && Object.values(sampling).every(Number.isFinite);
}

function newChat(preferences) {
  const random = [...crypto.getRandomValues(new Uint8Array(8))].map((byte) => byte.toString(16).padStart(2, "0"));
  const now = Date.now();
  const system = isText(preferences.system) ? preferences.system : "";
  const sampling = isSampling(preferences.sampling ?? null) ? { ...preferences.sampling } : {};
  return { version: VERSION, id: random.join(""), title: "", created: now, updated: now, system, sampling, messages: [] };
}
