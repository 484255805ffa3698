// Makes the page answer: pointing along the timeline, opening a step, filtering its messages.
//
// Data of a run (element "a-data"): columns {label, step, x in percent, rollouts, messages, kept,
// pack, values, figures}; series: names of the values; names: tables that messages point into;
// words: how states and kinds are called; sound: healthy states; start: the column to open.
// A message (in the packs "a-pack-N", gzip in base64): [column, file, line, rollout, step, index,
// before, span, after, state, kind, reward, category, model], a name being a position or -1.
//
// Data reaches the page as text nodes only.
"use strict";

const PAGE = 25; // messages shown at once
const ALL = "all";
const SHARED = ["state", "kind", "category", "model"];
const runs = [];
const loaded = new Promise((done) => document.addEventListener("DOMContentLoaded", done));

function make(tag, text, className) {
  const element = document.createElement(tag);
  if (text !== undefined) element.textContent = text;
  if (className) element.className = className;
  return element;
}

function count(number, noun) {
  return `${number.toLocaleString("en")} ${noun}${number === 1 ? "" : "s"}`;
}

async function unpack(text) {
  const bytes = Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).json();
}

class Run {
  constructor(key) {
    this.key = key;
    this.root = document.getElementById(key);
    this.data = JSON.parse(document.getElementById(`${key}-data`).textContent);
    this.packs = new Map();
    this.asked = 0; // the newest request; older answers are dropped
    this.at = this.data.start;
    if (this.data.columns.length > 0) this.load(this.data.columns[this.at].pack);
    this.tracks = this.root.querySelector(".tracks");
    this.form = this.root.querySelector("form");
    this.list = this.root.querySelector(".list");
    this.more = this.root.querySelector(".more");
    this.found = [];
    this.fillFilters();
    this.listen();
    if (this.tracks) this.makeSlider();
  }

  get dated() {
    return this.data.columns.filter((column) => column.x !== null);
  }

  // --- timeline

  makeSlider() {
    const { tracks } = this;
    // The axis, not the whole: what is in a slider is nothing to a screen reader.
    this.slider = tracks.querySelector(".axis");
    this.slider.tabIndex = 0;
    this.slider.setAttribute("role", "slider");
    this.slider.setAttribute("aria-label", "Step; Enter opens its messages");
    this.slider.setAttribute("aria-valuemin", 0);
    this.slider.setAttribute("aria-valuemax", this.dated.length - 1);
    tracks.addEventListener("pointermove", (event) => this.follow(event));
    tracks.addEventListener("pointerleave", () => pointAll(this, this.opened ?? this.at));
    tracks.addEventListener("click", (event) => {
      if (this.follow(event)) openAll(this, this.at);
    });
    this.slider.addEventListener("keydown", (event) => this.press(event));
    this.point(Math.min(this.at, this.dated.length - 1));
  }

  follow(event) {
    const box = this.tracks.querySelector(".axis .plot").getBoundingClientRect();
    const x = (100 * (event.clientX - box.left)) / box.width;
    if (x < -1 || x > 101) return false;
    pointAll(this, nearest(this.dated, "x", x));
    return true;
  }

  press(event) {
    const last = this.dated.length - 1;
    const moves = { ArrowLeft: -1, ArrowDown: -1, ArrowRight: 1, ArrowUp: 1, PageDown: -10, PageUp: 10 };
    const ends = { Home: 0, End: last };
    if (event.key in moves || event.key in ends) {
      const to = event.key in ends ? ends[event.key] : this.at + moves[event.key];
      pointAll(this, Math.max(0, Math.min(last, to)));
    } else if (event.key === "Enter" || event.key === " ") {
      openAll(this, this.at);
    } else return;
    event.preventDefault();
  }

