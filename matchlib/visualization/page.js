"use strict";
(() => {
  // Numbers compare as numbers, text as text; empty cells come last in both directions.
  const compare = (a, b, direction) => {
    if (a === "" || b === "") return (a === "") - (b === "");
    const difference = Number(a) - Number(b);
    return direction * (Number.isNaN(difference) ? a.localeCompare(b, "en", { numeric: true }) : difference);
  };

  const sort = (table, header) => {
    const column = Number(header.dataset.column);
    const cells = [...table.querySelectorAll(`tbody tr:not(.group) > :nth-child(${column + 1})`)];
    const isNumeric = cells.some((cell) => cell.classList.contains("number"));
    const before = header.getAttribute("aria-sort");
    // The first click shows what one looks for: the highest number, the first name.
    const first = isNumeric ? "descending" : "ascending";
    const second = isNumeric ? "ascending" : "descending";
    const order = before === first ? second : first;
    for (const other of table.querySelectorAll("th[data-column]")) other.setAttribute("aria-sort", "none");
    header.setAttribute("aria-sort", order);
    for (const body of table.tBodies) {
      const rows = [...body.rows].filter((row) => !row.classList.contains("group"));
      const direction = order === "ascending" ? 1 : -1;
      rows.sort((a, b) => compare(a.cells[column].dataset.value, b.cells[column].dataset.value, direction));
      body.append(...rows);
    }
  };

  for (const table of document.querySelectorAll("table[data-sortable]")) {
    for (const header of table.querySelectorAll("th[data-column]")) {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...header.childNodes);
      button.addEventListener("click", () => sort(table, header));
      header.setAttribute("aria-sort", "none");
      header.append(button);
    }
  }

  document.addEventListener("keydown", (event) => {
    const open = document.querySelector("figure.picture:target");
    if (event.key === "Escape" && open) location.hash = `${open.id}-closed`;
  });

  document.documentElement.dataset.ready = "true";
})();
