// The map: each text as a dot, placed by the first two principal components of the vectors, and named beside it.

const DOT = 5;
/** Dots are nudged until their centres are this far apart, so that equal texts are not drawn as one dot. */
const DOT_SPACING = 8;
/** Between a dot and its label. */
const GAP = 4;
/** Between two labels on one line. */
const ROOM = 5;
/** Where a label may stand, seen from its dot: to the right or left (x), above or below (y), and which share of it lies left of that point. */
const DIRECTIONS = [
  [1, 0, 0], [-1, 0, 1], [0, -1, 0.5], [0, 1, 0.5], [1, -0.8, 0], [1, 0.8, 0], [-1, -0.8, 1], [-1, 0.8, 1],
  [0, -1, 0.1], [0, 1, 0.1], [0, -1, 0.9], [0, 1, 0.9], [0, -1, 0.3], [0, 1, 0.3], [0, -1, 0.7], [0, 1, 0.7],
];
/** How far from the dot, in pixels; from the second on, a line connects the two. */
const DISTANCES = [0, 12, 24, 38, 56, 76, 100, 130];
/** How many letters of its text a label shows: as many as there is room for, at last only the number. */
const LETTERS = [34, 20, 10, 0];

export const dot = (a, b) => a.reduce((sum, x, i) => sum + x * b[i], 0);

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

// ---- places

/** Moves dots that cover each other apart, by a few pixels. */
function separate(points) {
  for (let round = 0; round < 60; round++) {
    let moved = false;
    for (let i = 0; i < points.length; i++) {
      for (let j = 0; j < i; j++) {
        let [dx, dy] = [points[i].x - points[j].x, points[i].y - points[j].y];
        let distance = Math.hypot(dx, dy);
        if (distance >= DOT_SPACING) continue;
        // Dots of equal texts have no direction between them: each pair gets one of its own.
        if (distance < 1e-6) [dx, dy, distance] = [Math.cos(i + j), Math.sin(i + j), 1];
        const push = (DOT_SPACING + 0.1 - Math.min(distance, DOT_SPACING)) / 2 / distance;
        points[i].x += dx * push;
        points[i].y += dy * push;
        points[j].x -= dx * push;
        points[j].y -= dy * push;
        moved = true;
      }
    }
    if (!moved) return;
  }
}

const clamp = (x, low, high) => Math.min(high, Math.max(low, x));
const nearest = (box, { x, y }) => ({ x: clamp(x, box.left, box.right), y: clamp(y, box.top, box.bottom) });
const distance = (a, b) => Math.hypot(a.x - b.x, a.y - b.y);
const overlap = (a, b) => a.left < b.right && b.left < a.right && a.top < b.bottom && b.top < a.bottom;

/** Whether the line from `a` to `b` enters the box: Liang and Barsky's clipping. */
function crosses({ a, b }, box) {
  let [from, to] = [0, 1];
  for (const [start, step, low, high] of [[a.x, b.x - a.x, box.left, box.right], [a.y, b.y - a.y, box.top, box.bottom]]) {
    if (Math.abs(step) < 1e-9) {
      if (start < low || start > high) return false;
    } else {
      const [first, second] = [(low - start) / step, (high - start) / step];
      from = Math.max(from, Math.min(first, second));
      to = Math.min(to, Math.max(first, second));
    }
  }
  return from < to;
}

/** Whether two lines cross. */
function meet(p, q) {
  const side = (a, b, c) => Math.sign((b.x - a.x) * (c.y - a.y) - (b.y - a.y) * (c.x - a.x));
  return side(p.a, p.b, q.a) !== side(p.a, p.b, q.b) && side(q.a, q.b, p.a) !== side(q.a, q.b, p.b);
}

/** The box of a label of this size, seen from its dot. */
function boxAt(dot, [dx, dy, share], away, { width, height }) {
  const [x, y] = [dot.x + dx * (DOT + GAP + away), dot.y + dy * (DOT + GAP + away)];
  const left = x - width * share;
  const top = dx !== 0 ? y - height / 2 : dy > 0 ? y : y - height;
  return { left, top, right: left + width, bottom: top + height };
}

