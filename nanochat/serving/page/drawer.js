"use strict";
// The settings: system text, sampling, look, key. What is typed holds at once, for this chat and for new ones.
const FIELDS = [
  { name: "temperature", label: "Temperature", hint: "0 always takes the likeliest token", min: 0, max: 2 },
  { name: "top_k", label: "Top k", hint: "Draw from so many likeliest; 0 is all", min: 0, max: 1000000, whole: true },
  { name: "top_p", label: "Top p", hint: "Draw from the likeliest of this share", min: 0.01, max: 1 },
  { name: "min_p", label: "Min p", hint: "Leave out what is rarer than this share of the likeliest", min: 0, max: 1 },
  { name: "repetition_penalty", label: "Repetition penalty", hint: "1 is none", min: 0.1, max: 10 },
  { name: "max_tokens", label: "Longest answer", hint: "In tokens", min: 1, max: 1000000, whole: true },
  { name: "seed", label: "Seed", hint: "The same seed, the same answer", min: 0, max: Number.MAX_SAFE_INTEGER, whole: true },
];

// `acts`: chat() the current one, changed() after a change, keyChanged() after one of the key, forgetAll().
function openDrawer(preferences, acts) {
  const drawer = $("drawer");
  const system = $("system");
  const inputs = FIELDS.map((field) => {
    const input = element("input");
    const hint = element("span", "hint", field.hint);
    Object.assign(input, { id: field.name, type: "number", min: field.min, max: field.max, step: field.whole ? 1 : "any" });
    input.inputMode = field.whole ? "numeric" : "decimal";
    hint.id = `${field.name}-hint`;
    input.setAttribute("aria-describedby", hint.id);
    const label = element("label", "", field.label);
    label.htmlFor = field.name;
    $("sampling").append(element("div", "setting", label, input, hint));
    input.addEventListener("input", () => take(field, input, hint));
    return input;
  });

  function take(field, input, hint) {
    const wrong = !input.validity.valid;
    const kind = field.whole ? "a whole number" : "a number";
    hint.textContent = wrong ? `${field.label} is ${kind} from ${field.min} to ${field.max}.` : field.hint;
    input.setAttribute("aria-invalid", String(wrong));
    const { sampling } = acts.chat();
    if (wrong || input.value === "") delete sampling[field.name];
    else sampling[field.name] = input.valueAsNumber;
    keep();
  }

  function keep() {
    const chat = acts.chat();
    preferences.system = chat.system;
    preferences.sampling = { ...chat.sampling };
    acts.changed();
  }

  function show() {
    const chat = acts.chat();
    system.value = chat.system;
    FIELDS.forEach(({ name, hint }, i) => {
      inputs[i].value = chat.sampling[name] ?? "";
      inputs[i].setAttribute("aria-invalid", "false");
      $(`${name}-hint`).textContent = hint;
    });
    $("key").value = acts.key();
    $("forget").textContent = "Delete all";
  }

  $("fields").noValidate = true;
  $("fields").addEventListener("submit", (event) => event.preventDefault());
  system.addEventListener("input", () => {
    acts.chat().system = system.value;
    keep();
  });
  $("reset").addEventListener("click", () => {
    Object.assign(acts.chat(), { system: "", sampling: {} });
    keep();
    show();
    say("All fields are empty.");
  });
  const looks = [...document.querySelectorAll("[name=look]")];
  for (const look of looks) {
    look.checked = look.value === (preferences.look ?? "");
    look.addEventListener("change", () => {
      preferences.look = look.value;
      applyLook(preferences);
      acts.changed();
    });
  }
  $("key").addEventListener("change", () => acts.keyChanged($("key").value.trim()));
  $("forget").addEventListener("click", () => {
    if ($("forget").textContent === "Delete all") {
      $("forget").textContent = "Really delete all? There is no way back";
      return;
    }
    drawer.close();
    acts.forgetAll();
  });
  drawer.addEventListener("click", (event) => event.target === drawer && drawer.close()); // beside it
  return {
    open(field) {
      show();
      drawer.showModal();
      if (field) $(field).focus();
    },
    isOpen: () => drawer.open,
    // What the server takes where a field is empty; it may be known only after the drawer was opened.
    suggest(defaults) {
      FIELDS.forEach(({ name }, i) => (inputs[i].placeholder = Number.isFinite(defaults[name]) ? defaults[name] : ""));
    },
  };
}

function applyLook({ look }) {
  if (look === "light" || look === "dark") document.documentElement.dataset.look = look;
  else delete document.documentElement.dataset.look;
}
