// Advice: a slider that stops at each rate that was worked out. Figures and sentences are the page's own; only a price is
// multiplied here.
function advice() {
  const box = document.querySelector(".advice");
  if (!box) return;
  const { rates, texts, start } = JSON.parse(box.querySelector("template").content.textContent);
  const body = box.querySelector("tbody"), last = [...box.querySelectorAll("thead th")].at(-1), hours = last.textContent;
  const rows = [...body.rows].slice(0, rates[0].rows.length);
  body.replaceChildren(...rows);
  const controls = make("div", "", { className: "controls", role: "group", ariaLabel: "Your traffic" });
  const input = (words, fields) => {
    const label = make("label", words), made = make("input", "", fields);
    label.append(made);
    controls.append(label);
    return made;
  };
  const rate = input("requests/s", { type: "number", min: 0, step: "any" });
  const slider = input("", { type: "range", min: 0, max: rates.length - 1, value: start, ariaLabel: "requests per second" });
  const price = input("price per GPU hour", { type: "number", min: 0, step: "any", placeholder: "none" });
  const said = make("ul", "", { className: "said", ariaLive: "polite" });
  const show = () => {
    const now = rates[slider.value], priced = Number(price.value) > 0, choice = priced ? now.gpus : now.joules;
    rate.value = now.rate;
    slider.ariaValueText = `${now.rate} requests per second`;
    said.replaceChildren(...choice.said.map((place) => make("li", texts[place])));
    (last.querySelector("button") ?? last).textContent = priced ? "cost/1,000 queries" : hours;
    rows.forEach((row, target) => {
      const best = target === choice.best, shown = now.rows[target].split("|");
      shown[1] = best ? "best" : "";
      if (priced && now.gpuHours[target] !== null) shown[shown.length - 1] = readText(price.value * now.gpuHours[target]);
      shown.forEach((text, place) => { row.cells[place + 1].textContent = text; });
      row.classList.toggle("best", best);
    });
  };
  const distance = (one, other) => Math.abs(Math.log(one.rate / other));
  rate.onchange = () => {
    const asked = Number(rate.value);
    if (asked > 0) slider.value = rates.reduce((best, one, k) => distance(one, asked) < distance(rates[best], asked) ? k : best, 0);
    show();
  };
  slider.oninput = show;
  price.oninput = show;
  show();
  box.querySelector(".scroll").before(controls, said);
}