/** Where the label of dot `i` covers nothing and cannot be taken for another dot's, and the line to it if it needs one. */
function findPlace(i, dots, size, away, taken, frame) {
  for (const direction of DIRECTIONS) {
    const box = boxAt(dots[i], direction, away, size);
    if (box.left < 3 || box.right > frame.width - 3 || box.top < 3 || box.bottom > frame.height - 3) continue;
    const roomy = { ...box, left: box.left - ROOM, right: box.right + ROOM };
    if (taken.some((other) => overlap(roomy, other.box) || (other.line && crosses(other.line, box)))) continue;
    const own = distance(nearest(box, dots[i]), dots[i]);
    const apart = away > 0 ? DOT + 3 : own + DOT;
    if (dots.some((dot, j) => j !== i && distance(nearest(box, dot), dot) < apart)) continue;
    if (away === 0) return { box };
    const end = nearest(box, dots[i]);
    const start = { x: dots[i].x + ((end.x - dots[i].x) * DOT) / own, y: dots[i].y + ((end.y - dots[i].y) * DOT) / own };
    const line = { a: start, b: { x: end.x + (start.x - end.x) * (2 / (own - DOT)), y: end.y + (start.y - end.y) * (2 / (own - DOT)) } };
    const blocked = (other) => crosses(line, other.box) || (other.line && meet(line, other.line));
    // A line may leave a cluster across a neighbour's dot, but not run through one further away.
    const through = (dot, j) => j !== i && distance(dot, dots[i]) > 3 * DOT
      && crosses(line, { left: dot.x - DOT, right: dot.x + DOT, top: dot.y - DOT, bottom: dot.y + DOT });
    if (!taken.some(blocked) && !dots.some(through)) return { box, line };
  }
  return null;
}

// ---- drawing

function svg(name, attributes, ...children) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.append(...children);
  return node;
}

export const short = (text, most) => {
  const letters = [...text];
  return letters.length > most ? `${letters.slice(0, most - 1).join("")}…` : text;
};

function dotsOf(axes, width, height) {
  const margin = 30;
  const scale = ({ values }, size, flip) => {
    const [low, high] = [Math.min(...values), Math.max(...values)];
    return values.map((x) => {
      const share = high > low ? (x - low) / (high - low) : 0.5;
      return margin + (flip ? 1 - share : share) * (size - 2 * margin);
    });
  };
  const [xs, ys] = [scale(axes[0], width, false), scale(axes[1], height, true)];
  const dots = xs.map((x, i) => ({ x, y: ys[i] }));
  separate(dots);
  return dots;
}

/** Draws the map into `container` and returns the two components' shares of the variance. */
export function drawMap(container, texts, vectors) {
  const axes = principal(vectors.map((v) => [...v]));
  // Not wider than its container, so that letters on a phone are no smaller.
  const width = Math.min(560, Math.max(280, container.clientWidth));
  const frame = { width, height: Math.round(width * (width < 400 ? 1 : 0.78)) };
  const dots = dotsOf(axes, frame.width, frame.height);

  const label = `Map of ${texts.length} texts by their first two principal components; the table above has the similarities`;
  const picture = svg("svg", { viewBox: `0 0 ${frame.width} ${frame.height}`, role: "img", "aria-label": label });
  picture.append(svg("rect", { x: 0.5, y: 0.5, width: frame.width - 1, height: frame.height - 1, rx: 6, fill: "none", class: "axis" }));
  const groups = texts.map((text, i) => {
    const dot = svg("circle", { cx: dots[i].x, cy: dots[i].y, r: DOT, class: "dot" });
    return svg("g", { "data-text": i + 1 }, svg("title", {}, `${i + 1}: ${text}`), dot);
  });
  picture.append(...groups);
  container.replaceChildren(picture);

  const taken = [];
  const place = (i, letters, away) => {
    const name = svg("text", { class: "name" }, svg("tspan", { class: "number" }, String(i + 1)));
    if (letters) name.append(svg("tspan", { dx: 4 }, short(texts[i], letters)));
    groups[i].append(name);
    const { width: w, height: h } = name.getBBox();
    const found = findPlace(i, dots, { width: w, height: h }, away, taken, frame);
    if (!found) {
      name.remove();
      return false;
    }
    name.setAttribute("x", found.box.left);
    name.setAttribute("y", found.box.top + h * 0.78);
    if (found.line) {
      const { a, b } = found.line;
      name.before(svg("line", { x1: a.x, y1: a.y, x2: b.x, y2: b.y, class: "leader" }));
    }
    taken.push(found);
    return true;
  };
  // Labels that stand beside their dot come first; the others take what room is left, and a line leads to them.
  let open = texts.map((_, i) => i);
  for (const letters of LETTERS) {
    for (const away of DISTANCES) open = open.filter((i) => !place(i, letters, away));
  }
  return axes.map(({ share }) => share);
}