  point(at) {
    const column = this.data.columns[at];
    this.at = at;
    for (const line of this.tracks.querySelectorAll(".cursor")) {
      line.setAttribute("x1", `${column.x}%`);
      line.setAttribute("x2", `${column.x}%`);
    }
    for (const value of this.tracks.querySelectorAll(".value")) {
      value.textContent = column.values[value.dataset.series];
    }
    const counts = `${count(column.rollouts, "rollout")}, ${count(column.messages, "message")}`;
    const here = this.root.querySelector(".here");
    here.replaceChildren(make("b", `Step ${column.label}`), `, ${counts}`);
    const said = this.data.series.map((name, index) => `${name} ${column.values[index]}`);
    this.slider.setAttribute("aria-valuenow", at);
    this.slider.setAttribute("aria-valuetext", `Step ${column.label}: ${counts}; ${said.join(", ")}`);
  }

  // --- messages

  fillFilters() {
    const { columns, names, words } = this.data;
    this.form.step.append(new Option("all", ALL));
    columns.forEach((column, index) => this.form.step.append(new Option(column.label, index)));
    for (const field of SHARED) {
      const entries = names[field].map((name, index) => [(words[field] ?? names[field])[index], index]);
      entries.sort(([one], [other]) => one.localeCompare(other));
      for (const [name, index] of entries) this.form[field].append(new Option(name, index));
      // One choice is none, except that a run with a single state should say which.
      const idle = entries.length < (field in words ? 1 : 2);
      this.form[field].closest("label").hidden = idle;
    }
  }

  listen() {
    const { form } = this;
    form.addEventListener("submit", (event) => event.preventDefault());
    form.addEventListener("input", () => this.search());
    form.addEventListener("reset", () => {
      setTimeout(() => this.open(this.opened ?? this.at)); // after the browser has reset the fields
    });
    for (const button of form.querySelectorAll("[data-go]")) {
      button.addEventListener("click", () => {
        const last = this.data.columns.length - 1;
        const to = (this.opened ?? this.at) + Number(button.dataset.go);
        openAll(this, Math.max(0, Math.min(last, to)), { scroll: false });
      });
    }
    this.more.addEventListener("click", () => this.show());
  }

  open(at) {
    this.form.step.value = at;
    return this.search();
  }

  load(number) {
    if (!this.packs.has(number)) {
      const element = document.getElementById(`${this.key}-pack-${number}`);
      this.packs.set(number, unpack(element.textContent));
      element.remove();
    }
    return this.packs.get(number);
  }

  async messages(wanted) {
    const columns = wanted === ALL ? this.data.columns : [this.data.columns[wanted]];
    const needed = [...new Set(columns.map((column) => column.pack))];
    if (!needed.every((number) => this.packs.has(number))) await loaded;
    return (await Promise.all(needed.map((number) => this.load(number)))).flat();
  }

  async search() {
    const asked = ++this.asked;
    const { step, text } = this.form;
    const status = this.root.querySelector(".count");
    const wanted = step.value === ALL ? ALL : Number(step.value);
    const sought = text.value.toLowerCase();
    if (wanted !== ALL) this.opened = wanted;
    let all;
    try {
      all = await this.messages(wanted);
    } catch (error) {
      status.textContent = `The messages of this page cannot be read: ${error.message}`;
      return;
    }
    if (asked !== this.asked) return;
    const fields = SHARED.map((name, index) => [[9, 10, 12, 13][index], this.form[name].value]);
    const strict = fields.filter(([, value]) => value !== "").map(([at, value]) => [at, Number(value)]);
    const here = wanted === ALL ? all : all.filter((message) => message[0] === wanted);
    this.found = here.filter(
      (message) =>
        strict.every(([at, value]) => message[at] === value) &&
        (!sought || (message[6] + message[7] + message[8]).toLowerCase().includes(sought)),
    );
    const where = wanted === ALL ? "all steps" : `${this.data.columns[wanted].step === null ? "" : "step "}${this.data.columns[wanted].label}`;
    const total = here.length === this.found.length ? "" : ` of ${here.length.toLocaleString("en")}`;
    status.textContent = `${this.found.length.toLocaleString("en")}${total} messages of ${where}`;
    const figures = wanted === ALL ? [] : this.data.columns[wanted].figures;
    const listed = figures.map(([name, value]) => `${name} ${value}`).join(", ");
    this.root.querySelector(".figures").hidden = !listed;
    this.root.querySelector(".figures p").textContent = listed;
    this.list.replaceChildren();
    this.show();
    if (this.tracks && wanted !== ALL && this.data.columns[wanted].x !== null) this.point(wanted);
  }

