// Distributions and a scatter plot: click a point for its session, drag to select a range.
const PLOT_HEIGHT = 190;
const PAD = { left: 14, right: 14, top: 8, bottom: 22 };
let colours = colouring();
const tip = byId("tip");

const place = (event, text) => {
  tip.textContent = text;
  tip.hidden = false;
  const box = tip.getBoundingClientRect();
  const x = Math.min(event.clientX + 14, window.innerWidth - box.width - 8);
  tip.style.transform = `translate(${Math.max(x, 4)}px, ${Math.max(event.clientY - box.height - 10, 4)}px)`;
};

const axis = (pen, box, low, high, { whole = false } = {}) => {
  const scale = (value) => box.left + ((value - low) / (high - low || 1)) * (box.right - box.left);
  pen.fillStyle = MUTED;
  pen.strokeStyle = LINE;
  pen.textAlign = "center";
  pen.textBaseline = "top";
  pen.beginPath();
  pen.moveTo(box.left, box.bottom + 0.5);
  pen.lineTo(box.right, box.bottom + 0.5);
  for (const value of ticks(low, high, Math.max((box.right - box.left) / 60, 2))) {
    if (whole && !Number.isInteger(value)) continue;
    pen.moveTo(scale(value), box.bottom);
    pen.lineTo(scale(value), box.bottom + 4);
    pen.fillText(show(value), scale(value), box.bottom + 6);
  }
  pen.stroke();
  return scale;
};

/** All dots, the faded ones below; one path per colour, because filling is what takes time. */
const drawDots = (pen, dots, radius) => {
  const paths = new Map([[FADED, []]]);
  for (const [session, x, y] of dots) {
    const colour = passing.has(session.i) ? colours.of(session) : FADED;
    if (!paths.has(colour)) paths.set(colour, []);
    paths.get(colour).push([x, y]);
  }
  for (const [colour, places] of paths) {
    pen.fillStyle = colour;
    pen.beginPath();
    for (const [x, y] of places) {
      pen.moveTo(x + radius, y);
      pen.arc(x, y, radius, 0, 2 * Math.PI);
    }
    pen.fill();
  }
};

const ring = (pen, x, y, radius) => {
  pen.strokeStyle = INK;
  pen.lineWidth = 2;
  pen.beginPath();
  pen.arc(x, y, radius + 2.5, 0, 2 * Math.PI);
  pen.stroke();
  pen.lineWidth = 1;
};

/** Limits of the values with a little room; whole numbers from zero keep their zero. */
const limits = (values) => {
  const low = Math.min(...values);
  const high = Math.max(...values);
  const room = (high - low) * 0.03 || Math.abs(high) * 0.1 || 1;
  return [low >= 0 && low < (high - low) * 0.3 ? Math.min(0, low) : low - room, high + room];
};

/**
 * Positions of dots stacked over an axis: [session, x, height in dots]. Counts get several dots beside each
 * other, so that a tall bar of a whole number does not shrink all dots.
 */
const stacked = (list, key, scale, size) => {
  const heights = new Map();
  const whole = list.every((session) => Number.isInteger(metricOf(session, key)));
  const across = whole ? Math.max(Math.floor(((scale(1) - scale(0)) * 0.8) / size), 1) : 1;
  return list.map((session) => {
    const value = scale(metricOf(session, key));
    const column = across > 1 ? value : Math.round(value / size) * size;
    const count = heights.get(column) || 0;
    heights.set(column, count + 1);
    return [session, column + ((count % across) - (across - 1) / 2) * size, Math.floor(count / across)];
  });
};

