"use strict";
// Everything here is an addition: without it the page shows the same, with the browser's own tooltips.
const root = document.documentElement;
const make = (tag, text, fields) => Object.assign(document.createElement(tag), { textContent: text }, fields);

// Light or dark: the system's choice until the button is pressed.
function themeToggle() {
  const system = matchMedia("(prefers-color-scheme: dark)");
  const dark = () => (root.dataset.theme || (system.matches ? "dark" : "light")) === "dark";
  const label = () => (button.textContent = dark() ? "Light" : "Dark");
  const button = make("button", "", { id: "theme", type: "button" });
  button.onclick = () => { root.dataset.theme = dark() ? "light" : "dark"; label(); };
  system.onchange = label;
  label();
  document.querySelector("main").prepend(button);
}

// The text of a point under the pointer, the finger or the focus. Arrow keys walk from point to point of a figure.
function tooltips() {
  const tip = make("div", "", { id: "tip", hidden: true, role: "tooltip" });
  document.body.append(tip);
  const hide = () => { tip.hidden = true; };
  const show = (point, pointer) => {
    tip.textContent = point.getAttribute("aria-label");
    tip.hidden = false;
    const own = tip.getBoundingClientRect();
    const at = pointer ? new DOMRect(pointer.clientX, pointer.clientY, 0, 8) : point.getBoundingClientRect();
    const left = Math.min(Math.max(8, at.x + at.width / 2 - own.width / 2), root.clientWidth - own.width - 8);
    const above = at.y - own.height - 8;
    tip.style.left = `${left + scrollX}px`;
    tip.style.top = `${(above > 40 ? above : at.bottom + 8) + scrollY}px`;
  };
  for (const svg of document.querySelectorAll("figure svg")) {
    const points = [...svg.querySelectorAll(".point")];
    if (!points.length) continue;
    svg.setAttribute("role", "group");
    points.forEach((point, k) => {
      const title = point.querySelector("title");
      point.setAttribute("aria-label", title.textContent);
      point.setAttribute("role", "img");
      point.setAttribute("tabindex", k ? -1 : 0);
      title.remove();
    });
    const of = (event) => event.target.closest(".point");
    svg.addEventListener("pointerover", (event) => of(event) ? show(of(event), event) : hide());
    svg.addEventListener("pointerleave", hide);
    svg.addEventListener("click", (event) => of(event) && show(of(event), event));
    svg.addEventListener("focusin", (event) => of(event) && show(of(event)));
    svg.addEventListener("focusout", hide);
    svg.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
      const seen = points.filter((point) => !point.closest(".off"));
      const next = step && seen[seen.indexOf(of(event)) + step];
      if (!next) return;
      event.preventDefault();
      of(event).setAttribute("tabindex", -1);
      next.setAttribute("tabindex", 0);
      next.focus();
    });
  }
  addEventListener("keydown", (event) => event.key === "Escape" && hide());
}

// A button per target shows or hides it in all figures; so does its entry in a legend.
function seriesButtons() {
  const named = [...document.querySelectorAll("[data-legend]"), ...document.querySelectorAll("[data-series]")];
  const targets = [...new Set(named.map((drawn) => drawn.dataset.legend ?? drawn.dataset.series))];
  if (targets.length < 2) return;
  const all = (kind, target) => document.querySelectorAll(`[data-${kind}="${CSS.escape(target)}"]`);
  const toggle = (target) => {
    const hidden = all("button", target)[0].getAttribute("aria-pressed") === "true";
    all("button", target).forEach((button) => button.setAttribute("aria-pressed", !hidden));
    all("series", target).forEach((drawn) => drawn.classList.toggle("off", hidden));
    all("legend", target).forEach((entry) => entry.classList.toggle("dim", hidden));
  };
  const colour = (target) => [...all("series", target)]
    .flatMap((drawn) => [...drawn.querySelectorAll("path, use")])
    .map((line) => getComputedStyle(line).stroke).find((stroke) => stroke.startsWith("rgb"));
  for (const figures of document.querySelectorAll(".figures")) {
    const bar = make("div", "", { className: "series", role: "group", ariaLabel: "Targets shown in the figures" });
    for (const target of targets) {
      const button = make("button", target, { type: "button", onclick: () => toggle(target) });
      button.dataset.button = target;
      button.setAttribute("aria-pressed", true);
      button.style.setProperty("--series", colour(target) || "currentColor");
      bar.append(button);
    }
    figures.before(bar);
  }
  for (const entry of document.querySelectorAll("[data-legend]")) entry.onclick = () => toggle(entry.dataset.legend);
}

