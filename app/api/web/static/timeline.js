// The time line: one column a version, four panels on one axis (accuracies; gap; density; bytes).
// Knows: the figures in #lines[data-figures]. Colours come from the style sheet's tokens.
"use strict";
(() => {
  const place = document.getElementById("timeline");
  if (!place) return;
  const NBSP = "\u00a0";
  const SIGNS = { promoted: "▲", withheld: "‖", back: "↺", kept: "" };
  const narrow = matchMedia("(max-width: 760px)");
  let figures = null, plots = [], shown = null, last = 0;

  const token = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const tones = () => ({ good: token("--good"), bad: token("--bad"), blue: token("--blue"), mute: token("--mute") });
  const faded = (colour, share) => `color-mix(in srgb, ${colour} ${share}%, transparent)`;
  const percent = (value, digits = 0) => `${(100 * value).toFixed(digits)}${NBSP}%`;
  const points = (value, digits = 0) => `${(100 * value).toFixed(digits).replace("-", "−")}${NBSP}${figures.points}`;
  const size = (bytes) => {
    let unit = 0;
    while (bytes >= 999.5 && unit < 4) { bytes /= 1000; unit += 1; }
    return `${bytes >= 99.95 || unit === 0 ? Math.round(bytes) : bytes.toFixed(1)}${NBSP}${["B", "kB", "MB", "GB", "TB"][unit]}`;
  };
  const font = () => `11.5px ${getComputedStyle(document.body).fontFamily}`;
  const ratio = () => devicePixelRatio || 1;

  const read = () => {
    const source = document.getElementById("lines");
    return source && source.dataset.figures ? JSON.parse(source.dataset.figures) : null;
  };

  // -- drawing ----------------------------------------------------------------------------------------------------------

  const half = (u) => {
    const span = Math.max(1, u.scales.x.max - u.scales.x.min);
    return Math.max(1, (u.bbox.width / span / 2) * 0.78);
  };
  const visible = (u) => {
    const from = Math.max(0, Math.ceil(u.scales.x.min)), to = Math.min(figures.version.length - 1, Math.floor(u.scales.x.max));
    return Array.from({ length: Math.max(0, to - from + 1) }, (_, step) => from + step);
  };

  const tint = (u) => {
    const reach = Math.min(half(u), 40 * ratio());
    u.ctx.save();
    u.ctx.fillStyle = faded(token("--amber"), 12);
    for (const index of visible(u)) {
      if (!figures.held[index]) continue;
      const x = u.valToPos(index, "x", true);
      u.ctx.fillRect(x - reach, u.bbox.top, 2 * reach, u.bbox.height);
    }
    u.ctx.restore();
  };
  const marks = (u) => {
    const colours = tones();
    const dense = half(u) < 5 * ratio();
    u.ctx.save();
    u.ctx.font = `${13 * ratio()}px ${getComputedStyle(document.body).fontFamily}`;
    u.ctx.textAlign = "center";
    for (const index of visible(u)) {
      const sign = figures.sign[index];
      if (!SIGNS[sign] || (dense && sign === "promoted")) continue;
      u.ctx.fillStyle = colours[figures.tone[index]];
      u.ctx.fillText(SIGNS[sign], u.valToPos(index, "x", true), u.bbox.top - 7 * ratio());
    }
    u.ctx.restore();
  };
  const bars = (u) => {
    const reach = Math.min(half(u), 9 * ratio()), zero = u.valToPos(0, "y", true);
    u.ctx.save();
    u.ctx.fillStyle = faded(token("--amber"), 80);
    for (const index of visible(u)) {
      const value = figures.gap[index];
      if (value === null) continue;
      const y = u.valToPos(value, "y", true);
      u.ctx.fillRect(u.valToPos(index, "x", true) - reach, Math.min(y, zero), 2 * reach, Math.max(1, Math.abs(zero - y)));
    }
    u.ctx.restore();
  };
  const target = (u) => {
    const y = Math.round(u.valToPos(figures.target, "y", true)) + 0.5;
    if (y < u.bbox.top || y > u.bbox.top + u.bbox.height + 1) return;
    u.ctx.save();
    u.ctx.strokeStyle = token("--amber");
    u.ctx.lineWidth = 1.2 * ratio();
    u.ctx.setLineDash([4 * ratio(), 4 * ratio()]);
    u.ctx.beginPath();
    u.ctx.moveTo(u.bbox.left, y);
    u.ctx.lineTo(u.bbox.left + u.bbox.width, y);
    u.ctx.stroke();
    u.ctx.restore();
  };
  const labels = (u) => {
    const every = Math.max(1, Math.ceil((54 * ratio()) / (2 * half(u) / 0.78)));
    u.ctx.save();
    u.ctx.textAlign = "center";
    for (const index of visible(u)) {
      const champion = figures.version[index] === figures.champion;
      const near = Math.abs(figures.version.indexOf(figures.champion) - index) < every;
      if (!champion && (index % every !== 0 || near)) continue;
      const x = u.valToPos(index, "x", true), y = u.bbox.top + u.bbox.height;
      u.ctx.font = `${champion ? "650 " : ""}${11.5 * ratio()}px ${getComputedStyle(document.body).fontFamily}`;
      u.ctx.fillStyle = champion ? token("--ink") : token("--mute");
      u.ctx.fillText(`v${figures.version[index]}${champion ? " ★" : ""}`, x, y + 17 * ratio());
      u.ctx.font = `${10.5 * ratio()}px ${getComputedStyle(document.body).fontFamily}`;
      u.ctx.fillStyle = token("--mute");
      if (figures.megabatches[index]) u.ctx.fillText(`${narrow.matches || every > 1 ? "m" : figures.words.megabatch + " "}${figures.megabatches[index]}`, x, y + 32 * ratio());
    }
    u.ctx.restore();
  };

  const axis = (values, splits) => ({
    stroke: token("--mute"), font: font(), size: 52, gap: 6, ticks: { show: false }, border: { show: false },
    grid: { stroke: token("--grid"), width: 1 }, values: (u, all, at, space, step) => all.map((value) => values(value, step)), filter: (u, all) => all, ...(splits ? { splits } : { space: 34 }),
  });
  const bare = () => ({ show: true, size: 0, values: () => [], grid: { show: false }, ticks: { show: false }, border: { show: false } });
  const line = (colour, extra = {}) => ({
    stroke: token(colour), width: 2, spanGaps: true,
    points: { show: figures.version.length <= 60, size: 7, width: 2, stroke: token(colour), fill: token("--card") }, ...extra,
  });
  const stepped = (colour) => line(colour, { width: 2.4, paths: uPlot.paths.stepped({ align: 1 }), points: { show: false } });

  const x = () => ({ time: false, range: (u, low, high) => (low === high ? [low - 1, high + 1] : [low, high]) });
  const known = (...lists) => lists.flat().filter((value) => value !== null);

  const accuracyRange = () => {
    const values = known(figures.validation, figures.arrival, figures.evaluation);
    const low = values.length ? Math.min(...values) : 0;
    return [Math.max(0, Math.floor(10 * low - 0.2) / 10), 1.005];
  };
  const gapRange = () => {
    const values = known(figures.gap);
    return [Math.min(0, ...values), Math.max(0.01, ...values) * 1.1];
  };
  const densitySplits = () => {
    const least = Math.min(figures.target, ...figures.density);
    return [0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1].filter((value) => value >= least * 0.6);
  };
  const densityRange = () => [Math.min(figures.target, ...figures.density) * 0.82, 1.08];
  const bytesRange = () => [0, Math.max(...figures.bytes) * 1.1];

  const panels = () => {
    const scale = narrow.matches ? 0.82 : 1;
    return [
      { height: 262 * scale, top: 24, bottom: 8, series: [line("--good"), line("--blue"), line("--violet")], data: ["validation", "arrival", "evaluation"],
        y: { range: accuracyRange }, axis: axis((value, step) => percent(value, step < 0.01 ? 1 : 0)), draw: [marks] },
      { height: 84 * scale, top: 6, bottom: 8, series: [{ stroke: "transparent", points: { show: false } }], data: ["gap"],
        y: { range: gapRange }, axis: { ...axis((value, step) => points(value, step < 0.01 ? 1 : 0)), space: 28 }, draw: [bars] },
      { height: 110 * scale, top: 6, bottom: 8, series: [stepped("--good-2")], data: ["density"],
        y: { range: densityRange, distr: 3, log: 10 }, axis: axis((value) => (value === null ? "" : percent(value, value < 0.01 ? 2 : 0)), densitySplits), draw: [target] },
      { height: 96 * scale, top: 6, bottom: 40, series: [line("--edge", { points: { show: false } })], data: ["bytes"],
        y: { range: bytesRange }, axis: { ...axis((value) => size(value)), space: 24 }, draw: [labels] },
    ];
  };

  // -- the pointer -------------------------------------------------------------------------------------------------------

  const tip = document.createElement("div");
  tip.className = "tip";
  tip.hidden = true;

  const rows = (index) => {
    const pairs = [
      ["validation", figures.validation[index], (value) => percent(value, 1)], ["arrival", figures.arrival[index], (value) => percent(value, 1)],
      ["evaluation", figures.evaluation[index], (value) => percent(value, 1)], ["gap", figures.gap[index], (value) => points(value, 1)],
      ["density", figures.density[index], (value) => percent(value, 1)], ["bytes", figures.bytes[index], size],
    ];
    return pairs.filter(([, value]) => value !== null).map(([name, value, told]) => [figures.words[name], told(value)]);
  };
  const tell = (u) => {
    const index = u.cursor.idx;
    if (index === null || index === undefined || u.cursor.left < 0) { tip.hidden = true; shown = null; return; }
    if (shown !== index) {
      shown = index;
      const title = document.createElement("b");
      title.textContent = `v${figures.version[index]} · ${figures.status[index]}`;
      const list = document.createElement("dl");
      const all = rows(index);
      if (figures.megabatches[index]) all.push([figures.words.megabatch, figures.megabatches[index]]);
      for (const [name, value] of all) {
        const term = document.createElement("dt"), told = document.createElement("dd");
        term.textContent = name;
        told.textContent = value;
        list.append(term, told);
      }
      tip.replaceChildren(title, list);
      if (figures.reason[index]) {
        const why = document.createElement("p");
        why.className = "sub";
        why.textContent = figures.reason[index];
        tip.append(why);
      }
    }
    tip.hidden = false;
    const left = u.valToPos(index, "x") + u.over.offsetLeft, right = left > place.clientWidth / 2;
    tip.style.left = right ? "auto" : `${left + 14}px`;
    tip.style.right = right ? `${place.clientWidth - left + 14}px` : "auto";
    tip.style.top = "40px";
  };

  let moving = false;
  const zoom = (u, key) => {
    if (key !== "x" || moving) return;
    moving = true;
    for (const plot of plots) if (plot !== u) plot.setScale("x", { min: u.scales.x.min, max: u.scales.x.max });
    moving = false;
  };
  const window_ = () => {
    const end = figures.version.length - 1;
    const from = last && end + 1 > last ? end - last + 1 : 0;
    return { min: from - 0.5, max: end + 0.5 };
  };

  const make = (panel, index) => new uPlot({
    width: place.clientWidth || 300, height: Math.round(panel.height + panel.top + (panel.bottom || 0)),
    padding: [panel.top, 22, panel.bottom || 0, 0], legend: { show: false },
    cursor: { sync: { key: "espalier", setSeries: false }, points: { show: false }, y: false, drag: { x: true, y: false, dist: 6 } },
    scales: { x: x(), y: panel.y }, axes: [bare(), panel.axis], series: [{}, ...panel.series],
    hooks: {
      drawClear: [tint], draw: panel.draw, setScale: [zoom], setCursor: index ? [] : [tell],
      ready: [(u) => {
        let down = 0;
        u.over.addEventListener("mousedown", (event) => { down = event.clientX; });
        u.over.addEventListener("click", (event) => {
          const at = u.cursor.idx;
          if (at !== null && at !== undefined && Math.abs(event.clientX - down) < 4) location.assign(place.dataset.versions + figures.version[at]);
        });
        u.over.addEventListener("dblclick", () => fit());
      }],
    },
  }, [figures.version.map((_, at) => at), ...panel.data.map((name) => figures[name])], place);

  const fit = () => { for (const plot of plots) plot.setScale("x", window_()); };

  const draw = () => {
    figures = read();
    if (!figures || !window.uPlot) return;
    for (const plot of plots) plot.destroy();
    place.replaceChildren();
    plots = panels().map(make);
    place.append(tip);
    fit();
    const switches = document.querySelector("[data-zoom]");
    if (switches) switches.hidden = figures.version.length <= 25;
  };

  // -- when it is drawn ----------------------------------------------------------------------------------------------------

  figures = read();
  if (figures && figures.version.length > 100) last = 100;
  draw();
  let width = place.clientWidth;
  new ResizeObserver(() => { if (place.clientWidth !== width) { width = place.clientWidth; draw(); } }).observe(place);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  let before = document.getElementById("lines").dataset.figures;
  document.addEventListener("espalier-figures", () => {
    const now = document.getElementById("lines");
    if (now && now.dataset.figures !== before) { before = now.dataset.figures; draw(); }
  });
  for (const button of document.querySelectorAll("[data-last]"))
    button.addEventListener("click", () => { last = Number(button.dataset.last); fit(); });
})();
