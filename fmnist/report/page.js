"use strict";
{
  const all = (query, within = document) => [...within.querySelectorAll(query)];
  const tip = document.getElementById("tip");

  // A browser would show an SVG's title as a tip of its own, over ours.
  for (const svg of all("svg")) {
    const [title, text] = [svg.querySelector("title"), svg.querySelector("desc")];
    svg.setAttribute("aria-label", title.textContent + ". " + text.textContent);
    svg.removeAttribute("aria-labelledby");
    title.remove();
  }

  // Tips: under the pointer, or beside what has the focus; Escape hides them.
  const show = (owner, x, y) => {
    tip.textContent = owner.dataset.tip;
    tip.hidden = false;
    const box = tip.getBoundingClientRect();
    tip.style.left = Math.max(8, Math.min(x + 14, innerWidth - box.width - 8)) + "px";
    tip.style.top = (y + 18 + box.height > innerHeight ? Math.max(8, y - box.height - 12) : y + 18) + "px";
  };
  document.addEventListener("pointermove", (event) => {
    const owner = event.target.closest?.("[data-tip]");
    if (owner) show(owner, event.clientX, event.clientY);
    else if (!document.activeElement?.matches("[data-tip]")) tip.hidden = true;
  });
  document.addEventListener("focusin", (event) => {
    const owner = event.target.closest("[data-tip]");
    if (!owner) return void (tip.hidden = true);
    const box = owner.getBoundingClientRect();
    show(owner, box.left + box.width / 2, box.bottom - 14);
  });
  document.addEventListener("keydown", (event) => event.key === "Escape" && (tip.hidden = true));
  addEventListener("scroll", () => (tip.hidden = true), { passive: true });

  // The filter: what is of a group that isn't chosen goes, wherever it stands.
  const filter = document.querySelector(".filter");
  filter?.addEventListener("change", () => {
    const off = new Set(all("input:not(:checked)", filter).map((box) => box.value));
    for (const each of all("[data-group]")) each.classList.toggle("off", off.has(each.dataset.group));
  });

  // Light and dark: the system's, until the reader says otherwise.
  const button = document.getElementById("theme");
  const dark = () => (document.documentElement.dataset.theme ?? (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";
  const label = () => {
    button.textContent = dark() ? "Light" : "Dark";
    button.setAttribute("aria-pressed", String(dark()));
    button.setAttribute("aria-label", "Dark colours");
  };
  button.addEventListener("click", () => {
    document.documentElement.dataset.theme = dark() ? "light" : "dark";
    label();
  });
  label();

  // Confusion matrices: two that are chosen, and their difference.
  const data = document.getElementById("matrices");
  if (data) {
    const { names, shares } = JSON.parse(data.textContent);
    const fill = (side, values, name) => {
      const table = document.querySelector(`[data-matrix="${side}"]`);
      const signed = side === "A−B";
      const largest = Math.max(...values.flat().map(Math.abs), 1);
      table.querySelector("caption span").textContent = name;
      all("tbody tr", table).forEach((row, y) =>
        all("td", row).forEach((cell, x) => {
          const value = values[y][x];
          const rounded = Math.round(value);
          cell.textContent = !rounded ? "·" : signed && rounded > 0 ? "+" + rounded : String(rounded).replace("-", "−");
          cell.style.setProperty("--v", Math.abs(value) < 0.005 ? 0 : (signed ? Math.abs(value) / largest : Math.sqrt(value / 100)).toFixed(3));
          if (signed) cell.style.setProperty("--side", value > 0 ? "var(--more)" : "var(--less)");
          cell.dataset.tip = `${row.cells[0].textContent} called ${table.tHead.rows[0].cells[x + 1].textContent}: ${signed && value > 0 ? "+" : ""}${value.toFixed(2)}${signed ? " points" : " %"}\n${name}`;
        }));
    };
    const chosen = () => {
      const [a, b] = all("[data-side]").map((select) => Number(select.value));
      fill("A", shares[a], names[a]);
      fill("B", shares[b], names[b]);
      fill("A−B", shares[a].map((row, y) => row.map((value, x) => value - shares[b][y][x])), "difference in points");
    };
    for (const select of all("[data-side]")) select.addEventListener("change", chosen);
    chosen();
  }
}
