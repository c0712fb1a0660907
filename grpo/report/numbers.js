"use strict";
// What a report does in the browser, in three files that make one script: this one, reader.js, page.js. The page holds JSON
// (element data-NAME) and, for each step in it, gzip'd JSON in base64 (data-step-N), which is opened when the step is chosen.
// Text from a run is only ever put in as text.

// ---- tools

const find = (selector, root = document) => root.querySelector(selector);
const block = name => JSON.parse(document.getElementById(`data-${name}`).textContent);
const run = block("run"), charts = block("charts"), templates = block("templates"), texts = block("texts");
const special = new Set(run.special);

function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name in element) element[name] = value;
    else element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

// What gzip and base64 packed, as a Response: its .json() or .text().
function opened(name) {
  const packed = document.getElementById(`data-${name}`).textContent;
  const bytes = Uint8Array.fromBase64?.(packed) ?? Uint8Array.from(atob(packed), c => c.charCodeAt(0));
  return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip")));
}

const signed = text => text.replaceAll("-", "−");
const superscript = digits => [...String(digits)].map(d => "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"["-0123456789".indexOf(d)] ?? "").join("");

function number(x, digits = 3) {
  if (x === 0) return "0";
  if (Math.abs(x) >= 1e-3 && Math.abs(x) < 1e6) return signed(String(Number(x.toPrecision(digits))));
  const [mantissa, exponent] = x.toExponential(digits - 1).split("e");
  const power = `10${superscript(Number(exponent))}`;
  return digits === 1 && mantissa === "1" ? power : `${signed(mantissa)}\u00a0×\u00a0${power}`; // never broken over lines
}

const nats = x => signed(x.toFixed(5));
const inBrackets = x => x.startsWith("−") ? `(${x})` : x;
const seen = (element, action, margin = "300px") => {
  const observer = new IntersectionObserver(entries => {
    if (entries.some(entry => entry.isIntersecting)) { observer.disconnect(); action(); }
  }, {rootMargin: margin});
  observer.observe(element);
};

// ---- colours: blue and orange around 0, cividis from the paper's colour on; as classes d0..d32 and s0..s32

const BINS = 32;
const STOPS = {
  d: {light: ["#b85000", "#e58a3c", "#f6cfa6", "#fdfdfb", "#b9d7f0", "#5c9fd6", "#135a9c"],
      dark: ["#f0882d", "#a95c1c", "#553417", "#15171a", "#17395a", "#2a6fae", "#62b0f5"]},
  s: {light: ["#fdfdfb", "#f6eeba", "#e5d36b", "#b0a672", "#77767a", "#3b496c", "#00224e"],
      dark: ["#15171a", "#15264a", "#2b4170", "#5f636e", "#98906f", "#d3bf5e", "#fee838"]}};

function mixed(stops, share) {
  const at = Math.min(share * (stops.length - 1), stops.length - 1.000001), n = Math.floor(at);
  const channels = [1, 3, 5].map(i => {
    const [a, b] = [stops[n], stops[n + 1]].map(colour => parseInt(colour.slice(i, i + 2), 16));
    return Math.round(a + (b - a) * (at - n));
  });
  const [r, g, b] = channels.map(c => c / 255 <= 0.04045 ? c / 255 / 12.92 : ((c / 255 + 0.055) / 1.055) ** 2.4);
  const ink = 0.2126 * r + 0.7152 * g + 0.0722 * b > 0.179 ? "#000" : "#fff"; // the better contrast: 4.5 at least
  return [`rgb(${channels})`, ink];
}

function addPalette() {
  const rules = Object.entries(STOPS).flatMap(([name, {light, dark}]) => Array.from({length: BINS + 1}, (_, bin) => {
    const [[day, dayInk], [night, nightInk]] = [mixed(light, bin / BINS), mixed(dark, bin / BINS)];
    return `.${name}${bin}{background:light-dark(${day},${night});color:light-dark(${dayInk},${nightInk})}`;
  }));
  document.head.append(make("style", {textContent: rules.join("\n")}));
}

// ---- a token's six numbers, and the equations they come from

const UNIT = 1e5;
const at = (column, t) => Array.isArray(column) ? column[t] : column;
const trained = c => c.weight !== undefined;
const sampler = (c, t) => c.sampler[t] / UNIT;
const trainer = (c, t) => trained(c) ? (c.sampler[t] + at(c.gap, t)) / UNIT : null;
const whose = c => c.last ? "π_{old}" : "π_{θ}"; // the trainer's policy at its first pass over the batch
const last = (c, t) => c.last ? c.last[t] / UNIT : trainer(c, t);
const algorithm = run.algorithm;

function weight(c) {
  const {tokens, completions, max_tokens: most} = view.data;
  return {token_mean: ["1/T", `1/${tokens}`], sequence_mean: ["1/(B |o_{i}|)", `1/(${completions} × ${c.ids.length})`],
          constant: ["1/(B L_{max})", `1/(${completions} × ${most})`]}[algorithm.aggregation];
}

