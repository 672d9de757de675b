
"use strict";
// A button in every column's head, which sorts by it: first falling for numbers, rising for texts, then the other way.
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  const heads = Array.from(table.tHead.rows[0].cells);
  if (body.rows.length < 2) continue;
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const rows = Array.from(body.rows);
      const numbers = rows.some((row) => row.cells[column].dataset.sort !== undefined);
      const value = (row) => {
        const cell = row.cells[column];
        return numbers ? parseFloat(cell.dataset.sort ?? "NaN") : cell.textContent;
      };
      const before = head.getAttribute("aria-sort");
      const rising = before === null ? !numbers : before === "descending";
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", rising ? "ascending" : "descending");
      rows.sort((a, b) => {
        const [x, y] = [value(a), value(b)];
        if (!numbers) return (rising ? 1 : -1) * x.localeCompare(y, undefined, { numeric: true });
        if (Number.isNaN(x) || Number.isNaN(y)) return Number.isNaN(x) - Number.isNaN(y);
        return (rising ? 1 : -1) * (x - y);
      });
      body.append(...rows);
    });
  });
}
