// Where lesions lie, in cord coordinates: along the cord and across it, with what was examined beside it.
const HEAT = [[255, 255, 255], [254, 232, 180], [253, 190, 100], [232, 120, 40], [178, 60, 10], [110, 25, 5]];
const EXAMINED = "#8fa3b5";
const FEWEST = 5; // sessions; with fewer a frequency is drawn faintly
const MAP_HEIGHT = 430;
const MOST_GROUPS = 4; // side by side
const along = byId("map-along");
const across = byId("map-across");
const splitBy = byId("map-split");
const unitOf = byId("map-unit");

fill(splitBy, { withCategories: true, none: "nothing" });
splitBy.addEventListener("change", () => update("map"));
unitOf.addEventListener("change", () => update("map"));
if (!data.levels.length) {
  unitOf.value = "mm";
  unitOf.disabled = true;
}

sizes.observe(along);
sizes.observe(across);

/** What is drawn side by side: [name, sessions]; of more groups than fit, those with sessions that are shown. */
const columns = () => {
  const key = splitBy.value;
  if (key === "") return [["all sessions", counted]];
  const groups = groupsOf(key);
  const membersOf = (value) => counted.filter((session) => categoryOf(session, key) === value);
  const found = groups.map((value) => [String(value), membersOf(value)]);
  return (groups.length > MOST_GROUPS ? found.filter(([, members]) => members.length) : found).slice(0, MOST_GROUPS);
};

/** Which sessions a split leaves out, in words; nothing where it leaves out none. */
const unseen = (groups) => {
  const key = splitBy.value;
  if (key === "") return "";
  const drawn = new Set(groups.flatMap(([, members]) => members));
  const left = counted.filter((session) => !drawn.has(session));
  const others = left.filter((session) => categoryOf(session, key) !== null);
  const names = new Set(others.map((session) => categoryOf(session, key)));
  const count = (n, word) => `${n} ${word}${n === 1 ? "" : "s"}`;
  const parts = [
    others.length && `${count(others.length, "session")} of ${count(names.size, "other group")} (filter by words to see them)`,
    left.length > others.length && `${count(left.length - others.length, "session")} without a value of ${titleOf(key)}`,
  ].filter(Boolean);
  return parts.length ? `Not shown: ${parts.join("; ")}.` : "";
};

/** Per bin: sessions examined, and how many of those have a lesion there. */
const tally = (list, field, count) => {
  const seen = new Array(count).fill(0);
  const hit = new Array(count).fill(0);
  let placed = 0;
  for (const session of list) {
    const row = session[field];
    if (!row) continue;
    placed += 1;
    row.forEach((share, n) => {
      if (share >= 0) seen[n] += 1;
      if (share > 0) hit[n] += 1;
    });
  }
  return { seen, hit, placed };
};

const hatch = (pen, x, y, width, height) => {
  pen.save();
  pen.beginPath();
  pen.rect(x, y, width, height);
  pen.clip();
  pen.strokeStyle = "#b9c3cd";
  pen.beginPath();
  for (let at = x - height; at < x + width; at += 6) {
    pen.moveTo(at, y + height);
    pen.lineTo(at + height, y);
  }
  pen.stroke();
  pen.restore();
};

/** Bins from top to bottom as [top, bottom, name] in the units of the axis. */
const bins = () => {
  if (unitOf.value === "level") return data.levels.map(([name], n) => [n, n + 1, name]);
  const { first, count, bin } = data.along;
  return Array.from({ length: count }, (_, n) => [(first + n) * bin, (first + n + 1) * bin, ""]);
};

