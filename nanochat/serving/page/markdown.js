"use strict";
// Markdown to elements: paragraphs, headings, lists, quotes, tables, fenced code, rules; code, emphasis and links.
// As CommonMark reads it, but for six things: a line break stays one; four spaces make no code; a quote ends with its
// marks; an asterisk between two letters or digits is one (2*3*4); links lead to http, https and mailto only; HTML and
// its entities are text.
const DEEPEST = 8; // quotes and lists inside one another; deeper ones stay text
const MOST_MARKS = 200; // asterisks and the like in one paragraph; with more they all stay text
const MOST_COLUMNS = 40;

const blank = (line) => line.trim() === "";

// The blocks of a text as {source, start, end, make}. Equal sources make equal elements: a growing text redraws its last.
function markdownBlocks(text) {
  return parseBlocks(text.replace(/\r\n?/g, "\n").split("\n"), 0);
}

function parseBlocks(lines, depth) {
  const blocks = [];
  let at = 0;
  while (at < lines.length) {
    if (blank(lines[at])) {
      at++;
      continue;
    }
    const read = depth < DEEPEST ? READERS.find((reader) => reader.starts(lines, at)) : undefined;
    const block = (read ?? paragraphs).read(lines, at, depth);
    blocks.push({ ...block, start: at, source: lines.slice(at, block.end).join("\n") });
    at = block.end;
  }
  return blocks;
}

const made = (blocks) => blocks.map((block) => block.make());

function columnsOfIndent(line) {
  let columns = 0;
  for (const character of line) {
    if (character === " ") columns++;
    else if (character === "\t") columns += 4 - (columns % 4);
    else break;
  }
  return columns;
}

function dedent(line, columns) {
  const text = line.trimStart();
  return " ".repeat(Math.max(0, columnsOfIndent(line) - columns)) + text;
}

