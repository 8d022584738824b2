// Figures: a panel's group says where it is (data-frame) and what its axes are (data-x, data-y: kind, both ends, whether
// it can be turned). With that the drawing is read under the pointer, and drawn again linear instead of logarithmic.

const FORWARD = { log: Math.log, linear: (value) => value, function: Math.log1p };
const BACK = { log: Math.exp, linear: (value) => value, function: Math.expm1 };
// An axis from place `from` to place `to` in the drawing, which stand for the values `low` and `high`.
function axisOf(kind, low, high, from, to) {
  const [first, last] = [low, high].map(FORWARD[kind]);
  return {
    kind, low, high, from, to,
    place: (value) => from + (FORWARD[kind](value) - first) / (last - first) * (to - from),
    value: (place) => BACK[kind](first + (place - from) / (to - from) * (last - first)),
  };
}

const MARGIN = 0.05; // of what is drawn, beyond both of its ends
// The same axis on the other scale: linear from zero, unless what is drawn is far from it.
function turned(axis) {
  const ends = [MARGIN, 1 + MARGIN].map((share) => axis.value(axis.from + share / (1 + 2 * MARGIN) * (axis.to - axis.from)));
  const [low, high] = ends.sort((a, b) => a - b);
  const [least, most] = axis.kind === "linear" ? [low * (low / high) ** MARGIN, high * (high / low) ** MARGIN]
    : [low < high / 2 ? 0 : low - MARGIN * (high - low), high + MARGIN * (high - low)];
  const other = axis.kind === "linear" ? "log" : "linear";
  return axis.low < axis.high ? axisOf(other, least, most, axis.from, axis.to) : axisOf(other, most, least, axis.from, axis.to);
}

// Values with a line across: round ones, at most five or six; of several decades 1, 2 and 5 of each, or the decades.
function ticksOf({ kind, low, high }) {
  const [least, most] = [Math.min(low, high), Math.max(low, high)];
  const decades = kind === "log" ? Math.log10(most / least) : 0;
  const within = (values) => values.filter((value) => value >= least * (1 - 1e-9) && value <= most * (1 + 1e-9));
  if (decades > 0.8) {
    const powers = Array.from({ length: Math.ceil(decades) + 2 }, (_, k) => 10 ** (Math.floor(Math.log10(least)) + k));
    return within(decades < 2.7 ? powers.flatMap((power) => [power, 2 * power, 5 * power]) : powers);
  }
  const raw = (most - least) / 5, power = 10 ** Math.floor(Math.log10(raw));
  const step = power * [1, 2, 2.5, 5, 10].find((factor) => factor * power >= raw * 0.999);
  const first = Math.ceil(least / step - 1e-9);
  return within(Array.from({ length: 8 }, (_, k) => (first + k) * step));
}
const tickText = (value) => Number(value.toPrecision(12))
  .toLocaleString("en", { maximumSignificantDigits: 6, notation: Math.abs(value) >= 1e6 ? "compact" : "standard" }).replace("-", "−");
const readText = (value) => Number(value.toPrecision(3)).toLocaleString("en", { maximumSignificantDigits: 3 }).replace("-", "−");

const POINT = /([MLCQ]?)\s*(-?[\d.]+(?:e-?\d+)?) (-?[\d.]+(?:e-?\d+)?)/g;
const STRETCH = 8; // A straight line bends on another scale: a place every so many units keeps it where its values are.
function movedPath(path, down, moved) {
  let last = null;
  return path.replace(POINT, (_, command, x, y) => {
    const point = [Number(x), Number(y) + down];
    const steps = command === "L" && last ? Math.min(40, Math.ceil(Math.hypot(point[0] - last[0], point[1] - last[1]) / STRETCH)) : 1;
    const from = last ?? point;
    last = point;
    return Array.from({ length: Math.max(1, steps) }, (_, k) => {
      const share = (k + 1) / Math.max(1, steps);
      const [newX, newY] = moved(from[0] + share * (point[0] - from[0]), from[1] + share * (point[1] - from[1]));
      return `${command} ${newX.toFixed(2)} ${(newY - down).toFixed(2)}`;
    }).join(" ");
  });
}

