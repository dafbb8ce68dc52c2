// The cohort's data, what is shown of it, and the ratings. Every view is a function called on a change.
const data = JSON.parse(document.getElementById("cohort").textContent);
const sessions = data.sessions;
const byId = (id) => document.getElementById(id);
const VERDICTS = ["pass", "fail", "unsure"];
const SIGNS = { pass: "\u2713", fail: "\u2717", unsure: "?" };

/** An element with properties and children; text goes in as text, never as markup. */
const make = (tag, properties = {}, ...children) => {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name in element) element[name] = value;
    else element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
};

/** A number as people read it: three or four significant digits, a true minus sign. */
const show = (value, unit = "") => {
  if (value === null || value === undefined) return "\u2013";
  const size = Math.abs(value);
  const digits = size >= 100 || Number.isInteger(value) ? 0 : size >= 10 ? 1 : size >= 1 ? 2 : 3;
  const text = value.toFixed(digits).replace("-", "\u2212");
  return unit ? text + "\u00a0" + unit : text;
};

const metrics = new Map(data.metrics.map((metric, n) => [metric.key, { ...metric, n }]));
const categories = new Map(data.categories.map((category, n) => [category.key, { ...category, n }]));
const metricOf = (session, key) => session.m[metrics.get(key).n];
const RATING = "rating";
const categoryOf = (session, key) => {
  if (key === RATING) return ratingOf(session).rating || null;
  return session.c[categories.get(key).n];
};
const titleOf = (key) => {
  const metric = metrics.get(key);
  if (!metric) return key === RATING ? "Rating" : categories.get(key).text;
  return metric.unit ? metric.text + ", " + metric.unit : metric.text;
};

// ---- ratings: what the last run read, and what was said in this browser since

const STORE = "bids_scseg ratings " + data.key;
const stored = (() => {
  try {
    const found = JSON.parse(localStorage.getItem(STORE) || "{}");
    return found && typeof found === "object" && !Array.isArray(found) ? found : {};
  } catch {
    return {};
  }
})();

const ratingOf = (session) => {
  const own = stored[session.label];
  if (own && typeof own === "object" && String(own.rated || "") > (session.rated || "")) {
    return { rating: VERDICTS.includes(own.rating) ? own.rating : "", note: String(own.note || ""), rated: String(own.rated) };
  }
  return { rating: session.rating || "", note: session.note || "", rated: session.rated || "" };
};

const rate = (session, change) => {
  const next = { ...ratingOf(session), ...change, rated: new Date().toISOString().slice(0, 19) + "Z" };
  stored[session.label] = next;
  try {
    localStorage.setItem(STORE, JSON.stringify(stored));
    byId("storage-warning").hidden = true;
  } catch {
    byId("storage-warning").hidden = false;
  }
  update("rating");
};

const changedHere = () => sessions.filter((session) => {
  const now = ratingOf(session);
  return now.rating !== (session.rating || "") || now.note !== (session.note || "");
}).length;

/** A text as one cell of a TSV file: no tab, line end or other control character; quotes stay as they are. */
const cell = (text) => String(text).replace(/[\s\u0000-\u001f\u007f-\u009f]+/g, " ").trim() || "n/a";

const ratingsTable = () => {
  const lines = [["participant_id", "session_id", "rating", "note", "rated"].join("\t")];
  for (const session of sessions) {
    const { rating, note, rated } = ratingOf(session);
    if (rating || note || rated) {
      lines.push([session.participant, session.session || "n/a", rating, note, rated].map(cell).join("\t"));
    }
  }
  return lines.join("\n") + "\n";
};

// ---- what is shown

const state = { text: "", flag: "", stratum: data.strata.length ? data.strata[0].name : "", colour: "", brushes: new Map(), focus: -1 };
const views = [];
let printing = false; // then all is drawn, and canvases finer: paper shows more than a screen
let shown = sessions;
let passing = new Set();
let counted = sessions;

const FLAGS = {
  flagged: (session) => session.flags !== "" || session.outliers !== "",
  outlier: (session) => session.outliers !== "",
  clean: (session) => session.flags === "" && session.outliers === "",
  "lesion-free": (session) => metricOf(session, "lesion_count") === 0,
  unrated: (session) => ratingOf(session).rating === "",
  pass: (session) => ratingOf(session).rating === "pass",
  fail: (session) => ratingOf(session).rating === "fail",
  unsure: (session) => ratingOf(session).rating === "unsure",
};

