// The wall of thumbnails, the table, one session in detail, rating and the live summary.
const wall = byId("wall");
const sortKey = byId("sort");
const sortDown = byId("sort-down");
const panel = byId("panel");
const note = byId("note");
let order = sessions;

fill(sortKey, { withMetrics: true, none: "label", chosen: "lesion_load" });
sortKey.addEventListener("change", () => update("sort"));
sortDown.addEventListener("change", () => update("sort"));
byId("size").addEventListener("input", (event) => wall.style.setProperty("--size", event.target.value));

const sorted = (list) => {
  const key = sortKey.value;
  const sign = sortDown.checked ? -1 : 1;
  if (key === "") return sign > 0 ? list : [...list].reverse();
  const value = (session) => metricOf(session, key);
  return [...list].sort((a, b) => {
    if (value(a) === null || value(b) === null) return (value(a) === null) - (value(b) === null) || a.i - b.i;
    return sign * (value(a) - value(b)) || a.i - b.i;
  });
};

// ---- wall

const load = (image) => { if (image.dataset.n) { image.src = data.thumbs[Number(image.dataset.n)]; delete image.dataset.n; } };
const watcher = new IntersectionObserver((entries) => {
  for (const entry of entries) if (entry.isIntersecting) { load(entry.target); watcher.unobserve(entry.target); }
}, { rootMargin: "600px" });
addEventListener("beforeprint", () => wall.querySelectorAll("img").forEach(load));

const picture = (session) => {
  const [width, height] = session.thumb;
  const image = make("img", { alt: "", width, height });
  image.dataset.n = String(session.i);
  return image;
};

const tiles = sessions.map((session) => {
  const name = make("span", { className: "label", textContent: session.label.replace("sub-", "").replace("_ses-", " / ") });
  const value = make("span", { className: "value" });
  const badge = make("span", { className: "badge" });
  const strip = session.thumb ? picture(session) : make("span", { className: "none", textContent: "no image" });
  if (session.thumb) watcher.observe(strip);
  const tile = make("button", { type: "button", className: "tile-session" }, strip, name, value, badge);
  tile.addEventListener("click", () => focus(session.i));
  return { tile, value, badge };
});
wall.append(...tiles.map(({ tile }) => tile));

const dress = (session) => {
  const { tile, value, badge } = tiles[session.i];
  const { rating } = ratingOf(session);
  const key = sortKey.value || "lesion_load";
  value.textContent = show(metricOf(session, key), metrics.get(key).unit);
  badge.textContent = SIGNS[rating] || (session.outliers ? "!" : "");
  badge.className = "badge " + (rating || (session.outliers ? "odd" : ""));
  tile.className = "tile-session " + rating;
  const words = [session.label, titleOf(key) + " " + value.textContent];
  if (session.outliers) words.push("stands out: " + session.outliers);
  if (rating) words.push("rated " + rating);
  tile.setAttribute("aria-label", words.join(", "));
  tile.title = words.join("\n");
};

/** Hide what is not shown, touching only what changes: the page lays out again what is touched. */
const hiding = (elements) => {
  const hidden = new Uint8Array(elements.length);
  return () => elements.forEach((element, n) => {
    const hide = passing.has(n) ? 0 : 1;
    if (hidden[n] !== hide) element.hidden = Boolean(hide);
    hidden[n] = hide;
  });
};

/** Mark the session in focus among elements, and take the mark from the one before. */
const marking = (elements, mark) => {
  let last = -1;
  return () => {
    if (last === state.focus) return;
    if (last >= 0) mark(elements[last], false);
    last = state.focus;
    if (last >= 0) mark(elements[last], true);
  };
};

