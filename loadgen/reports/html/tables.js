// Tables: a click on a heading sorts, and two buttons give the table as it is sorted, to the clipboard or as a CSV file.

const FACTORS = { "": 1, K: 1e3, M: 1e6, B: 1e9, T: 1e12 };
const withHyphen = (text) => text.replace(/,(?=\d{3})/g, "").replaceAll("−", "-");
// What a cell counts for: "1,273 tok/s" 1273, "−0.58 to −0.53" −0.58, "7B" 7e9, "2/8" a quarter, others their text.
function sortKey(text) {
  const plain = withHyphen(text.trim());
  const share = plain.match(/^(\d+)\/(\d+)/);
  if (share) return share[2] > 0 ? share[1] / share[2] * 100 : 0;
  const figure = plain.match(/^[×≤≥<>~±+ ]*(-?\d*\.?\d+(?:e[-+]?\d+)?)(?:([KMBT])(?![A-Za-z]))?/);
  return plain === "" ? null : figure ? parseFloat(figure[1]) * FACTORS[figure[2] ?? ""] : plain;
}

const words = new Intl.Collator("en", { numeric: true });
// Figures before words, empty entries last whichever way the column is sorted.
function inOrder(a, b, turn) {
  if (a === null || b === null) return (a === null) - (b === null);
  if (typeof a !== typeof b) return typeof a === "number" ? -1 : 1;
  return turn * (typeof a === "number" ? a - b : words.compare(a, b));
}

// Figures without thousands separators and with a hyphen as minus, as other programs read them.
function plainText(text) {
  const plain = text.replace(/\s+/g, " ").trim();
  return /^[−+]?[\d,.]+(e[−+]?\d+)?%?$/.test(plain) ? withHyphen(plain) : plain;
}

// The two ends of "38.6 to 43.2%" or "52–75", each with the unit.
function ends(text) {
  const [, low, high, unit] = text.match(/^(.+?)(?: to |–)(.+?)(%| pp)?$/) ?? [null, text, /\d/.test(text) ? text : "", ""];
  return [plainText(low + (unit ?? "")), plainText(high + (unit ?? ""))];
}

// The caption of a simulated run's table begins with it.
const stampOf = (table) => table.caption?.textContent.split(":")[0];

// Rows of texts, the heading first. An interval is two columns; a row of a simulated run says so.
function tableTexts(table) {
  const heads = [...table.tHead.rows[0].cells];
  const isInterval = heads.map((head) => head.classList.contains("interval"));
  const titles = heads.map((head) => head.textContent.trim());
  const named = titles.flatMap((title, k) => isInterval[k] ? [`${titles[k - 1]} lower`, `${titles[k - 1]} upper`] : [title]);
  const rows = [...table.tBodies[0].rows].map((row) => [...row.cells].flatMap((cell, k) =>
    isInterval[k] ? ends(cell.textContent.trim()) : [plainText(cell.textContent)]));
  const stamp = stampOf(table);
  if (!stamp) return [named, ...rows];
  return [["origin", ...named], ...rows.map((row) => [stamp, ...row.map((text) => text.replace(` ${stamp}`, ""))])];
}

// A text that a spreadsheet would take for a formula is headed by an apostrophe.
const harmless = (text) => /^(?:[=@]|[-+](?![\d.]))/.test(text) ? `'${text}` : text;
const asCsv = (rows) => rows.map((row) => row
  .map(harmless).map((text) => /[",\n\r]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text).join(",") + "\r\n").join("");
const asTsv = (rows) => rows.map((row) => row.map((text) => harmless(text).replace(/[\t\r\n]/g, " ")).join("\t")).join("\n");

async function toClipboard(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch { // no permission, or an old browser: the selection of a field
    const field = make("textarea", text, { readOnly: true });
    document.body.append(field);
    field.select();
    const copied = document.execCommand("copy");
    field.remove();
    return copied;
  }
}

function download(text, name) {
  const link = make("a", "", { href: URL.createObjectURL(new Blob([text], { type: "text/csv" })), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

function sortable(table) {
  const body = table.tBodies[0];
  const drawn = [...body.rows];
  const ruled = drawn.filter((row) => row.classList.contains("first"));
  for (const head of [...table.tHead.rows[0].cells].filter((head) => head.textContent)) {
    const button = make("button", head.textContent, { type: "button" });
    head.replaceChildren(button);
    button.onclick = () => {
      const before = head.getAttribute("aria-sort");
      const now = { ascending: "descending", descending: null }[before] ?? (before ? null : "ascending");
      for (const other of head.parentNode.cells) other.removeAttribute("aria-sort");
      if (now) head.setAttribute("aria-sort", now);
      const turn = now === "descending" ? -1 : 1;
      const keyed = drawn.map((row) => [sortKey(row.cells[head.cellIndex].textContent), row]);
      if (now) keyed.sort(([a], [b]) => inOrder(a, b, turn));
      for (const [, row] of keyed) {
        row.classList.toggle("first", !now && ruled.includes(row));
        body.append(row);
      }
    };
  }
}

function tables() {
  for (const table of document.querySelectorAll(".scroll > table")) {
    const label = table.parentNode.getAttribute("aria-label");
    const copy = make("button", "Copy", { type: "button", title: "Copy the table, to paste into a spreadsheet" });
    copy.onclick = async () => {
      copy.textContent = await toClipboard(asTsv(tableTexts(table))) ? "Copied" : "Not copied";
      setTimeout(() => (copy.textContent = "Copy"), 2000);
    };
    const save = make("button", "CSV", { type: "button", title: "Download the table as a CSV file" });
    const name = [stampOf(table), label.toLowerCase().replace(/[^a-z0-9]+/g, "-").replace(/^-|-$/g, "")];
    save.onclick = () => download(asCsv(tableTexts(table)), `${name.filter(Boolean).join("-")}.csv`);
    const tools = make("div", "", { className: "tools", role: "group", ariaLabel: `Table: ${label}` });
    tools.append(copy, save);
    table.parentNode.before(tools);
    sortable(table);
  }
}