const haystacks = sessions.map((session) =>
  [session.label, session.flags, session.outliers, ...session.c.filter((value) => value !== null)].join(" ").toLowerCase());

const inStratum = (session) => state.stratum === "" || session.stratum === state.stratum;

const wordsOf = () => state.text.toLowerCase().split(/\s+/).filter(Boolean);

const passes = (session, words, without = "") => inStratum(session)
  && (state.flag === "" || FLAGS[state.flag](session))
  && words.every((word) => (haystacks[session.i] + " " + ratingOf(session).note.toLowerCase()).includes(word))
  && [...state.brushes].every(([name, brush]) => name === without || brush(session));

/** Whether a session is shown if the range of one plot is not looked at. */
const passesWithout = (session, name) => passes(session, wordsOf(), name);

/** Whether a change can alter which sessions are shown, or their order. */
const selecting = (why) => ["start", "brush", "filter", "plot", "rating", "sort"].some((reason) => why.has(reason));

let scheduled = null;
const reasons = new Set();

/** Ask for a redraw; several changes within a frame are drawn once. */
const update = (reason) => {
  reasons.add(reason);
  if (scheduled === null) scheduled = requestAnimationFrame(draw);
};

const draw = () => {
  scheduled = null;
  const why = new Set(reasons);
  reasons.clear();
  const words = wordsOf();
  shown = sessions.filter((session) => passes(session, words));
  passing = new Set(shown.map((session) => session.i));
  counted = shown.filter((session) => ratingOf(session).rating !== "fail");
  for (const view of views) view(why);
};

// ---- views beyond the window wait until nothing else is to do, or until they come into sight

const PAUSE = 150; // ms without a change, before they follow
const outOfSight = new Set();
const waiting = new Map(); // view → why it is to be drawn
let following = null;

const catchUp = (view) => {
  const why = waiting.get(view);
  waiting.delete(view);
  if (!waiting.size) delete document.documentElement.dataset.waiting;
  view(why);
};

/** One view at a time, so that a pointer's next move need not wait for all. */
const follow = () => {
  following = null;
  const [view] = waiting.keys();
  if (!view) return;
  catchUp(view);
  if (waiting.size) following = setTimeout(follow, 0);
};

const sight = new IntersectionObserver((entries) => {
  for (const { target, isIntersecting } of entries) {
    if (isIntersecting) outOfSight.delete(target);
    else outOfSight.add(target);
    if (isIntersecting && waiting.has(target.view)) catchUp(target.view);
  }
}, { rootMargin: "150px" });

/** A view of its own element: drawn at once only while that is in the window. */
const addView = (element, view) => {
  element.view = view;
  sight.observe(element);
  views.push((why) => {
    const all = new Set([...(waiting.get(view) || []), ...why]);
    waiting.delete(view);
    if (!printing && outOfSight.has(element)) {
      waiting.set(view, all);
      document.documentElement.dataset.waiting = "";
      clearTimeout(following);
      following = setTimeout(follow, PAUSE);
    } else view(all);
    if (!waiting.size) delete document.documentElement.dataset.waiting;
  });
};

const focus = (index, { scroll = false } = {}) => {
  state.focus = index;
  update(scroll ? "focus scroll" : "focus");
};

// ---- colours: Okabe and Ito's palette for groups, cividis for numbers

const PALETTE = ["#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#8a7a00", "#000000"];
const CIVIDIS = [[0, 34, 78], [42, 63, 110], [87, 92, 109], [125, 124, 120], [165, 156, 116], [210, 193, 96], [254, 232, 56]];
const UNKNOWN = "#9aa5b1";
const FADED = "#dfe4e9";

const mix = (stops, share) => {
  const at = Math.min(Math.max(share, 0), 1) * (stops.length - 1);
  const low = Math.min(Math.floor(at), stops.length - 2);
  const parts = stops[low].map((value, n) => Math.round(value + (stops[low + 1][n] - value) * (at - low)));
  return `rgb(${parts.join(",")})`;
};

/** Groups of a covariate in a fixed order, the largest first; those beyond the palette share a colour. */
const groupsOf = (key) => {
  const counts = new Map();
  for (const session of sessions) {
    const value = categoryOf(session, key);
    if (value !== null && inStratum(session)) counts.set(value, (counts.get(value) || 0) + 1);
  }
  return [...counts.keys()].sort((a, b) => counts.get(b) - counts.get(a) || String(a).localeCompare(String(b)));
};

