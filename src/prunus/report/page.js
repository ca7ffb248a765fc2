"use strict";
(() => {
  const figures = JSON.parse(document.getElementById("figures").textContent);
  const config = { responsive: true, displaylogo: false, displayModeBar: false };

  // Colours in the figures are CSS variables, so that style.css alone knows the light, the dark and the printed palette;
  // "var(--accent)/26" has two hexadecimal digits of opacity behind it.
  const painted = (value, key, style) => {
    if (Array.isArray(value)) return value.map((item) => painted(item, key, style));
    if (value && typeof value === "object") {
      return Object.fromEntries(Object.entries(value).map(([name, item]) => [name, painted(item, name, style)]));
    }
    const variable = typeof value === "string" && /color(scale)?$/.test(key) && /^var\((--[\w-]+)\)(?:\/([0-9a-f]{2}))?$/.exec(value);
    return variable ? style.getPropertyValue(variable[1]).trim() + (variable[2] || "") : value;
  };

  const draw = () => {
    const style = getComputedStyle(document.documentElement);
    for (const [place, figure] of Object.entries(figures)) {
      const { data, layout } = painted(figure, "", style);
      Plotly.react(place, data, layout, config);
    }
  };

  draw();
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  matchMedia("print").addEventListener("change", draw);
  addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((part) => { part.open = true; }));

  document.querySelectorAll("button[data-copies]").forEach((button) => {
    button.addEventListener("click", async () => {
      const source = document.getElementById(button.dataset.copies);
      const status = document.getElementById("copied");
      try {
        await navigator.clipboard.writeText(source.textContent);
        status.textContent = "Copied.";
      } catch {
        getSelection().selectAllChildren(source);
        status.textContent = "Selected: press Ctrl+C or ⌘C to copy.";
      }
    });
  });
})();
