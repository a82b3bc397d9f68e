"use strict";
// The maps: the image of the mark that is pointed at, touched, or reached with the arrow keys.
for (const box of document.querySelectorAll(".map")) {
  const svg = box.querySelector("svg"), ring = box.querySelector(".ring"), tip = box.querySelector(".tip");
  const picture = tip.querySelector(".thumb"), words = tip.querySelector(".words");
  const { texts, points } = JSON.parse(box.querySelector("script").textContent);
  const width = Number(box.dataset.width), height = Number(box.dataset.height);
  const directions = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
  let at = -1;
  if (box.dataset.sheet) picture.classList.add(box.dataset.sheet);

  const distance = (i, x, y) => Math.hypot(points[i][0] - x, points[i][1] - y);

  const nearest = (x, y) => points.reduce((best, _, i) => (distance(i, x, y) < distance(best, x, y) ? i : best), 0);

  function show(i) {
    at = i;
    tip.hidden = i < 0;
    if (i < 0) return ring.setAttribute("cx", -20);
    const [x, y, column, line, is, decided] = points[i];
    ring.setAttribute("cx", x);
    ring.setAttribute("cy", y);
    picture.hidden = column < 0;
    picture.style.setProperty("--x", column);
    picture.style.setProperty("--y", line);
    words.textContent = [texts[is], texts[decided]].filter(Boolean).join("\n");
    const scale = svg.clientWidth / width, left = x * scale, top = y * scale;
    const right = left > svg.clientWidth / 2, below = top > (height * scale) / 2;
    tip.style.left = `${Math.max(0, Math.min(right ? left - tip.offsetWidth - 12 : left + 12, svg.clientWidth - tip.offsetWidth))}px`;
    tip.style.top = `${below ? top - tip.offsetHeight + 20 : top - 20}px`;
  }

  function point(event) {
    const frame = svg.getBoundingClientRect(), scale = frame.width / width;
    const x = (event.clientX - frame.left) / scale, y = (event.clientY - frame.top) / scale;
    const i = nearest(x, y), reach = event.pointerType === "touch" ? 30 : 14;
    show(distance(i, x, y) < reach / scale ? i : -1);
  }

  // The nearest mark in a quadrant of the direction.
  function step([dx, dy]) {
    if (at < 0) return show(nearest(width / 2, height / 2));
    const [x, y] = points[at];
    let best = -1;
    points.forEach(([px, py], i) => {
      const ahead = (px - x) * dx + (py - y) * dy, aside = Math.abs((px - x) * dy) + Math.abs((py - y) * dx);
      if (ahead > 0 && aside <= ahead && (best < 0 || distance(i, x, y) < distance(best, x, y))) best = i;
    });
    if (best >= 0) show(best);
  }

  svg.addEventListener("pointermove", point);
  svg.addEventListener("pointerdown", point);
  svg.addEventListener("pointerleave", (event) => event.pointerType === "mouse" && show(-1));
  svg.addEventListener("blur", () => show(-1));
  svg.addEventListener("keydown", (event) => {
    if (event.key === "Escape") show(-1);
    if (!(event.key in directions)) return;
    event.preventDefault();
    step(directions[event.key]);
  });
}

// On paper nothing is folded away.
const closed = [];
addEventListener("beforeprint", () => {
  for (const one of document.querySelectorAll("details:not([open])")) closed.push(one), (one.open = true);
});
addEventListener("afterprint", () => {
  for (const one of closed.splice(0)) one.open = false;
});
