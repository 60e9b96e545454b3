// SPDX-License-Identifier: Apache-2.0
// Three cuts through an image and its labels, on 2D canvases. Axes 0, 1, 2 run to R, A, S.
"use strict";
(async () => {
  const byId = (id) => document.getElementById(id);
  const facts = JSON.parse(byId("facts").textContent);
  const { shape, voxelSizeMm, affine, labels } = facts;
  const strides = [1, shape[0], shape[0] * shape[1]];
  const AXES = [["left", "right"], ["behind", "front"], ["below", "above"]];
  const PLANES = [
    { name: "Sagittal", axis: 0, right: 1, up: 2, ends: ["P", "A"] },
    { name: "Coronal", axis: 1, right: 0, up: 2, ends: ["L", "R"] },
    { name: "Axial", axis: 2, right: 0, up: 1, ends: ["L", "R"] },
  ];
  const state = { at: facts.start.slice(), window: facts.window.slice(), opacity: 0.5, outlines: false };

  async function unpacked(id) {
    const text = atob(byId(id).textContent.trim());
    const packed = Uint8Array.from(text, (letter) => letter.charCodeAt(0));
    const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
    const bytes = await new Response(stream).arrayBuffer();
    byId(id).remove();
    return bytes;
  }

  let grey, codes;
  try {
    if (typeof DecompressionStream === "undefined") throw new Error("it is too old");
    grey = new Uint8Array(await unpacked("image"));
    const bytes = await unpacked("labels");
    codes = labels.length > 256 ? new Uint16Array(bytes) : new Uint8Array(bytes);
    if (grey.length !== strides[2] * shape[2] || codes.length !== grey.length) throw new Error("the file is damaged");
  } catch (error) {
    byId("status").className = "box bad";
    byId("status").textContent = `The image cannot be shown in this browser: ${error.message}. ` +
      "Use Chrome or Edge 80, Firefox 113, Safari 16.4 or newer, or look at the pictures on the participant's page.";
    return;
  }
  byId("status").remove();

  const palette = labels.map(({ color }) => color && [1, 3, 5].map((i) => parseInt(color.slice(i, i + 2), 16)));
  const voxel = (at) => at[0] + at[1] * strides[1] + at[2] * strides[2];
  const worldMm = (at) => affine.map((row) => row[0] * at[0] + row[1] * at[1] + row[2] * at[2] + row[3]);

  // -- one cut ----------------------------------------------------------------------------

  function paint({ axis, right, up }, pixels) {
    const [low, high] = state.window;
    const shades = Array.from({ length: 256 }, (_, value) => 255 * (value - low) / Math.max(1, high - low));
    const [width, height] = [shape[right], shape[up]];
    const start = state.at[axis] * strides[axis];
    let pixel = 0;
    for (let y = height - 1; y >= 0; y--) {
      for (let x = 0; x < width; x++, pixel += 4) {
        const here = start + x * strides[right] + y * strides[up];
        const color = palette[codes[here]];
        const border = (x + 1 < width && codes[here + strides[right]] !== codes[here]) ||
          (y + 1 < height && codes[here + strides[up]] !== codes[here]);
        const share = !color ? 0 : state.outlines ? Number(border) : state.opacity;
        const shade = Math.min(255, Math.max(0, shades[grey[here]]));
        for (let c = 0; c < 3; c++) pixels[pixel + c] = (1 - share) * shade + (color ? share * color[c] : 0);
        pixels[pixel + 3] = 255;
      }
    }
  }

  function draw(plane) {
    const { canvas, source, axis, right, up, name, ends } = plane;
    const slice = new ImageData(shape[right], shape[up]);
    paint(plane, slice.data);
    source.getContext("2d").putImageData(slice, 0, 0);
    const context = canvas.getContext("2d");
    context.imageSmoothingEnabled = false;
    context.drawImage(source, 0, 0, canvas.width, canvas.height);
    const x = (state.at[right] + 0.5) / shape[right] * canvas.width;
    const y = (1 - (state.at[up] + 0.5) / shape[up]) * canvas.height;
    const dot = window.devicePixelRatio || 1;
    context.strokeStyle = "rgba(120, 200, 255, 0.85)";
    context.lineWidth = dot;
    context.beginPath();
    for (const [x0, y0, x1, y1] of [[0, y, x - 6 * dot, y], [x + 6 * dot, y, canvas.width, y],
      [x, 0, x, y - 6 * dot], [x, y + 6 * dot, x, canvas.height]]) {
      context.moveTo(x0, y0);
      context.lineTo(x1, y1);
    }
    context.stroke();
    context.fillStyle = "#e8eaed";
    context.font = `${13 * dot}px system-ui, sans-serif`;
    context.textBaseline = "top";
    context.fillText(`${name} ${worldMm(state.at)[axis].toFixed(1)} mm`, 6 * dot, 5 * dot);
    context.textBaseline = "bottom";
    context.fillText(ends[0], 6 * dot, canvas.height - 5 * dot);
    context.textAlign = "right";
    context.fillText(ends[1], canvas.width - 6 * dot, canvas.height - 5 * dot);
    context.textAlign = "left";
  }

  function tell() {
    const here = voxel(state.at);
    const { name, code } = labels[codes[here]];
    const [first, last] = facts.scale;
    const intensity = (first + grey[here] / 255 * (last - first)).toPrecision(3);
    const mm = worldMm(state.at).map((value, i) => `${"RAS"[i]} ${value.toFixed(1)}`).join("  ");
    byId("here").textContent = `${name} (${code}) · ${mm} mm · intensity about ${Number(intensity)}`;
    for (const button of byId("structures").children) {
      button.toggleAttribute("aria-current", button.value === String(codes[here]));
    }
  }

  let waiting = false;
  function show() {
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(() => {
      waiting = false;
      PLANES.forEach(draw);
      sliders.forEach((slider, axis) => { slider.value = state.at[axis]; });
      tell();
    });
  }

  function move(axis, to) {
    state.at[axis] = Math.min(shape[axis] - 1, Math.max(0, Math.round(to)));
    show();
  }

  // -- pictures ---------------------------------------------------------------------------

  for (const plane of PLANES) {
    const { axis, right, up, name } = plane;
    plane.source = Object.assign(document.createElement("canvas"), { width: shape[right], height: shape[up] });
    const canvas = plane.canvas = document.createElement("canvas");
    canvas.tabIndex = 0;
    canvas.id = name.toLowerCase();
    canvas.setAttribute("role", "img");
    canvas.setAttribute("aria-label", `${name} cut through the image and its labels; what is under the cross is told below`);
    const point = (event) => {
      const box = canvas.getBoundingClientRect();
      move(right, Math.floor((event.clientX - box.left) / box.width * shape[right]));
      move(up, shape[up] - 1 - Math.floor((event.clientY - box.top) / box.height * shape[up]));
    };
    canvas.addEventListener("pointerdown", (event) => { canvas.setPointerCapture(event.pointerId); point(event); });
    canvas.addEventListener("pointermove", (event) => { if (event.buttons) point(event); });
    canvas.addEventListener("wheel", (event) => {
      event.preventDefault();
      move(axis, state.at[axis] - Math.sign(event.deltaY));
    }, { passive: false });
    const keys = {
      ArrowLeft: [right, -1], ArrowRight: [right, 1], ArrowDown: [up, -1], ArrowUp: [up, 1],
      PageDown: [axis, -1], PageUp: [axis, 1],
    };
    canvas.addEventListener("keydown", (event) => {
      const [along, step] = keys[event.key] || [];
      if (along === undefined) return;
      event.preventDefault();
      move(along, state.at[along] + step);
    });
    byId("planes").append(canvas);
  }

  function fit() {
    const room = byId("planes").clientWidth - 12;
    const widths = PLANES.map(({ right }) => shape[right] * voxelSizeMm[right]);
    const together = room > 700;
    const total = together ? widths.reduce((a, b) => a + b) : Math.max(...widths);
    const pxPerMm = (room - (together ? 6 * (PLANES.length - 1) : 0)) / total;
    const dot = window.devicePixelRatio || 1;
    for (const { canvas, right, up } of PLANES) {
      const size = [right, up].map((axis) => Math.max(1, Math.floor(shape[axis] * voxelSizeMm[axis] * pxPerMm)));
      [canvas.style.width, canvas.style.height] = size.map((px) => `${px}px`);
      [canvas.width, canvas.height] = size.map((px) => Math.round(px * dot));
    }
    show();
  }

  // -- controls ---------------------------------------------------------------------------

  function control(words, input, onInput) {
    const label = document.createElement("label");
    input.addEventListener("input", () => { onInput(input); show(); });
    label.append(words, input);
    byId("controls").append(label);
    return input;
  }
  function range(words, name, [min, max, step, value], onInput) {
    const input = document.createElement("input");
    Object.assign(input, { type: "range", id: name, min, max, step, value });
    return control(words, input, ({ value: text }) => onInput(Number(text)));
  }

  const sliders = AXES.map((ends, axis) =>
    range(ends.join(" to "), `axis${axis}`, [0, shape[axis] - 1, 1, state.at[axis]], (value) => move(axis, value)));
  range("labels", "opacity", [0, 1, 0.05, state.opacity], (value) => { state.opacity = value; });
  range("black at", "black", [0, 255, 1, state.window[0]], (value) => { state.window[0] = value; });
  range("white at", "white", [0, 255, 1, state.window[1]], (value) => { state.window[1] = value; });
  const outlines = Object.assign(document.createElement("input"), { type: "checkbox", id: "outlines" });
  control("outlines only", outlines, ({ checked }) => { state.outlines = checked; });

  function middle(index) {
    let count = 0;
    for (const one of codes) count += one === index;
    let left = Math.ceil(count / 2);
    const here = codes.findIndex((one) => one === index && --left === 0);
    return [here % shape[0], Math.floor(here / strides[1]) % shape[1], Math.floor(here / strides[2])];
  }
  labels.forEach(({ name, color, code }, index) => {
    if (!color) return;
    const button = Object.assign(document.createElement("button"), { type: "button", value: index, title: `code ${code}` });
    const swatch = Object.assign(document.createElement("span"), { className: "swatch" });
    swatch.style.backgroundColor = color;
    button.append(swatch, name);
    button.addEventListener("click", () => { state.at = middle(index); show(); });
    byId("structures").append(button);
  });

  window.addEventListener("resize", fit);
  fit();
})();