const drawAlong = (groups) => {
  const page = sheet(along, MAP_HEIGHT);
  if (!page) return;
  const { pen, width, height } = page;
  const list = bins();
  if (!list.length) { pen.fillStyle = MUTED; pen.textAlign = "left"; pen.fillText("No session has an anatomical origin or levels.", 10, 30); return; }
  const field = unitOf.value === "level" ? "levels" : "along";
  const counts = groups.map(([, members]) => tally(members, field, list.length));
  const largest = Math.max(0.05, ...counts.flatMap(({ seen, hit }) => seen.map((n, k) => (n >= FEWEST || groups.length === 1 ? hit[k] / (n || 1) : 0))));
  const most = ticks(0, largest, 3).at(-1) >= largest ? ticks(0, largest, 3).at(-1) : ticks(0, largest, 3).at(-1) + ticks(0, largest, 3)[1];
  const top = 40;
  const bottom = height - 26;
  const y = scaled(list[0][0], list.at(-1)[1], top, bottom);
  const left = 46;
  const room = (width - left - 8) / groups.length;
  drawNames(pen, list, y, left);
  groups.forEach(([name, members], n) => {
    const { seen, hit, placed } = counts[n];
    const x0 = left + n * room;
    const part = Math.min((room - 22) * 0.26, 90);
    const zero = x0 + part + 8;
    const reach = room - part - 26;
    pen.textAlign = "left";
    pen.textBaseline = "alphabetic";
    pen.fillStyle = INK;
    pen.font = "600 12.5px system-ui, sans-serif";
    pen.fillText(name, x0 + 4, 14, room - 10);
    pen.font = "11.5px system-ui, sans-serif";
    pen.fillStyle = MUTED;
    const without = members.length - placed;
    pen.fillText(`${placed} sessions${without ? `; ${without} without ${field === "levels" ? "levels" : "origin"} left out` : ""}`, x0 + 4, 29, room - 10);
    list.forEach(([from, to], k) => {
      const [a, b] = [y(from), y(to)];
      const share = placed ? seen[k] / placed : 0;
      pen.fillStyle = "#eef2f5";
      pen.fillRect(zero - part - 2, a, part, b - a);
      pen.fillStyle = EXAMINED;
      pen.fillRect(zero - 2 - part * share, a, part * share, b - a - 0.4);
      if (!seen[k]) { hatch(pen, zero, a, reach, b - a); return; }
      pen.globalAlpha = seen[k] < FEWEST ? 0.35 : 1;
      pen.fillStyle = "#D55E00";
      pen.fillRect(zero, a, Math.min(hit[k] / seen[k] / most, 1) * reach, b - a - 0.4);
      pen.globalAlpha = 1;
    });
    pen.strokeStyle = LINE;
    pen.strokeRect(zero + 0.5, top, reach, bottom - top);
    pen.fillStyle = MUTED;
    pen.textBaseline = "top";
    for (const value of reach < 150 ? [0, most] : ticks(0, most, 3)) {
      pen.textAlign = value === 0 ? "left" : value === most ? "right" : "center";
      pen.fillText(`${show(value * 100)}%`, zero + (value / most) * reach, bottom + 5);
    }
    pen.textAlign = "left";
    pen.fillText("examined", x0 + 4, bottom + 5, part + 4);
  });
  along.setAttribute("aria-label", groups.map(([name], n) => describe(name, list, counts[n])).join(" "));
};

const describe = (name, list, { seen, hit, placed }) => {
  const rates = hit.map((n, k) => (seen[k] ? n / seen[k] : 0));
  const peak = rates.indexOf(Math.max(...rates));
  const where = list[peak][2] || `${show(list[peak][0])} to ${show(list[peak][1])} mm below the origin`;
  return placed ? `${name}: ${placed} sessions; most often ${show(rates[peak] * 100)} % of those examined have a lesion, at ${where}.` : `${name}: no session.`;
};

/** Names of levels, or millimetres below the origin with the mean places of the levels. */
const drawNames = (pen, list, y, left) => {
  pen.fillStyle = MUTED;
  pen.textAlign = "right";
  pen.textBaseline = "middle";
  if (unitOf.value === "level") {
    list.forEach(([from, to, name]) => pen.fillText(name, left - 8, y((from + to) / 2)));
    return;
  }
  for (const value of ticks(list[0][0], list.at(-1)[1], 8)) pen.fillText(show(value), left - 8, y(value));
};

const drawAcross = (groups) => {
  const page = sheet(across, MAP_HEIGHT);
  if (!page) return;
  const { pen, width } = page;
  const { rings, sectors } = data.across;
  const cells = rings.length * sectors;
  const means = groups.map(([, members]) => meanAcross(members, cells));
  const most = Math.max(0.001, ...means.flatMap(({ mean }) => mean));
  const many = groups.length;
  const room = width / Math.min(many, 2);
  const radius = many <= 2 ? Math.min(room / 2 - 34, 130) : Math.min(room / 2 - 30, 74);
  groups.forEach(([name], n) => {
    const cx = room * (n % 2) + room / 2;
    const cy = (many <= 2 ? 205 : 108 + Math.floor(n / 2) * 200);
    pen.fillStyle = INK;
    pen.font = "600 12.5px system-ui, sans-serif";
    pen.textAlign = "center";
    pen.textBaseline = "alphabetic";
    pen.fillText(name, cx, cy - radius - 22, room - 10);
    pen.font = "11.5px system-ui, sans-serif";
    polar(pen, cx, cy, radius, rings, sectors, ({ cell: k }) => (means[n].seen[k] ? mix(HEAT, means[n].mean[k] / most) : null));
    outline(pen, cx, cy, radius);
    const small = radius * 0.28;
    const sx = Math.min(cx + radius + small * 0.6, room * (n % 2) + room - Math.max(small, 27) - 2);
    polar(pen, sx, cy + radius + small * 0.1, small, rings, sectors, ({ cell: k }) => mix([[238, 242, 245], [143, 163, 181]], means[n].placed ? means[n].seen[k] / means[n].placed : 0));
    pen.fillStyle = MUTED;
    pen.textAlign = "center";
    pen.textBaseline = "top";
    pen.fillText("examined", sx, cy + radius + small * 1.2, room / 4);
  });
  heatScale(pen, width, most);
  across.setAttribute("aria-label", "Cross-section of the cord, ventral on top, the patient's right on the left. " + groups.map(([name], n) => worst(name, means[n], sectors)).join(" "));
};