class Panel {
  constructor(group, svg) {
    this.group = group;
    this.edges = group.dataset.frame.split(" ").map(Number);
    const [left, top, right, bottom] = this.edges;
    this.drawn = {};
    this.turns = {};
    for (const [name, from, to] of [["x", left, right], ["y", bottom, top]]) {
      const [kind, low, high, turns] = group.dataset[name].split(" ");
      this.drawn[name] = axisOf(kind, Number(low), Number(high), from, to);
      this.turns[name] = turns === "1";
    }
    this.now = { ...this.drawn };
    this.height = svg.viewBox.baseVal.height;
    const inside = [...group.children].filter((part) => !/-(matplotlib\.axis|patch)_\d+$/.test(part.id));
    // What moves: [element, attribute or attributes, as drawn, how far down its own zero is].
    this.parts = inside.flatMap((part) => [...part.querySelectorAll("path, use, text")]).flatMap((part) => {
      if (part.localName === "path") return part.closest("defs") ? [] : [{ part, path: part.getAttribute("d"), down: 0 }];
      const at = [Number(part.getAttribute("x")), Number(part.getAttribute("y"))];
      if (part.localName === "text") {
        const label = part.closest('[id*="-label-"]');
        const along = { x: part.closest("[data-series]"), y: label ?? part.closest('[id*="-border-"]') };
        const point = label && svg.getElementById(label.id.replace("-label-", "-pt-"))?.querySelector("use");
        const anchor = point ? ["x", "y"].map((name) => Number(point.getAttribute(name))) : at;
        return along.x || along.y ? [{ part, at, along, anchor, turn: part.getAttribute("transform") }] : [];
      }
      if (at[0] || Math.abs(at[1] - this.height) > 0.01) return [{ part, at, along: { x: true, y: true } }];
      const shape = svg.querySelector(`[id="${CSS.escape(part.getAttribute("xlink:href").slice(1))}"]`);
      return shape ? [{ part: shape, path: shape.getAttribute("d"), down: this.height }] : [];
    });
    this.ticks = { x: this.ticksOf(1), y: this.ticksOf(2) };
  }

  ticksOf(place) {
    const axis = [...this.group.children].find((part) => part.id.endsWith(`-matplotlib.axis_${this.axisNumber(place)}`));
    return axis ? [...axis.children].filter((part) => /-[xy]tick_\d+$/.test(part.id)) : [];
  }

  // matplotlib counts the axes of all panels on.
  axisNumber(place) {
    const own = [...this.group.children].map((part) => part.id.match(/-matplotlib\.axis_(\d+)$/)?.[1]).filter(Boolean);
    return own[place - 1];
  }

  // Where a place of the drawing is now. What reaches to an edge of the panel goes on doing so.
  moved(x, y) {
    const one = (name, place) => {
      const [drawn, now] = [this.drawn[name], this.now[name]];
      if (drawn === now || Math.min(Math.abs(place - drawn.from), Math.abs(place - drawn.to)) < 0.02) return place;
      const there = now.place(drawn.value(place));
      return Number.isFinite(there) ? there : now.from - 10 * (now.to - now.from);
    };
    return [one("x", x), one("y", y)];
  }

  turn(name) {
    this.now[name] = this.now[name] === this.drawn[name] ? turned(this.drawn[name]) : this.drawn[name];
    for (const { part, path, down, at, along, turn, anchor = at } of this.parts) {
      if (path !== undefined) {
        const same = this.now.x === this.drawn.x && this.now.y === this.drawn.y;
        part.setAttribute("d", same ? path : movedPath(path, down, (x, y) => this.moved(x, y)));
        continue;
      }
      const there = this.moved(...anchor).map((place, k) => place + at[k] - anchor[k]);
      const [x, y] = [along.x ? there[0] : at[0], along.y ? there[1] : at[1]];
      part.setAttribute("x", x);
      part.setAttribute("y", y);
      if (turn) part.setAttribute("transform", turn.replace(/[\d.]+ [\d.]+\)/, `${x} ${y})`));
    }
    this.drawTicks(name);
  }

  drawTicks(name) {
    const [pattern] = this.ticks[name];
    if (!pattern) return;
    const axis = pattern.parentNode;
    axis.querySelectorAll(":scope > .turned").forEach((tick) => tick.remove());
    const now = this.now[name], same = now === this.drawn[name];
    this.ticks[name].forEach((tick) => { tick.style.display = same ? "" : "none"; });
    if (same) return;
    const mark = pattern.querySelector("use") ?? pattern.querySelector("text");
    for (const value of ticksOf(now)) {
      const tick = pattern.cloneNode(true);
      const by = now.place(value) - Number(mark.getAttribute(name));
      tick.querySelectorAll("[id]").forEach((part) => part.removeAttribute("id"));
      tick.removeAttribute("id");
      tick.setAttribute("class", "turned");
      tick.setAttribute("transform", name === "x" ? `translate(${by} 0)` : `translate(0 ${by})`);
      tick.style.display = "";
      const text = tick.querySelector("text");
      if (text) text.textContent = tickText(value);
      axis.append(tick);
    }
  }
}

