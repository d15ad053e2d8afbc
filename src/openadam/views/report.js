// The page of a report: values under the pointer or the arrow keys, the heatmap, and the numbers as files. Nothing is fetched.
"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const NS = "http://www.w3.org/2000/svg";
  const format = (x) => (x === null || x === undefined ? "–" : String(Number(x.toPrecision(4))));
  const short = (text, n) => (text.length > n ? text.slice(0, n / 2) + "…" + text.slice(-n / 2) : text);

  // What a chart's line shows: a number of whole steps, or a reading of a tensor.
  function line([label, t, kind, a, b]) {
    const track = data.tracks[t];
    if (kind === "scalar") return banded({ label, ...track.scalars[a] });
    return banded({ label, first: track.first, last: track.last, ...track.tensors[a].values[b] });
  }
  // A series without a band is written by its values alone.
  const banded = (s) => ({ low: s.mid, high: s.mid, ...s });

  function nearest(series, step) {
    let best = 0, least = Infinity;
    for (let k = 0; k < series.first.length; k++) {
      const away = Math.max(series.first[k] - step, step - series.last[k], 0);
      if (away < least) { least = away; best = k; }
    }
    return best;
  }

  const steps = (s, k) => (s.first[k] === s.last[k] ? `step ${s.first[k]}` : `steps ${s.first[k]} to ${s.last[k]}`);
  function value(s, k) {
    const even = s.low[k] === s.high[k];
    return s.mid[k] === null ? "–" : even ? format(s.mid[k]) : `${format(s.mid[k])} [${format(s.low[k])} … ${format(s.high[k])}]`;
  }

  for (const svg of document.querySelectorAll("svg[data-chart]")) {
    const own = svg.dataset, lines = (data.charts[own.chart] || []).map(line).filter((s) => s.first.length);
    if (!lines.length) continue;
    const [left, right, first, last] = [own.left, own.right, own.first, own.last].map(Number);
    const readout = document.getElementById(own.chart + "-r");
    let at = 0;
    const show = (step) => {
      at = nearest(lines[0], step);
      for (const other of svg.closest("section.track").querySelectorAll("svg[data-chart] .cursor")) {
        const its = other.parentNode.dataset, part = (step - its.first) / (its.last - its.first || 1); // an axis may go on to a forecast
        const x = Number(its.left) + Math.min(Math.max(part, 0), 1) * (its.right - its.left);
        other.setAttribute("d", `M${x.toFixed(1)} ${its.top}V${its.bottom}`);
        other.setAttribute("visibility", "visible");
      }
      const parts = lines.map((s) => { const k = nearest(s, step); return `${s.label} ${value(s, k)}`; });
      readout.textContent = `${steps(lines[0], at)}: ${parts.join(" · ")}`;
    };
    svg.addEventListener("pointermove", (event) => {
      const box = svg.getBoundingClientRect();
      const x = ((event.clientX - box.left) / box.width) * svg.viewBox.baseVal.width;
      show(first + (Math.min(Math.max((x - left) / (right - left), 0), 1)) * (last - first));
    });
    svg.addEventListener("keydown", (event) => {
      const moves = { ArrowLeft: at - 1, ArrowRight: at + 1, Home: 0, End: lines[0].first.length - 1 };
      if (!(event.key in moves)) return;
      event.preventDefault();
      const k = Math.min(Math.max(moves[event.key], 0), lines[0].first.length - 1);
      show((lines[0].first[k] + lines[0].last[k]) / 2);
      at = k;
    });
  }

  // --- a plane: the nearest point of a way, or the next on it -----------------------------------------------------------

  for (const svg of document.querySelectorAll("svg[data-plane]")) {
    const own = svg.dataset, readout = document.getElementById(own.plane + "-r"), cursor = svg.querySelector(".cursor");
    const log = (low, high, from, to) => (x) => Number(from) + (Math.log(x / low) / Math.log(high / low)) * (to - from);
    const across = log(own.xLow, own.xHigh, own.left, own.right), down = log(own.yLow, own.yHigh, own.bottom, own.top);
    const points = [];
    for (const [label, t, , k, a, b] of data.charts[own.plane] || []) {
      const track = data.tracks[t], values = track.tensors[k].values;
      track.first.forEach((_, n) => {
        const x = values[a].mid[n], y = values[b].mid[n];
        if (x > 0 && y > 0) points.push({ label, track, n, x, y, at: [across(x), down(y)] });
      });
    }
    if (!points.length) continue;
    let here = -1;
    const show = (k) => {
      here = Math.min(Math.max(k, 0), points.length - 1);
      const p = points[here];
      cursor.setAttribute("cx", p.at[0].toFixed(1));
      cursor.setAttribute("cy", p.at[1].toFixed(1));
      cursor.setAttribute("visibility", "visible");
      readout.textContent = `${p.label}, ${steps(p.track, p.n)}: rms(g) ${format(p.x)} · rms(m) ${format(p.y)} · m/g ${format(p.y / p.x)}`;
    };
    svg.addEventListener("pointermove", (event) => {
      const box = svg.getBoundingClientRect(), zoom = svg.viewBox.baseVal.width / box.width;
      const x = (event.clientX - box.left) * zoom, y = (event.clientY - box.top) * zoom;
      const away = points.map((p) => Math.hypot(p.at[0] - x, p.at[1] - y));
      show(away.reduce((best, d, k) => (d < away[best] ? k : best), 0));
    });
    svg.addEventListener("keydown", (event) => {
      const moves = { ArrowLeft: here - 1, ArrowRight: here + 1, Home: 0, End: points.length - 1 };
      if (!(event.key in moves)) return;
      event.preventDefault();
      show(moves[event.key]);
    });
  }

  // --- histograms: octaves x the steps that were kept, and the last and first of them ---------------------------------

  const power = (x) => (x >= 0.01 && x < 1e4 ? String(Number(x.toPrecision(3))) : x.toExponential(1).replace("e+", "e").replace(".0e", "e"));
  function spread(of, name) {
    const figure = document.createElement("figure"), caption = document.createElement("figcaption"), note = document.createElement("p");
    caption.textContent = `${of.label} of ${short(name, 60)}`;
    note.className = "note";
    note.textContent = `${of.meaning}. ${of.words}`;
    figure.append(caption, note);
    const bins = of.edges.length - 1;
    if (bins < 1) return figure;
    const lead = of.line !== null && of.line > 0 ? [Math.log2(of.line)] : [];
    const height = 190, top = 8, bottom = height - 26, left = 64, middle = 560, from = 580, right = 750;
    const logs = of.edges.map(Math.log2);
    const near = lead.filter((x) => x > logs[0] - 30 && x < logs[bins] + 30); // further away it would leave the bins no room
    const low = Math.min(logs[0], ...near) - 0.5, high = Math.max(logs[bins], ...near) + 0.5;
    const y = (log) => bottom - ((log - low) / (high - low)) * (bottom - top);
    const svg = element("svg", { viewBox: `0 0 760 ${height}`, role: "img", tabindex: "0" });
    svg.append(element("title", {}, `${caption.textContent} over the steps; arrow keys go from cell to cell`), element("desc", {}, of.words));
    const apart = Math.max(1, Math.ceil((high - low) / 3.3219 / 6));
    for (let e = Math.ceil(low / 3.3219); e * 3.3219 <= high; e += apart) {
      svg.append(element("path", { class: "grid", d: `M${left} ${y(e * 3.32193).toFixed(1)}H${right}` }));
      svg.append(element("text", { class: "tick", x: left - 6, y: y(e * 3.32193).toFixed(1), dy: 4, "text-anchor": "end" }, power(10 ** e)));
    }
    const n = of.steps.length, end = n > 1 ? of.steps[n - 1] + (of.steps[n - 1] - of.steps[0]) / (n - 1) : of.steps[0] + 1;
    const x = (step) => left + ((step - of.steps[0]) / (end - of.steps[0])) * (middle - left);
    const most = Math.max(1, ...of.shares.map((column) => Math.max(...column)));
    const cells = [];
    of.shares.forEach((column, j) => column.forEach((share, k) => {
      const until = j + 1 < n ? of.steps[j + 1] : end;
      const cell = element("rect", { class: "cell", x: x(of.steps[j]).toFixed(1), y: y(logs[k + 1]).toFixed(1), width: Math.max(x(until) - x(of.steps[j]), 1).toFixed(1), height: (y(logs[k]) - y(logs[k + 1])).toFixed(1), "fill-opacity": Math.sqrt(share / most).toFixed(3) });
      cell.place = [j, k];
      cells.push(cell);
    }));
    svg.append(...cells);
    const wide = Math.max(1, ...of.shares[0], ...of.shares[n - 1]);
    const across = (share) => from + (share / wide) * (right - from);
    of.shares[n - 1].forEach((share, k) => svg.append(element("rect", { class: "cell", x: from, y: y(logs[k + 1]).toFixed(1), width: (across(share) - from).toFixed(1), height: (y(logs[k]) - y(logs[k + 1])).toFixed(1), "fill-opacity": 0.7 })));
    if (n > 1) svg.append(element("path", { class: "axis", d: `M${from} ${y(logs[0]).toFixed(1)}` + of.shares[0].map((share, k) => `H${across(share).toFixed(1)}V${y(logs[k + 1]).toFixed(1)}`).join("") + `H${from}` }));
    svg.append(element("path", { class: "axis", d: `M${left} ${top}V${bottom}H${middle}M${from} ${top}V${bottom}H${right}` }));
    svg.append(element("text", { class: "tick", x: left, y: height - 10 }, `step ${of.steps[0]}`));
    if (n > 1) svg.append(element("text", { class: "tick", x: x(of.steps[n - 1]).toFixed(1), y: height - 10, "text-anchor": "end" }, `step ${of.steps[n - 1]}`));
    svg.append(element("text", { class: "tick", x: right, y: height - 10, "text-anchor": "end" }, n > 1 ? "last (filled), first (outline)" : "shares"));
    for (const at of near) {
      svg.append(element("path", { class: "null", d: `M${left} ${y(at).toFixed(1)}H${right}` }));
      svg.append(element("text", { class: "beside", x: left + 4, y: (y(at) < top + 14 ? y(at) + 12 : y(at) - 4).toFixed(1) }, `${of.lineLabel} ${format(of.line)}`));
    }
    const frame = element("rect", { class: "cursor", "stroke-width": 2, visibility: "hidden" }), readout = document.createElement("p");
    svg.append(frame);
    readout.className = "readout";
    readout.setAttribute("aria-live", "polite");
    readout.textContent = "\u00a0";
    let here = null;
    const show = (cell) => {
      if (!cell) return;
      here = cell;
      const [j, k] = cell.place;
      for (const key of ["x", "y", "width", "height"]) frame.setAttribute(key, cell.getAttribute(key));
      frame.setAttribute("visibility", "visible");
      readout.textContent = `step ${of.steps[j]}: ${format(of.shares[j][k] / 100)}% from ${format(of.edges[k])} to ${format(of.edges[k + 1])}`;
    };
    svg.addEventListener("pointermove", (event) => { if (event.target.place) show(event.target); });
    svg.addEventListener("keydown", (event) => {
      const move = { ArrowLeft: -bins, ArrowRight: bins, ArrowUp: 1, ArrowDown: -1 }[event.key];
      if (!move) return;
      event.preventDefault();
      const [, k] = here ? here.place : [0, 0];
      if (here && Math.abs(move) === 1 && (k + move < 0 || k + move >= bins)) return;
      show(here ? cells[cells.indexOf(here) + move] : cells[(n - 1) * bins + of.shares[n - 1].indexOf(Math.max(...of.shares[n - 1]))]);
    });
    const plot = document.createElement("div");
    plot.className = "plot";
    plot.append(svg);
    figure.append(plot, readout);
    return figure;
  }

  for (const holder of document.querySelectorAll("[data-histograms]")) {
    const all = data.tracks[Number(holder.dataset.histograms)].histograms, select = holder.querySelector("select");
    const drawn = () => {
      const { tensor, spreads } = all[Number(select.value)];
      holder.querySelector(".heat").replaceChildren(...spreads.map((each) => spread(each, tensor)));
    };
    select.addEventListener("change", drawn);
    holder.hidden = false;
    drawn();
  }

  // --- the heatmap: tensors x steps, darker to brighter as values grow -------------------------------------------------

  const RAMP = [[0, 34, 78], [56, 72, 107], [112, 113, 115], [165, 156, 116], [221, 204, 103], [254, 232, 56]]; // cividis
  function colour(part) {
    const at = Math.min(Math.max(part, 0), 1) * (RAMP.length - 1), k = Math.min(Math.floor(at), RAMP.length - 2);
    return `rgb(${RAMP[k].map((c, j) => Math.round(c + (RAMP[k + 1][j] - c) * (at - k))).join(",")})`;
  }
  function element(name, attributes, text) {
    const made = document.createElementNS(NS, name);
    for (const [key, given] of Object.entries(attributes)) made.setAttribute(key, given);
    if (text !== undefined) made.textContent = text;
    return made;
  }

  for (const holder of document.querySelectorAll("[data-heat]")) {
    const track = data.tracks[Number(holder.dataset.heat)], select = holder.querySelector("select");
    const place = holder.querySelector(".heat"), readout = holder.querySelector(".readout"), scale = holder.querySelector(".scale");
    const left = 190, width = 760, row = 15, top = 4;
    const drawn = () => {
      const name = select.value, about = data.readings[name];
      const all = track.tensors.flatMap((t) => t.values[name].mid).filter((x) => x !== null);
      place.replaceChildren();
      holder.querySelector(".meaning").textContent = about.meaning;
      if (!all.length) { scale.textContent = "Nothing of it was measured."; return; }
      let low = all.reduce((a, b) => Math.min(a, b)), high = all.reduce((a, b) => Math.max(a, b));
      const log = low > 0 && high > 30 * low, tell = log ? Math.log : (x) => x;
      scale.textContent = `from ${format(low)} (dark) to ${format(high)} (bright), ${log ? "logarithmic" : "linear"}; means of the buckets; gaps were not measured`;
      const end = track.last.reduce((a, b) => Math.max(a, b)), begin = track.first.reduce((a, b) => Math.min(a, b));
      const x = (step) => left + ((step - begin) / (end + 1 - begin)) * (width - left - 4);
      const height = top + row * track.tensors.length + 20;
      const svg = element("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", tabindex: "0" });
      svg.append(element("title", {}, `${about.label} of each tensor over the steps; arrow keys go from cell to cell`));
      const cells = [];
      track.tensors.forEach((tensor, t) => {
        const label = element("text", { class: "tick", x: left - 6, y: top + row * t + 11, "text-anchor": "end" }, short(tensor.name, 28));
        label.append(element("title", {}, tensor.name));
        svg.append(label);
        track.first.forEach((from, k) => {
          const found = tensor.values[name].mid[k];
          if (found === null) return;
          const until = k + 1 < track.first.length && track.first[k + 1] > from ? track.first[k + 1] : track.last[k] + 1;
          const part = high > low ? (tell(found) - tell(low)) / (tell(high) - tell(low)) : 0.5;
          const cell = element("rect", { x: x(from).toFixed(1), y: top + row * t, width: Math.max(x(until) - x(from), 0.5).toFixed(1), height: row - 1, fill: colour(part), "shape-rendering": "crispEdges" });
          cell.place = [t, k];
          cells.push(cell);
          svg.append(cell);
        });
      });
      svg.append(element("text", { class: "tick", x: left, y: height - 4 }, `step ${begin}`));
      svg.append(element("text", { class: "tick", x: width - 4, y: height - 4, "text-anchor": "end" }, `step ${end}`));
      const frame = element("rect", { fill: "none", stroke: "currentColor", "stroke-width": 2, visibility: "hidden" });
      svg.append(frame);
      let here = null;
      const show = (cell) => {
        if (!cell) return;
        here = cell;
        const [t, k] = cell.place, values = banded({ ...track.tensors[t].values[name], first: track.first, last: track.last });
        for (const key of ["x", "y", "width", "height"]) frame.setAttribute(key, cell.getAttribute(key));
        frame.setAttribute("visibility", "visible");
        readout.textContent = `${track.tensors[t].name}, ${steps(values, k)}: ${about.label} ${value(values, k)}`;
      };
      svg.addEventListener("pointermove", (event) => { if (event.target.place) show(event.target); });
      svg.addEventListener("keydown", (event) => {
        const move = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[event.key];
        if (!move) return;
        event.preventDefault();
        const [t, k] = here ? [here.place[0] + move[0], here.place[1] + move[1]] : cells[0].place;
        show(cells.find((cell) => cell.place[0] === t && cell.place[1] === k));
      });
      place.append(svg);
    };
    select.addEventListener("change", drawn);
    holder.hidden = false;
    drawn();
  }

  // --- the numbers as files --------------------------------------------------------------------------------------------

  // Text that a spreadsheet would compute is kept from it.
  const cell = (x) => (x === null || x === undefined ? "" : typeof x === "number" ? String(x) : `"${(/^[=+\-@\t\r]/.test(x) ? "'" : "") + x.replaceAll('"', '""')}"`);
  function asCsv() {
    const rows = [["track", "tensor", "reading", "first", "last", "min", "mean", "max"]];
    for (const track of data.tracks) {
      const add = (tensor, name, given, s = banded(given)) => s.first.forEach((f, k) => s.mid[k] === null || rows.push([track.name, tensor, name, f, s.last[k], s.low[k], s.mid[k], s.high[k]]));
      for (const [name, s] of Object.entries(track.scalars)) add("", name, s);
      for (const tensor of track.tensors)
        for (const [name, s] of Object.entries(tensor.values)) add(tensor.name, name, { first: track.first, last: track.last, ...s });
    }
    return rows.map((r) => r.map(cell).join(",")).join("\r\n") + "\r\n";
  }
  const files = { json: [() => JSON.stringify(data), "application/json"], csv: [asCsv, "text/csv"] };
  for (const button of document.querySelectorAll("button[data-file]")) {
    const [make, type] = files[button.dataset.file];
    button.hidden = false;
    button.addEventListener("click", () => {
      const link = document.createElement("a");
      link.href = URL.createObjectURL(new Blob([make()], { type }));
      link.download = `${data.name}.${button.dataset.file}`;
      link.click();
      setTimeout(() => URL.revokeObjectURL(link.href), 1000);
    });
  }
})();
