// ---- charts

const dark = () => document.documentElement.dataset.theme === "dark";
const drawn = new Map(); // element -> name
const bySteps = name => !/^(cosine|weights)-/.test(name);

function stepLine() {
  return view.step === null ? [] : [{type: "line", x0: view.step, x1: view.step, yref: "paper", y0: 0, y1: 1,
    line: {width: 1, dash: "dot", color: "#8b8b87"}}];
}

// Plotly is packed too, and compiled after the page answers: that takes a second.
let plotly = null;
const openPlotly = async () => {
  await new Promise(done => setTimeout(done, 100)); // what is there is painted first
  document.head.append(make("script", {textContent: await opened("plotly").text()}));
};

async function draw(name, plot) {
  await (plotly ??= openPlotly());
  const {figure, height} = charts[name];
  const layout = {...figure.layout, height, template: templates[dark() ? "dark" : "light"],
    shapes: bySteps(name) ? stepLine() : []};
  plot.style.height = `${height}px`;
  drawn.set(plot, name);
  await Plotly.newPlot(plot, figure.data, layout, {displayModeBar: false, responsive: true});
  if (bySteps(name)) plot.on("plotly_click", event => nearest(event.points[0].x));
}

function nearest(x) {
  if (!run.embedded.length) return;
  show({step: run.embedded.reduce((best, step) => Math.abs(step - x) < Math.abs(best - x) ? step : best)});
  find("#tokens").scrollIntoView();
}

function markStep() {
  for (const [plot, name] of drawn) if (bySteps(name)) Plotly.relayout(plot, {shapes: stepLine()});
}

function place(figure, name) {
  const chart = charts[name];
  if (!chart) return figure.remove();
  const plot = make("div", {className: "plot", role: "img", "aria-label": `${chart.title}. ${chart.note}`});
  plot.style.height = `${chart.height}px`;
  figure.replaceChildren(make("h3", {}, chart.title), make("figcaption", {}, chart.note), plot);
  if (name !== "lora") seen(plot, () => draw(name, plot));
}

function setTheme(theme) {
  document.documentElement.dataset.theme = theme;
  find("#theme").textContent = dark() ? "Light" : "Dark";
  find("#theme").setAttribute("aria-pressed", String(dark()));
  for (const plot of drawn.keys()) Plotly.relayout(plot, {template: templates[theme]});
}

// ---- LoRA

const LORA = [["size", "‖BA‖ / ‖W‖: how far the update has moved the module's weight, relative to its norm."],
              ["gradient norm", "Of the module's two matrices together, before clipping."],
              ["effective rank", "How many directions the update uses; at most lora.rank."]];
let lora = null;

async function openLora() {
  lora = await opened("lora").json();
  const labels = [], z = [[], [], []], middles = new Map();
  lora.modules.forEach((name, n) => {
    const projection = lora.projections[n];
    if (n && projection !== lora.projections[n - 1]) { labels.push(" ".repeat(labels.length)); z.forEach(rows => rows.push([])); }
    middles.set(projection, [...(middles.get(projection) ?? []), name]);
    labels.push(name);
    z.forEach((rows, q) => rows.push(lora.values[q][n]));
  });
  const chart = charts.lora, plot = find("figure[data-chart=lora] .plot");
  chart.height = Math.max(360, 90 + labels.length * (labels.length > 100 ? 3 : 12));
  Object.assign(chart.figure.data[0], {x: lora.steps, y: labels, z: z[0]});
  Object.assign(chart.figure.layout.yaxis, {tickmode: "array", ticktext: [...middles.keys()],
    tickvals: [...middles.values()].map(names => names[Math.floor(names.length / 2)])});
  await draw("lora", plot);
  find("#lora-show").addEventListener("change", event => {
    Plotly.restyle(plot, {z: [z[event.target.value]]});
    showExtremes();
  });
  showExtremes();
}