const hideTiles = hiding(tiles.map(({ tile }) => tile));
const markTile = marking(tiles, ({ tile }, on) => (on ? tile.setAttribute("aria-current", "true") : tile.removeAttribute("aria-current")));
let everyone = sessions; // in the order of the wall, also those that are not shown
const arrangeWall = (why) => {
  if (why.has("start") || why.has("sort") || why.has("rating")) everyone = sorted(sessions);
  if (selecting(why)) order = everyone.filter((session) => passing.has(session.i));
};
views.push(arrangeWall);
addView(wall, (why) => {
  if (["start", "sort", "rating"].some((reason) => why.has(reason))) {
    sessions.forEach(dress);
    if (why.has("start") || why.has("sort")) wall.append(...everyone.map((session) => tiles[session.i].tile));
  }
  if (selecting(why)) {
    hideTiles();
    byId("wall-empty").hidden = order.length > 0;
  }
  markTile();
  if (why.has("focus scroll") && state.focus >= 0) tiles[state.focus].tile.scrollIntoView({ block: "nearest" });
});

// ---- table

const TABLE = ["lesion_count", "lesion_volume_mm3", "lesion_load", "examined_length_mm", "not_examined_mm"];
const body = byId("session-rows");
const heads = byId("session-heads");
let tableSort = { column: 0, up: true };
const columnsOfTable = [
  { text: "Session", of: (session) => session.label },
  ...(data.strata.length > 1 ? [{ text: "Stratum", of: (session) => session.stratum }] : []),
  ...TABLE.map((key) => ({ text: titleOf(key), of: (session) => metricOf(session, key), numeric: true })),
  { text: "Rating", of: (session) => ratingOf(session).rating },
  { text: "To look at", of: (session) => [session.outliers, session.flags].filter(Boolean).join("; ") },
];

const drawHeads = () => heads.replaceChildren(...columnsOfTable.map((column, n) => {
  const button = make("button", { type: "button", textContent: column.text });
  button.addEventListener("click", () => { tableSort = { column: n, up: tableSort.column === n ? !tableSort.up : true }; update("table"); });
  const head = make("th", { scope: "col", className: column.numeric ? "num" : "" }, button);
  if (tableSort.column === n) head.setAttribute("aria-sort", tableSort.up ? "ascending" : "descending");
  return head;
}));

const link = (session, text) => (session.report ? make("a", { href: session.report, target: "_blank", textContent: text }) : text);

const lines = sessions.map((session) => {
  const row = make("tr", {}, ...columnsOfTable.map((column, n) => {
    const value = column.of(session);
    const box = make("td", { className: column.numeric ? "num" : "" });
    box.append(n === 0 ? link(session, session.label) : column.numeric ? show(value) : String(value || ""));
    return box;
  }));
  row.addEventListener("click", (event) => { if (!event.target.closest("a")) focus(session.i); });
  return row;
});

const compare = (a, b) => {
  const { of, numeric } = columnsOfTable[tableSort.column];
  const [x, y] = [of(a), of(b)];
  const sign = tableSort.up ? 1 : -1;
  if (numeric) return x === null || y === null ? (x === null) - (y === null) : sign * (x - y);
  return sign * String(x || "").localeCompare(String(y || ""), undefined, { numeric: true });
};

const hideLines = hiding(lines);
const markLine = marking(lines, (row, on) => row.classList.toggle("current", on));
addView(byId("session-table"), (why) => {
  if (["start", "table", "rating"].some((reason) => why.has(reason))) {
    const column = columnsOfTable.findIndex(({ text }) => text === "Rating");
    sessions.forEach((session, n) => { lines[n].cells[column].textContent = ratingOf(session).rating; });
  }
  if (why.has("start") || why.has("table")) {
    drawHeads();
    body.replaceChildren(...[...sessions].sort(compare).map((session) => lines[session.i]));
  }
  if (selecting(why)) hideLines();
  markLine();
});

// ---- one session

const listOf = (text) => make("ul", {}, ...text.split("; ").map((part) => make("li", { textContent: part })));