const fences = {
  starts: (lines, at) => fences.open(lines[at]) !== null,
  open(line) {
    const text = line.trimStart();
    const mark = /^(?:`{3,}|~{3,})/.exec(text)?.[0];
    const info = mark && text.slice(mark.length).trim();
    return mark && !(mark[0] === "`" && info.includes("`")) ? { mark, info } : null;
  },
  read(lines, at) {
    const { mark, info } = fences.open(lines[at]);
    const indent = columnsOfIndent(lines[at]);
    const closes = (line) => line.trim().length >= mark.length && line.trim().replaceAll(mark[0], "") === "";
    let end = at + 1;
    while (end < lines.length && !closes(lines[end])) end++;
    const code = lines.slice(at + 1, end).map((line) => (columnsOfIndent(line) < indent ? line.trimStart() : indent ? dedent(line, indent) : line));
    return { end: Math.min(end + 1, lines.length), make: () => codeBlock(info.split(/\s/)[0], code.join("\n")) };
  },
};

const headings = {
  starts: (lines, at) => /^\s{0,3}#{1,6}(?:[ \t]|$)/.test(lines[at]),
  read(lines, at) {
    const [marks] = /^#+/.exec(lines[at].trimStart());
    const words = lines[at].trim().slice(marks.length).trim();
    let end = words.length;
    while (words[end - 1] === "#") end--;
    const text = end === 0 || /\s/.test(words[end - 1]) ? words.slice(0, end).trimEnd() : words;
    return { end: at + 1, make: () => heading(marks.length, text) };
  },
};

// The page's own title is h1.
const heading = (level, text) => element(`h${Math.min(level + 1, 6)}`, "", inline(text));

const rules = {
  starts(lines, at) {
    const text = lines[at].replace(/[ \t]/g, "");
    return text.length >= 3 && /^(?:-+|\*+|_+)$/.test(text);
  },
  read: (lines, at) => ({ end: at + 1, make: () => element("hr") }),
};

const quotes = {
  starts: (lines, at) => lines[at].trimStart().startsWith(">"),
  read(lines, at, depth) {
    let end = at;
    while (end < lines.length && quotes.starts(lines, end)) end++;
    const inside = lines.slice(at, end).map((line) => line.trimStart().replace(/^> ?/, ""));
    return { end, make: () => element("blockquote", "", ...made(parseBlocks(inside, depth + 1))) };
  },
};

const lists = {
  starts: (lines, at) => lists.marker(lines[at]) !== null,
  // {kind, number, width, text}: a bullet, or a number and what follows it; the columns up to behind it; the rest.
  marker(line) {
    const text = line.trimStart();
    const found = /^(?:[-*+]|(\d{1,9})([.)]))(?=[ \t]|$)/.exec(text);
    if (!found) return null;
    const width = columnsOfIndent(line) + found[0].length;
    return { kind: found[2] ?? found[0], number: found[1], width, text: text.slice(found[0].length) };
  },
  read(lines, at, depth) {
    const first = lists.marker(lines[at]);
    const items = [];
    let end = at;
    let gaps = false;
    for (let next = at; next < lines.length; ) {
      const marker = lists.marker(lines[next]);
      if (marker?.kind !== first.kind || rules.starts(lines, next)) break;
      gaps ||= next > end;
      const item = lists.item(lines, next, marker);
      items.push(item.lines);
      end = item.end;
      for (next = end; next < lines.length && blank(lines[next]); ) next++;
    }
    return { end, make: () => lists.make(first, items, gaps, depth) };
  },
  item(lines, at, { width, text }) {
    const space = columnsOfIndent(text);
    const offset = width + (blank(text) || space > 4 ? 1 : space);
    const inside = [blank(text) ? "" : dedent(text, offset - width)];
    let end = at + 1;
    let fenced = fences.starts(inside, 0);
    for (let next = end; next < lines.length; next++) {
      const line = lines[next];
      const belongs = columnsOfIndent(line) >= offset;
      if (!blank(line)) {
        // A line that is not indented still goes on with the paragraph above it.
        const goesOn = next === end && !fenced && !interrupts(lines, next) && !lists.starts(lines, next);
        if (!belongs && !goesOn) break;
        while (inside.length < next - at) inside.push("");
        inside.push(belongs ? dedent(line, offset) : line.trimStart());
        if (fences.starts(inside, inside.length - 1)) fenced = !fenced;
        end = next + 1;
      }
    }
    return { lines: inside, end };
  },
  make(first, items, gaps, depth) {
    const parsed = items.map((lines) => parseBlocks(lines, depth + 1));
    const loose = gaps || parsed.some((blocks) => blocks.some((block, i) => i > 0 && block.start > blocks[i - 1].end));
    const list = element(first.number === undefined ? "ul" : "ol");
    if (first.number !== undefined && Number(first.number) !== 1) list.start = Number(first.number);
    for (const blocks of parsed) {
      list.append(element("li", "", ...blocks.map((block) => (loose || !block.words ? block.make() : block.words()))));
    }
    return list;
  },
};

const tables = {
  starts(lines, at) {
    if (!lines[at].includes("|") || at + 1 >= lines.length) return false;
    const columns = tables.cells(lines[at]).length;
    const under = tables.cells(lines[at + 1]);
    return columns === under.length && columns <= MOST_COLUMNS && under.every((cell) => /^:?-+:?$/.test(cell));
  },
  cells(line) {
    const cells = line.trim().split("|");
    for (let at = 0; at < cells.length - 1; ) {
      if (cells[at].endsWith("\\")) cells.splice(at, 2, `${cells[at].slice(0, -1)}|${cells[at + 1]}`);
      else at++;
    }
    if (cells[0] === "") cells.shift();
    if (cells.at(-1) === "") cells.pop();
    return cells.map((cell) => cell.trim());
  },
  read(lines, at) {
    let end = at + 2;
    while (end < lines.length && !blank(lines[end]) && !interrupts(lines, end)) end++;
    return { end, make: () => tables.make(lines.slice(at, end).map(tables.cells)) };
  },
  make([head, under, ...rows]) {
    const side = under.map((cell) => (!cell.endsWith(":") ? "" : cell.startsWith(":") ? "center" : "right"));
    const row = (cells, tag) => element("tr", "", ...head.map((_, i) => element(tag, side[i], inline(cells[i] ?? ""))));
    const table = element("table", "", element("thead", "", row(head, "th")));
    if (rows.length) table.append(element("tbody", "", ...rows.map((cells) => row(cells, "td"))));
    return scrollable(element("div", "table", table), "Table");
  },
};

const paragraphs = {
  read(lines, at, depth) {
    for (let end = at + 1; ; end++) {
      const under = lines[end]?.trim() ?? "";
      const text = () => lines.slice(at, end).map((line) => line.trim()).join("\n");
      if (/^(?:={3,}|-{3,})$/.test(under)) return { end: end + 1, make: () => heading(under[0] === "=" ? 1 : 2, text()) };
      if (under === "" || (depth < DEEPEST && interrupts(lines, end))) {
        return { end, words: () => inline(text()), make: () => element("p", "", inline(text())) };
      }
    }
  },
};

const READERS = [fences, headings, rules, quotes, lists, tables];

// Whether a paragraph ends before this line without a blank one. A number other than 1 may just begin a line.
function interrupts(lines, at) {
  const marker = lists.marker(lines[at]);
  if (marker && !rules.starts(lines, at)) return !blank(marker.text) && (marker.number ?? "1") === "1";
  return READERS.some((reader) => reader.starts(lines, at));
}

function scrollable(box, label) {
  box.tabIndex = 0;
  box.setAttribute("role", "group");
  box.setAttribute("aria-label", label);
  return box;
}

function codeBlock(language, code) {
  const copy = copyButton("Copy the code", () => code);
  const head = element("div", "code-head", element("span", "", language || "text"), copy);
  return element("div", "code", head, scrollable(element("pre", "", element("code", "", code)), "Code"));
}

const PLAIN = /[^\\\n`[!<h*_~]+/y;
const PUNCTUATION = /[\p{P}\p{S}]/u;
const WORD = /[A-Za-z0-9]/;

// What stands in a paragraph, heading or cell, as a fragment. With `linked` it stands in a link, where no other may.
function inline(text, linked = false) {
  const out = document.createDocumentFragment();
  const marks = [];
  const brackets = linked ? new Map() : matchBrackets(text);
  const emphatic = (text.match(/\*+|_+|~+/g)?.length ?? 0) <= MOST_MARKS;
  const unclosed = new Set(); // lengths of backtick runs that have no partner further on
  let plain = "";
  const add = (...nodes) => {
    if (plain) out.append(plain);
    plain = "";
    out.append(...nodes);
  };
  for (let at = 0; at < text.length; ) {
    const character = text[at];
    let found = null;
    if (character === "\\" && /[!-/:-@[-`{-~\n]/.test(text[at + 1] ?? "")) {
      if (text[++at] !== "\n") plain += text[at++];
    } else if (character === "\n") {
      plain = plain.trimEnd();
      add(element("br"));
      at++;
    } else if (character === "`") {
      found = codeSpan(text, at, unclosed);
    } else if (character === "[" || (character === "!" && text[at + 1] === "[")) {
      found = link(text, character === "!" ? at + 1 : at, brackets);
    } else if ((character === "<" || character === "h") && !linked) {
      found = address(text, at);
    } else if (emphatic && "*_~".includes(character)) {
      let end = at;
      while (text[end] === character) end++;
      const node = document.createTextNode(text.slice(at, end));
      add(node);
      marks.push({ ...flanks(text, at, end), character, node, length: end - at, left: end - at });
      at = end;
    } else {
      PLAIN.lastIndex = at;
      found = { text: PLAIN.exec(text)?.[0] ?? character };
    }
    if (found === null && "`[!<h".includes(character) && text[at] === character) found = { text: character };
    if (!found) continue;
    if (found.node) add(found.node);
    else plain += found.text;
    at = found.end ?? at + found.text.length;
  }
  add();
  emphasize(marks);
  out.normalize();
  return out;
}

function codeSpan(text, at, unclosed) {
  const run = /`+/y;
  run.lastIndex = at;
  const mark = run.exec(text)[0];
  const others = /`+/g;
  others.lastIndex = at + mark.length;
  for (let other; !unclosed.has(mark.length) && (other = others.exec(text)); ) {
    if (other[0].length !== mark.length) continue;
    const inside = text.slice(at + mark.length, other.index).replaceAll("\n", " ");
    const padded = inside.startsWith(" ") && inside.endsWith(" ") && !blank(inside);
    return { node: element("code", "", padded ? inside.slice(1, -1) : inside), end: others.lastIndex };
  }
  unclosed.add(mark.length);
  return { text: mark };
}

// Where the bracket that opens at a key is closed.
function matchBrackets(text) {
  const open = [];
  const pairs = new Map();
  for (let at = 0; at < text.length; at++) {
    if (text[at] === "\\") at++;
    else if (text[at] === "[") open.push(at);
    else if (text[at] === "]" && open.length) pairs.set(open.pop(), at);
  }
  return pairs;
}

// [words](address "title"), or null. A picture is shown as a link to it: the page loads nothing from elsewhere.
function link(text, at, brackets) {
  const close = brackets.get(at);
  if (close === undefined || text[close + 1] !== "(") return null;
  const target = /[ \n]*(?:<([^<>\n]{0,2000})>|((?:[^\s()<]|\([^\s()]{0,2000}\)){1,2000}))(?:[ \n]+(?:"[^"]{0,500}"|'[^']{0,500}'))?[ \n]*\)/y;
  target.lastIndex = close + 2;
  const found = target.exec(text);
  const node = found && anchor(found[1] ?? found[2], inline(text.slice(at + 1, close), true));
  return node && { node, end: target.lastIndex };
}

// <https://...>, or an address that stands bare in the text.
function address(text, at) {
  const pointed = /<((?:https?:\/\/|mailto:)[^\s<>]{1,2000})>/iy;
  const bare = /https?:\/\/[^\s<>]{1,2000}/y;
  pointed.lastIndex = bare.lastIndex = at;
  let found = pointed.exec(text)?.[1];
  if (found) return { node: anchor(found, found), end: pointed.lastIndex };
  found = WORD.test(text[at - 1] ?? "") ? undefined : bare.exec(text)?.[0];
  if (!found) return null;
  // The full stop after it, and a parenthesis that was opened before it, are the sentence's.
  for (let last; (last = found.at(-1)), /[.,;:!?'"*_~\]]/.test(last) || (last === ")" && !found.includes("(")); ) found = found.slice(0, -1);
  const node = anchor(found, found);
  return node && { node, end: at + found.length };
}

function anchor(target, words) {
  if (!/^(?:https?:\/\/|mailto:)/i.test(target) || !URL.canParse(target)) return null;
  const made = element("a", "", words);
  made.href = target;
  made.title = made.href;
  made.target = "_blank";
  made.rel = "noopener noreferrer nofollow";
  return made;
}

// Whether a run of marks may open or close emphasis; CommonMark's rule but for asterisks between letters or digits.
function flanks(text, start, end) {
  const [before, after] = [text[start - 1] ?? " ", text[end] ?? " "];
  const inside = (one, other) => one.trim() !== "" && (!PUNCTUATION.test(one) || other.trim() === "" || PUNCTUATION.test(other));
  const [left, right] = [inside(after, before), inside(before, after)];
  if (text[start] === "_") {
    return { opens: left && (!right || PUNCTUATION.test(before)), closes: right && (!left || PUNCTUATION.test(after)) };
  }
  const amid = WORD.test(before) && WORD.test(after);
  return { opens: left && !amid, closes: right && !amid };
}

// Wraps what stands between two marks that fit, the inner ones first.
function emphasize(marks) {
  for (let at = 0; at < marks.length; at++) {
    const closer = marks[at];
    for (let from = at - 1; closer.closes && closer.left && from >= 0; from--) {
      const opener = marks[from];
      if (!opener.opens || !opener.left || opener.character !== closer.character) continue;
      const both = opener.closes || closer.opens;
      const threes = (opener.length + closer.length) % 3 === 0 && (opener.length % 3 || closer.length % 3);
      const strikes = closer.character === "~";
      if (strikes ? opener.left !== 2 || closer.left !== 2 : both && threes) continue;
      const used = strikes || (opener.left > 1 && closer.left > 1) ? 2 : 1;
      const around = element(strikes ? "s" : used === 2 ? "strong" : "em");
      while (opener.node.nextSibling !== closer.node) around.append(opener.node.nextSibling);
      opener.node.after(around);
      for (const mark of [opener, closer]) {
        mark.left -= used;
        mark.node.data = mark.character.repeat(mark.left);
      }
      for (const between of marks.slice(from + 1, at)) between.left = 0;
      from++; // the opener may have marks left for the closer's
    }
  }
}