// [symbols, numbers] whose product is the surrogate's part of the contribution, if the loss is one known here.
function factors(c, t) {
  const ratio = at(c.ratio, t), limit = 1 + algorithm.eps_high;
  const found = [["w_{it}", at(c.weight, t), weight(c)[1]]];
  if (c.correction !== undefined) found.push(["ρ_{it}", at(c.correction, t)]);
  if (algorithm.loss === "cispo") found.push(["min(r_{it}, 1 + ε_{high})", Math.min(ratio, limit)]);
  else if (algorithm.loss !== "reinforce") found.push([algorithm.ratio === "sequence" ? "s_{i}" : "r_{it}", ratio]);
  found.push(["A_{i}", c.advantage]);
  return found;
}

function contribution(c, t) {
  if (!trained(c)) return [`c_{it} = 0`];
  const value = at(c.contribution, t), fromKl = c.from_kl ? c.from_kl[t] : 0;
  const stopped = c.clip.has(t) && algorithm.loss !== "cispo", parts = factors(c, t);
  const surrogate = stopped ? 0 : parts.reduce((product, part) => product * part[1], 1);
  const name = "c_{it} = −∂L/∂log π_{θ}";
  if (Math.abs(surrogate + fromKl - value) > 1e-3 * Math.abs(value) + 1e-12) // another equation: say only what is sure
    return [`${name} = w_{it} (−∂ℓ_{it}/∂log π_{θ})`, `= ${weight(c)[1]} × ${number(value / at(c.weight, t))} = ${number(value)}`];
  const kl = c.from_kl ? [" − w_{it} β ∂KL_{it}/∂log π_{θ}", ` ${fromKl < 0 ? "−" : "+"} ${number(Math.abs(fromKl))}`] : ["", ""];
  if (stopped) return [`${name} = 0 (clipped)${kl[0]}`, ...(kl[1] ? [`= 0${kl[1]} = ${number(value)}`] : [])];
  return [`${name} = ${parts.map(part => part[0]).join(" ")}${kl[0]}`,
          `= ${parts.map(part => part[2] ?? inBrackets(number(part[1], 4))).join(" × ")}${kl[1]} = ${number(value)}`];
}

function advantage(c) {
  const mean = list => list.reduce((a, b) => a + b, 0) / list.length;
  const spread = list => Math.sqrt(list.reduce((sum, x) => sum + (x - mean(list)) ** 2, 0) / (list.length - 1));
  const rewards = group().completions.map(lowered), m = mean(rewards), reward = lowered(c), R = inBrackets(number(reward));
  const above = reward - m, others = (m * rewards.length - reward) / (rewards.length - 1), e = run.epsilon;
  const ways = {
    grpo: () => [above / (spread(rewards) + e), "(R_{i} − m)/(s + ε)", `(${R} − ${number(m)})/(${number(spread(rewards))} + ${number(e, 1)})`],
    centred: () => [above, "R_{i} − m", `${R} − ${number(m)}`],
    rloo: () => [reward - others, "R_{i} − mean_{j≠i} R_{j}", `${R} − ${number(others)}`],
    maxrl: () => [m > 0 ? above / m : 0, "(R_{i} − m)/m", `(${R} − ${number(m)})/${number(m)}`],
    batch_std: () => {
      const s = spread(view.data.groups.flatMap(g => g.completions.map(lowered)));
      return [above / (s + e), "(R_{i} − m)/(s_{batch} + ε)", `(${R} − ${number(m)})/(${number(s)} + ${number(e, 1)})`];
    }};
  const way = ways[algorithm.advantage]?.();
  if (c.advantage === 0 || !way || Math.abs(way[0] - c.advantage) > 1e-3 * Math.abs(c.advantage))
    return [`A_{i} = ${number(c.advantage, 4)}`];
  const penalty = reward < c.reward ? [`R_{i} = ${number(c.reward)} − ${number(c.reward - reward)} = ${number(reward)}: its length is near the limit`] : [];
  return [...penalty, `A_{i} = ${way[1]} = ${way[2]} = ${number(c.advantage, 4)}`];
}

// The reward after what `overlong: penalised` takes off, as grpo/advantage.py's overlong_penalty has it.
function lowered(c) {
  if (algorithm.overlong !== "penalised") return c.reward;
  const most = view.data.max_tokens, margin = algorithm.overlong_buffer * most;
  return c.reward - Math.max(0, Math.min(1, (c.ids.length - (most - margin)) / margin));
}

function ratioEquation(c, t) {
  if (!trained(c)) return [];
  const value = number(at(c.ratio, t), 6);
  if (algorithm.ratio === "sequence")
    return ["s_{i} = (π_{θ}(o_{i})/π_{old}(o_{i})) to the power of 1/|o_{i}|", `= ${value}, one for the completion`];
  const before = trainer(c, t);
  return ["r_{it} = exp(log π_{θ} − log π_{old})", `= exp(${nats(last(c, t))} − ${inBrackets(nats(before))}) = ${value}`];
}

