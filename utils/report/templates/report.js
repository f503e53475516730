"use strict";

const BATCH = 60; // cards added at once
const LONG_ID = 28; // letters; a card shows the end of a longer id
const PIXELATED = 64; // pixels; smaller images keep their square pixels when enlarged
const ACTIONS = { keep: "label is right", relabel: "use suggestion", drop: "drop" };
const KEYS = { k: "keep", s: "relabel", d: "drop", u: null };

const data = JSON.parse(document.getElementById("data").textContent);
const at = (id) => document.getElementById(id);
const className = (number) => (number >= 0 ? data.classes[number] : "none");
const plural = (n) => `${n.toLocaleString("en")} ${n === 1 ? "sample" : "samples"}`;

function element(tag, properties = {}, ...children) {
  const node = Object.assign(document.createElement(tag), properties);
  node.append(...children);
  return node;
}

// ------------------------------------------------------------ decisions

// A browser may refuse storage to a page from a file: then decisions last as long as the page is open.
const store = {
  works: true,
  read() {
    try {
      return JSON.parse(localStorage.getItem(data.key) || "{}");
    } catch {
      this.works = false;
      return {};
    }
  },
  write(decisions) {
    try {
      localStorage.setItem(data.key, JSON.stringify(decisions));
      this.works = true;
    } catch {
      this.works = false;
    }
    at("storage").hidden = this.works;
  },
};

const canRelabel = (i) => data.suggested[i] >= 0 && data.suggested[i] !== data.given[i];
const actions = new Map(); // sample -> action, unordered

function readActions() {
  const stored = store.read();
  data.ids.forEach((id, i) => {
    const action = Object.hasOwn(stored, id) ? stored[id] : null;
    if (Object.hasOwn(ACTIONS, action) && (action !== "relabel" || canRelabel(i))) actions.set(i, action);
  });
}

// Take an action, or take it back if it was taken before; tells whether the sample has one now.
function decide(i, action) {
  if (action === "relabel" && !canRelabel(i)) return false;
  if (action === null || actions.get(i) === action) actions.delete(i);
  else actions.set(i, action);
  storeActions();
  return actions.has(i);
}

function storeActions() {
  store.write(Object.fromEntries([...actions].map(([i, action]) => [data.ids[i], action])));
  saved = false;
  showProgress();
}

let saved = true;
window.addEventListener("beforeunload", (event) => {
  if (!store.works && !saved && actions.size) event.preventDefault();
});

function csvField(cell) {
  const text = /^'*[=+\-@\t\r]/.test(cell) ? `'${cell}` : cell; // a spreadsheet would run it as a formula
  return /[",\r\n]/.test(text) || text !== text.trim() ? `"${text.replaceAll('"', '""')}"` : text;
}

function corrections() {
  const rows = [...actions].sort(([a], [b]) => a - b).map(([i, action]) => {
    const label = action === "relabel" ? String(data.suggested[i]) : "";
    return [data.ids[i], action, label].map(csvField).join(",");
  });
  return ["sample_id,action,label", ...rows].join("\n") + "\n";
}

function saveCorrections() {
  const url = URL.createObjectURL(new Blob([corrections()], { type: "text/csv;charset=utf-8" }));
  element("a", { href: url, download: "corrections.csv" }).click();
  setTimeout(() => URL.revokeObjectURL(url), 60000);
  saved = true;
}

function showProgress() {
  const count = (action) => [...actions.values()].filter((a) => a === action).length;
  at("progress").textContent =
    `${actions.size.toLocaleString("en")} of ${data.ids.length.toLocaleString("en")} reviewed: ` +
    `${count("keep")} right, ${count("relabel")} relabelled, ${count("drop")} dropped`;
  at("save").disabled = at("clear").disabled = actions.size === 0;
}

// ---------------------------------------------------------------- cards

const cards = new Map(); // sample -> its card, where rendered
let visible = []; // samples that match the filters
let rendered = 0; // how many of them have a card
let active = 0; // position in `visible` that the Tab key leads to

function picture(i) {
  if (data.images[i] === null) return null;
  const image = element("img", {
    alt: `sample ${data.ids[i]}, labelled ${className(data.given[i])}`,
    decoding: "async",
    draggable: false,
  });
  image.addEventListener("load", () => pixelate(image));
  image.src = `data:image/webp;base64,${data.images[i]}`;
  return image;
}

function pixelate(image) {
  image.classList.toggle("pixelated", Math.max(image.naturalWidth, image.naturalHeight) <= PIXELATED);
}

function fact(list, name, value, kind = "", title = value) {
  list.append(element("dt", { textContent: name }), element("dd", { textContent: value, dir: "auto", className: kind, title }));
}

// Paths differ at their ends.
function shortened(id) {
  const letters = [...id];
  return letters.length > LONG_ID ? `…${letters.slice(1 - LONG_ID).join("")}` : id;
}

