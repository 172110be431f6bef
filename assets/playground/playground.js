import { drawMap, dot, short } from "./playground-map.js";

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
/** With more texts than this the rows of the matrix have only their numbers on a narrow screen. */
const MOST_NAMED = 5;
/** Longer lists of tokens scroll inside their section. */
const MOST_TOKENS = 400;
const PAUSE_MS = 450;

const NOTHING = "Nothing to show yet.";

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

/** Two places, and no -0.00. */
const rounded = (value) => value.toFixed(2).replace(/^-(0\.00)$/, "$1");
const cosine = (a, b) => dot(a, b) / (Math.sqrt(dot(a, a) * dot(b, b)) || 1);

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
    const number = element("span", { className: "n", textContent: i + 1 });
    const name = element("th", { scope: "row", title: texts[i] }, number, " ", element("span", { className: "name", textContent: texts[i] }));
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
  $("heat").classList.toggle("many", shown.length > MOST_NAMED);
  $("heat").replaceChildren(caption, element("thead", {}, head), element("tbody", {}, ...rows));
  $("legend").hidden = !others.length;
  $("low").textContent = rounded(low);
  $("high").textContent = rounded(high);
  const context = $("ramp").getContext("2d");
  for (let x = 0; x < 96; x++) {
    context.fillStyle = `rgb(${ramp(x / 95)})`;
    context.fillRect(x, 0, 1, 10);
  }
  hintAtHeat();
}

/** Says how to reach what a narrow screen does not show. */
function hintAtHeat() {
  const { scrollWidth, clientWidth } = $("heat").parentElement;
  const sideways = scrollWidth > clientWidth ? "Scroll the table sideways to see all columns. " : "";
  $("heat-hint").textContent = state.vectors.length ? `${sideways}Tap or click a number to see its two texts.` : NOTHING;
}

/** The two texts of a cell, in full: a narrow screen shows only their numbers. */
function showPair(cell) {
  if (cell?.dataset.value === undefined) return;
  const [i, j] = [cell.parentElement.rowIndex - 1, cell.cellIndex - 1];
  const line = (k) => element("span", {}, element("span", { className: "n", textContent: `#${k + 1}` }), ` ${state.texts[k]}`);
  const score = element("strong", { textContent: `${Number(cell.dataset.value).toFixed(4)} ` });
  $("pair").replaceChildren(score, line(i), ...(i === j ? [" (the same text)"] : [" and ", line(j)]));
}

function drawMapOf({ texts, vectors }) {
  if (texts.length < 3) {
    $("map-hint").textContent = "The map needs three texts or more.";
    $("map").replaceChildren();
    return;
  }
  const shares = drawMap($("map"), texts.slice(0, MOST_DRAWN), vectors.slice(0, MOST_DRAWN));
  const [across, up] = shares.map((share) => Math.round(share * 100));
  $("map-hint").textContent = `Principal components: ${across} % of the variance across, ${up} % up.`;
}

async function drawTokens(signal) {
  const texts = state.texts.slice(0, MOST_DRAWN);
  try {
    const { answer } = await call("v1/tokenize", requestBody(texts), signal);
    $("tokens-hint").textContent = "How the model's tokenizer splits each text. Tap or click a token to see its id.";
    $("ids").hidden = false;
    $("tokens").parentElement.classList.toggle("tall", answer.usage.prompt_tokens > MOST_TOKENS);
    $("tokens").replaceChildren(...answer.data.map((item, i) => {
      const pieces = item.pieces.map((piece, k) => {
        const li = element("li", { title: `id ${item.ids[k]}`, textContent: piece });
        li.dataset.id = item.ids[k];
        return li;
      });
      const count = element("span", { className: "count", textContent: item.count === 1 ? "1 token" : `${item.count} tokens` });
      const head = element("p", {}, element("span", { className: "n", textContent: `#${i + 1}` }), " · ", count);
      return element("li", {}, head, element("ol", { ariaLabel: `Tokens of: ${texts[i]}` }, ...pieces));
    }));
  } catch (failure) {
    if (failure.name === "AbortError") return;
    const missing = failure.status === 404 && !failure.fields.includes("code: model_not_found");
    clearTokens(missing ? "Not available: this server has no /v1/tokenize." : failure.message);
  }
}

function clearTokens(hint) {
  $("tokens-hint").textContent = hint;
  $("ids").hidden = true;
  $("tokens").replaceChildren();
}

/** The pieces of a text, shaded by what they add to its score: the strongest piece of all texts has the full colour. */
function shadedPieces(tokens, most) {
  return tokens.map(({ text, share }) => {
    const piece = element("span", { textContent: text });
    if (!(share > 0)) return piece;
    const rgb = ramp(Math.min(1, 0.15 + (0.85 * share) / most));
    piece.className = "match";
    piece.title = `${(100 * share).toFixed(0)} % of what the tokens add to the score`;
    piece.dataset.share = share;
    piece.style.backgroundColor = `rgb(${rgb})`;
    piece.style.color = inkOn(rgb);
    return piece;
  });
}

