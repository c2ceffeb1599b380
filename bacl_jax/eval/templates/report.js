"use strict";
const data = JSON.parse(document.getElementById("data").textContent);

function nearest(points, place) {
  let best = 0;
  points.forEach((point, n) => { if (Math.abs(point[1] - place) < Math.abs(points[best][1] - place)) best = n; });
  return best;
}

document.querySelectorAll("[data-chart]").forEach((chart) => {
  const { x, lines } = data[chart.dataset.chart];
  const plot = chart.querySelector(".plot"), svg = plot.querySelector("svg");
  const cursor = svg.querySelector(".cursor"), readout = chart.querySelector(".readout");
  const drawn = (n) => svg.querySelector(`[data-line="${n}"]`);
  const latest = readout.textContent;
  let scale = "linear", at = -1;

  function read(number) {
    at = Math.max(0, Math.min(x[scale].length - 1, number));
    const [step, place] = x[scale][at];
    cursor.setAttribute("d", `M${place},10V190`);
    cursor.removeAttribute("hidden");
    const values = lines.flatMap((line, n) => {
      const found = line.steps.indexOf(step);
      return found < 0 || drawn(n).hasAttribute("hidden") ? [] : [`${line.label}: ${line.texts[found]}`];
    });
    readout.textContent = `Step ${step.toLocaleString("en")}. ${values.join("; ")}`;
  }

  function leave() {
    cursor.setAttribute("hidden", "");
    readout.textContent = latest;
    at = -1;
  }

  plot.addEventListener("pointermove", (event) => {
    const box = svg.getBoundingClientRect();
    read(nearest(x[scale], ((event.clientX - box.left) / box.width) * 360));
  });
  plot.addEventListener("pointerleave", leave);
  plot.addEventListener("blur", leave);
  plot.addEventListener("keydown", (event) => {
    const to = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: x[scale].length - 1 }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    read(to);
  });

  chart.querySelectorAll("button[data-line]").forEach((button) => {
    button.addEventListener("click", () => {
      const shown = button.getAttribute("aria-pressed") === "false";
      button.setAttribute("aria-pressed", shown);
      drawn(button.dataset.line).toggleAttribute("hidden", !shown);
    });
  });
  const log = chart.querySelector("button[data-log]");
  log.addEventListener("click", () => {
    scale = scale === "log" ? "linear" : "log";
    log.setAttribute("aria-pressed", scale === "log");
    svg.querySelectorAll("[data-linear]").forEach((path) => path.setAttribute("d", path.dataset[scale]));
    svg.querySelectorAll("[data-scale]").forEach((ticks) => ticks.toggleAttribute("hidden", ticks.dataset.scale !== scale));
    leave();
  });
});
