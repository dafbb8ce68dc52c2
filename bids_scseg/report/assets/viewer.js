"use strict";
// The prepared volumes in NiiVue: the whole cord as a strip, and a piece of it in three planes.
(() => {
  const data = JSON.parse(document.getElementById("volumes").textContent);
  const byId = (id) => document.getElementById(id);
  const [ni, nj, nk] = data.shape;
  const mm = data.spacing;
  const depth = Math.min(Math.round(Math.min(60, nk * mm) / mm), nk); // slices of the piece in the three planes
  const state = { sequence: 0, start: 0, at: [ni / 2, nj / 2, Math.min(nk / 2, nk - 1)].map(Math.floor), greys: new Map(), labels: null, cord: null };
  const strip = byId("viewer-strip");
  const board = byId("viewer-canvas");
  const words = byId("viewer-words");
  const WINDOWING = 9; // NiiVue's number for "drag to change the grey window"
  let nv = null;
  let starting = null;

  const say = (text) => { words.textContent = text; };

  /** Pixels of an embedded picture: rows are (i, j), columns are slices. */
  const decode = async (uri) => {
    const image = new Image();
    image.src = uri;
    await image.decode();
    const sheet = document.createElement("canvas");
    sheet.width = nk;
    sheet.height = ni * nj;
    const pen = sheet.getContext("2d", { willReadFrequently: true, colorSpace: "srgb" });
    pen.drawImage(image, 0, 0);
    return pen.getImageData(0, 0, nk, ni * nj).data;
  };

  const grey = async (n) => {
    if (!state.greys.has(n)) {
      const pixels = await decode(data.sequences[n].uri);
      const values = new Uint8Array(ni * nj * nk);
      for (let at = 0; at < values.length; at += 1) values[at] = pixels[4 * at];
      state.greys.set(n, values);
    }
    return state.greys.get(n);
  };

  const masks = async () => {
    if (state.labels) return;
    const pixels = await decode(data.masks);
    state.labels = new Uint16Array(ni * nj * nk);
    state.cord = new Uint8Array(ni * nj * nk);
    for (let at = 0; at < state.labels.length; at += 1) {
      state.labels[at] = pixels[4 * at] + 256 * pixels[4 * at + 1];
      state.cord[at] = pixels[4 * at + 2];
    }
  };

  const index = (i, j, k) => (i * nj + j) * nk + k;

  /** The piece of a volume from `start` on, in NIfTI's order; `value` turns a voxel into 0 to 255. */
  const piece = (out, value) => {
    let to = 0;
    for (let k = 0; k < depth; k += 1) {
      for (let j = 0; j < nj; j += 1) {
        for (let i = 0; i < ni; i += 1, to += 1) out[to] = value(index(i, j, k + state.start));
      }
    }
    return out;
  };

  // ---- the strip: mid-sagittal mean, lesions seen from the side, superior on the left

  const backdrop = document.createElement("canvas");
  const paintStrip = async () => {
    const values = await grey(state.sequence);
    await masks();
    backdrop.width = nk;
    backdrop.height = nj;
    const pen = backdrop.getContext("2d");
    const picture = pen.createImageData(nk, nj);
    const middle = Math.floor(ni / 2);
    const lesions = byId("viewer-lesions").checked;
    for (let j = 0; j < nj; j += 1) {
      for (let k = 0; k < nk; k += 1) {
        const at = 4 * ((nj - 1 - j) * nk + (nk - 1 - k));
        let sum = 0;
        for (let i = middle - 2; i < middle + 2; i += 1) sum += values[index(i, j, k)];
        let marked = false;
        for (let i = 0; lesions && i < ni && !marked; i += 1) marked = state.labels[index(i, j, k)] > 0;
        const base = sum / 4;
        picture.data[at] = marked ? base * 0.45 + 255 * 0.55 : base;
        picture.data[at + 1] = marked ? base * 0.45 + 150 * 0.55 : base;
        picture.data[at + 2] = marked ? base * 0.45 : base;
        picture.data[at + 3] = 255;
      }
    }
    pen.putImageData(picture, 0, 0);
    drawStrip();
  };

  const toX = (k) => ((nk - 1 - k) / nk) * strip.clientWidth;

  /** The strip is a slider: how far down the position is, in percent and in words. */
  const sayPlace = () => {
    const below = nk - 1 - state.at[2];
    strip.setAttribute("aria-valuenow", String(Math.round((100 * below) / Math.max(nk - 1, 1))));
    strip.setAttribute("aria-valuetext", `${(below * mm).toFixed(1)} mm below the top`);
  };

  const drawStrip = () => {
    sayPlace();
    const width = strip.clientWidth;
    if (!width || !backdrop.width) return;
    const height = Math.max(Math.min(nj * (width / nk) * 1.6, 110), 44);
    const ratio = window.devicePixelRatio || 1;
    strip.style.height = height + 16 + "px";
    strip.width = Math.round(width * ratio);
    strip.height = Math.round((height + 16) * ratio);
    const pen = strip.getContext("2d");
    pen.scale(ratio, ratio);
    pen.fillStyle = "#1d2733";
    pen.imageSmoothingEnabled = true;
    pen.drawImage(backdrop, 0, 16, width, height);
    pen.font = "11px system-ui, sans-serif";
    pen.fillStyle = "#5b6875";
    pen.textAlign = "center";
    for (const [name, bottom, top] of data.levels) {
      // toX gives a slice's upper edge, while its index is its middle.
      const [left, right] = [Math.min(top, nk - 0.5), Math.max(bottom, -0.5)].map((k) => toX(k - 0.5));
      for (const [border, x] of [[top, left], [bottom, right]]) {
        if (border >= -0.5 && border <= nk - 0.5) pen.fillRect(x - 0.5, 3, 1, 12);
      }
      if (right - left > pen.measureText(name).width) pen.fillText(name, (left + right) / 2, 12);
    }
    pen.strokeStyle = "#F0E442";
    pen.lineWidth = 1.5;
    const left = toX(state.start + depth - 1);
    pen.strokeRect(Math.max(left, 1), 17, Math.min((depth / nk) * width, width - 2), height - 2);
    pen.fillStyle = "#F0E442";
    pen.fillRect(toX(state.at[2]) - 0.5, 16, 1.5, height);
  };

  // ---- the three planes

  const source = async () => {
    const packed = Uint8Array.from(atob(JSON.parse(byId("viewer-library").textContent)), (sign) => sign.charCodeAt(0));
    const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
    return new Response(stream).text();
  };

  const library = async () => {
    if (!window.niivue) {
      const script = document.createElement("script");
      script.textContent = await source(); // runs only if it is the text that the page's policy names
      document.head.append(script);
    }
    return window.niivue;
  };

  const supported = () => {
    try {
      return typeof DecompressionStream === "function" && document.createElement("canvas").getContext("webgl2") !== null;
    } catch {
      return false;
    }
  };

  const volume = async (name, bytes, colormap, opacity) => {
    const { NVImage } = window.niivue;
    // The middle of the piece is at 0 mm, so every piece lies in the same place.
    const affine = [mm, 0, 0, (-(ni - 1) / 2) * mm, 0, mm, 0, (-(nj - 1) / 2) * mm, 0, 0, mm, (-(depth - 1) / 2) * mm, 0, 0, 0, 1];
    const file = NVImage.createNiftiArray([ni, nj, depth], [mm, mm, mm], affine, 2, bytes);
    const url = file.buffer.slice(file.byteOffset, file.byteOffset + file.byteLength);
    return NVImage.loadFromUrl({ url, name: name + ".nii", colormap, opacity, cal_min: 0, cal_max: 255, trustCalMinMax: false });
  };

  const start = async () => {
    const { Niivue } = await library();
    nv = new Niivue({
      backColor: [0.07, 0.09, 0.11, 1], crosshairColor: [0.94, 0.89, 0.26, 0.8], crosshairWidth: 0.25, show3Dcrosshair: false,
      isRadiologicalConvention: true, sagittalNoseLeft: true, dragAndDropEnabled: false, isNearestInterpolation: false, logLevel: "silent",
      viewModeHotKey: "", clipPlaneHotKey: "", dragMode: WINDOWING, isCornerOrientationText: false, textHeight: 0.06, loadingText: "",
      scrollRequiresFocus: true, multiplanarPadPixels: 4,
    });
    await nv.attachToCanvas(board);
    nv.addColormap("lesion", { R: [0, 255], G: [0, 150], B: [0, 0], A: [0, 255], I: [0, 255] });
    nv.addColormap("cord", { R: [0, 86], G: [0, 180], B: [0, 233], A: [0, 255], I: [0, 255] });
    nv.setCustomLayout([
      { sliceType: 0, position: [0, 0, 0.46, 1] },
      { sliceType: 2, position: [0.46, 0, 0.27, 1] },
      { sliceType: 1, position: [0.73, 0, 0.27, 1] },
    ]);
    const values = await grey(state.sequence);
    await masks();
    const size = ni * nj * depth;
    nv.addVolume(await volume("image", piece(new Uint8Array(size), (at) => values[at]), "gray", 1));
    nv.addVolume(await volume("lesions", piece(new Uint8Array(size), (at) => (state.labels[at] ? 255 : 0)), "lesion", 0.55));
    nv.addVolume(await volume("cord", piece(new Uint8Array(size), (at) => state.cord[at]), "cord", 0));
    nv.onLocationChange = ({ vox }) => moved(vox);
    show();
    document.documentElement.dataset.viewer = "ready";
  };

  const ready = () => {
    starting ??= (supported() ? start() : Promise.reject(new Error("no WebGL 2"))).catch((error) => {
      nv = null;
      document.documentElement.dataset.viewer = "absent";
      board.hidden = true;
      byId("viewer-absent").hidden = false;
      say(String(error.message || error));
    });
    return starting;
  };

  /** Fill the three planes with the piece round the position, and put the crosshair there. */
  const refill = async () => {
    if (!nv) return;
    const values = await grey(state.sequence);
    piece(nv.volumes[0].img, (at) => values[at]);
    piece(nv.volumes[1].img, (at) => (state.labels[at] ? 255 : 0));
    piece(nv.volumes[2].img, (at) => state.cord[at]);
    show();
  };

  const show = () => {
    nv.setOpacity(1, byId("viewer-lesions").checked ? Number(byId("viewer-opacity").value) : 0);
    nv.setOpacity(2, byId("viewer-cord").checked ? 0.35 : 0);
    nv.volumes[0].cal_min = Number(byId("viewer-black").value);
    nv.volumes[0].cal_max = Math.max(Number(byId("viewer-white").value), nv.volumes[0].cal_min + 1);
    nv.updateGLVolume();
    const [i, j, k] = state.at;
    nv.scene.crosshairPos = nv.vox2frac([i, j, k - state.start]);
    nv.drawScene();
    tell();
    drawStrip();
  };

  const clamp = (value, size) => Math.min(Math.max(Math.round(value), 0), size - 1);

  const moved = (vox) => {
    state.at = [clamp(vox[0], ni), clamp(vox[1], nj), clamp(vox[2] + state.start, nk)];
    const near = Math.min(state.at[2] - state.start, state.start + depth - 1 - state.at[2]) < 3;
    const wanted = clamp(state.at[2] - depth / 2, nk - depth + 1);
    if (near && Math.abs(wanted - state.start) > depth / 4) jump(state.at);
    else { tell(); drawStrip(); }
  };

  const jump = async (at) => {
    state.at = [clamp(at[0], ni), clamp(at[1], nj), clamp(at[2], nk)];
    state.start = clamp(state.at[2] - depth / 2, nk - depth + 1);
    drawStrip();
    await ready();
    await refill();
  };

  const examines = ({ examined }, k) => examined.some(([from, to]) => from <= k && k < to);

  /** Who has no data in a slice, in words: the sequence shown, or all; empty if the sequence shown has some. */
  const blind = (k) => {
    const shown = data.sequences[state.sequence];
    if (examines(shown, k)) return "";
    return data.sequences.some((sequence) => examines(sequence, k)) ? shown.name : "any sequence";
  };

  const tell = () => {
    const number = state.labels ? state.labels[index(...state.at)] : 0;
    const k = state.at[2];
    const level = data.levels.find(([, bottom, top]) => bottom <= k && k < top);
    const unseen = blind(k) && `not examined by ${blind(k)}`;
    const parts = number ? [`lesion ${number}`, unseen] : [unseen || "no lesion here"];
    if (level) parts.push(`level ${level[0]}`);
    parts.push(`${((nk - 1 - k) * mm).toFixed(1)} mm below the top of the prepared image`);
    say(data.sequences[state.sequence].name + ": " + parts.filter(Boolean).join(", "));
    document.querySelectorAll("#lesion-table tbody tr").forEach((row) => {
      row.classList.toggle("current", number > 0 && row.dataset.lesion === String(number));
    });
  };

  // ---- controls

  const pick = (n) => {
    state.sequence = n;
    document.querySelectorAll("#viewer-sequences button").forEach((button, at) => button.setAttribute("aria-pressed", String(at === n)));
    paintStrip();
    return refill();
  };

  data.sequences.forEach(({ name }, n) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = name;
    button.addEventListener("click", () => pick(n));
    byId("viewer-sequences").append(button);
  });

  const toLesion = (lesion) => {
    jump(lesion.at);
    byId("viewer").scrollIntoView({ block: "start" });
  };

  const table = byId("lesion-table");
  for (const row of table ? table.tBodies[0].rows : []) {
    const lesion = data.lesions.find(({ number }) => String(number) === row.cells[0].textContent.trim());
    if (!lesion) continue;
    row.dataset.lesion = String(lesion.number);
    const button = document.createElement("button");
    button.type = "button";
    button.className = "jump";
    button.textContent = row.cells[0].textContent;
    button.title = "Show this lesion in the viewer";
    button.addEventListener("click", () => toLesion(lesion));
    row.cells[0].replaceChildren(button);
  }

  const chooser = byId("viewer-lesion");
  for (const { number } of data.lesions) {
    const option = document.createElement("option");
    option.value = option.textContent = String(number);
    chooser.append(option);
  }
  chooser.closest("label").hidden = data.lesions.length === 0;
  chooser.addEventListener("change", () => {
    const lesion = data.lesions.find(({ number }) => String(number) === chooser.value);
    if (lesion) jump(lesion.at);
  });
  for (const id of ["viewer-lesions", "viewer-cord"]) byId(id).addEventListener("change", () => { paintStrip(); if (nv) show(); });
  for (const id of ["viewer-opacity", "viewer-black", "viewer-white"]) byId(id).addEventListener("input", () => { if (nv) show(); });

  const strive = (event) => jump([state.at[0], state.at[1], nk - 1 - (event.offsetX / strip.clientWidth) * nk]);
  strip.addEventListener("pointerdown", (event) => { strip.setPointerCapture(event.pointerId); strive(event); });
  strip.addEventListener("pointermove", (event) => { if (event.buttons & 1) strive(event); });
  strip.addEventListener("keydown", (event) => {
    const step = { ArrowRight: -1, ArrowLeft: 1, PageDown: -20, PageUp: 20 }[event.key];
    if (!step) return;
    event.preventDefault();
    jump([state.at[0], state.at[1], state.at[2] + step]);
  });

  const first = data.lesions.reduce((best, lesion) => (!best || lesion.to - lesion.from > best.to - best.from ? lesion : best), null);
  state.at = (first ? first.at : state.at).map((value, axis) => clamp(value, data.shape[axis]));
  state.start = clamp(state.at[2] - depth / 2, nk - depth + 1);
  pick(Math.max(data.sequences.findIndex(({ name }) => name === data.anchor), 0));
  new ResizeObserver(drawStrip).observe(strip);
  new IntersectionObserver((entries, observer) => {
    if (entries.some((entry) => entry.isIntersecting)) { observer.disconnect(); ready(); }
  }, { rootMargin: "100px" }).observe(byId("viewer"));
})();