// One button per axis that can be turned; it turns all panels whose axis is of the kind that the first of them has.
function scaleButtons(figure, panels) {
  const tools = make("div", "", { className: "tools", role: "group", ariaLabel: "Scales of the figure" });
  for (const name of ["x", "y"]) {
    const able = panels.filter((panel) => panel.turns[name]);
    const kind = able.some((panel) => panel.drawn[name].kind === "log") ? "log" : able[0]?.drawn[name].kind;
    const turning = able.filter((panel) => panel.drawn[name].kind === kind);
    if (!turning.length) continue;
    const button = make("button", "", { type: "button" });
    const label = () => {
      const now = turning[0].now[name].kind;
      button.textContent = `${name}: ${now}`;
      button.title = `The ${name} axis is ${now === "log" ? "logarithmic" : "linear"}; press for ${now === "log" ? "linear" : "logarithmic"}`;
      button.setAttribute("aria-label", button.title);
    };
    button.onclick = () => {
      turning.forEach((panel) => panel.turn(name));
      label();
    };
    label();
    tools.append(button);
  }
  if (tools.children.length) figure.querySelector(".frame").before(tools);
}

const NEAR = 26; // CSS pixels from a point at which it speaks; a line that is read off speaks at any distance
const SAME = 2; // Points so close to the nearest one speak with it.
// Points with figures, and lines that can be read off, speak under the pointer, the finger and the focus.
function figures() {
  const tip = make("div", "", { id: "tip", hidden: true, role: "tooltip" });
  document.body.append(tip);
  let ring = null;
  const hide = () => {
    tip.hidden = true;
    ring?.remove();
  };
  const show = (svg, { text, at }) => {
    ring?.remove();
    ring = document.createElementNS("http://www.w3.org/2000/svg", "circle");
    for (const [name, value] of Object.entries({ cx: at[0], cy: at[1], r: 7, class: "ring" })) ring.setAttribute(name, value);
    svg.append(ring);
    tip.textContent = text;
    tip.hidden = false;
    const own = tip.getBoundingClientRect(), here = new DOMPoint(...at).matrixTransform(svg.getScreenCTM());
    const above = here.y - own.height - 14;
    tip.style.left = `${Math.min(Math.max(8, here.x - own.width / 2), root.clientWidth - own.width - 8) + scrollX}px`;
    tip.style.top = `${(above > 40 ? above : here.y + 14) + scrollY}px`;
  };
  addEventListener("keydown", (event) => event.key === "Escape" && hide());
  document.addEventListener("pointerdown", (event) => event.target.closest("figure svg") ?? hide());
  for (const svg of document.querySelectorAll("figure svg")) {
    const panels = [...svg.querySelectorAll("[data-frame]")].map((group) => new Panel(group, svg));
    scaleButtons(svg.closest("figure"), panels);
    speaking(svg, panels, show, hide);
  }
}

