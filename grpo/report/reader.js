// ---- the step, group and quantity that are shown; the hash keeps them

const view = {step: null, group: 0, show: "contribution", data: null, bounds: {}, held: null, turn: 0};
const group = () => view.data.groups[view.group];
const cache = new Map();

async function stepData(step) {
  if (!cache.has(step)) {
    if (cache.size > 3) cache.delete(cache.keys().next().value);
    const data = await opened(`step-${step}`).json();
    for (const g of data.groups) {
      g.completions.forEach((c, n) => { c.number = n + 1; c.clip = new Set(c.clipped); });
      g.completions.sort((a, b) => b.reward - a.reward || a.number - b.number);
      const rewards = g.completions.map(c => c.reward);
      g.right = rewards.filter(reward => reward > 0).length;
      g.mixed = rewards[0] > rewards[rewards.length - 1];
      g.trains = g.completions.some(trained); // a KL, or a penalty on length, trains equal rewards too
    }
    cache.set(step, data);
  }
  return cache.get(step);
}

async function show(change) {
  if (!run.embedded.length) return;
  const turn = ++view.turn, step = change.step ?? view.step ?? run.embedded[0];
  const data = await stepData(step);
  if (turn !== view.turn) return; // another choice was made meanwhile
  const anew = step !== view.step || data !== view.data;
  if (change.show in QUANTITIES) view.show = change.show;
  const first = Math.max(0, data.groups.findIndex(g => g.mixed));
  const wanted = Math.max(0, Math.min(data.groups.length - 1, change.group ?? (view.step === null ? first : view.group)));
  const moved = anew || wanted !== view.group;
  Object.assign(view, {step, data, group: wanted, bounds: anew ? {} : view.bounds});
  if (anew) { fillGroups(); markStep(); showExtremes(); }
  if (moved) showGroup();
  else recolour();
  showControls();
  history.replaceState(null, "", `#step=${view.step}&group=${view.group + 1}&show=${view.show}`);
  find("#tokens").dataset.shown = `${view.step} ${view.group + 1} ${view.show}`;
}

function fromHash() {
  const asked = new URLSearchParams(location.hash.slice(1)), step = Number(asked.get("step")), change = {};
  if (run.embedded.includes(step)) change.step = step;
  if (Number(asked.get("group")) > 0) change.group = Number(asked.get("group")) - 1;
  if (asked.get("show") in QUANTITIES) change.show = asked.get("show");
  return change;
}

function moveStep(by) {
  const place = run.embedded.indexOf(view.step) + by;
  if (place >= 0 && place < run.embedded.length) return show({step: run.embedded[place]});
}

const moveGroup = by => view.data && show({group: view.group + by});

async function nextMixed() {
  let place = run.embedded.indexOf(view.step), from = view.group + 1;
  for (; place < run.embedded.length; place++, from = 0) {
    const found = (await stepData(run.embedded[place])).groups.findIndex((g, n) => n >= from && g.mixed);
    if (found >= 0) return show({step: run.embedded[place], group: found});
  }
}

// ---- the reader

function verdict(g) {
  if (g.mixed) return "mixed";
  return g.right ? "all right" : "all wrong";
}

const shortened = (text, most = 44) => text.length > most ? `${text.slice(0, most - 1)}…` : text;

function fillGroups() {
  const {groups} = view.data;
  find("#group").replaceChildren(...groups.map((g, n) => make("option", {value: n},
    `${n + 1} · ${shortened(g.problem)} · ${g.right} of ${g.completions.length} right`)));
  find("#groups").replaceChildren(...groups.map((g, n) => {
    const share = make("i");
    share.style.width = `${100 * g.right / g.completions.length}%`;
    const button = make("button", {type: "button", title: `${g.problem}: ${verdict(g)}`},
      make("span", {className: "what"}, `${n + 1} · ${shortened(g.problem)}`),
      make("span", {className: "what"}, g.mixed ? `${g.right} of ${g.completions.length} right` : verdict(g)),
      make("span", {className: "share"}, share));
    button.addEventListener("click", () => show({group: n}));
    return button;
  }));
}

