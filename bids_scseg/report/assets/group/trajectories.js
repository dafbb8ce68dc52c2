// Changes over time: a line per participant, the pairs of sessions, and the lesions of the chosen participant.
const TRACK_HEIGHT = 260;
const timeline = data.trajectories;
const pathOf = new Map(timeline.paths.flatMap((path) => path.sessions.map((n) => [n, path])));

const drawTrajectories = () => {
  const canvas = byId("trajectory-plot");
  const metric = byId("trajectory-metric");
  const spoken = byId("trajectory-about");
  const dated = timeline.paths.every((path) => path.years.every((years) => years !== null));
  const across = dated ? "years since the first session" : "session, in order";
  let dots = [];
  fill(metric, { withMetrics: true, chosen: "lesion_volume_mm3" });
  metric.addEventListener("change", () => update("trajectory"));
  sizes.observe(canvas);

  const steps = (path) => path.sessions
    .map((n, at) => ({ session: sessions[n], x: dated ? path.years[at] : at + 1, y: metricOf(sessions[n], metric.value) }))
    .filter(({ session, y }) => y !== null && inStratum(session));
  const chosen = () => pathOf.get(state.focus);

  /** Fade is for participants of whom no session passes the filters. */
  const line = (pen, path, scale, strong) => {
    const own = steps(path);
    const lit = own.some(({ session }) => passing.has(session.i));
    pen.strokeStyle = pen.fillStyle = lit ? colours.of(own[own.length - 1].session) : FADED;
    pen.lineWidth = strong ? 3 : 1.2;
    pen.beginPath();
    own.forEach(({ x, y }, n) => (n ? pen.lineTo(scale.x(x), scale.y(y)) : pen.moveTo(scale.x(x), scale.y(y))));
    pen.stroke();
    pen.lineWidth = 1;
    for (const { session, x, y } of own) {
      pen.beginPath();
      pen.arc(scale.x(x), scale.y(y), strong ? 4.5 : 3, 0, 2 * Math.PI);
      pen.fill();
      dots.push([session, scale.x(x), scale.y(y)]);
      if (session.i === state.focus) ring(pen, scale.x(x), scale.y(y), 4.5);
    }
  };

  const say = (drawn) => {
    const lit = drawn.filter((path) => steps(path).some(({ session }) => passing.has(session.i)));
    const ends = lit.map((path) => { const own = steps(path); return own[own.length - 1].y - own[0].y; });
    const rise = ends.filter((change) => change > 0).length;
    const fall = ends.filter((change) => change < 0).length;
    spoken.textContent = `${lit.length} participant${lit.length === 1 ? "" : "s"}; from their first to their last session ${rise} rise, ${fall} fall, ${ends.length - rise - fall} stay`;
    canvas.setAttribute("aria-label", `${titleOf(metric.value)} over ${across}, a line per participant: ${spoken.textContent}. Left and right arrow keys go from session to session.`);
  };

  const draw = () => {
    const page = sheet(canvas, TRACK_HEIGHT);
    if (!page) return;
    const { pen, width, height } = page;
    const box = { left: 52, right: width - PAD.right, top: PAD.top, bottom: height - 36 };
    const drawn = timeline.paths.filter((path) => steps(path).length > 1);
    dots = [];
    say(drawn);
    if (!drawn.length) { pen.fillStyle = MUTED; pen.fillText("no values", box.left, height / 2); return; }
    const all = drawn.flatMap(steps);
    const x = limits(all.map((step) => step.x));
    const y = limits(all.map((step) => step.y));
    const scale = { x: axis(pen, box, ...x, { whole: !dated }), y: scaled(...y, box.bottom, box.top) };
    pen.fillText(across, (box.left + box.right) / 2, box.bottom + 21);
    pen.textAlign = "right";
    pen.textBaseline = "middle";
    for (const value of ticks(...y, 5)) pen.fillText(show(value), box.left - 6, scale.y(value));
    const strong = chosen();
    const order = [...drawn].sort((a, b) => (a === strong) - (b === strong) || steps(b).some(({ session }) => !passing.has(session.i)) - steps(a).some(({ session }) => !passing.has(session.i)));
    for (const path of order) line(pen, path, scale, path === strong);
  };

  const nearest = (event) => {
    let best = null;
    let least = 12;
    for (const [session, x, y] of dots) {
      const far = Math.hypot(x - event.offsetX, y - event.offsetY);
      if (far < least) [best, least] = [session, far];
    }
    return best;
  };
  canvas.addEventListener("click", (event) => { const hit = nearest(event); if (hit) focus(hit.i); });
  canvas.addEventListener("pointerleave", () => { tip.hidden = true; });
  canvas.addEventListener("pointermove", (event) => {
    const hit = nearest(event);
    canvas.classList.toggle("over", hit !== null);
    if (hit === null) tip.hidden = true;
    else place(event, `${hit.label}: ${titleOf(metric.value)} ${show(metricOf(hit, metric.value))}`);
  });
  canvas.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    event.preventDefault();
    event.stopPropagation();
    const order = timeline.paths.flatMap((path) => path.sessions).filter((n) => passing.has(n));
    const at = order.indexOf(state.focus);
    const next = order[at < 0 ? (step > 0 ? 0 : order.length - 1) : Math.min(Math.max(at + step, 0), order.length - 1)];
    if (next !== undefined) focus(next);
  });
  addView(canvas, draw);
};

// ---- tables