function showExtremes() {
  if (!lora) return;
  const q = Number(find("#lora-show").value), wanted = view.step ?? Infinity;
  const column = Math.max(0, lora.steps.findLastIndex(step => step <= wanted));
  const rows = lora.modules.map((name, n) => [name, lora.values[q][n][column]]).filter(row => row[1] !== null);
  rows.sort((a, b) => b[1] - a[1]);
  const most = rows.slice(0, 5), least = rows.slice(Math.max(5, rows.length - 5));
  find("#lora-about").textContent = LORA[q][1];
  find("#lora-extremes").replaceChildren(table(`Step ${lora.steps[column]}: the modules with the most, and the least`,
    ["module", LORA[q][0]], [...most, ["…", ""], ...least].map(([name, x]) => [name, x === "" ? "" : number(x)]), [1]));
}

// ---- tables

function table(caption, heads, rows, numeric = []) {
  const cell = (tag, text, n) => make(tag, {className: numeric.includes(n) ? "num" : ""}, text);
  return make("table", {}, ...(caption ? [make("caption", {}, caption)] : []),
    make("thead", {}, make("tr", {}, ...heads.map((text, n) => cell("th", text, n)))),
    make("tbody", {}, ...rows.map(row => make("tr", {}, ...row.map((text, n) => cell("td", text, n))))));
}

function showAlarms() {
  const stretch = ([a, b]) => a === b ? `${a}` : `${a}–${b}`;
  const rows = run.alarms.map(({name, rang, meaning}) =>
    [rang.length ? `⚠ ${name}` : name, rang.length ? `steps ${rang.map(stretch).join(", ")}` : "never", meaning]);
  find("#alarm-table").replaceChildren(rows.length ? table("", ["alarm", "rang", "what it means"], rows) :
    "This run has no record of alarms.");
}

function showComparison(step, compare) {
  const {variants, updates} = compare[step], own = variants[0]?.settings ?? {};
  const other = ({settings}) => Object.keys(settings).filter(key => key !== "preset" && String(settings[key]) !== String(own[key]));
  const figure = x => x === null ? "—" : number(x);
  find("#compare-table").replaceChildren(table(
    `Step ${step}, ${updates} update${updates === 1 ? "" : "s"} after it was sampled. Settings: where they differ from the first row's.`,
    ["variant", "paper", "settings", "clipped", "gradient norm", "tokens"],
    variants.map((v, n) => [v.name, v.paper, n ? other(v).map(key => `${key} ${v.settings[key]}`).join(", ") || "the same" : "",
      v.clipped === null ? "—" : `${number(100 * v.clipped)} %`, figure(v.grad_norm),
      v.tokens === null ? "—" : v.tokens.toLocaleString("en")]), [3, 4, 5]));
  find("#compare-charts").replaceChildren(...["weights", "cosine"].map(name => {
    const element = make("figure");
    place(element, `${name}-${step}`);
    return element;
  }));
}

// ---- the page

function fillHeader() {
  find("#name").textContent = run.name;
  find("#lead").textContent = `${run.planned.toLocaleString("en")} GRPO steps of ${run.prompts} prompts × ${run.group_size} ` +
    `completions on ${run.model}; advantage ${algorithm.advantage}, loss ${algorithm.loss}, ${algorithm.aggregation.replace("_", " ")}.`;
  const alarms = run.alarms.filter(alarm => alarm.rang.length);
  const figures = [...run.figures, ["alarms", !run.alarms.length ? "not recorded" : alarms.length ? `⚠ ${alarms.map(alarm => alarm.name).join(", ")}` : "none rang"]];
  find("#figures").replaceChildren(...figures.map(([label, value]) =>
    make("div", {}, make("dt", {}, label), make("dd", {}, value))));
  find("#setting-text").textContent = run.settings;
}

