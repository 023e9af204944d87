"use strict";
// What the page asks of the server: which model there is, and answers as a stream of server-sent events.

class Failure extends Error {
  // `retryAfter`: in so many seconds the server may have room again.
  constructor(message, { status = 0, retryAfter } = {}) {
    super(sentence(message));
    Object.assign(this, { status, retryAfter });
  }
}

async function request(path, key, options = {}) {
  let response;
  try {
    const headers = { ...options.headers, ...(key && { Authorization: `Bearer ${key}` }) };
    response = await fetch(path, { ...options, headers, cache: "no-store", credentials: "same-origin" });
  } catch (failure) {
    if (failure.name === "AbortError") throw failure;
    throw new Failure("The server cannot be reached. Is it still running?");
  }
  if (response.ok) return response;
  const body = await response.json().catch(() => null);
  const { status } = response;
  const told = typeof body?.error?.message === "string" ? body.error.message : "";
  const wait = Number.parseInt(response.headers.get("Retry-After") ?? "", 10);
  throw new Failure(told || `The server answered with status ${status}.`, {
    status,
    retryAfter: (status === 429 || status === 503) && wait >= 0 ? wait : undefined,
  });
}

// The model's {id, max_model_len, defaults}; the last two only where the server tells them.
async function fetchModel(key) {
  const body = await (await request("v1/models", key)).json().catch(() => null);
  const model = body?.data?.[0];
  if (typeof model?.id !== "string") throw new Failure("The server does not say which model it has.");
  return model;
}

// Streams one answer. `onPiece(type, text)` takes its pieces; returns {reason, usage}. Throws Failure, or AbortError.
async function streamAnswer(body, key, signal, onPiece) {
  const response = await request("v1/chat/completions", key, {
    method: "POST",
    signal,
    headers: { "Content-Type": "application/json", Accept: "text/event-stream" },
    body: JSON.stringify({ ...body, stream: true, stream_options: { include_usage: true } }),
  });
  let reason = "";
  let usage = null;
  for await (const chunk of serverEvents(response)) {
    if (chunk.error) throw new Failure(String(chunk.error.message ?? "The server failed in the middle of the answer."));
    usage = chunk.usage ?? usage;
    const { delta = {}, finish_reason } = chunk.choices?.[0] ?? {};
    if (delta.content) onPiece("text", String(delta.content));
    if (PART_TYPES.includes(delta.tool?.type)) onPiece(delta.tool.type, String(delta.tool.text ?? ""));
    reason = finish_reason ?? reason;
  }
  if (!reason) throw new Failure("The connection ended in the middle of the answer.");
  return { reason, usage };
}

// The objects of a stream of server-sent events, up to [DONE] or to its end.
async function* serverEvents(response) {
  const decoder = new TextDecoder();
  const reader = response.body.getReader();
  let rest = "";
  let data = [];
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      const lines = (rest + decoder.decode(value, { stream: true })).split("\n");
      rest = lines.pop();
      for (const ended of lines) {
        const line = ended.endsWith("\r") ? ended.slice(0, -1) : ended;
        if (line.startsWith("data:")) data.push(line.slice(line[5] === " " ? 6 : 5));
        if (line !== "" || data.length === 0) continue; // an empty line ends an event; other lines are comments
        const event = data.join("\n");
        data = [];
        if (event === "[DONE]") return;
        yield parseEvent(event);
      }
    }
  } catch (failure) {
    if (failure.name === "AbortError" || failure instanceof Failure) throw failure;
    throw new Failure("The connection broke in the middle of the answer.");
  } finally {
    reader.cancel().catch(() => {});
  }
}

function parseEvent(event) {
  try {
    const parsed = JSON.parse(event);
    if (parsed !== null && typeof parsed === "object") return parsed;
  } catch {}
  throw new Failure("The server sent something that is no answer.");
}