const rankOf = (session, key) => {
  const values = known(sessions.filter(inStratum), key);
  const own = metricOf(session, key);
  if (own === null || values.length < 5) return "";
  const below = values.filter((value) => value < own).length + values.filter((value) => value === own).length / 2;
  return Math.round((below / values.length) * 100) + "th percentile";
};

const details = (session) => {
  const table = make("table", { className: "pairs" });
  const rows = [...new Set([...TABLE, ...data.metrics.filter((metric) => metric.group !== "Covariates").map((metric) => metric.key)])];
  for (const key of rows) {
    if (metricOf(session, key) === null) continue;
    table.append(make("tr", {}, make("th", { scope: "row", textContent: metrics.get(key).text }),
      make("td", { className: "num", textContent: show(metricOf(session, key), metrics.get(key).unit) }), make("td", { className: "rank", textContent: rankOf(session, key) })));
  }
  for (const category of data.categories) {
    const value = categoryOf(session, category.key);
    if (value !== null) table.append(make("tr", {}, make("th", { scope: "row", textContent: category.text }), make("td", { colSpan: 2, textContent: String(value) })));
  }
  return table;
};

let drawn = -1;
const drawPanel = () => {
  const session = sessions[state.focus];
  panel.hidden = !session;
  document.body.classList.toggle("reviewing", Boolean(session));
  if (!session) { drawn = -1; return; }
  const { rating, note: words, rated } = ratingOf(session);
  for (const button of panel.querySelectorAll("[data-rating]")) button.setAttribute("aria-pressed", String(button.dataset.rating === rating));
  byId("rated").textContent = rated ? (rating ? "rated " : "noted ") + rated.replace("T", " ").replace("Z", " UTC") : "not rated";
  if (document.activeElement !== note || drawn !== session.i) note.value = words;
  if (drawn === session.i) return;
  drawn = session.i;
  byId("panel-title").textContent = session.label;
  const at = order.findIndex((other) => other.i === session.i);
  byId("panel-place").textContent = at < 0 ? "not among those shown" : `${at + 1} of ${order.length}`;
  byId("panel-report").replaceChildren(session.report ? make("a", { href: session.report, target: "_blank", textContent: "Open the report" }) : "There is no report.");
  const image = byId("panel-image");
  image.hidden = !session.thumb;
  if (session.thumb) image.src = data.thumbs[session.i];
  image.alt = session.thumb ? `Straightened cord of ${session.label}, plain and with lesions` : "";
  const about = byId("panel-about");
  about.replaceChildren();
  if (session.outliers) about.append(make("h3", { textContent: "Stands out" }), listOf(session.outliers));
  if (session.flags) about.append(make("h3", { textContent: "Flags" }), listOf(session.flags));
  about.append(make("h3", { textContent: "Numbers" }), details(session));
  panel.scrollTop = 0;
};
views.push(drawPanel);

const go = (step) => {
  if (!order.length) return;
  const at = order.findIndex((session) => session.i === state.focus);
  const next = at < 0 ? 0 : Math.min(Math.max(at + step, 0), order.length - 1);
  focus(order[next].i, { scroll: true });
};

const judge = (verdict) => {
  const session = sessions[state.focus];
  if (!session) return;
  const next = order[order.findIndex((other) => other.i === session.i) + 1];
  rate(session, { rating: ratingOf(session).rating === verdict ? "" : verdict });
  if (byId("advance").checked && next) focus(next.i, { scroll: true });
};

panel.querySelectorAll("[data-rating]").forEach((button) => button.addEventListener("click", () => judge(button.dataset.rating)));
byId("panel-close").addEventListener("click", () => focus(-1));
byId("panel-previous").addEventListener("click", () => go(-1));
byId("panel-next").addEventListener("click", () => go(1));
note.addEventListener("change", () => { if (sessions[state.focus]) rate(sessions[state.focus], { note: note.value }); });

