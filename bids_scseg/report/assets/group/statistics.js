// The cohort's summary, redone when ratings change: sessions rated "fail" leave it at once. Counts, means and
// quartiles follow immediately, intervals a moment later. The tests of differences are those of the last run.
{
  const ROUNDS = 1999; // resamples, as in the run
  const FEWEST_SUBJECTS = 2;
  const table = byId("summary-table");
  const when = byId("statistics-when");
  const leftOut = byId("left-out");
  const stale = byId("comparisons-stale");
  const whiskers = byId("whiskers");
  const first = data.strata.length ? data.strata[0].name : "";
  const written = {
    rows: [...table.tBodies[0].rows], when: when.textContent, left: leftOut.textContent,
    marks: whiskers ? [...whiskers.children] : [], label: whiskers?.getAttribute("aria-label"), box: whiskers?.getAttribute("viewBox"),
  };

  // ---- who counts

  const examined = (session) => session.stratum === first && metricOf(session, "lesion_count") !== null;
  const countsAsWritten = (session) => examined(session) && session.rating !== "fail";
  const countsNow = (session) => examined(session) && ratingOf(session).rating !== "fail";

  /** The session of each participant that tests compare: the first that counts. */
  const compared = (counts) => {
    const found = new Map();
    for (const session of sessions) if (counts(session) && !found.has(session.participant)) found.set(session.participant, session.i);
    return found;
  };

  // ---- numbers as the run writes them

  const grouped = (whole) => String(whole).replace(/\B(?=(\d{3})+$)/g, "\u202f");
  const numbered = (value) => {
    if (value === null || value === undefined || Number.isNaN(value)) return "\u2013";
    const digits = value === 0 ? 0 : Math.min(Math.max(2 - Math.floor(Math.log10(Math.abs(value))), 0), 4);
    const [whole, part] = Math.abs(value).toFixed(digits).split(".");
    return (value < 0 ? "\u2212" : "") + grouped(whole) + (part ? "." + part : "");
  };
  const between = (ends) => (ends === null ? "\u2013" : `${numbered(ends[0])} to ${numbered(ends[1])}`);

  // ---- bootstrap over participants, bias-corrected and accelerated (Efron 1987)

  /** Normal distribution, by Abramowitz and Stegun's 7.1.26 (error below 2e-7). */
  const normal = (z) => {
    const t = 1 / (1 + 0.3275911 * Math.abs(z) / Math.SQRT2);
    const tail = t * (0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429)))) * Math.exp((-z * z) / 2) / 2;
    return z > 0 ? 1 - tail : tail;
  };

  /** Its inverse, by bisection: called twice for an interval. */
  const normalAt = (share) => {
    let [low, high] = [-8, 8];
    for (let n = 0; n < 50; n += 1) {
      const middle = (low + high) / 2;
      if (normal(middle) < share) low = middle;
      else high = middle;
    }
    return (low + high) / 2;
  };

  /** Repeatable random numbers below `count` (mulberry32). */
  const drawing = (count) => {
    let state = 20121;
    return () => {
      state = (state + 0x6d2b79f5) | 0;
      let t = Math.imul(state ^ (state >>> 15), 1 | state);
      t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
      return (((t ^ (t >>> 14)) >>> 0) * count / 4294967296) | 0;
    };
  };

  /** 95 % interval of sum(parts) / sum(wholes), one of each per participant; null where there is none. */
  const interval = (parts, wholes) => {
    const subjects = parts.length;
    if (subjects < FEWEST_SUBJECTS) return null;
    const ratio = parts.map((part, n) => part / wholes[n]);
    const total = [parts, wholes].map((list) => list.reduce((sum, value) => sum + value, 0));
    const mean = total[0] / total[1];
    if (Math.max(...ratio) - Math.min(...ratio) <= 1e-12) return [mean, mean];
    const next = drawing(subjects);
    const found = Float64Array.from({ length: ROUNDS }, () => {
      let [above, below] = [0, 0];
      for (let n = 0; n < subjects; n += 1) {
        const at = next();
        above += parts[at];
        below += wholes[at];
      }
      return above / below;
    }).sort();
    const less = found.reduce((sum, value) => sum + (value < mean) + (value <= mean), 0) / 2 / ROUNDS;
    const without = parts.map((part, n) => (total[0] - part) / (total[1] - wholes[n]));
    const centre = without.reduce((sum, value) => sum + value, 0) / subjects;
    const [square, cube] = [2, 3].map((power) => without.reduce((sum, value) => sum + (centre - value) ** power, 0));
    const bend = cube / (6 * square ** 1.5) || 0;
    const shift = normalAt(less);
    return [0.025, 0.975].map((share) => {
      const z = shift + normalAt(share);
      return quantile(found, normal(shift + z / (1 - bend * z)));
    });
  };

  // ---- rows

  /** Levels have their own lists; the rest are metrics. */
  const valueOf = (session, { key, level }) => {
    if (level === null) return metricOf(session, key);
    const share = session.levels ? session.levels[level] : -1;
    return share < 0 ? null : share;
  };

  const rowsOf = [
    ...["lesion_count", "lesion_volume_mm3", "lesion_load"].map((key) => ({ key, level: null, name: "all" })),
    ...data.levels.map(([name], level) => ({ key: "lesion_load", level, name })),
  ];

  const summaryOf = (list, row) => {
    const pairs = list.map((session) => [session.participant, valueOf(session, row)]).filter(([, value]) => value !== null);
    const people = new Map();
    for (const [who, value] of pairs) {
      const so = people.get(who) || [0, 0, 0];
      people.set(who, [so[0] + value, so[1] + (value > 0 ? 1 : 0), so[2] + 1]);
    }
    const values = pairs.map(([, value]) => value).sort((a, b) => a - b);
    const mean = values.length ? values.reduce((sum, value) => sum + value, 0) / values.length : null;
    const hit = values.length ? (values.filter((value) => value > 0).length / values.length) * 100 : null;
    return { row, people: [...people.values()], sessions: values.length, mean, hit, quarters: [0.25, 0.5, 0.75].map((share) => quantile(values, share)), ends: undefined, hitEnds: undefined };
  };

  const addIntervals = (found) => {
    const column = (n) => found.people.map((sums) => sums[n]);
    found.ends = interval(column(0), column(2));
    found.hitEnds = interval(column(1), column(2));
    if (found.hitEnds) found.hitEnds = found.hitEnds.map((share) => share * 100);
  };

  const lineOf = (found) => {
    const wait = (ends) => (ends === undefined ? "\u2026" : between(ends));
    const cells = [
      titleOf(found.row.key), found.row.name, grouped(found.sessions), grouped(found.people.length), numbered(found.mean), wait(found.ends),
      numbered(found.quarters[1]), found.sessions ? between([found.quarters[0], found.quarters[2]]) : "\u2013",
      found.hit === null ? "\u2013" : found.hit.toFixed(1) + "\u00a0%", wait(found.hitEnds),
    ];
    return make("tr", {}, ...cells.map((text, n) => make("td", { className: n > 1 ? "num" : "", textContent: text })));
  };

  // ---- mean load of each level with its interval

  const shape = (name, properties, text = "") => {
    const element = document.createElementNS(whiskers.namespaceURI, name);
    for (const [key, value] of Object.entries(properties)) element.setAttribute(key, value);
    element.textContent = text;
    return element;
  };

  const drawWhiskers = (list) => {
    if (!whiskers) return;
    const { left, right, top, step } = data.whiskers;
    const most = Math.max(1e-6, ...list.map((found) => Math.max(found.mean, found.ends ? found.ends[1] : 0)));
    const x = (value) => (left + (value / most) * (right - left)).toFixed(1);
    const bottom = top + list.length * step;
    const axisAt = shape("line", { class: "axis", x1: left, x2: right, y1: bottom, y2: bottom });
    const parts = list.flatMap((found, n) => {
      const y = (top + (n + 0.5) * step).toFixed(1);
      const ends = found.ends || [found.mean, found.mean];
      return [
        shape("text", { x: 60, y: Number(y) + 4, "text-anchor": "end" }, found.row.name),
        shape("line", { class: "bar-ci", x1: x(ends[0]), x2: x(ends[1]), y1: y, y2: y }),
        shape("circle", { class: "mean", cx: x(found.mean), cy: y, r: 3.6 }),
      ];
    });
    const ticksAt = [0, 0.5, 1].map((share) => shape("text", { x: left + share * (right - left), y: bottom + 16, "text-anchor": "middle" }, numbered(share * most)));
    const words = "Mean lesion load per vertebral level: " + list.map((found) => `${found.row.name}: ${numbered(found.mean)} %, n = ${found.sessions}`).join("; ");
    whiskers.setAttribute("aria-label", words);
    const below = shape("text", { x: (left + right) / 2, y: bottom + 31, "text-anchor": "middle" }, written.marks.at(-1).textContent);
    whiskers.setAttribute("viewBox", `0 0 640 ${bottom + 34}`);
    whiskers.replaceChildren(shape("title", {}, words), axisAt, ...parts, ...ticksAt, below);
  };

  // ---- what is said beside it

  const plural = (count, word) => `${count} ${word}${count === 1 ? "" : "s"}`;
  const changes = () => {
    const out = sessions.filter((session) => countsAsWritten(session) && !countsNow(session)).length;
    const back = sessions.filter((session) => !countsAsWritten(session) && countsNow(session)).length;
    return { out, back, said: [out && `${plural(out, "session")} excluded`, back && `${plural(back, "session")} taken back`].filter(Boolean).join(" and ") };
  };

  const sayLeftOut = () => {
    const own = sessions.filter((session) => session.stratum === first);
    const failed = own.filter((session) => ratingOf(session).rating === "fail");
    const reasons = [
      [data.unfinished, "without a result"], [sessions.length - own.length, "of another stratum"], [failed.length, "rated fail"],
      [own.filter((session) => metricOf(session, "lesion_count") === null && !failed.includes(session)).length, "no cord examined"],
    ].filter(([count]) => count);
    leftOut.textContent = reasons.length ? `Left out: ${reasons.map(([count, why]) => `${count} ${why}`).join(", ")}.` : "No session is left out.";
  };

  const sayStale = ({ out, back, said }) => {
    if (!stale) return;
    stale.hidden = !(out || back);
    const [before, now] = [compared(countsAsWritten), compared(countsNow)];
    const touched = new Set([...before.keys(), ...now.keys()].filter((who) => before.get(who) !== now.get(who))).size;
    byId("stale-count").textContent = said;
    byId("stale-people").textContent = touched ? `this touches ${plural(touched, "participant")} of the comparisons` : "none of them is the session compared of its participant";
  };

  // ---- all of it

  let waiting = 0;
  const idle = (work) => (window.requestIdleCallback ? requestIdleCallback(work, { timeout: 500 }) : setTimeout(work, 0));
  const redo = (found, turn, n = 0) => {
    if (turn !== waiting) return;
    if (n < found.length) {
      addIntervals(found[n]);
      table.tBodies[0].rows[n].replaceWith(lineOf(found[n]));
      idle(() => redo(found, turn, n + 1));
      return;
    }
    drawWhiskers(found.filter(({ row }) => row.level !== null));
    table.removeAttribute("aria-busy");
  };

  views.push((why) => {
    if (!why.has("start") && !why.has("rating")) return;
    const change = changes();
    waiting += 1;
    sayStale(change);
    table.removeAttribute("aria-busy");
    if (!change.said) {
      table.tBodies[0].replaceChildren(...written.rows);
      [when.textContent, leftOut.textContent] = [written.when, written.left];
      if (!whiskers) return;
      whiskers.replaceChildren(...written.marks);
      whiskers.setAttribute("aria-label", written.label);
      whiskers.setAttribute("viewBox", written.box);
      return;
    }
    const list = sessions.filter(countsNow);
    const found = rowsOf.map((row) => summaryOf(list, row)).filter(({ row, sessions: count }) => row.level === null || count);
    table.setAttribute("aria-busy", "true");
    table.tBodies[0].replaceChildren(...found.map(lineOf));
    when.textContent = `Follows the ratings in this browser: ${change.said} since the page was written; the files in the folder group are still those of the last run.`;
    sayLeftOut();
    drawWhiskers(found.filter(({ row }) => row.level !== null));
    const turn = waiting;
    idle(() => redo(found, turn));
  });
}