function showControls() {
  const place = run.embedded.indexOf(view.step);
  find("#step").value = view.step;
  find("#group").value = view.group;
  find("#show").value = view.show;
  find("#step-back").disabled = place === 0;
  find("#step-on").disabled = place === run.embedded.length - 1;
  find("#group-back").disabled = view.group === 0;
  find("#group-on").disabled = view.group === view.data.groups.length - 1;
  [...find("#groups").children].forEach((button, n) => button.setAttribute("aria-pressed", String(n === view.group)));
  showLegend();
}

function showLegend() {
  const {label, hint, palette, states, ends, falls, say, back = x => x} = QUANTITIES[view.show], legend = find("#legend");
  const marks = make("div", {className: "marks"}, make("span", {}, make("span", {className: "token clipped"}, "clipped")),
    make("span", {}, make("span", {className: "token unscored"}, "not trained on")));
  if (states) {
    marks.prepend(make("span", {className: "token"}, "in bounds"));
    marks.children[1].firstChild.classList.add("d2");
    legend.replaceChildren(`${label}: ${hint}`, marks);
    legend.setAttribute("aria-label", `${label}: clipped tokens are orange and underlined twice`);
    return;
  }
  const most = bound(view.show), sign = falls ? -1 : 1;
  const cells = Array.from({length: BINS + 1}, (_, bin) => make("i", {className: `${palette}${bin}`}));
  const ticks = palette === "d" ? [back(-most), back(0), back(most)] : [0, sign * most / 2, sign * most];
  const beyond = QUANTITIES[view.show].top < 1; // some tokens are further out than the scale goes
  const says = most ? ticks.map((x, n) => `${beyond && n !== 1 && x !== 0 ? (x < ticks[1] ? "≤ " : "≥ ") : ""}${number(x)}`) : [`${say(back(0))} at every token`];
  legend.replaceChildren(
    make("div", {className: "ticks"}, make("span", {}, palette === "d" ? `◂ ${ends[0]}` : ends[0]), make("span", {}, hint),
      make("span", {}, `${ends[1]} ▸`)),
    make("div", {className: "scale"}, ...cells), make("div", {className: "ticks"}, ...says.map(text => make("span", {}, text))),
    marks);
  legend.setAttribute("aria-label", `${label}, ${hint}: from ${says[0]} (${ends[0]}) to ${says[says.length - 1]} (${ends[1]})`);
}

// What could hide or turn the text around it is written out.
function visible(id) {
  const text = texts[id] ?? `⟨${id}⟩`;
  return text.replace(/\n/g, "↵\n").replace(/\t/g, "⇥\t")
    .replace(/[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff]/g,
      c => `\\u${c.charCodeAt(0).toString(16).padStart(4, "0")}`) || "∅";
}

function classes(c, t) {
  return `token ${special.has(c.ids[t]) ? "special " : ""}${c.clip.has(t) ? "clipped " : ""}${colour(view.show, c, t)}`;
}

function completionElement(c, place) {
  const [kind, word] = c.reward > 0 ? ["right", "✓ right"] : ["wrong", "✗ wrong"], text = make("div", {className: "text"});
  for (let t = 0; t < c.ids.length; t++) text.append(make("span", {className: classes(c, t)}, visible(c.ids[t])));
  const facts = [make("b", {className: kind}, word), [0, 1].includes(c.reward) ? "" : `reward ${number(c.reward)}`,
    `A = ${number(c.advantage)}`, `#${c.number}`, `${c.ids.length} tokens`, c.finish === "length" ? "cut off" : "",
    trained(c) ? "" : "not trained on"];
  const element = make("div", {className: "completion"},
    make("h4", {}, ...facts.filter(Boolean).map(fact => make("span", {}, fact))), text);
  element.dataset.place = place;
  return element;
}

function showGroup() {
  const g = group();
  find("#prompt pre").textContent = g.prompt;
  find("#composition").textContent = `${g.problem}${g.kind ? ` (${g.kind})` : ""}: ${g.right} of ${g.completions.length} ` +
    `right; it ${g.trains ? "trains" : "does not train"}.`;
  find("#completions").replaceChildren(...g.completions.map(completionElement));
  hold(turningPoint(), false);
}