function speaking(svg, panels, show, hide) {
  const marks = [...svg.querySelectorAll(".point, [data-read]")].map((element, k) => {
    const title = element.querySelector("title");
    const panel = panels.find(({ group }) => group.contains(element));
    const parts = panel?.parts.filter(({ part }) => element.contains(part)) ?? [];
    const read = element.dataset.read;
    const places = parts.flatMap(({ path, down, at }) => at ? [at]
      : [...movedPath(path, down, (...there) => there).matchAll(POINT)].map(([, , x, y]) => [Number(x), Number(y) + down]));
    const one = parts.some(({ at }) => at) || read ? places : middle(places, panel);
    element.setAttribute("role", "img");
    element.setAttribute("tabindex", k ? -1 : 0);
    const mark = { element, panel, read, places: one, words: title?.textContent ?? "", place: Math.floor(one.length / 2) };
    title?.remove();
    element.setAttribute("aria-label", one.length ? said(mark, mark.place).text : mark.words);
    return mark;
  }).filter(({ places }) => places.length);
  if (!marks.length) return;
  svg.setAttribute("role", "group");
  const open = () => marks.filter(({ element }) => !element.closest(".off"));
  const nearest = (event) => {
    const to = svg.getScreenCTM(), here = new DOMPoint(event.clientX, event.clientY).matrixTransform(to.inverse());
    const inside = (panel) => here.x >= panel.edges[0] - 5 && here.x <= panel.edges[2] + 5
      && here.y >= panel.edges[1] - 5 && here.y <= panel.edges[3] + 5;
    const found = open().filter((mark) => !mark.read || inside(mark.panel)).map((mark) => {
      const away = mark.places.map((place) => {
        const [x, y] = mark.panel.moved(...place);
        return Math.hypot(x - here.x, y - here.y) * to.a;
      });
      const least = Math.min(...away);
      return { mark, away: least, place: away.indexOf(least) };
    }).filter(({ mark, away }) => mark.read || away < NEAR || mark.element === event.target.closest(".point"));
    const least = Math.min(...found.map(({ away }) => away));
    const several = found.filter(({ away }) => away < least + SAME).map(({ mark, place }) => said(mark, place));
    return several.length ? { text: several.map(({ text }) => text).join("\n"), at: several[0].at } : null;
  };
  const speak = (event) => {
    const found = nearest(event);
    if (found) show(svg, found);
    else hide();
  };
  svg.addEventListener("pointermove", speak);
  svg.addEventListener("pointerdown", speak);
  svg.addEventListener("pointerleave", (event) => event.pointerType === "mouse" && hide());
  const focused = (event) => marks.find(({ element }) => element === event.target.closest(".point, [data-read]"));
  svg.addEventListener("focusin", (event) => {
    const mark = event.target.matches(":focus-visible") && focused(event);
    if (mark) show(svg, said(mark, mark.place));
  });
  svg.addEventListener("focusout", hide);
  // Arrow keys walk from point to point of a figure; left and right walk along a line that is read off.
  svg.addEventListener("keydown", (event) => {
    const mark = focused(event), step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (!mark || !step) return;
    event.preventDefault();
    if (mark.read && event.key.match(/Left|Right/)) {
      const along = mark.place + step * Math.ceil(mark.places.length / 40);
      mark.place = Math.min(Math.max(along, 0), mark.places.length - 1);
      show(svg, said(mark, mark.place));
      return;
    }
    const seen = open(), next = seen[seen.indexOf(mark) + step];
    if (!next) return;
    mark.element.setAttribute("tabindex", -1);
    next.element.setAttribute("tabindex", 0);
    next.element.focus({ focusVisible: true });
  });
}

// What a mark says at one of its places, and where that is now.
function said({ panel, read, words: own, places }, k) {
  const [x, y] = places[k];
  const values = { x: panel.drawn.x.value(x), y: panel.drawn.y.value(y) };
  const there = read?.replace(/\{([xy])(%?)\}/g, (_, name, share) => readText(values[name] * (share ? 100 : 1)) + share);
  return { text: [own, there].filter(Boolean).join("; "), at: panel.moved(x, y) };
}

// One place for a line or an area that speaks as a whole, such as a crossover.
function middle(places, panel) {
  if (!places.length) return [];
  const centre = [0, 1].map((k) => (Math.min(...places.map((at) => at[k])) + Math.max(...places.map((at) => at[k]))) / 2);
  return [[centre[0], Math.min(Math.max(centre[1], panel.edges[1]), panel.edges[3])]];
}