/** Colour of every session for the chosen covariate, and the legend's entries. */
const colouring = () => {
  const key = state.colour;
  if (key === "") return { of: () => PALETTE[0], legend: [] };
  if (metrics.has(key)) {
    const values = sessions.filter(inStratum).map((session) => metricOf(session, key)).filter((value) => value !== null);
    const low = Math.min(...values);
    const span = Math.max(...values) - low || 1;
    const of = (session) => {
      const value = metricOf(session, key);
      return value === null ? UNKNOWN : mix(CIVIDIS, (value - low) / span);
    };
    return { of, legend: [0, 0.5, 1].map((share) => [mix(CIVIDIS, share), show(low + span * share)]) };
  }
  const groups = groupsOf(key);
  const colours = new Map(groups.map((value, n) => [value, n < PALETTE.length ? PALETTE[n] : UNKNOWN]));
  const legend = groups.slice(0, PALETTE.length).map((value) => [colours.get(value), String(value)]);
  if (groups.length > PALETTE.length) legend.push([UNKNOWN, "others"]);
  return { of: (session) => colours.get(categoryOf(session, key)) || UNKNOWN, legend };
};

// ---- small statistics, for what is shown; the tables of the page come from the run

const known = (list, key) => list.map((session) => metricOf(session, key)).filter((value) => value !== null);

const quantile = (sorted, share) => {
  if (!sorted.length) return null;
  const at = (sorted.length - 1) * share;
  const low = Math.floor(at);
  return sorted[low] + ((sorted[low + 1] ?? sorted[low]) - sorted[low]) * (at - low);
};

const median = (values) => quantile([...values].sort((a, b) => a - b), 0.5);

/** Round steps for an axis: 1, 2 or 5 times a power of ten. */
const ticks = (low, high, count) => {
  const rough = (high - low || 1) / count;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((size) => size >= rough * 0.999);
  const found = [];
  for (let n = Math.ceil(low / step - 1e-9); n * step <= high + step * 1e-9; n += 1) found.push(Number((n * step).toPrecision(12)));
  return found;
};

/** Fill a select with metrics (by their groups), categories or both. */
const fill = (select, { withMetrics = false, withCategories = false, none = "", chosen = "" }) => {
  if (none) select.append(make("option", { value: "", textContent: none }));
  if (withCategories) {
    const holder = make("optgroup", { label: "Groups" });
    for (const category of data.categories) holder.append(make("option", { value: category.key, textContent: category.text }));
    holder.append(make("option", { value: RATING, textContent: "Rating" }));
    select.append(holder);
  }
  const holders = new Map();
  for (const metric of withMetrics ? data.metrics : []) {
    if (!holders.has(metric.group)) holders.set(metric.group, select.appendChild(make("optgroup", { label: metric.group })));
    holders.get(metric.group).append(make("option", { value: metric.key, textContent: titleOf(metric.key) }));
  }
  select.value = chosen;
};

/** A canvas sized to its box on this screen, cleared; null while it has no size. */
const sheet = (canvas, height) => {
  const width = canvas.clientWidth;
  if (!width) return null;
  const ratio = printing ? PRINT_RATIO : Math.max(window.devicePixelRatio || 1, 1);
  if (canvas.width !== Math.round(width * ratio) || canvas.height !== Math.round(height * ratio)) {
    canvas.width = Math.round(width * ratio);
    canvas.height = Math.round(height * ratio);
  }
  // Drawn by the processor: small pictures, and a remote desktop's graphics would be the bottleneck.
  const pen = canvas.getContext("2d", { willReadFrequently: true });
  pen.setTransform(ratio, 0, 0, ratio, 0, 0);
  pen.clearRect(0, 0, width, height);
  pen.font = "11.5px system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif";
  return { pen, width, height };
};
/** Redraw a canvas whenever its box changes size: a window, a panel, a page turned. */
const sizes = new ResizeObserver(() => update("resize"));
const PRINT_RATIO = 3; // about 290 dots per inch
const INK = "#1d2733";
const MUTED = "#5b6875";
const LINE = "#c9d1d9";

addEventListener("beforeprint", () => { printing = true; reasons.add("resize"); draw(); });
addEventListener("afterprint", () => { printing = false; update("resize"); });