/** Mean share of the examined cord that is lesion, per cell; and by how many sessions. */
const meanAcross = (list, cells) => {
  const total = new Array(cells).fill(0);
  const seen = new Array(cells).fill(0);
  let placed = 0;
  for (const session of list) {
    if (!session.across) continue;
    placed += 1;
    session.across.forEach((share, n) => {
      if (share < 0) return;
      seen[n] += 1;
      total[n] += share / 1000;
    });
  }
  return { mean: total.map((sum, n) => (seen[n] ? sum / seen[n] : 0)), seen, placed };
};

/** Sectors run from dorsal over the patient's left and ventral to his right; his right is drawn on the left. */
const polar = (pen, cx, cy, radius, rings, sectors, colourOf) => {
  const edges = [...rings, 1];
  for (let r = 0; r < rings.length; r += 1) {
    for (let s = 0; s < sectors; s += 1) {
      const from = Math.PI / 2 - (2 * Math.PI * s) / sectors;
      const to = Math.PI / 2 - (2 * Math.PI * (s + 1)) / sectors;
      const colour = colourOf({ cell: r * sectors + s });
      pen.beginPath();
      pen.arc(cx, cy, radius * edges[r + 1], from, to, true);
      pen.arc(cx, cy, radius * edges[r], to, from, false);
      pen.closePath();
      pen.fillStyle = colour || "#e9edf1";
      pen.fill();
      pen.strokeStyle = colour || "#e9edf1";
      pen.lineWidth = 0.6;
      pen.stroke();
    }
  }
  pen.lineWidth = 1;
};

const outline = (pen, cx, cy, radius) => {
  pen.strokeStyle = "#7b8894";
  for (const share of [0.3, 1]) {
    pen.beginPath();
    pen.arc(cx, cy, radius * share, 0, 2 * Math.PI);
    pen.stroke();
  }
  pen.beginPath();
  for (const angle of [1, 3, 5, 7].map((n) => (n * Math.PI) / 4)) {
    pen.moveTo(cx + radius * 0.3 * Math.cos(angle), cy + radius * 0.3 * Math.sin(angle));
    pen.lineTo(cx + radius * Math.cos(angle), cy + radius * Math.sin(angle));
  }
  pen.stroke();
  pen.fillStyle = MUTED;
  pen.textBaseline = "middle";
  pen.textAlign = "center";
  pen.fillText("ventral", cx, cy - radius - 8);
  pen.fillText("dorsal", cx, cy + radius + 9);
  pen.textAlign = "right";
  pen.fillText("R", cx - radius - 5, cy);
  pen.textAlign = "left";
  pen.fillText("L", cx + radius + 5, cy);
};

const heatScale = (pen, width, most) => {
  const left = 10;
  for (let n = 0; n < 80; n += 1) {
    pen.fillStyle = mix(HEAT, n / 79);
    pen.fillRect(left + n, MAP_HEIGHT - 22, 1.5, 8);
  }
  pen.fillStyle = MUTED;
  pen.textAlign = "left";
  pen.textBaseline = "middle";
  pen.fillText(`0 to ${show(most * 100)} % of the examined cord is lesion`, left + 90, MAP_HEIGHT - 17, width - 110);
};

const COLUMN_OF = (sector, sectors) => {
  const angle = Math.abs(-180 + ((sector + 0.5) * 360) / sectors);
  if (angle < 45) return "ventral";
  if (angle > 135) return "dorsal";
  return sector < sectors / 2 ? "lateral left" : "lateral right";
};

const worst = (name, { mean, placed }, sectors) => {
  const totals = new Map();
  mean.forEach((share, n) => {
    const column = n < sectors ? "central" : COLUMN_OF(n % sectors, sectors);
    const [sum, count] = totals.get(column) || [0, 0];
    totals.set(column, [sum + share, count + 1]);
  });
  const parts = [...totals].map(([column, [sum, count]]) => `${column} ${show((sum / count) * 100)} %`);
  return placed ? `${name}: mean share that is lesion ${parts.join(", ")}.` : `${name}: no session.`;
};

addView(byId("maps"), (why) => {
  if ([...why].every((reason) => reason.startsWith("focus") || reason === "colour")) return;
  const groups = columns();
  byId("map-unseen").textContent = unseen(groups);
  drawAlong(groups);
  drawAcross(groups);
});