  show() {
    const from = this.list.children.length;
    const next = this.found.slice(from, from + PAGE);
    this.list.append(...next.map((message) => this.card(message)));
    const left = this.found.length - from - next.length;
    this.more.hidden = left <= 0;
    this.more.textContent = `Show ${Math.min(PAGE, left)} more of ${left.toLocaleString("en")}`;
    if (from > 0 && next.length > 0) {
      this.list.children[from].tabIndex = -1;
      this.list.children[from].focus();
    }
  }

  card(message) {
    const [, file, line, rollout, step, index, before, span, after, state, kind, reward, category, model] = message;
    const { names, words, sound } = this.data;
    const card = document.getElementById("message").content.cloneNode(true);
    card.querySelector("rect").setAttribute("class", names.state[state]);
    card.querySelector("b").textContent = words.state[state];
    card.querySelector(".kind").textContent = words.kind[kind];
    const facts = [
      step === null ? null : `step ${step}`,
      reward === null ? null : `reward ${Number(reward.toPrecision(3))}`,
      names.category[category],
      names.model[model],
    ];
    card.querySelector(".facts-line").textContent = facts.filter((fact) => fact != null).join(" · ");
    card.querySelector(".where code").textContent = `${names.file[file]}:${line}`;
    card.querySelector(".where span").textContent = `rollout ${rollout}, message ${index + 1}`;
    const text = card.querySelector("pre");
    text.append(before);
    if (!sound.includes(state)) {
      text.append(make("mark", span, span ? "" : "gap"));
    }
    text.append(after);
    return card;
  }
}

// Position of the column whose field is next to the value, or null.
function nearest(columns, field, value, suits = () => true) {
  let best = null;
  columns.forEach((column, index) => {
    if (!suits(column)) return;
    const distance = Math.abs(column[field] - value);
    if (best === null || distance < Math.abs(columns[best][field] - value)) best = index;
  });
  return best;
}

// Two runs side by side stay at the same step.
function counterpart(from, to, at, suits = () => true) {
  const { step } = from.data.columns[at];
  if (from === to || step === null) return from === to ? at : null;
  return nearest(to.dated, "step", step, suits);
}

const hasMessages = (column) => column.kept > 0;

function pointAll(from, at) {
  for (const run of runs) {
    const place = counterpart(from, run, at);
    if (place !== null && run.tracks && run.data.columns[place].x !== null) run.point(place);
  }
}

async function openAll(from, at, { scroll = true } = {}) {
  const places = runs.map((run) => [run, counterpart(from, run, at, hasMessages)]);
  await Promise.all(places.filter(([, place]) => place !== null).map(([run, place]) => run.open(place)));
  if (scroll) {
    const title = document.getElementById(`${from.key}-messages-title`);
    title.focus({ preventScroll: true });
    title.scrollIntoView({ block: "start" });
  }
}

function listenToTheme() {
  const button = document.getElementById("theme");
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const current = () => document.documentElement.dataset.theme ?? (dark.matches ? "dark" : "light");
  const label = () => {
    button.textContent = current() === "dark" ? "Light" : "Dark";
    button.setAttribute("aria-label", `Change to the ${button.textContent.toLowerCase()} theme`);
  };
  button.addEventListener("click", () => {
    document.documentElement.dataset.theme = current() === "dark" ? "light" : "dark";
    label();
  });
  dark.addEventListener("change", label);
  label();
}

document.documentElement.classList.add("scripted");
listenToTheme();
for (const article of document.querySelectorAll("article.run")) runs.push(new Run(article.id));
performance.mark("toolrl-ready");
// Only the first pack of each run stands before this script: the others may be many.
openFirst();

async function openFirst() {
  const filled = runs.filter((run) => run.data.columns.length > 0);
  const place = (run) => counterpart(filled[0], run, filled[0].at, hasMessages) ?? run.at;
  await Promise.all(filled.map((run) => run.open(place(run))));
  performance.mark("toolrl-open");
}