/** What plots have in common: their canvas, pointer and keyboard; `layout` gives the dots with x, y, radius. */
class Plot {
  constructor(holder, name, key, other = null) {
    this.name = name;
    this.canvas = holder.querySelector("canvas");
    this.caption = holder.querySelector("output");
    this.selects = [...holder.querySelectorAll("select")];
    this.range = null;
    this.dots = [];
    [key, other].filter(Boolean).forEach((chosen, n) => {
      fill(this.selects[n], { withMetrics: true, chosen });
      this.selects[n].addEventListener("change", () => this.clear("plot"));
    });
    sizes.observe(this.canvas);
    this.canvas.addEventListener("pointerdown", (event) => this.press(event));
    this.canvas.addEventListener("pointermove", (event) => this.hover(event));
    this.canvas.addEventListener("pointerleave", () => { tip.hidden = true; });
    this.canvas.addEventListener("keydown", (event) => this.key(event));
    addView(this.canvas, (why) => this.redraw(why));
  }

  get x() { return this.selects[0].value; }
  get y() { return this.selects.length > 1 ? this.selects[1].value : null; }

  list() {
    return sessions.filter((session) => inStratum(session) && metricOf(session, this.x) !== null
      && (this.y === null || metricOf(session, this.y) !== null));
  }

  clear(reason) {
    this.range = null;
    state.brushes.delete(this.name);
    update(reason);
  }

  press(event) {
    this.canvas.setPointerCapture(event.pointerId);
    const start = [event.offsetX, event.offsetY];
    let moved = false;
    const move = (next) => {
      const end = [next.offsetX, next.offsetY];
      moved = moved || Math.hypot(end[0] - start[0], end[1] - start[1]) > 4;
      if (moved) this.brush(start, end);
    };
    const stop = (last) => {
      this.canvas.removeEventListener("pointermove", move);
      this.canvas.removeEventListener("pointerup", stop);
      this.canvas.removeEventListener("pointercancel", stop);
      if (moved) return;
      const hit = this.nearest(last.offsetX, last.offsetY);
      if (hit) focus(hit.i);
      else this.clear("brush");
    };
    this.canvas.addEventListener("pointermove", move);
    this.canvas.addEventListener("pointerup", stop);
    this.canvas.addEventListener("pointercancel", stop);
  }

  brush(start, end) {
    if (!this.scale) return;
    const span = (n, scale) => [scale.back(start[n]), scale.back(end[n])];
    this.keep({ x: span(0, this.scale.x), y: this.y === null ? null : span(1, this.scale.y) });
  }

  /** Keep the sessions in a range; `held` are its ends as they were set, the one that moves last. */
  keep(held) {
    const sorted = (ends) => [...ends].sort((a, b) => a - b);
    const [x, y] = [sorted(held.x), held.y && sorted(held.y)];
    this.held = held;
    this.range = { x, y };
    const [kx, ky] = [this.x, this.y];
    const within = (value, [low, high]) => value !== null && value >= low && value <= high;
    state.brushes.set(this.name, (session) => within(metricOf(session, kx), x) && (y === null || within(metricOf(session, ky), y)));
    update("brush");
  }

  nearest(x, y) {
    let best = null;
    let least = 10;
    for (const [session, at, height] of this.dots) {
      const far = Math.hypot(at - x, height - y);
      if (far < least) [best, least] = [session, far];
    }
    return best;
  }

  hover(event) {
    const hit = this.nearest(event.offsetX, event.offsetY);
    this.canvas.classList.toggle("over", hit !== null);
    if (hit === null) { tip.hidden = true; return; }
    const words = [this.x, this.y].filter(Boolean).map((key) => metrics.get(key).text + " " + show(metricOf(hit, key), metrics.get(key).unit));
    if (state.colour) words.push(titleOf(state.colour) + " " + (metrics.has(state.colour) ? show(metricOf(hit, state.colour)) : categoryOf(hit, state.colour) ?? "\u2013"));
    place(event, hit.label + ": " + words.join(", "));
  }

