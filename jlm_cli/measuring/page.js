"use strict";
(() => {
  const STEP = 25;
  const table = document.getElementById("rows");
  if (!table) return;
  document.documentElement.classList.add("js");
  const controls = document.getElementById("controls");
  const search = document.getElementById("search");
  const more = document.getElementById("more");
  const found = document.getElementById("found");
  const boxes = [...controls.querySelectorAll("input[name=why]")];
  let rows = [...table.tBodies];
  const words = new Map(rows.map((row) => [row, row.textContent.toLowerCase()]));
  let limit = STEP;
  controls.hidden = false;

  const wanted = (row) => {
    const why = row.dataset.why.split("|");
    return boxes.every((box) => !box.checked || why.includes(box.value))
      && search.value.toLowerCase().split(/\s+/).every((word) => words.get(row).includes(word));
  };

  const show = () => {
    const matches = rows.filter(wanted);
    const shown = new Set(matches.slice(0, limit));
    for (const row of rows) row.hidden = !shown.has(row);
    more.hidden = matches.length <= limit;
    found.textContent = `${shown.size} of ${matches.length} shown`;
  };

  const toggle = (row, open) => {
    row.classList.toggle("open", open);
    const button = row.querySelector("button");
    button.setAttribute("aria-expanded", String(row.classList.contains("open")));
  };

  const sort = (head, down) => {
    const key = head.dataset.sort;
    const value = (row) => row.dataset[key];
    const numbers = rows.every((row) => value(row) === "" || !Number.isNaN(Number(value(row))));
    const order = (one, other) => {
      const [a, b] = [value(one), value(other)];
      if ((a === "") !== (b === "")) return a === "" ? 1 : -1;
      const least = numbers ? Number(a) - Number(b) : a.localeCompare(b);
      return (down ? -least : least) || one.dataset.rank - other.dataset.rank;
    };
    rows = rows.sort(order);
    table.append(...rows);
    for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    limit = STEP;
    show();
  };

  for (const head of table.tHead.rows[0].cells) {
    if (!head.dataset.sort) continue;
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = head.textContent;
    head.replaceChildren(button);
    button.addEventListener("click", () => {
      sort(head, head.getAttribute("aria-sort") === "ascending");
    });
  }

  table.addEventListener("click", (event) => {
    const button = event.target.closest("tbody th button");
    if (button) toggle(button.closest("tbody"));
  });
  const again = () => { limit = STEP; show(); };
  search.addEventListener("input", again);
  controls.addEventListener("change", again);
  controls.addEventListener("submit", (event) => event.preventDefault());
  more.addEventListener("click", () => { limit += STEP; show(); });

  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.target.matches("input")) {
      if (event.key === "Escape") event.target.blur();
      if (event.key === "Enter" && event.target === search) {
        rows.find((row) => !row.hidden)?.querySelector("button").focus();
        event.preventDefault();
      }
      return;
    }
    if (event.key === "/") {
      event.preventDefault();
      search.focus();
    } else if (event.key === "j" || event.key === "k") {
      const buttons = rows.filter((row) => !row.hidden).map((row) => row.querySelector("button"));
      const at = buttons.indexOf(document.activeElement);
      const next = event.key === "j" ? at + 1 : Math.max(at, 0) - (at > 0 ? 1 : 0);
      if (buttons[next]) buttons[next].focus();
    }
  });

  show();
})();