function clipEquation(c, t) {
  if (!trained(c)) return [];
  if (algorithm.loss === "reinforce") return ["this loss clips nothing"];
  const symbol = algorithm.ratio === "sequence" ? "s_{i}" : "r_{it}", r = at(c.ratio, t);
  const low = algorithm.loss === "cispo" ? 0 : 1 - algorithm.eps_low, high = 1 + algorithm.eps_high;
  const side = r > high ? "1 + ε_{high}" : "1 − ε_{low}";
  if (r <= high && r >= low) return [`${low ? `${number(low, 5)} ≤ ` : ""}${symbol} = ${number(r, 6)} ≤ ${number(high, 5)}`];
  if (algorithm.loss === "dual_clip" && c.advantage < 0 && r > algorithm.dual_clip_at)
    return [`${symbol} = ${number(r, 6)} > ${number(algorithm.dual_clip_at, 5)} = c with A_{i} < 0: bounded at c A_{i}`];
  const outside = `${symbol} = ${number(r, 6)} ${r > high ? ">" : "<"} ${number(r > high ? high : low, 5)} = ${side}`;
  if (c.clip.has(t)) return [outside];
  if (!c.advantage) return [`${outside}, but A_{i} = 0: nothing is there to clip`];
  return [`${outside}, but A_{i} ${c.advantage > 0 ? ">" : "<"} 0: the gradient leads back, so it stays`];
}

const untrained = c => c.finish === "length" && algorithm.overlong === "masked" ?
  "Not trained on: it was cut off, and the loss leaves such completions out." :
  "Not trained on: every completion of this group has the same reward, so the advantage is 0.";

// value: what the colour shows, null for none. bound: how far the scale goes. say: the number as shown.
const QUANTITIES = {
  contribution: {label: "Contribution", hint: "advantage × weight: −∂L/∂log π", palette: "d", ends: ["less likely", "more likely"],
    value: (c, t) => trained(c) ? at(c.contribution, t) : null, say: x => number(x), top: 0.99, equations: (c, t) => [...contribution(c, t), ...advantage(c)],
    why: c => trained(c) ? "" : untrained(c)},
  logp: {label: "Log-prob", hint: "of the sampled token, in nats", palette: "s", ends: ["certain", "surprising"], falls: true,
    value: (c, t) => trainer(c, t) ?? sampler(c, t), say: nats, top: 0.99,
    equations: (c, t) => { const x = trainer(c, t) ?? sampler(c, t); return [`log ${trained(c) ? whose(c) : "π_{vLLM}"} = ${nats(x)},  π = ${number(100 * Math.exp(x), 4)} %`]; },
    why: c => trained(c) ? "" : "The sampler's: the trainer did not score it."},
  gap: {label: "Gap", hint: "trainer − sampler, in nats", palette: "d", ends: ["trainer lower", "trainer higher"],
    value: (c, t) => trained(c) ? at(c.gap, t) / UNIT : null, say: nats, top: 0.995,
    equations: (c, t) => trained(c) ? [`log ${whose(c)} − log π_{vLLM} = ${nats(trainer(c, t))} − ${inBrackets(nats(sampler(c, t)))}`] : []},
  entropy: {label: "Entropy", hint: "of the next token, in nats", palette: "s", ends: ["one way to go on", "many"],
    value: (c, t) => trained(c) ? c.entropy[t] / UNIT : null, say: nats, top: 0.99,
    equations: (c, t) => trained(c) ? [`H = −∑_{v} π(v) log π(v) = ${nats(c.entropy[t] / UNIT)}`] : []},
  ratio: {label: "Ratio", hint: "π now / π when sampled", palette: "d", ends: ["less likely than then", "more likely"], scale: Math.log, back: Math.exp,
    value: (c, t) => trained(c) ? at(c.ratio, t) : null, say: x => number(x, 5), top: 0.995, equations: ratioEquation,
    why: c => trained(c) && algorithm.epochs === 1 ? "Exactly 1: one epoch, so that the policy is its own old." : ""},
  clip: {label: "Clip", hint: "where the ratio left its bounds", states: ["in bounds", "clipped"],
    value: (c, t) => trained(c) ? Number(c.clip.has(t)) : null, say: x => ["in bounds", "clipped"][x], equations: clipEquation}};

function bound(name) {
  if (view.bounds[name] !== undefined) return view.bounds[name];
  const {value, scale = x => x, top} = QUANTITIES[name], sizes = [];
  for (const g of view.data.groups) for (const c of g.completions) for (let t = 0; t < c.ids.length; t++) {
    const x = value(c, t);
    if (x !== null) sizes.push(Math.abs(scale(x)));
  }
  const sorted = Float64Array.from(sizes).sort(), largest = sorted[sorted.length - 1] || 0;
  return view.bounds[name] = sorted[Math.floor(top * (sorted.length - 1))] || largest;
}

function colour(name, c, t) {
  const {value, palette, states, scale = x => x} = QUANTITIES[name], x = value(c, t);
  if (x === null) return "unscored";
  if (states) return x ? "d2" : "";
  const most = bound(name), share = most ? Math.max(-1, Math.min(1, scale(x) / most)) : 0;
  return palette === "d" ? (share ? `d${Math.round(BINS / 2 * (1 + share))}` : "") : `s${Math.round(BINS * Math.abs(share))}`;
}