function drawRanking(results) {
  const shown = results.slice(0, MOST_DRAWN);
  const most = Math.max(...shown.flatMap(({ tokens }) => (tokens ?? []).map(({ share }) => share)), Number.MIN_VALUE);
  $("ranking").replaceChildren(...shown.map(({ index, relevance_score: score, tokens }) => {
    const fill = element("div", { className: "fill" });
    fill.style.width = `${Math.min(1, Math.max(0, score)) * 100}%`;
    const text = element("span", { className: "text", title: state.texts[index] });
    text.append(...(tokens?.length ? shadedPieces(tokens, most) : [state.texts[index]]));
    const track = element("div", { className: "track", ariaHidden: "true" }, fill);
    return element("li", {}, text, element("span", { className: "score", textContent: score.toFixed(3) }), track);
  }));
  $("ranking-hint").textContent = "Relevance by /v1/rerank, from 0 to 1. Shaded are the tokens that match the query, by their share of the score.";
}

function clearRanking() {
  $("ranking").replaceChildren();
  $("search-status").textContent = "";
  $("ranking-hint").textContent = "";
}

/** Takes away what belongs to texts that are no longer there. */
function clearResults() {
  Object.assign(state, { texts: [], vectors: [] });
  clearRanking();
  clearTokens(NOTHING);
  for (const id of ["heat", "pair", "map"]) $(id).replaceChildren();
  $("legend").hidden = true;
  for (const id of ["heat-hint", "map-hint"]) $(id).textContent = NOTHING;
}

function showError(failure) {
  $("error").hidden = !failure;
  if (!failure) return $("error").replaceChildren();
  let title = failure.status ? `The server answered ${failure.status}` : "The server cannot be reached";
  let { message } = failure;
  if (failure.status === 401) {
    title = "Enter your API key";
    message = $("key").value
      ? "The server does not accept this key. Check the key in the box “API key” at the top of the page."
      : "This server asks for a key. Enter yours in the box “API key” at the top of the page.";
  }
  $("error").replaceChildren(element("strong", { textContent: title }), message, " ");
  if (failure.status !== 401 && failure.fields?.length) $("error").append(element("code", { textContent: failure.fields.join(", ") }));
}

// ---- what happens when

const lines = () => $("texts").value.split("\n").map((line) => line.trim()).filter(Boolean);
let running = new AbortController();
let askedForKey = false;

async function run() {
  clearTimeout(pause);
  running.abort();
  running = new AbortController();
  const { signal } = running;
  const texts = lines();
  drawCode();
  if (!texts.length) {
    $("status").textContent = "Write a text or two.";
    clearResults();
    showError(null);
    return;
  }
  try {
    const { vectors, usage, took, server } = await embed(texts, signal);
    Object.assign(state, { texts, vectors });
    $("pair").replaceChildren();
    if (askedForKey) $("access").open = askedForKey = false;
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
  clearResults();
  showError(failure);
  if (failure.status !== 401) return;
  $("access").open = askedForKey = true;
  $("key").focus();
}

function draw() {
  if (!state.vectors.length) return;
  drawHeat();
  drawMapOf(state);
}

async function rank(signal) {
  const query = $("query").value.trim();
  if (!query || !state.vectors.length) {
    clearRanking();
    return;
  }
  const body = { model: $("model").value, query, documents: state.texts, return_tokens: true };
  const { answer, took, server } = await call("v1/rerank", body, signal);
  drawRanking(answer.results);
  const best = state.texts[answer.results[0].index];
  $("search-status").textContent = `Most relevant: ${short(best, 60)} · ${duration(took, server)}`;
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
  if (!$("model").value) {
    $("code").textContent = NOTHING;
    return;
  }
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
    $("copied").textContent = "The browser does not let this page write to the clipboard: the code is selected, press Ctrl + C.";
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
let resized;

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
    $("model").disabled = false;
  } catch (failure) {
    $("model").replaceChildren(element("option", { value: "", textContent: failure.status === 401 ? "needs an API key" : "not available" }));
    $("model").disabled = true;
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
$("heat").addEventListener("click", (event) => showPair(event.target.closest("td")));
$("tokens").addEventListener("click", (event) => event.target.closest("ol ol > li")?.classList.toggle("open"));
$("ids").addEventListener("click", () => {
  const shown = $("tokens").classList.toggle("ids");
  $("ids").ariaPressed = String(shown);
});
addEventListener("resize", () => {
  clearTimeout(resized);
  resized = setTimeout(draw, 150);
});
for (const button of document.querySelectorAll("[data-copy]")) button.addEventListener("click", () => copy(button));
system.addEventListener("change", applyTheme);
start();