function facts(list, i, whole = false) {
  list.replaceChildren();
  fact(list, "given", className(data.given[i]));
  fact(list, "suggested", className(data.suggested[i]));
  if (data.true) fact(list, "true", className(data.true[i]));
  fact(list, "score", data.scores[i].toFixed(3), "quiet");
  fact(list, "id", whole ? data.ids[i] : shortened(data.ids[i]), "quiet", data.ids[i]);
  return list;
}

function decisionButtons(onDecision) {
  return Object.entries(ACTIONS).map(([action, text]) => {
    const button = element("button", { type: "button", className: `decision ${action}`, textContent: text });
    button.addEventListener("click", () => onDecision(action));
    return button;
  });
}

function showDecision(buttons, i) {
  for (const button of buttons) {
    const action = Object.keys(ACTIONS).find((name) => button.classList.contains(name));
    button.setAttribute("aria-pressed", String(actions.get(i) === action));
    button.disabled = action === "relabel" && !canRelabel(i);
  }
}

function card(i) {
  const enlarge = element("button", { type: "button", className: "picture" }, picture(i) ?? "cannot be read");
  enlarge.setAttribute("aria-label", `enlarge sample ${data.ids[i]}`);
  enlarge.addEventListener("click", () => view(visible.indexOf(i)));
  const decisions = element("div", { className: "decisions" }, ...decisionButtons((action) => {
    decide(i, action);
    update(i);
  }));
  const node = element("div", { className: "sample", tabIndex: -1 }, enlarge, facts(element("dl", { className: "labels" }), i), decisions);
  node.dataset.sample = i;
  node.setAttribute("role", "group");
  node.querySelectorAll("button").forEach((button) => (button.tabIndex = -1)); // one Tab stop per gallery
  node.addEventListener("focusin", () => activate(visible.indexOf(i)));
  return node;
}

function update(i) {
  const node = cards.get(i);
  if (!node) return;
  const action = actions.get(i);
  if (action) node.dataset.action = action;
  else delete node.dataset.action;
  showDecision(node.querySelectorAll(".decision"), i);
  node.setAttribute(
    "aria-label",
    `sample ${data.ids[i]}: given ${className(data.given[i])}, suggested ${className(data.suggested[i])}, ` +
      `score ${data.scores[i].toFixed(3)}, ${action ? `your decision: ${ACTIONS[action]}` : "not yet reviewed"}`,
  );
}

function render(upTo) {
  const items = [];
  for (; rendered < Math.min(upTo, visible.length); rendered++) {
    const i = visible[rendered];
    cards.set(i, card(i));
    update(i);
    items.push(element("li", {}, cards.get(i)));
  }
  at("gallery").append(...items);
  at("more").textContent = rendered < visible.length ? `${plural(visible.length - rendered)} more` : "";
}

const end = new IntersectionObserver((entries) => {
  if (!entries.some((entry) => entry.isIntersecting) || rendered >= visible.length) return;
  render(rendered + BATCH);
  watchTheEnd();
}, { rootMargin: "1200px" });

// An observer reports only changes; observing again makes it report the current state.
function watchTheEnd() {
  end.unobserve(at("more"));
  end.observe(at("more"));
}

function activate(position) {
  for (const [where, tabIndex] of [[active, -1], [position, 0]]) {
    const node = cards.get(visible[where]);
    if (!node) continue;
    node.tabIndex = tabIndex;
    node.querySelectorAll("button").forEach((button) => (button.tabIndex = tabIndex));
  }
  active = position;
}

function focusOn(position) {
  if (!visible.length) return;
  position = Math.max(0, Math.min(position, visible.length - 1));
  render(position + 1 + BATCH / 2);
  cards.get(visible[position]).focus();
}

// -------------------------------------------------------------- filters

function fillSelect(select, labels) {
  const counts = new Map();
  labels.forEach((label) => counts.set(label, (counts.get(label) || 0) + 1));
  const sorted = [...counts].sort(([a], [b]) => className(a).localeCompare(className(b), "en", { numeric: true }) || a - b);
  for (const [label, n] of sorted) {
    select.append(element("option", { value: label, textContent: `${className(label)} (${n})`, dir: "auto" }));
  }
}

function applyFilters() {
  const [given, suggested, state] = ["given", "suggested", "state"].map((id) => at(id).value);
  const text = at("search").value.trim().toLocaleLowerCase();
  visible = data.ids.map((_, i) => i).filter((i) =>
    (given === "" || data.given[i] === Number(given)) &&
    (suggested === "" || data.suggested[i] === Number(suggested)) &&
    (state === "" || (actions.get(i) ?? "open") === state) &&
    (text === "" || data.ids[i].toLocaleLowerCase().includes(text)));
  at("gallery").replaceChildren();
  cards.clear();
  rendered = active = 0;
  render(BATCH);
  activate(0);
  if (rendered) at("gallery").style.setProperty("--card-height", `${at("gallery").firstChild.offsetHeight}px`);
  watchTheEnd();
  at("shown").textContent = visible.length ? `${plural(visible.length)} shown` : "No sample matches these filters.";
}

