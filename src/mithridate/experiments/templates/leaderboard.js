"use strict";
const table = document.querySelector("table");
const body = table.tBodies[0];
const heads = [...table.tHead.rows[0].cells];
const selects = [...document.querySelectorAll("select[data-filter]")];
const search = document.querySelector("input[type=search]");
const count = document.querySelector("#count");
const value = (row, at) => row.cells[at].dataset.value ?? row.cells[at].textContent.trim();
const compare = (a, b) => {
  const [x, y] = [Number(a), Number(b)];
  if (a !== "" && b !== "" && !Number.isNaN(x) && !Number.isNaN(y)) return x - y;
  return String(a).localeCompare(String(b));
};
function sort(at) {
  const down = heads[at].getAttribute("aria-sort") === "ascending";
  heads.forEach((head) => head.removeAttribute("aria-sort"));
  heads[at].setAttribute("aria-sort", down ? "descending" : "ascending");
  const rows = [...body.rows].sort((one, other) => {
    const [a, b] = [value(one, at), value(other, at)];
    if ((a === "") !== (b === "")) return a === "" ? 1 : -1;
    return down ? compare(b, a) : compare(a, b);
  });
  body.append(...rows);
}
function filter() {
  const wanted = search.value.toLowerCase();
  let shown = 0;
  for (const row of body.rows) {
    const kept = selects.every((one) => !one.value || row.dataset[one.dataset.filter] === one.value);
    row.hidden = !(kept && row.textContent.toLowerCase().includes(wanted));
    shown += row.hidden ? 0 : 1;
  }
  count.textContent = `${shown} of ${body.rows.length} entries`;
}
heads.forEach((head, at) => head.querySelector("button")?.addEventListener("click", () => sort(at)));
selects.forEach((one) => one.addEventListener("change", filter));
search.addEventListener("input", filter);
document.querySelector("#controls").hidden = false;
document.documentElement.classList.add("scripted");
filter();