  /** Move the last end of the range to the next value; without a range, one begins at the session in focus. */
  extend(axis, step) {
    const list = this.list().filter((session) => passesWithout(session, this.name) && this.beside(axis, session));
    if (!list.length) return;
    const valuesOf = (key) => [...new Set(list.map((session) => metricOf(session, key)))].sort((a, b) => a - b);
    const ends = (key) => [valuesOf(key)[0], valuesOf(key).at(-1)];
    const values = valuesOf(this[axis]);
    const held = this.range ? this.held : { x: ends(this.x), y: this.y && ends(this.y) };
    if (!this.range) {
      const begin = list.find((session) => session.i === state.focus);
      const first = begin ? metricOf(begin, this[axis]) : step > 0 ? values[0] : values.at(-1);
      held[axis] = [first, first];
    }
    const [from, to] = held[axis];
    const next = (step > 0 ? values : [...values].reverse()).find((value) => (value - to) * step > 0);
    this.keep({ ...held, [axis]: [from, next ?? to] });
  }

  /** Whether a session lies in the range of the other axis: only those make a difference. */
  beside(axis, session) {
    const other = axis === "x" ? "y" : "x";
    if (!this.range || this[other] === null) return true;
    const value = metricOf(session, this[other]);
    return value >= this.range[other][0] && value <= this.range[other][1];
  }

  key(event) {
    const along = { ArrowRight: ["x", 1], ArrowLeft: ["x", -1], ArrowUp: ["y", 1], ArrowDown: ["y", -1] }[event.key];
    if (event.shiftKey && along && this[along[0]] !== null) {
      event.preventDefault();
      event.stopPropagation();
      this.extend(...along);
      return;
    }
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (event.key === "Escape") this.clear("brush");
    if (!step) return;
    event.preventDefault();
    event.stopPropagation();
    const order = this.list().filter((session) => passing.has(session.i)).sort((a, b) => metricOf(a, this.x) - metricOf(b, this.x));
    const at = order.findIndex((session) => session.i === state.focus);
    const next = order[at < 0 ? (step > 0 ? 0 : order.length - 1) : Math.min(Math.max(at + step, 0), order.length - 1)];
    if (next) focus(next.i);
  }

  say(list) {
    const values = known(list.filter((session) => passing.has(session.i)), this.x);
    const metric = metrics.get(this.x);
    const middle = values.length ? `median ${show(median(values), metric.unit)}, ${show(Math.min(...values))} to ${show(Math.max(...values))}` : "nothing selected";
    this.caption.textContent = `${values.length} sessions; ${middle}`;
    const versus = this.y ? ` and ${titleOf(this.y)}` : "";
    this.canvas.setAttribute("aria-label", `${titleOf(this.x)}${versus} of the sessions: ${this.caption.textContent}. Left and right arrow keys go from session to session; with Shift, arrow keys keep a range, and Escape takes it back.`);
  }

  shade(pen, box) {
    if (!this.range) return;
    pen.fillStyle = "rgba(11, 90, 107, 0.10)";
    const [a, b] = this.range.x.map(this.scale.x);
    const [c, d] = this.range.y ? this.range.y.map(this.scale.y).sort((p, q) => p - q) : [box.top, box.bottom];
    pen.fillRect(a, c, b - a, d - c);
  }

  finish(pen, radius) {
    const mark = this.dots.find(([session]) => session.i === state.focus);
    if (mark) ring(pen, mark[1], mark[2], radius);
  }
}

const scaled = (low, high, from, to) => {
  const scale = (value) => from + ((value - low) / (high - low || 1)) * (to - from);
  scale.back = (at) => low + ((at - from) / (to - from || 1)) * (high - low);
  return scale;
};