// Where the first completion could most have gone another way: a telling token to begin with.
function turningPoint() {
  const c = group().completions[0], from = c.entropy ?? c.sampler.map(x => -x);
  return find("#completions .text").children[from.indexOf(Math.max(...from))];
}

function recolour() {
  for (const element of find("#completions").children) {
    const c = group().completions[element.dataset.place], spans = element.lastChild.children;
    for (let t = 0; t < spans.length; t++) spans[t].className = classes(c, t);
  }
  view.held?.classList.add("held");
  if (view.held) inspect(view.held);
}

// ---- one token

const completionOf = token => group().completions[token.closest(".completion").dataset.place];
const placeOf = token => [...token.parentNode.children].indexOf(token);

function hold(token, focus = true) {
  if (view.held) { view.held.classList.remove("held"); view.held.removeAttribute("tabindex"); }
  view.held = token;
  token.classList.add("held");
  token.tabIndex = 0;
  inspect(token);
  if (!focus) return;
  token.focus({preventScroll: true});
  token.scrollIntoView({block: "nearest", behavior: "instant"});
  const c = completionOf(token), t = placeOf(token), {label, value, say} = QUANTITIES[view.show], x = value(c, t);
  find("#spoken").textContent = `${visible(c.ids[t])}: ${label} ${x === null ? "none" : say(x)}`;
}

// Letters are set in italics, _{...} below the line.
function equation(text) {
  const parts = [...text.matchAll(/_\{([^}]*)\}|(\p{L}{2,})|(\p{L})|([^\p{L}_]+)/gu)].map(([, below, word, letter, rest]) =>
    below !== undefined ? make("sub", {}, below) : letter ? make("i", {}, letter) : word ?? rest);
  return make("span", {className: "equation"}, ...parts);
}

function inspect(token) {
  const c = completionOf(token), t = placeOf(token);
  const rows = Object.entries(QUANTITIES).map(([name, {label, hint, value, say, equations, why}]) => {
    const x = value(c, t), because = why?.(c);
    const figure = make("span", {className: "number"}, x === null ? "—" : say(x));
    figure.dataset.value = x;
    const row = make("div", {className: `row${name === view.show ? " shown" : ""}`},
      make("div", {}, make("span", {title: hint}, label), figure), ...equations(c, t).map(equation));
    if (because) row.append(make("span", {className: "why"}, because));
    row.dataset.quantity = name;
    return row;
  });
  const piece = make("span", {className: "piece"}, visible(c.ids[t]).replaceAll(" ", "␣"));
  find("#inspector").replaceChildren(
    make("p", {className: "where"}, piece, `token ${t + 1} of ${c.ids.length} of completion #${c.number}, id ${c.ids[t]}`),
    make("div", {className: "rows"}, ...rows));
}

function walk(token, key) {
  const completion = token.closest(".completion"), tokens = token.parentNode.children, t = placeOf(token);
  const above = completion.previousElementSibling?.lastChild.children, below = completion.nextElementSibling?.lastChild.children;
  return {ArrowLeft: tokens[t - 1] ?? above?.[above.length - 1], ArrowRight: tokens[t + 1] ?? below?.[0],
          ArrowUp: above?.[Math.min(t, above.length - 1)], ArrowDown: below?.[Math.min(t, below.length - 1)],
          Home: tokens[0], End: tokens[tokens.length - 1]}[key];
}

function wireTokens() {
  const completions = find("#completions");
  completions.addEventListener("mouseover", event => event.target.classList.contains("token") && inspect(event.target));
  completions.addEventListener("mouseleave", () => view.held && inspect(view.held));
  completions.addEventListener("click", event => event.target.classList.contains("token") && hold(event.target));
  completions.addEventListener("keydown", event => {
    const next = event.target.classList.contains("token") && walk(event.target, event.key);
    if (next) { event.preventDefault(); hold(next); }
    if (event.key === "Escape") event.target.blur();
  });
}
