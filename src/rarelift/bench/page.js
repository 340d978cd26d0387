"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const box = document.getElementById("browse");
  if (!box || !data.pairs.length) return;
  box.hidden = false;
  const CHUNK = 24; // pairs put into the page at a time; more when its end comes near
  const at = (id) => document.getElementById(id);
  const list = at("pairs"), more = at("more"), count = at("count");
  const BASE = data.methods.indexOf("untouched");
  let shown = [], done = 0;

  const make = (tag, name, text) => {
    const element = document.createElement(tag);
    if (name) element.className = name;
    if (text !== undefined) element.textContent = text; // never as HTML: prompts come from anywhere
    return element;
  };
  const fill = (select, options) => {
    const kept = select.value;
    select.replaceChildren(...options.map(([value, text]) => {
      const option = make("option", "", text);
      option.value = value;
      return option;
    }));
    if (options.some(([value]) => value === kept)) select.value = kept;
    select.disabled = options.length < 2;
    select.parentElement.hidden = options.length < 2;
  };
  const all = (names, any) => (names.length > 1 ? [["", any]] : []).concat(names.map((name, i) => [String(i), name]));

  // ------------------------------------------------------------ what a pair says
  const cell = (pair, method) => pair.c.find((found) => found.m === method);
  const value = (found, metric) => (found && metric in found.v ? found.v[metric] : null); // null: nothing is known
  const difference = (pair, method, metric) => {
    const lifted = value(cell(pair, method), metric), plain = value(cell(pair, BASE), metric);
    return lifted === null || plain === null ? null : lifted - plain;
  };
  const outcome = (pair, method, metric) => {
    const by = difference(pair, method, metric);
    if (by === null) return "";
    if (by > 0) return "won";
    if (by < 0) return "lost";
    if (!data.metrics[metric].binary) return "same";
    return value(cell(pair, method), metric) > 0 ? "both" : "neither";
  };
  const WORDS = {
    won: "won: it is right, untouched is not", lost: "lost: untouched is right, it is not",
    both: "both right", neither: "neither right",
  };
  const NUMBERS = { won: "higher than untouched", lost: "lower than untouched", same: "the same" };
  // by the chosen metric first; what ties there goes by the others, in their order
  const compare = (a, b, method, order) => {
    for (const metric of order) {
      const x = difference(a, method, metric), y = difference(b, method, metric);
      if (x === null && y === null) continue;
      if (x === null) return 2;
      if (y === null) return -2;
      if (x !== y) return x < y ? -1 : 1;
    }
    return 0;
  };

  // ------------------------------------------------------------ choosing
  const chosen = () => ({ method: Number(at("method").value || -1), metric: Number(at("metric").value || 0) });
  const outcomes = () => {
    const { metric } = chosen();
    const known = !data.metrics.length ? {} : data.metrics[metric].binary ? WORDS : NUMBERS;
    const choices = BASE < 0 || data.methods.length < 2 ? [] : Object.entries(known);
    fill(at("outcome"), [["", "all"]].concat(choices));
  };
  const update = () => {
    const words = at("search").value.toLowerCase().split(/\s+/).filter(Boolean);
    const run = at("run").value, guidance = at("guidance").value, kind = at("kind").value, want = at("outcome").value;
    const order = at("order").value, { method, metric } = chosen();
    shown = data.pairs.filter((pair) => {
      const prompt = data.prompts[pair.p];
      if (run !== "" && prompt.run !== Number(run)) return false;
      if (guidance !== "" && pair.g !== Number(guidance)) return false;
      if (kind !== "" && prompt.kind !== data.kinds[Number(kind)]) return false;
      if (method >= 0 && !cell(pair, method)) return false;
      if (want !== "" && outcome(pair, method, metric) !== want) return false;
      const text = prompt.text.toLowerCase();
      return words.every((word) => text.includes(word));
    });
    if (order !== "order") {
      const sign = order === "wins" ? -1 : 1;
      const metrics = [metric, ...data.metrics.keys()].filter((m, i) => !i || m !== metric);
      shown = shown.map((pair, i) => [pair, i]).sort(([a, i], [b, j]) => {
        const by = compare(a, b, method, metrics);
        return (Math.abs(by) === 2 ? by : sign * by) || i - j; // without a difference last, either way
      }).map(([pair]) => pair);
    }
    count.textContent = `${shown.length} of ${data.pairs.length} embedded pairs`;
    list.replaceChildren();
    done = 0;
    grow();
  };

  // ------------------------------------------------------------ showing
  const chip = (pair, found, metric) => {
    if (!data.metrics.length) return null;
    const { binary } = data.metrics[metric], own = value(found, metric);
    if (own === null) return null;
    if (found.m === BASE || BASE < 0) return make("span", "chip", binary ? (own > 0 ? "right" : "not right") : own.toFixed(3));
    const is = outcome(pair, found.m, metric), by = difference(pair, found.m, metric);
    if (!is) return make("span", "chip", binary ? (own > 0 ? "right" : "not right") : own.toFixed(3));
    const text = binary ? { won: "▲ won", lost: "▼ lost", both: "both right", neither: "neither right" }[is]
      : `${own.toFixed(3)} (${by < 0 ? "−" : "+"}${Math.abs(by).toFixed(3)})`;
    return make("span", `chip ${is}`, text);
  };
  const card = (pair) => {
    const prompt = data.prompts[pair.p], { metric } = chosen();
    const item = make("li", "pair");
    item.append(make("p", "prompt", prompt.text));
    const about = [`guidance ${data.guidances[pair.g]}`, `seed ${pair.s}`];
    if (data.kinds.length > 1) about.push(prompt.kind);
    if (data.runs.length > 1) about.push(data.runs[prompt.run]);
    item.append(make("p", "about", about.join(" · ")));
    const cells = make("div", "cells");
    for (const found of pair.c) {
      const holder = make("div", "cell"), name = data.methods[found.m];
      if (found.i) {
        const image = make("img");
        image.src = found.i;
        image.alt = `${name}: ${prompt.text}, seed ${pair.s}`;
        image.decoding = "async";
        holder.append(image);
      } else holder.append(make("div", "none", found.nan ? "came out as NaN" : "no picture in the folder"));
      holder.append(make("p", "name", name));
      const said = chip(pair, found, metric);
      if (said) holder.append(said);
      cells.append(holder);
    }
    item.append(cells);
    return item;
  };
  const watch = !("IntersectionObserver" in window) ? null
    : new IntersectionObserver((seen) => { if (seen.some((entry) => entry.isIntersecting) && !more.hidden) grow(); },
      { rootMargin: "800px" });
  const grow = () => {
    list.append(...shown.slice(done, done + CHUNK).map(card));
    done = Math.min(done + CHUNK, shown.length);
    more.hidden = done >= shown.length;
    if (watch) { watch.unobserve(at("end")); watch.observe(at("end")); } // looked at anew: one chunk may not fill a screen
  };

  // ------------------------------------------------------------ starting
  const methods = data.methods.map((name, i) => [String(i), name]);
  fill(at("run"), all(data.runs, "all"));
  fill(at("method"), BASE < 0 ? [["", "all"]] : methods.filter(([i]) => Number(i) !== BASE));
  fill(at("guidance"), all(data.guidances, "all"));
  fill(at("kind"), all(data.kinds, "all"));
  fill(at("metric"), data.metrics.map(({ name }, i) => [String(i), name]));
  fill(at("order"), BASE < 0 || methods.length < 2 || !data.metrics.length ? [["order", "in order"]]
    : [["order", "in order"], ["losses", "worst losses first"], ["wins", "biggest wins first"]]);
  outcomes();
  if (data.worst) at("order").value = "losses";
  for (const id of ["run", "method", "guidance", "kind", "outcome", "order"]) at(id).addEventListener("change", update);
  at("metric").addEventListener("change", () => { outcomes(); update(); });
  at("search").addEventListener("input", update);
  more.addEventListener("click", grow);
  update();
})();