const signed = (value, unit = "") => (value > 0 ? "+" : "") + show(value, unit);
const sessionOf = (n) => (sessions[n] ? sessions[n].session.replace("ses-", "") : "?");
const HOW = { registration: "images registered", start: "images, as laid upon each other", levels: "vertebral levels, no images", "not needed": "no lesions", none: "none" };

const PAIR_TABLE = [
  { text: "From", of: (pair) => sessionOf(pair.before) },
  { text: "To", of: (pair) => sessionOf(pair.after) },
  { text: "Days", of: (pair) => show(pair.days), numeric: true },
  ...timeline.fates.map((fate) => ({ text: fate[0].toUpperCase() + fate.slice(1), of: (pair) => show(pair[fate.replace(" ", "_")]), numeric: true })),
  { text: "Volume change, mm\u00b3", of: (pair) => (pair.lesion_volume_change_mm3 === null ? "\u2013" : signed(pair.lesion_volume_change_mm3)), numeric: true },
  { text: "95 % interval", of: (pair) => (pair.lesion_volume_change_mm3 === null ? "\u2013" : `${signed(pair.lesion_volume_change_ci_low_mm3)} to ${signed(pair.lesion_volume_change_ci_high_mm3)}`), numeric: true },
  { text: "mm\u00b3 per year", of: (pair) => (pair.lesion_volume_change_mm3_per_year === null ? "\u2013" : signed(pair.lesion_volume_change_mm3_per_year)), numeric: true },
  { text: "Aligned by", of: (pair) => HOW[pair.alignment] ?? pair.alignment },
  { text: "To know", of: (pair) => [pair.state === "compared" ? "" : pair.state, pair.reason === "registered" ? "" : pair.reason, pair.sequences_differ].filter(Boolean).join("; ") },
];

const cells = (table, row) => table.map((column) => make("td", { className: column.numeric ? "num" : "", textContent: column.of(row) }));
const headings = (table) => table.map((column) => make("th", { scope: "col", className: column.numeric ? "num" : "", textContent: column.text }));

const LESION_TABLE = [
  { text: "From, to", of: ({ pair }) => `${sessionOf(pair.before)} \u2192 ${sessionOf(pair.after)}` },
  { text: "Lesion", of: ({ lesion }) => String(lesion.track) },
  { text: "Fate", of: ({ lesion }) => lesion.fate },
  { text: "Numbers", of: ({ lesion }) => `${lesion.lesions_before || "\u2013"} \u2192 ${lesion.lesions_after || "\u2013"}` },
  { text: "Level", of: ({ lesion }) => lesion.level || "\u2013" },
  { text: "Column", of: ({ lesion }) => lesion.column || "\u2013" },
  { text: "Before, mm\u00b3", of: ({ lesion }) => show(lesion.volume_before_mm3), numeric: true },
  { text: "After, mm\u00b3", of: ({ lesion }) => show(lesion.volume_after_mm3), numeric: true },
  { text: "Change \u00b1 noise", of: ({ lesion }) => (lesion.volume_change_mm3 === null ? "\u2013" : `${signed(lesion.volume_change_mm3)} \u00b1 ${show(lesion.volume_change_sd_mm3)}`), numeric: true },
  { text: "z", of: ({ lesion }) => (lesion.z === null ? "\u2013" : signed(lesion.z)), numeric: true },
  { text: "To know", of: ({ lesion }) => [
    ["new", "resolved"].includes(lesion.fate) && lesion.beyond === false ? "within noise" : "",
    lesion.other_probability === null ? "" : `probability ${show(lesion.other_probability)} in the other session`,
    lesion.sequences_differ,
  ].filter(Boolean).join("; ") },
];

const drawPairs = () => {
  const rows = timeline.pairs.map((pair) => {
    const button = make("button", { type: "button", textContent: sessions[pair.after].participant });
    const row = make("tr", {}, make("td", {}, button), ...cells(PAIR_TABLE, pair));
    row.addEventListener("click", () => focus(pair.after));
    return { pair, row };
  });
  byId("trajectory-heads").append(make("th", { scope: "col", textContent: "Participant" }), ...headings(PAIR_TABLE));
  byId("trajectory-rows").append(...rows.map(({ row }) => row));
  const holder = byId("trajectory-lesions");
  let path = null;
  addView(byId("trajectory-pairs"), (why) => {
    for (const { pair, row } of rows) {
      if (selecting(why)) row.hidden = !(passing.has(pair.after) || passing.has(pair.before));
      row.classList.toggle("current", state.focus >= 0 && (pair.after === state.focus || pair.before === state.focus));
    }
    byId("trajectory-none").hidden = rows.some(({ row }) => !row.hidden);
    if (pathOf.get(state.focus) === path) return;
    path = pathOf.get(state.focus) ?? null;
    holder.replaceChildren(...(path ? lesionTable(path) : []));
  });
};

const lesionTable = (path) => {
  const own = timeline.pairs.filter((pair) => path.sessions.includes(pair.after));
  const found = own.flatMap((pair) => pair.lesions.map((lesion) => ({ pair, lesion })));
  const title = make("h3", { textContent: `Lesions of ${path.participant}` });
  if (!found.length) return [title, make("p", { textContent: "No lesion was matched." })];
  const table = make("table", {}, make("thead", {}, make("tr", {}, ...headings(LESION_TABLE))),
    make("tbody", {}, ...found.map((row) => make("tr", { className: `fate-${row.lesion.fate.replace(" ", "-")}` }, ...cells(LESION_TABLE, row)))));
  return [title, make("div", { className: "scroll" }, table)];
};

if (timeline.pairs.length) {
  drawTrajectories();
  drawPairs();
}
