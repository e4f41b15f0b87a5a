"use strict";
(() => {
  const { axes, charts } = JSON.parse(document.getElementById("curves").textContent);
  const COLOURS = 8, HEIGHT = 215, FEW = 25;
  const state = { smoothing: 0, axis: "step" };
  const plots = new Map(); // figure -> {plot, hidden: labels that are switched off}

  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

  function format(value) {
    if (value === null || value === undefined) return "";
    const size = Math.abs(value);
    if (size >= 1000) return value.toLocaleString("en", { maximumFractionDigits: size < 1e5 ? 1 : 0 });
    return size !== 0 && size < 1e-3 ? value.toExponential(2) : String(Number(value.toPrecision(4)));
  }

  function short(value) {
    const size = Math.abs(value);
    if (size >= 1e12) return value / 1e12 + "T";
    if (size >= 1e9) return value / 1e9 + "G";
    if (size >= 1e6) return value / 1e6 + "M";
    if (size >= 1e4) return value / 1e3 + "k";
    return size !== 0 && size < 1e-3 ? value.toExponential(0) : String(Number(value.toPrecision(6)));
  }

  const powers = (_, ticks) => ticks.map((tick) => (Math.abs(Math.log10(tick) % 1) < 1e-9 ? tick : null));

  // An exponential moving mean, divided by the weight that it has by then, so that it is unbiased from the first point.
  function smoothed(values, weight) {
    let sum = 0, mass = 0;
    return values.map((value) => {
      if (value === null) return null;
      sum = weight * sum + (1 - weight) * value;
      mass = weight * mass + (1 - weight);
      return sum / mass;
    });
  }

  // The columns of one curve, without points whose place on the axis is not known.
  function columns(curve, logarithmic) {
    const at = axes[curve.axis][state.axis];
    const known = at.flatMap((place, index) => (place === null ? [] : [index]));
    const fits = (value) => (logarithmic && value <= 0 ? null : value);
    const take = (values) => known.map((index) => fits(values[index]));
    const mean = take(curve.mean), bands = curve.low ? [take(curve.low), take(curve.high)] : [];
    return [take(at), mean, state.smoothing ? smoothed(mean, state.smoothing) : mean, ...bands];
  }

  function draw(figure) {
    const known = plots.get(figure);
    const hidden = known ? known.hidden : new Set();
    if (known) known.plot.destroy();
    const chart = charts[Number(figure.dataset.chart)];
    const series = [{}], bands = [], tables = [], lines = [];
    let number = -1;
    for (const curve of chart.curves) {
      if (!curve.dashed) number += 1;
      const stroke = colour("--c" + (Math.max(number, 0) % COLOURS));
      const show = !hidden.has(curve.label);
      const table = columns(curve, chart.logarithmic);
      const points = { show: table[0].length < FEW, size: 5, fill: stroke };
      tables.push(table);
      const faint = state.smoothing ? stroke + "50" : "transparent";
      series.push({ stroke: faint, width: 1, show, spanGaps: true, points: { show: false } });
      lines.push({ label: curve.label, index: series.length, stroke });
      series.push({ stroke, width: 1.6, show, spanGaps: true, points, dash: curve.dashed ? [6, 4] : undefined });
      if (curve.low) {
        const edge = { stroke: "transparent", show, spanGaps: true, points: { show: false } };
        bands.push({ series: [series.length + 1, series.length], fill: stroke + "28" });
        series.push(edge, { ...edge });
      }
    }
    const line = { stroke: colour("--line"), width: 1 };
    const axis = { stroke: colour("--soft"), grid: line, ticks: line, font: "11px system-ui" };
    const sparse = { filter: powers, grid: { ...line, filter: powers }, ticks: { ...line, filter: powers } };
    const place = figure.querySelector(".plot");
    place.textContent = "";
    const plot = new uPlot({
      width: place.clientWidth, height: HEIGHT, series, bands,
      legend: { show: false },
      cursor: { points: { size: 6 }, sync: { key: "report-" + state.axis, scales: ["x", null] } },
      scales: { x: { time: false }, y: { distr: chart.logarithmic ? 3 : 1 } },
      axes: [
        { ...axis, size: 30, values: (_, ticks) => ticks.map(short) },
        { ...axis, size: 56, ...(chart.logarithmic ? sparse : {}), values: (_, ticks) => ticks.map((tick) => (tick === null ? "" : short(tick))) },
      ],
      hooks: { setCursor: [(self) => tell(figure, lines, self)] },
    }, uPlot.join(tables), place);
    plots.set(figure, { plot, hidden });
    explain(figure, lines, hidden);
    tell(figure, lines, plot);
  }

  // The legend: a button for each curve, which switches it off and on, and its value under the cursor.
  function explain(figure, lines, hidden) {
    const legend = figure.querySelector(".legend");
    legend.textContent = "";
    for (const { label, stroke } of lines) {
      const item = document.createElement("li"), button = document.createElement("button");
      const swatch = document.createElement("i"), output = document.createElement("output");
      swatch.style.background = stroke;
      button.type = "button";
      button.setAttribute("aria-pressed", String(!hidden.has(label)));
      button.append(swatch, label);
      button.addEventListener("click", () => {
        if (!hidden.delete(label)) hidden.add(label);
        draw(figure);
      });
      item.append(button, output);
      legend.append(item);
    }
  }

  function tell(figure, lines, plot) {
    const outputs = figure.querySelectorAll("output");
    const index = plot.cursor.idx;
    lines.forEach((line, number) => {
      if (!outputs[number]) return;
      const values = plot.data[line.index];
      let at = index === null || index === undefined ? values.length - 1 : index;
      while (at > 0 && (values[at] === null || values[at] === undefined)) at -= 1;
      outputs[number].textContent = format(values[at]);
    });
  }

  const redraw = () => [...plots.keys()].forEach(draw);
  const seen = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      if (entry.isIntersecting && !plots.has(entry.target)) draw(entry.target);
    }
  }, { rootMargin: "400px" });
  const resized = new ResizeObserver((entries) => {
    for (const { target } of entries) {
      const known = plots.get(target);
      const width = target.querySelector(".plot").clientWidth;
      if (known && width !== known.plot.width) known.plot.setSize({ width, height: HEIGHT });
    }
  });
  for (const figure of document.querySelectorAll(".chart")) {
    seen.observe(figure);
    resized.observe(figure);
  }

  const slider = document.getElementById("smoothing"), select = document.getElementById("axis");
  slider.addEventListener("input", () => { state.smoothing = Number(slider.value); redraw(); });
  for (const option of select.options) {
    option.disabled = axes.length > 0 && axes.every((axis) => axis[option.value].every((place) => place === null));
  }
  select.addEventListener("change", () => { state.axis = select.value; redraw(); });
  const dark = matchMedia("(prefers-color-scheme: dark)");
  dark.addEventListener("change", redraw);
  document.getElementById("theme").addEventListener("click", () => {
    const root = document.documentElement;
    const now = root.dataset.theme || (dark.matches ? "dark" : "light");
    root.dataset.theme = now === "dark" ? "light" : "dark";
    redraw();
  });
  addEventListener("beforeprint", () => document.querySelectorAll(".chart").forEach((figure) => plots.has(figure) || draw(figure)));
})();
