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

// A button per target of these figures shows or hides it in all figures; so does its entry in a legend.
function seriesButtons() {
  const targetsIn = (figures) => {
    const named = [...figures.querySelectorAll("[data-legend]"), ...figures.querySelectorAll("[data-series]")];
    return [...new Set(named.map((drawn) => drawn.dataset.legend ?? drawn.dataset.series))];
  };
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
    const targets = targetsIn(figures);
    if (targets.length < 2) continue;
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
  for (const entry of document.querySelectorAll("[data-legend]")) {
    if (all("button", entry.dataset.legend).length) entry.onclick = () => toggle(entry.dataset.legend);
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
  seriesButtons();
  advice();
  tables();
  figures();
});