const KEYS = {
  p: () => judge("pass"), f: () => judge("fail"), u: () => judge("unsure"),
  ArrowRight: () => go(1), ArrowLeft: () => go(-1), j: () => go(1), k: () => go(-1),
  n: () => { if (state.focus >= 0) note.focus(); }, Escape: () => focus(-1),
};
addEventListener("keydown", (event) => {
  const typing = event.target.closest("input, select, textarea");
  if (event.target === note && event.key === "Escape") { note.blur(); return; }
  if (typing || event.ctrlKey || event.metaKey || event.altKey || !KEYS[event.key]) return;
  event.preventDefault();
  KEYS[event.key]();
});

byId("export").addEventListener("click", () => {
  const address = URL.createObjectURL(new Blob([ratingsTable()], { type: "text/tab-separated-values" }));
  make("a", { href: address, download: "ratings.tsv" }).click();
  setTimeout(() => URL.revokeObjectURL(address), 1000);
});

// ---- toolbar and live summary

const bindings = { text: "input", flag: "change", stratum: "change", colour: "change" };
for (const [name, event] of Object.entries(bindings)) {
  byId("by-" + name).addEventListener(event, (change) => { state[name] = change.target.value; update(name === "colour" ? "colour" : "filter"); });
}
fill(byId("by-colour"), { withMetrics: true, withCategories: true, none: "nothing" });
const strata = byId("by-stratum");
for (const stratum of data.strata) strata.append(make("option", { value: stratum.name, textContent: `${stratum.name} (${stratum.sessions} sessions)` }));
strata.value = state.stratum;
strata.closest("label").hidden = data.strata.length < 2;
byId("clear").addEventListener("click", () => {
  byId("by-text").value = byId("by-flag").value = "";
  state.text = state.flag = "";
  state.brushes.clear();
  clearRanges();
  update("filter");
});

/** What paper has to say because the toolbar is not on it. */
const selection = () => {
  const picked = (id) => byId(id).selectedOptions[0].textContent;
  return [
    state.text && `words: ${state.text}`, state.flag && `show: ${picked("by-flag")}`, data.strata.length > 1 && `stratum: ${state.stratum}`,
    ...plots.filter((plot) => plot.range).map((plot) => `${titleOf(plot.x)}: ${plot.range.x.map((value) => show(value)).join(" to ")}${plot.y ? `, ${titleOf(plot.y)}: ${plot.range.y.map((value) => show(value)).join(" to ")}` : ""}`),
    state.colour && `colours: ${titleOf(state.colour)}`, splitBy.value && `maps split by: ${titleOf(splitBy.value)}`, `order: ${sortKey.value ? titleOf(sortKey.value) : "label"}`,
  ].filter(Boolean).join("; ");
};

views.push(() => {
  const all = sessions.filter(inStratum).length;
  byId("selection").textContent = selection();
  byId("shown").textContent = shown.length === all ? `${all} sessions` : `${shown.length} of ${all} sessions`;
  byId("clear").disabled = shown.length === all && !state.brushes.size;
  const failed = shown.length - counted.length;
  const lesions = known(counted, "lesion_count");
  const say = (id, text) => { byId(id).textContent = text; };
  say("live-sessions", show(counted.length));
  say("live-people", show(new Set(counted.map((session) => session.participant)).size));
  say("live-lesions", lesions.length ? show(lesions.reduce((sum, n) => sum + n, 0)) : "\u2013");
  say("live-load", show(median(known(counted, "lesion_load")), "%"));
  say("live-free", lesions.length ? `${lesions.filter((n) => n === 0).length}` : "\u2013");
  say("live-rated", `${sessions.filter((session) => ratingOf(session).rating).length}`);
  say("live-left", failed ? `${failed} rated fail left out` : "");
  const changed = changedHere();
  byId("changed").hidden = changed === 0;
  say("changed-count", changed === 1 ? "One rating or note has" : `${changed} ratings and notes have`);
});

update("start");
