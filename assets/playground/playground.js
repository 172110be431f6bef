"use strict";

const EXAMPLE = [
  "The cat sleeps.",
  "고양이가 잠을 잔다.",
  "猫が寝ています。",
  "Die Katze schläft.",
  "The bank raises interest rates.",
  "Die Bank erhöht die Zinsen.",
  "銀行が金利を引き上げる。",
  "Los bancos suben los tipos de interés.",
  "Tomorrow it will rain in Paris.",
  "Demain il pleuvra à Paris.",
  "Завтра в Париже будет дождь.",
  "明日パリは雨が降るでしょう。",
];
const EXAMPLE_QUERY = "a sleeping pet";
/** The matrix, the map and the tokens are drawn for this many texts; all of them are embedded and ranked. */
const MOST_DRAWN = 64;
const PAUSE_MS = 450;

const $ = (id) => document.getElementById(id);
const state = { texts: [], vectors: [], model: "", query: "" };

function element(name, properties = {}, ...children) {
  const node = document.createElement(name);
  Object.assign(node, properties);
  node.append(...children);
  return node;
}

// ---- the API

class ApiFailure extends Error {
  constructor(status, text) {
    let error = {};
    try {
      error = JSON.parse(text).error ?? {};
    } catch {
      // Not JSON: a proxy's page, perhaps. Shown as it is.
    }
    super(error.message ?? text.slice(0, 1000));
    this.status = status;
    this.fields = ["type", "param", "code"].filter((name) => error[name]).map((name) => `${name}: ${error[name]}`);
  }
}

/** The answer, and how long it took in ms: there and back, and by the server's own account where it gives one. */
async function call(path, body, signal) {
  const headers = { "Content-Type": "application/json" };
  if ($("key").value) headers.Authorization = `Bearer ${$("key").value}`;
  const started = performance.now();
  const request = body === undefined ? { headers, signal } : { method: "POST", headers, body: JSON.stringify(body), signal };
  const response = await fetch(path, request);
  const text = await response.text();
  const took = performance.now() - started;
  if (!response.ok) throw new ApiFailure(response.status, text);
  const parts = [...(response.headers.get("server-timing") ?? "").matchAll(/dur=([\d.]+)/g)];
  return { answer: JSON.parse(text), took, server: parts.length ? parts.reduce((sum, [, ms]) => sum + Number(ms), 0) : null };
}

/** The server's own account where there is one: the other also has what the browser is busy with. */
const duration = (took, server) => (server === null ? `${took.toFixed(1)} ms` : `${server.toFixed(2)} ms in the server`);

/** Little-endian f32, as the API sends base64. */
function decode(base64) {
  const bytes = Uint8Array.from(atob(base64), (c) => c.charCodeAt(0));
  const view = new DataView(bytes.buffer);
  return Float32Array.from({ length: bytes.length / 4 }, (_, i) => view.getFloat32(4 * i, true));
}

const requestBody = (input) => ({ model: $("model").value, input });

async function embed(input, signal) {
  const { answer, ...times } = await call("v1/embeddings", { ...requestBody(input), encoding_format: "base64" }, signal);
  return { vectors: answer.data.map((item) => decode(item.embedding)), usage: answer.usage, ...times };
}

// ---- numbers

const dot = (a, b) => a.reduce((sum, x, i) => sum + x * b[i], 0);
/** Two places, and no -0.00. */
const rounded = (value) => value.toFixed(2).replace(/^-(0\.00)$/, "$1");
const cosine = (a, b) => dot(a, b) / (Math.sqrt(dot(a, a) * dot(b, b)) || 1);