class Distribution extends Plot {
  /** Places and size of the dots; kept until something but the selection changes. */
  arrange(list, box) {
    const key = [box.right, this.x, state.stratum, state.colour].join("|");
    if (state.colour !== RATING && this.arranged && this.arranged.key === key) return this.arranged;
    const colour = new Map(list.map((session) => [session, colours.of(session)]));
    list.sort((a, b) => (colour.get(a) < colour.get(b) ? -1 : colour.get(a) > colour.get(b) ? 1 : a.i - b.i));
    let radius = 4.5;
    let found = [];
    for (; radius > 0.8; radius *= 0.85) {
      found = stacked(list, this.x, this.scale.x, 2 * radius + 0.6);
      if (Math.max(...found.map(([, , level]) => level)) * (2 * radius + 0.4) < box.bottom - box.top - 2 * radius) break;
    }
    const size = radius;
    const dots = found.map(([session, x, level]) => [session, x, box.bottom - size - 1 - level * (2 * size + 0.4)]);
    this.arranged = { key, radius: size, dots };
    return this.arranged;
  }

  redraw() {
    const page = sheet(this.canvas, PLOT_HEIGHT);
    if (!page) return;
    const { pen, width, height } = page;
    const box = { left: PAD.left, right: width - PAD.right, top: PAD.top, bottom: height - PAD.bottom };
    const list = this.list();
    this.say(list);
    this.dots = [];
    if (!list.length) { pen.fillStyle = MUTED; pen.fillText("no values", box.left, height / 2); return; }
    const [low, high] = limits(list.map((session) => metricOf(session, this.x)));
    axis(pen, box, low, high);
    this.scale = { x: scaled(low, high, box.left, box.right) };
    const { radius, dots } = this.arrange(list, box);
    this.shade(pen, box);
    this.dots = dots;
    drawDots(pen, this.dots, radius);
    const middle = median(known(list.filter((session) => passing.has(session.i)), this.x));
    if (middle !== null) {
      pen.strokeStyle = INK;
      pen.setLineDash([3, 3]);
      pen.beginPath();
      pen.moveTo(this.scale.x(middle), box.top);
      pen.lineTo(this.scale.x(middle), box.bottom);
      pen.stroke();
      pen.setLineDash([]);
    }
    this.finish(pen, radius);
  }
}

class Scatter extends Plot {
  redraw() {
    const page = sheet(this.canvas, PLOT_HEIGHT);
    if (!page) return;
    const { pen, width, height } = page;
    const box = { left: 46, right: width - PAD.right, top: PAD.top, bottom: height - PAD.bottom };
    const list = this.list();
    this.say(list);
    this.dots = [];
    if (!list.length) { pen.fillStyle = MUTED; pen.fillText("no values", box.left, height / 2); return; }
    const x = limits(list.map((session) => metricOf(session, this.x)));
    const y = limits(list.map((session) => metricOf(session, this.y)));
    this.scale = { x: scaled(...x, box.left, box.right), y: scaled(...y, box.bottom, box.top) };
    axis(pen, box, ...x);
    pen.textAlign = "right";
    pen.textBaseline = "middle";
    for (const value of ticks(...y, 4)) pen.fillText(show(value), box.left - 6, this.scale.y(value));
    this.shade(pen, box);
    this.dots = list.map((session) => [session, this.scale.x(metricOf(session, this.x)), this.scale.y(metricOf(session, this.y))]);
    drawDots(pen, this.dots, 3.6);
    this.finish(pen, 3.6);
  }
}

views.push((why) => {
  if (![...why].some((reason) => ["start", "colour", "filter", "rating"].includes(reason))) return;
  colours = colouring();
  const legend = byId("legend");
  legend.replaceChildren(...colours.legend.map(([colour, text]) => {
    const mark = make("i");
    mark.style.background = colour;
    return make("li", {}, mark, text);
  }));
  legend.hidden = colours.legend.length === 0;
});
const plots = [
  ...[...document.querySelectorAll(".plot.distribution")].map((holder, n) => new Distribution(holder, "d" + n, data.plots[n % data.plots.length])),
  ...[...document.querySelectorAll(".plot.scatter")].map((holder, n) => new Scatter(holder, "s" + n, ...data.scatter)),
];
const clearRanges = () => plots.forEach((plot) => { plot.range = null; });