// A click on a heading sorts its column: figures by value, empty entries last.
function sorting() {
  const value = (row, place) => {
    const text = row.cells[place].textContent.trim();
    const figure = parseFloat(text.replace(/,/g, "").replace("−", "-"));
    return text === "" ? null : Number.isNaN(figure) ? text : figure;
  };
  const compare = (a, b) => typeof a === typeof b ? (a > b) - (a < b) : typeof a === "number" ? -1 : 1;
  for (const head of document.querySelectorAll("table.sortable thead th")) {
    const button = make("button", head.textContent, { type: "button" });
    head.replaceChildren(button);
    button.onclick = () => {
      const body = head.closest("table").tBodies[0];
      const down = head.getAttribute("aria-sort") === "ascending";
      for (const other of head.parentNode.cells) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const keyed = [...body.rows].map((row) => [value(row, head.cellIndex), row]);
      keyed.sort(([a], [b]) => a === null ? (b === null ? 0 : 1) : b === null ? -1 : down ? compare(b, a) : compare(a, b));
      for (const [, row] of keyed) {
        row.classList.remove("first");
        body.append(row);
      }
    };
  }
}

// A link into a closed section opens it (browsers of today do so by themselves), and so does printing.
function folds() {
  const closed = () => [...document.querySelectorAll("details:not([open])")];
  const open = (hash) => {
    const at = document.getElementById(decodeURIComponent(hash.slice(1)));
    for (let fold = at?.closest("details"); fold; fold = fold.parentElement.closest("details")) fold.open = true;
    at?.scrollIntoView();
  };
  let printed = [];
  addEventListener("beforeprint", () => { printed = closed(); printed.forEach((fold) => { fold.open = true; }); });
  addEventListener("afterprint", () => printed.forEach((fold) => { fold.open = false; }));
  addEventListener("hashchange", () => open(location.hash));
  addEventListener("click", (event) => {
    const link = event.target.closest('a[href^="#"]');
    if (link?.hash === location.hash) open(link.hash);
  });
  if (location.hash) open(location.hash);
  const all = document.querySelector(".folds");
  if (!all) return;
  const button = make("button", "Open all sections", { className: "all", type: "button" });
  button.onclick = () => {
    const shut = all.querySelectorAll(".fold:not([open])");
    all.querySelectorAll(".fold").forEach((fold) => { fold.open = shut.length > 0; });
    button.textContent = shut.length ? "Close all sections" : "Open all sections";
  };
  all.before(button);
}

// What is copied from a simulated run's page says so.
function stampCopies() {
  const banner = document.querySelector(".simulated");
  if (!banner) return;
  addEventListener("copy", (event) => {
    const chosen = getSelection();
    if (event.defaultPrevented || chosen.isCollapsed) return;
    const box = make("div");
    for (let k = 0; k < chosen.rangeCount; k++) box.append(chosen.getRangeAt(k).cloneContents());
    box.prepend(make("p", banner.textContent));
    event.clipboardData.setData("text/plain", `${banner.textContent}\n${chosen}`);
    event.clipboardData.setData("text/html", box.innerHTML);
    event.preventDefault();
  });
}

addEventListener("DOMContentLoaded", () => {
  folds();
  stampCopies();
  themeToggle();
  tooltips();
  seriesButtons();
  sorting();
});