function fillSample() {
  const {embedded, recorded} = run, all = embedded.length === recorded.length;
  const which = embedded.map(step => step.toLocaleString("en")).join(", ");
  find("#sample").textContent = !embedded.length ? "This run recorded no completions." :
    all ? `The completions of all ${embedded.length} recorded steps are in this file. Point at a token for its numbers; press ? for keys.` :
    `The completions of ${embedded.length} of ${recorded.length.toLocaleString("en")} recorded steps are in this file, ` +
    `${run.asked ? "as asked" : `evenly spaced, as many as fit in ${run.budget / 2 ** 20} MiB`}: ${which}. ` +
    "For others: python -m grpo.report RUN --steps 12,40-60";
  find("#no-texts").textContent = run.no_texts;
  find("#no-texts").hidden = !run.no_texts;
  for (const selector of ["#controls", ".reader"]) find(selector).hidden = !embedded.length;
}

function wireControls() {
  find("#step").replaceChildren(...run.embedded.map(step => make("option", {value: step}, step.toLocaleString("en"))));
  find("#show").replaceChildren(...Object.entries(QUANTITIES).map(([name, {label}], n) =>
    make("option", {value: name}, `${n + 1} · ${label}`)));
  find("#step").addEventListener("change", event => show({step: Number(event.target.value)}));
  find("#group").addEventListener("change", event => show({group: Number(event.target.value)}));
  find("#show").addEventListener("change", event => show({show: event.target.value}));
  for (const [id, action] of [["step-back", () => moveStep(-1)], ["step-on", () => moveStep(1)], ["group-back", () => moveGroup(-1)],
    ["group-on", () => moveGroup(1)], ["help-open", () => find("#help").showModal()],
    ["theme", () => setTheme(dark() ? "light" : "dark")]]) find(`#${id}`).addEventListener("click", action);
  for (const button of document.querySelectorAll("[data-to]"))
    button.addEventListener("click", () => document.getElementById(button.dataset.to).scrollIntoView());
}

function wireKeys() {
  const actions = {"[": () => moveStep(-1), "]": () => moveStep(1), k: () => moveGroup(-1), j: () => moveGroup(1), m: nextMixed,
    t: () => setTheme(dark() ? "light" : "dark"), "?": () => find("#help").showModal()};
  Object.keys(QUANTITIES).forEach((name, n) => { actions[n + 1] = () => show({show: name}); });
  document.addEventListener("keydown", event => {
    const typing = /^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName) || find("#help").open;
    if (typing || event.ctrlKey || event.metaKey || event.altKey || !Object.hasOwn(actions, event.key)) return;
    event.preventDefault();
    actions[event.key]();
  });
}

function fillSections() {
  for (const figure of document.querySelectorAll("[data-chart]")) place(figure, figure.dataset.chart);
  if (!charts.parity) find("#mismatch .about").append(" This run recorded nothing of it.");
  find("#no-lora").hidden = Boolean(charts.lora);
  find("#lora-body").hidden = !charts.lora;
  if (charts.lora) {
    find("#lora-show").replaceChildren(...LORA.map(([name], n) => make("option", {value: n}, name)));
    seen(find("#lora-body"), openLora);
  }
  const compare = block("compare"), steps = Object.keys(compare);
  find("#compare").hidden = find("[data-to=compare]").hidden = !steps.length;
  if (steps.length) {
    find("#compare-step").replaceChildren(...steps.map(step => make("option", {value: step}, step)));
    find("#compare-step").addEventListener("change", event => showComparison(event.target.value, compare));
    showComparison(steps[0], compare);
  }
  showAlarms();
}

function start() {
  const preference = matchMedia("(prefers-color-scheme: dark)");
  setTheme(preference.matches ? "dark" : "light");
  preference.addEventListener("change", () => setTheme(preference.matches ? "dark" : "light"));
  addPalette();
  fillHeader();
  fillSample();
  wireControls();
  wireTokens();
  wireKeys();
  fillSections();
  window.addEventListener("hashchange", () => show(fromHash()));
  if (location.hash.includes("step=")) show(fromHash()).then(() => find("#tokens").scrollIntoView());
  else seen(find("#tokens"), () => view.data || show(fromHash()), "100px");
  requestAnimationFrame(() => { document.documentElement.dataset.ready = "1"; });
}

start();
