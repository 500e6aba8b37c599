"use strict";
// Draws the charts of the page from the JSON beside it, and copies its tables. Asks no host for anything.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const times = data.times.map((steps) => {
    let at = 0;
    return steps.map((step) => Math.round((at += step) * 1000));
  });
  const BLUE = "#0072b2", RED = "#d55e00", GREEN = "#007a5a", PURPLE = "#a8478a", GREY = "#6b7280";
  const PALETTE = ["#d55e00", "#e69f00", "#a8478a", "#56b4e9", "#8c6d31", "#7a7a7a", "#c23b5a", "#4b5fa5"];
  const PATTERNS = ["/", "\\", "x", "-", "|", "+", "."];
  const BUTTONS = [["toImage"], ["zoom2d", "pan2d"], ["zoomIn2d", "zoomOut2d", "autoScale2d", "resetScale2d"]];
  const CONFIG = { displaylogo: false, plotlyServerURL: "", responsive: true, showSendToCloud: false, modeBarButtons: BUTTONS };
  const drawn = [];

  // Names come from records: what plotly would read as markup is written as text.
  const plain = (text) => text.replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");

  const span = data.span && data.span.map((s) => s * 1000);
  const layout = (more) => ({
    font: { family: "system-ui, -apple-system, Segoe UI, sans-serif", size: 12, color: "#1f2933" },
    margin: { l: 84, r: 16, t: 8, b: 36 },
    paper_bgcolor: "#fff",
    plot_bgcolor: "#fff",
    hovermode: "x unified",
    hoverlabel: { namelength: -1, bgcolor: "#fff" },
    showlegend: true,
    legend: { orientation: "h", x: 0, y: 1.02, yanchor: "bottom" },
    uirevision: "run",
    ...more,
    xaxis: { type: "date", range: span, gridcolor: "#e4e7eb", zeroline: false, hoverformat: "%Y-%m-%d %H:%M:%S UTC", ...more.xaxis },
  });
  const axis = (title, more) => ({ title: { text: title }, gridcolor: "#e4e7eb", zerolinecolor: "#9aa5b1", ...more });
  const line = (x, y, name, color, more) => ({
    type: "scatter", mode: "lines", x, y, name, line: { color, width: 1.6, ...(more && more.line) }, ...(more && more.trace),
  });
  const stepped = (x, y, name, color, dash, width) =>
    line(x, y, name, color, { line: { shape: "hv", dash: dash || "solid", width: width || 1.6 } });

  let linking = false;
  function follow(div) {
    drawn.push(div);
    div.on("plotly_relayout", (change) => {
      const range = change["xaxis.range"] || [change["xaxis.range[0]"], change["xaxis.range[1]"]];
      const auto = change["xaxis.autorange"];
      if (linking || (!auto && range[0] === undefined)) return;
      linking = true;
      const to = auto ? { "xaxis.autorange": true } : { "xaxis.range": range };
      Promise.all(drawn.filter((other) => other !== div).map((other) => Plotly.relayout(other, to))).finally(() => {
        linking = false;
      });
    });
  }

  function draw(id, traces, shape) {
    const div = document.getElementById(id);
    const first = !drawn.includes(div);
    Plotly.react(div, traces, layout(shape), CONFIG);
    if (first) follow(div);
  }

  function equity(of) {
    const x = times[of.t], [low, high] = data.zones;
    const worst = Math.max(high * 1.2, 1.05 * Math.max(0, ...of.drawdown.filter((d) => d !== null)));
    const zones = [["LOW", 0, low, "#fff"], ["MID", low, high, "#fff6e0"], ["HIGH", high, worst, "#fde8e4"]];
    draw("equity-chart", [
      line(x, of.equity_usd, "equity", BLUE),
      line(x, of.peak_equity_usd, "peak", GREY, { line: { dash: "dot", width: 1.2 } }),
      line(x, of.drawdown, "drawdown", RED, { trace: { yaxis: "y2", fill: "tozeroy", fillcolor: "rgba(213,94,0,.15)" } }),
    ], {
      xaxis: { anchor: "y2" },
      yaxis: axis("equity, USD", { domain: [0.44, 1], tickformat: ",~f" }),
      yaxis2: axis("drawdown", { domain: [0, 0.4], range: [worst, 0], tickformat: ".1~%", zeroline: false }),
      shapes: zones.flatMap(([, from, to, fillcolor], i) => [
        { type: "rect", layer: "below", xref: "paper", yref: "y2", x0: 0, x1: 1, y0: from, y1: to, fillcolor, line: { width: 0 } },
        ...(i ? [{ type: "line", xref: "paper", yref: "y2", x0: 0, x1: 1, y0: from, y1: from, line: { dash: "dash", width: 1, color: "#52606d" } }] : []),
      ]),
      annotations: zones.map(([name, from, to], i) => ({
        xref: "paper", yref: "y2", x: 0.002, y: i === 2 ? to : (from + to) / 2, xanchor: "left", yanchor: i === 2 ? "bottom" : "middle",
        showarrow: false, font: { size: 11, color: "#1f2933" }, bgcolor: "rgba(255,255,255,.7)",
        text: i === 2 ? `${name}: ${percent(from)} and more` : `${name}: below ${percent(to)}`,
      })),
    });
  }
  const percent = (part) => `${+(100 * part).toFixed(2)}%`;

  // What stands after each fill, told at other times too, so that hovering finds it anywhere.
  function held(x, y, others) {
    const at = [], value = [];
    let i = 0;
    const put = (when, what) => { at.push(when); value.push(what); };
    for (const when of others) {
      for (; i < x.length && x[i] <= when; i++) put(x[i], y[i]);
      if (i > 0 && at[at.length - 1] !== when) put(when, y[i - 1]);
    }
    for (; i < x.length; i++) put(x[i], y[i]);
    return [at, value];
  }

  function targets(of) {
    const traces = [];
    if (of.targets) traces.push(stepped(times[of.targets.t], of.targets.target_usd, "target", BLUE));
    if (of.fills) {
      const x = times[of.fills.t], y = of.fills.exposure_usd;
      const side = (i) => of.fills.side[i];
      const marks = { size: 7, color: x.map((_, i) => (side(i) === "SELL" ? RED : GREEN)), symbol: x.map((_, i) => (side(i) === "SELL" ? "triangle-down" : "triangle-up")) };
      const [at, exposure] = held(x, y, [...(of.targets ? times[of.targets.t] : []), span[1]]);
      traces.push(stepped(at, exposure, "exposure", "#374151", "solid", 1.2));
      traces.push({
        type: "scatter", mode: "markers", x, y, name: "fill (▲ BUY, ▼ SELL)", marker: marks,
        text: x.map((_, i) => `${plain(side(i))} ${of.fills.filled_qty[i]} at ${of.fills.price[i]}, ${new Date(x[i]).toISOString().slice(11, 19)}`), hovertemplate: "%{text}<extra>fill</extra>",
      });
    }
    draw("targets-chart", traces, { yaxis: axis("USD", { rangemode: "tozero", tickformat: ",~f" }) });
  }

  function factors(of) {
    const kinds = [["regime", BLUE, "solid"], ["cluster", RED, "dash"], ["drawdown", GREEN, "dot"], ["performance", PURPLE, "dashdot"]];
    const traces = of.targets ? kinds.map(([name, color, dash]) => stepped(times[of.targets.t], of.targets[`${name}_factor`], name, color, dash, 2)) : [];
    draw("factors-chart", traces, { yaxis: axis("factor", { rangemode: "tozero" }) });
  }

  function efficiency(of) {
    const e = of.efficiency;
    const traces = e ? [
      line(times[e.t], e.efficiency_score, "score", "#56b4e9", { line: { width: 1 } }),
      line(times[e.t], e.efficiency_ewma, "average (EWMA)", BLUE, { line: { width: 2.2 } }),
      line(times[e.t], e.confidence, "confidence", PURPLE, { line: { dash: "dash" } }),
    ] : [];
    draw("efficiency-chart", traces, { yaxis: axis("0 to 1", { range: [-0.03, 1.03] }) });
  }

  function show(of) {
    for (const heading of document.querySelectorAll(".of-symbol")) heading.textContent = of.name;
    const panels = [["targets", targets, of.targets || of.fills], ["factors", factors, of.targets], ["efficiency", efficiency, of.efficiency]];
    for (const [id, panel, known] of panels) {
      if (!document.getElementById(`${id}-chart`)) continue;
      document.getElementById(`${id}-none`).hidden = Boolean(known);
      panel(of);
    }
  }

  function verdicts(of) {
    const bars = (rows, yaxis, from) => rows.map(([name, counts], i) => {
      const permit = name === "PERMIT", at = from + i;
      return {
        type: "bar", x: of.at.map((s) => s * 1000), y: counts.map((n) => n || null), width: of.width_s * 1000, name: plain(name), yaxis, hovertemplate: "%{y}",
        marker: { color: permit ? GREEN : PALETTE[at % PALETTE.length], line: { width: 0.5, color: "#fff" }, pattern: { shape: permit ? "" : PATTERNS[at % PATTERNS.length], fillmode: "overlay", fgcolor: "#fff", fgopacity: 0.85, size: 6, solidity: 0.25 } },
      };
    });
    const both = of.would.length > 0;
    draw("verdicts-chart", [...bars(of.answers, "y", 0), ...bars(of.would, "y2", of.answers.length)], {
      barmode: "stack",
      legend: { orientation: "h", x: 0, y: -0.12, yanchor: "top", traceorder: "normal" },
      xaxis: { anchor: both ? "y2" : "y" },
      yaxis: axis("plans answered", { domain: both ? [0.42, 1] : [0, 1], rangemode: "tozero", tickformat: ",d" }),
      ...(both ? { yaxis2: axis("would block", { domain: [0, 0.34], rangemode: "tozero", tickformat: ",d" }) } : {}),
    });
  }

  if (data.equity) equity(data.equity);
  const picker = document.getElementById("symbol");
  if (picker) {
    picker.addEventListener("change", () => show(data.symbols[picker.selectedIndex]));
    picker.selectedIndex = 0;
    show(data.symbols[0]);
  }
  if (data.verdicts) verdicts(data.verdicts);

  // A text that a spreadsheet would take for a formula is copied with an apostrophe before it.
  function cell(of) {
    const text = of.textContent.replace(/\s+/g, " ").trim();
    return /^[=+\-@]/.test(text) && !/^[+-]?[0-9.]+$/.test(text) ? `'${text}` : text;
  }
  function copied(text) {
    const area = document.createElement("textarea");
    area.value = text;
    area.style.cssText = "position:fixed;top:0;left:0;opacity:0";
    document.body.append(area);
    area.select();
    const done = document.execCommand("copy");
    area.remove();
    return done;
  }
  async function copy(button) {
    const rows = [...document.getElementById(button.dataset.table).rows];
    const text = rows.map((row) => [...row.cells].map(cell).join("\t")).join("\n") + "\n";
    let done = false;
    try {
      await navigator.clipboard.writeText(text);
      done = true;
    } catch {
      done = copied(text);
    }
    button.focus();
    button.textContent = done ? "Copied" : "Not copied";
    document.getElementById("said").textContent = done ? `${rows.length - 1} rows copied` : "Nothing was copied: select the table instead";
    setTimeout(() => { button.textContent = "Copy"; }, 2000);
  }
  for (const button of document.querySelectorAll("button.copy")) button.addEventListener("click", () => copy(button));

  document.addEventListener("mouseover", (event) => {
    const of = event.target;
    if (of.matches && of.matches("td, tbody th") && of.scrollWidth > of.clientWidth) of.title = of.textContent;
  });
  window.addEventListener("beforeprint", () => drawn.forEach((div) => Plotly.relayout(div, { autosize: false, width: 680 })));
  window.addEventListener("afterprint", () => drawn.forEach((div) => Plotly.relayout(div, { autosize: true, width: null })));
})();