/** Eigenvalues and eigenvectors of a symmetric matrix, largest first, by Jacobi's rotations. */
function eigen(matrix) {
  const n = matrix.length;
  const a = matrix.map((row) => [...row]);
  const v = a.map((_, i) => a.map((__, j) => (i === j ? 1 : 0)));
  for (let sweep = 0; sweep < 50; sweep++) {
    let off = 0;
    for (let p = 0; p < n; p++) for (let q = p + 1; q < n; q++) off += a[p][q] ** 2;
    if (off < 1e-22) break;
    for (let p = 0; p < n; p++) {
      for (let q = p + 1; q < n; q++) {
        if (Math.abs(a[p][q]) < 1e-300) continue;
        const theta = (a[q][q] - a[p][p]) / (2 * a[p][q]);
        const t = (theta < 0 ? -1 : 1) / (Math.abs(theta) + Math.hypot(theta, 1));
        const c = 1 / Math.hypot(t, 1);
        const s = t * c;
        for (let k = 0; k < n; k++) [a[k][p], a[k][q]] = [c * a[k][p] - s * a[k][q], s * a[k][p] + c * a[k][q]];
        for (let k = 0; k < n; k++) [a[p][k], a[q][k]] = [c * a[p][k] - s * a[q][k], s * a[p][k] + c * a[q][k]];
        for (let k = 0; k < n; k++) [v[k][p], v[k][q]] = [c * v[k][p] - s * v[k][q], s * v[k][p] + c * v[k][q]];
      }
    }
  }
  return a.map((row, i) => ({ value: row[i], vector: v.map((r) => r[i]) })).sort((x, y) => y.value - x.value);
}

/** The first two principal components: coordinates, and each component's share of the variance. */
function principal(vectors) {
  const mean = vectors[0].map((_, i) => vectors.reduce((sum, v) => sum + v[i], 0) / vectors.length);
  const centred = vectors.map((v) => v.map((x, i) => x - mean[i]));
  // The Gram matrix has the covariance's eigenvalues, and is as small as the list of texts.
  const pairs = eigen(centred.map((a) => centred.map((b) => dot(a, b))));
  const total = pairs.reduce((sum, { value }) => sum + Math.max(0, value), 0) || 1;
  const axis = (k) => {
    const { value, vector } = pairs[k] ?? { value: 0, vector: vectors.map(() => 0) };
    const scale = Math.sqrt(Math.max(0, value));
    return { share: Math.max(0, value) / total, values: vector.map((x) => x * scale) };
  };
  return [axis(0), axis(1)];
}

// ---- colours

const RAMPS = { light: [[240, 245, 251], [9, 66, 130]], dark: [[30, 41, 54], [150, 203, 255]] };
const isDark = () => document.documentElement.hasAttribute("data-dark");
const ramp = (share) => {
  const [low, high] = RAMPS[isDark() ? "dark" : "light"];
  return low.map((x, i) => Math.round(x + (high[i] - x) * share));
};

/** Black or white, whichever is easier to read: WCAG's relative luminance. */
function inkOn(rgb) {
  const [r, g, b] = rgb.map((x) => (x / 255 <= 0.04045 ? x / 255 / 12.92 : ((x / 255 + 0.055) / 1.055) ** 2.4));
  return 0.2126 * r + 0.7152 * g + 0.0722 * b > 0.179 ? "#000" : "#fff";
}

// ---- drawing

function drawHeat() {
  const { texts, vectors } = state;
  const shown = vectors.slice(0, MOST_DRAWN);
  const values = shown.map((a) => shown.map((b) => cosine(a, b)));
  const others = values.flatMap((row, i) => row.filter((_, j) => i !== j));
  const [low, high] = others.length ? [Math.min(...others), Math.max(...others)] : [0, 1];
  const head = element("tr", {}, element("td"), ...shown.map((_, j) => {
    const th = element("th", { scope: "col", title: texts[j], textContent: j + 1 });
    th.append(element("span", { className: "hidden", textContent: `: ${texts[j]}` }));
    return th;
  }));
  const rows = values.map((row, i) => {
    const name = element("th", { scope: "row", title: texts[i] }, element("span", { className: "n", textContent: i + 1 }), " ", texts[i]);
    return element("tr", {}, name, ...row.map((value, j) => {
      const td = element("td", { textContent: rounded(value), title: `${i + 1} and ${j + 1}: ${value.toFixed(4)}` });
      td.dataset.value = value;
      if (i === j) {
        td.className = "self";
      } else {
        const rgb = ramp(high > low ? (value - low) / (high - low) : 1);
        td.style.backgroundColor = `rgb(${rgb})`;
        td.style.color = inkOn(rgb);
      }
      return td;
    }));
  });
  const caption = element("caption", { className: "hidden", textContent: "Cosine similarity of each text with each other one" });
  $("heat").replaceChildren(caption, element("thead", {}, head), element("tbody", {}, ...rows));
  $("low").textContent = others.length ? rounded(low) : "";
  $("high").textContent = others.length ? rounded(high) : "";
  const context = $("ramp").getContext("2d");
  for (let x = 0; x < 96; x++) {
    context.fillStyle = `rgb(${ramp(x / 95)})`;
    context.fillRect(x, 0, 1, 10);
  }
}