// --------------------------------------------------------------- viewer

let viewed = 0; // position in `visible`

function view(position) {
  if (position < 0 || position >= visible.length) return;
  viewed = position;
  const i = visible[position];
  const image = picture(i);
  const shown = at("viewer-image");
  shown.hidden = image === null;
  if (image) {
    shown.onload = () => pixelate(shown);
    [shown.src, shown.alt] = [image.src, image.alt];
  }
  const labels = [data.given[i], data.suggested[i]].map((label) => element("bdi", { textContent: className(label) }));
  at("viewer-title").replaceChildren(labels[0], " → ", labels[1]);
  facts(at("viewer-facts"), i, true);
  showDecision(at("viewer-decisions").children, i);
  at("position").textContent = `${(position + 1).toLocaleString("en")} of ${visible.length.toLocaleString("en")}`;
  at("previous").disabled = position === 0;
  at("next").disabled = position === visible.length - 1;
  if (!at("viewer").open) at("viewer").showModal();
}

function decideViewed(action) {
  const i = visible[viewed];
  const decided = decide(i, action);
  update(i);
  if (decided && viewed < visible.length - 1) view(viewed + 1);
  else showDecision(at("viewer-decisions").children, i);
}

// ----------------------------------------------------------------- keys

function columns() {
  const items = [...at("gallery").children].slice(0, 50);
  return items.filter((item) => item.offsetTop === items[0].offsetTop).length;
}

function galleryKey(event) {
  const node = event.target.closest(".sample");
  if (!node || event.ctrlKey || event.metaKey || event.altKey) return;
  const i = Number(node.dataset.sample);
  const position = visible.indexOf(i);
  const forwards = getComputedStyle(at("gallery")).direction === "rtl" ? -1 : 1;
  const moves = {
    ArrowRight: position + forwards,
    ArrowLeft: position - forwards,
    ArrowDown: position + columns(),
    ArrowUp: position - columns(),
    Home: 0,
    End: visible.length - 1,
  };
  const key = event.key.toLowerCase();
  if (event.key in moves) {
    const target = moves[event.key];
    if (target >= 0 && target < visible.length) focusOn(target);
    event.preventDefault();
  } else if (event.key === "Enter" && event.target === node) {
    view(position);
    event.preventDefault();
  } else if (Object.hasOwn(KEYS, key)) {
    const decided = decide(i, KEYS[key]);
    update(i);
    if (decided) focusOn(position + 1);
    event.preventDefault();
  }
}

function viewerKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const key = event.key.toLowerCase();
  if (event.key === "ArrowLeft") view(viewed - 1);
  else if (event.key === "ArrowRight") view(viewed + 1);
  else if (Object.hasOwn(KEYS, key)) decideViewed(KEYS[key]);
}

// ---------------------------------------------------------------- start

function start() {
  readActions();
  fillSelect(at("given"), data.given);
  fillSelect(at("suggested"), data.suggested);
  at("viewer-decisions").append(...decisionButtons(decideViewed));
  for (const id of ["given", "suggested", "state"]) at(id).addEventListener("change", applyFilters);
  at("search").addEventListener("input", applyFilters);
  at("filters").addEventListener("submit", (event) => event.preventDefault());
  at("filters").addEventListener("reset", () => setTimeout(applyFilters));
  at("gallery").addEventListener("keydown", galleryKey);
  document.addEventListener("keydown", (event) => at("viewer").open && viewerKey(event)); // also when no button has the focus
  at("viewer").addEventListener("close", () => focusOn(viewed));
  at("viewer").addEventListener("click", (event) => event.target === at("viewer") && at("viewer").close());
  at("close").addEventListener("click", () => at("viewer").close());
  at("previous").addEventListener("click", () => view(viewed - 1));
  at("next").addEventListener("click", () => view(viewed + 1));
  at("save").addEventListener("click", saveCorrections);
  at("clear").addEventListener("click", () => {
    if (!confirm(`Discard your decisions on ${plural(actions.size)}?`)) return;
    actions.clear();
    storeActions();
    applyFilters();
  });
  for (const button of document.querySelectorAll(".filter")) {
    button.addEventListener("click", () => {
      at("filters").reset();
      at("given").value = button.dataset.given;
      at("suggested").value = button.dataset.suggested;
      at("review").scrollIntoView();
    });
  }
  showProgress();
  applyFilters();
  at("storage").hidden = store.works;
}

if (data.ids.length) start();