function svg(name, attributes, text) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  if (text !== undefined) node.textContent = text;
  return node;
}

const box = (left, top, width, height) => ({ left, top, right: left + width, bottom: top + height });
const DOT = 10;

const short = (text, most) => {
  const letters = [...text];
  return letters.length > most ? `${letters.slice(0, most - 1).join("")}…` : text;
};

function drawMap() {
  const texts = state.texts.slice(0, MOST_DRAWN);
  if (texts.length < 3) {
    $("map-hint").textContent = "Three texts or more make a map.";
    $("map").replaceChildren();
    return;
  }
  const axes = principal(state.vectors.slice(0, MOST_DRAWN).map((v) => [...v]));
  // Not wider than its place, so that a phone's letters are no smaller.
  const width = Math.min(560, Math.max(280, $("map").clientWidth));
  const [height, margin] = [Math.round(width * 0.78), 34];
  const place = ({ values }, size, flip) => {
    const [low, high] = [Math.min(...values), Math.max(...values)];
    return values.map((x) => {
      const share = high > low ? (x - low) / (high - low) : 0.5;
      return margin + (flip ? 1 - share : share) * (size - 2 * margin);
    });
  };
  const [xs, ys] = [place(axes[0], width, false), place(axes[1], height, true)];
  const percent = axes.map(({ share }) => Math.round(share * 100));
  $("map-hint").textContent = `Principal components: ${percent[0]} % of the variance across, ${percent[1]} % up.`;
  const label = `Map of ${texts.length} texts by their first two principal components; the table above has the similarities`;
  const picture = svg("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label });
  picture.append(svg("rect", { x: 0.5, y: 0.5, width: width - 1, height: height - 1, rx: 6, fill: "none", class: "axis" }));
  const taken = texts.map((_, i) => box(xs[i] - DOT, ys[i] - DOT, 2 * DOT, 2 * DOT));
  const groups = texts.map((text, i) => {
    const group = svg("g", {});
    group.append(
      svg("title", {}, `${i + 1}: ${text}`),
      svg("circle", { cx: xs[i], cy: ys[i], r: DOT, class: "dot" }),
      svg("text", { x: xs[i], y: ys[i], class: "number" }, i + 1),
    );
    return group;
  });
  picture.append(...groups);
  $("map").replaceChildren(picture);
  // Each name where it covers nothing; where there is no such place the number stands for it.
  groups.forEach((group, i) => {
    const name = svg("text", { class: "name" }, short(texts[i], 34));
    group.append(name);
    const { width: w, height: h } = name.getBBox();
    const [right, left] = [xs[i] + DOT + 4, xs[i] - DOT - 4 - w];
    const places = [[right, ys[i] - h / 2], [left, ys[i] - h / 2], [xs[i] - w / 2, ys[i] + DOT + 2], [xs[i] - w / 2, ys[i] - DOT - 2 - h]];
    const free = places.map(([x, y]) => box(x, y, w, h)).find((it) => {
      const inside = it.left >= 2 && it.right <= width - 2 && it.top >= 2 && it.bottom <= height - 2;
      return inside && taken.every((other) => it.left > other.right || it.right < other.left || it.top > other.bottom || it.bottom < other.top);
    });
    if (!free) return name.remove();
    taken.push(free);
    name.setAttribute("x", free.left);
    name.setAttribute("y", free.top + h * 0.78);
  });
}

async function drawTokens(signal) {
  const texts = state.texts.slice(0, MOST_DRAWN);
  try {
    const { answer } = await call("v1/tokenize", requestBody(texts), signal);
    $("tokens-hint").textContent = "As the model's own tokenizer cuts the texts; point at one for its id.";
    $("tokens").replaceChildren(...answer.data.map((item, i) => {
      const pieces = item.pieces.map((piece, k) => element("li", { title: `id ${item.ids[k]}`, textContent: piece }));
      const count = element("span", { className: "count", textContent: item.count === 1 ? "1 token" : `${item.count} tokens` });
      return element("li", {}, element("span", { className: "n", textContent: i + 1 }), count, element("ol", { ariaLabel: `Tokens of: ${texts[i]}` }, ...pieces));
    }));
  } catch (failure) {
    if (failure.name === "AbortError") return;
    const missing = failure.status === 404 && !failure.fields.includes("code: model_not_found");
    $("tokens-hint").textContent = missing ? "Not available: this server has no /v1/tokenize." : failure.message;
    $("tokens").replaceChildren();
  }
}

function drawRanking(scores) {
  const order = scores.map((score, i) => [score, i]).sort((a, b) => b[0] - a[0]).slice(0, MOST_DRAWN);
  const [high, low] = [Math.max(...scores), Math.min(...scores)];
  $("ranking").replaceChildren(...order.map(([score, i]) => {
    const fill = element("div", { className: "fill" });
    fill.style.width = `${high > low ? ((score - low) / (high - low)) * 100 : 100}%`;
    const text = element("span", { className: "text", title: state.texts[i], textContent: state.texts[i] });
    const track = element("div", { className: "track", ariaHidden: "true" }, fill);
    return element("li", {}, text, element("span", { className: "score", textContent: score.toFixed(3) }), track);
  }));
}

function showError(failure) {
  $("error").hidden = !failure;
  if (!failure) return $("error").replaceChildren();
  const title = failure.status ? `The server answered ${failure.status}` : "The server cannot be reached";
  $("error").replaceChildren(element("strong", { textContent: title }), failure.message, " ");
  if (failure.fields?.length) $("error").append(element("code", { textContent: failure.fields.join(", ") }));
}

// ---- what happens when

const lines = () => $("texts").value.split("\n").map((line) => line.trim()).filter(Boolean);
let running = new AbortController();

async function run() {
  clearTimeout(pause);
  running.abort();
  running = new AbortController();
  const { signal } = running;
  const texts = lines();
  drawCode();
  if (!texts.length) {
    $("status").textContent = "Write a text or two.";
    return;
  }
  try {
    const { vectors, usage, took, server } = await embed(texts, signal);
    Object.assign(state, { texts, vectors });
    showError(null);
    const facts = [`${texts.length} ${texts.length === 1 ? "text" : "texts"}`, `${usage.prompt_tokens} tokens`, `${vectors[0].length} dimensions`, duration(took, server)];
    if (texts.length > MOST_DRAWN) facts.push(`the first ${MOST_DRAWN} are drawn`);
    $("status").textContent = facts.join(" · ");
    draw();
    await Promise.all([drawTokens(signal), rank(signal)]);
  } catch (failure) {
    if (failure.name !== "AbortError") fail(failure);
  }
}

function fail(failure) {
  $("status").textContent = "";
  showError(failure);
}

function draw() {
  if (!state.vectors.length) return;
  drawHeat();
  drawMap();
}

async function rank(signal) {
  const query = $("query").value.trim();
  if (!query || !state.vectors.length) {
    $("ranking").replaceChildren();
    $("search-status").textContent = "";
    return;
  }
  const { vectors, took, server } = await embed([query], signal);
  const scores = state.vectors.map((vector) => cosine(vector, vectors[0]));
  drawRanking(scores);
  const best = state.texts[scores.indexOf(Math.max(...scores))];
  $("search-status").textContent = `Nearest: ${short(best, 60)} · ${duration(took, server)}`;
}

// ---- code

const shellQuoted = (text) => `'${text.replaceAll("'", `'\\''`)}'`;

const CODE = {
  curl: (base, body, key) => [
    `curl ${shellQuoted(`${base}/embeddings`)} \\`,
    `  -H 'Content-Type: application/json' \\`,
    ...(key ? [`  -H "Authorization: Bearer $OPENAI_API_KEY" \\`] : []),
    `  -d ${shellQuoted(JSON.stringify(body))}`,
  ],
  python: (base, body, key) => [
    ...(key ? ["import os", ""] : []),
    "from openai import OpenAI", "",
    `client = OpenAI(base_url=${JSON.stringify(base)}, api_key=${key ? 'os.environ["OPENAI_API_KEY"]' : '"unused"'})`,
    // A JSON string or list of strings is Python's too.
    `answer = client.embeddings.create(model=${JSON.stringify(body.model)}, input=${JSON.stringify(body.input, null, 4)})`,
    "vectors = [item.embedding for item in answer.data]",
  ],
  js: (base, body, key) => [
    'import OpenAI from "openai";', "",
    `const client = new OpenAI({ baseURL: ${JSON.stringify(base)}, apiKey: ${key ? "process.env.OPENAI_API_KEY" : '"unused"'} });`,
    `const answer = await client.embeddings.create({ model: ${JSON.stringify(body.model)}, input: ${JSON.stringify(body.input, null, 2)} });`,
    "const vectors = answer.data.map((item) => item.embedding);",
  ],
};
let language = "curl";

function drawCode() {
  const base = new URL("v1", document.baseURI).href;
  // The key itself never leaves its field.
  $("code").textContent = CODE[language](base, requestBody(lines()), $("key").value !== "").join("\n");
}

async function copy(button) {
  language = button.dataset.copy;
  drawCode();
  try {
    await navigator.clipboard.writeText($("code").textContent);
    $("copied").textContent = `Copied ${button.textContent.slice("Copy ".length)}.`;
  } catch {
    // Browsers give pages on plain http no clipboard, but for localhost.
    getSelection().selectAllChildren($("code"));
    $("copied").textContent = "The browser keeps its clipboard to itself here: the code is selected, copy it by Ctrl + C.";
  }
}

// ---- the theme: the system's, or the reader's

const THEMES = ["system", "light", "dark"];
const system = matchMedia("(prefers-color-scheme: dark)");
const stored = (storage, key) => {
  try {
    return storage().getItem(key);
  } catch {
    return null;
  }
};
const store = (storage, key, value) => {
  try {
    storage().setItem(key, value);
  } catch {
    // Storage may be switched off: then the choice lasts as long as the page.
  }
};
let theme = stored(() => localStorage, "theme") ?? "system";

function applyTheme() {
  const dark = theme === "dark" || (theme === "system" && system.matches);
  document.documentElement.toggleAttribute("data-dark", dark);
  $("theme").textContent = `Theme: ${theme}`;
  draw();
}

// ---- start

let pause;

async function start() {
  applyTheme();
  $("texts").value = EXAMPLE.join("\n");
  $("query").value = EXAMPLE_QUERY;
  $("key").value = stored(() => sessionStorage, "key") ?? "";
  await listModels();
}

async function listModels() {
  try {
    const { answer } = await call("v1/models");
    const chosen = $("model").value;
    $("model").replaceChildren(...answer.data.map(({ id }) => element("option", { value: id, textContent: id, selected: id === chosen })));
  } catch (failure) {
    fail(failure);
    drawCode();
    return;
  }
  await run();
}

$("embed").addEventListener("click", run);
$("model").addEventListener("change", run);
$("texts").addEventListener("input", () => {
  clearTimeout(pause);
  pause = setTimeout(run, PAUSE_MS);
});
$("texts").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) run();
});
$("search").addEventListener("submit", (event) => {
  event.preventDefault();
  rank(running.signal).then(() => showError(null), (failure) => failure.name === "AbortError" || fail(failure));
});
$("key").addEventListener("change", () => {
  store(() => sessionStorage, "key", $("key").value);
  listModels();
});
$("access").addEventListener("keydown", (event) => {
  if (event.key !== "Escape") return;
  $("access").open = false;
  $("access").querySelector("summary").focus();
});
$("theme").addEventListener("click", () => {
  theme = THEMES[(THEMES.indexOf(theme) + 1) % THEMES.length];
  store(() => localStorage, "theme", theme);
  applyTheme();
});
for (const button of document.querySelectorAll("[data-copy]")) button.addEventListener("click", () => copy(button));
system.addEventListener("change", applyTheme);
start();
