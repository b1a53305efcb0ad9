"use strict";
const all = (selector, root = document) => [...root.querySelectorAll(selector)];

// Table: sort by a column. Empty cells stay last in both orders; the mean is in the foot and never moves.
const body = document.querySelector("tbody");
const rows = all("tr", body);
const natural = new Intl.Collator("en", { numeric: true });
all("tr.names button").forEach((button, column) => {
  const head = button.parentElement, better = Number(button.dataset.better);
  button.addEventListener("click", () => {
    const current = head.getAttribute("aria-sort");
    const isText = !head.dataset.column;
    const first = isText || better < 0 ? "ascending" : "descending";
    const order = !current ? first : current === "ascending" ? "descending" : "ascending";
    const sign = order === "ascending" ? 1 : -1;
    all("th[aria-sort]").forEach(other => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", order);
    const keyed = rows.map(row => [isText ? row.cells[column].textContent : row.cells[column].dataset.v, row]);
    keyed.sort(([a], [b]) => (a === "") - (b === "") || sign * (isText ? natural.compare(a, b) : a - b));
    body.append(...keyed.map(([, row]) => row));
    document.getElementById("sorted").textContent = "Sorted by " + button.dataset.label + ", " + order;
  });
});

// A table that is wider than the page says so, and shows on which side there is more.
const scroller = document.querySelector(".scroller");
const overflow = () => {
  const rest = scroller.scrollWidth - scroller.clientWidth;
  document.getElementById("wide").hidden = rest <= 1;
  scroller.parentElement.classList.toggle("more", rest - scroller.scrollLeft > 1);
};
scroller.addEventListener("scroll", overflow, { passive: true });
new ResizeObserver(overflow).observe(scroller);

// Plots and table point at the same pair together.
const marks = new Map();
all("tbody tr, .dot, .link").forEach(mark => {
  if (!marks.has(mark.dataset.i)) marks.set(mark.dataset.i, []);
  marks.get(mark.dataset.i).push(mark);
});
const columns = all("tr.names th").map(head => head.dataset.column);
const tip = Object.assign(document.createElement("div"), { id: "tip", hidden: true });
tip.setAttribute("aria-hidden", "true");
document.body.append(tip);
let lit = null;
const light = index => {
  if (index === lit) return;
  for (const [key, on] of [[lit, false], [index, true]]) (marks.get(key) || []).forEach(mark => mark.classList.toggle("lit", on));
  lit = index;
};
// Light the pair of a mark up everywhere and, at a dot, tell its name and value.
const point = mark => {
  light(mark ? mark.dataset.i : null);
  tip.hidden = !(mark && mark.matches(".dot"));
  if (tip.hidden) return;
  const row = rows[mark.dataset.i], base = mark.closest("figure").dataset.column;
  const value = name => row.cells[columns.indexOf(name)].textContent;
  const before = columns.includes(base + "_before") ? value(base + "_before") + " → " : "";
  tip.textContent = row.cells[0].textContent + "  " + before + value(base);
  const place = mark.getBoundingClientRect();
  tip.style.left = Math.max(4, Math.min(place.x + 10, innerWidth - tip.offsetWidth - 8)) + "px";
  tip.style.top = Math.max(4, place.y - 30) + "px";
};
document.addEventListener("pointerover", event => point(event.target.closest(".dot, tbody tr")));
all(".plot").forEach(plot => {
  const dots = all(".dot:not(.old)", plot).sort((a, b) => a.getAttribute("cx") - b.getAttribute("cx"));
  let at = -1;
  plot.addEventListener("keydown", event => {
    const steps = { ArrowRight: at + 1, ArrowDown: at + 1, ArrowLeft: at - 1, ArrowUp: at - 1, Home: 0, End: dots.length - 1 };
    if (event.key === "Enter" && at >= 0) open(dots[at]);
    if (!(event.key in steps)) return;
    event.preventDefault();
    at = Math.min(dots.length - 1, Math.max(0, steps[event.key]));
    point(dots[at]);
    document.getElementById("pointed").textContent = tip.textContent;
  });
  plot.addEventListener("blur", () => { at = -1; point(null); });
});
addEventListener("scroll", () => { tip.hidden = true; }, { passive: true });
const open = mark => mark && rows[mark.dataset.i].querySelector("a")?.click();
all(".charts").forEach(charts => charts.addEventListener("click", event => open(event.target.closest(".dot"))));

// Overlays: fixed and moving in two colours that add up where both are bright.
const palettes = { "red-green": [[1, 0, 0], [0, 1, 0]], "orange-blue": [[1, .5, 0], [0, .5, 1]] };
let palette = palettes["red-green"];
const luma = (image, width, height) => {
  const canvas = Object.assign(document.createElement("canvas"), { width, height });
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(image, 0, 0, width, height);
  const data = context.getImageData(0, 0, width, height).data, grey = new Float32Array(width * height);
  // BT.601, as everywhere in the project.
  for (let i = 0; i < grey.length; i++) grey[i] = .299 * data[4 * i] + .587 * data[4 * i + 1] + .114 * data[4 * i + 2];
  return grey;
};
const overlay = (canvas, fixed, moving, width, height, strength) => {
  canvas.width = width;
  canvas.height = height;
  const context = canvas.getContext("2d"), picture = context.createImageData(width, height), out = picture.data;
  for (let i = 0; i < fixed.length; i++) {
    for (let c = 0; c < 3; c++) out[4 * i + c] = palette[0][c] * fixed[i] + strength * palette[1][c] * moving[i];
    out[4 * i + 3] = 255;
  }
  context.putImageData(picture, 0, 0);
};

// Pairs: images are decoded only when a pair comes near the window.
const redraw = new Map();
const scales = JSON.parse(document.getElementById("scales")?.textContent ?? "{}");
const fill = async (card, show) => {
  const { name, views, images } = JSON.parse(card.querySelector("script").textContent);
  const layer = card.querySelector(".images .layer");
  const pictures = images.map((uri, index) => {
    const picture = new Image();
    picture.src = uri;
    picture.alt = views[index] + " image of " + name;
    picture.draggable = false;
    return picture;
  });
  layer.append(...pictures);
  show();
  await Promise.all(pictures.map(picture => picture.decode()));
  const of = view => pictures[views.indexOf(view)];
  layer.style.backgroundImage = "url(" + of("Fixed").src + ")";
  const { naturalWidth: width, naturalHeight: height } = of("Fixed");
  const [fixed, moving, aligned] = ["Fixed", "Moving", "Aligned"].map(view => luma(of(view), width, height));
  const strength = card.querySelector(".strength input");
  const draw = () => {
    overlay(card.querySelector(".old"), fixed, moving, width, height, strength.value / 100);
    overlay(card.querySelector(".new"), fixed, aligned, width, height, strength.value / 100);
    card.dataset.ready = "";
  };
  redraw.set(card, draw);
  draw();
};
const near = new IntersectionObserver(entries => {
  entries.filter(entry => entry.isIntersecting).forEach(entry => begin(entry.target));
}, { rootMargin: "800px" });
const cards = new Map(all(".pair").map(card => [card, equip(card)]));
const filled = new Map();
const begin = card => {
  near.unobserve(card);
  if (!filled.has(card)) filled.set(card, fill(card, cards.get(card)));
  return filled.get(card);
};
cards.forEach((_, card) => near.observe(card));
// On paper every pair is seen. A browser does not wait for images before it prints; the button does.
addEventListener("beforeprint", () => cards.forEach((_, card) => begin(card)));
all("#print").forEach(button => button.addEventListener("click", async () => {
  await Promise.all([...cards.keys()].map(begin));
  print();
}));

// What the controls of a pair do; returns what shows the chosen image.
function equip(card) {
  const range = card.querySelector(".slider input"), stage = card.querySelector(".images");
  const [zoom, strength, opacity] = [".zoom", ".strength", ".opacity"].map(tool => card.querySelector(tool + " input"));
  // The middle of what is seen, as shares of width and height.
  const middle = { x: 0.5, y: 0.5 };
  const look = () => {
    const times = Number(zoom.value), edge = 0.5 / times;
    for (const axis of ["x", "y"]) {
      middle[axis] = Math.min(1 - edge, Math.max(edge, middle[axis]));
      card.style.setProperty("--" + axis, 0.5 - times * middle[axis]);
    }
    card.style.setProperty("--zoom", times);
    card.classList.toggle("zoomed", times > 1);
    zoom.nextElementSibling.value = times + " ×";
    const slider = range.parentElement, at = range.value / 100;
    slider.style.setProperty("--at", range.value + "%");
    // Where the line lies in the picture, as the picture is what is cut.
    slider.style.setProperty("--cut", 100 * (middle.x + (at - 0.5) / times) + "%");
    range.setAttribute("aria-valuetext", range.value + " % before, " + (100 - range.value) + " % after");
  };
  range.addEventListener("input", look);
  zoom.addEventListener("input", look);
  const steps = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
  const move = (x, y) => { middle.x += x; middle.y += y; look(); };
  stage.addEventListener("keydown", event => {
    const step = steps[event.key];
    if (!step || zoom.value === "1") return;
    event.preventDefault();
    move(...step.map(side => 0.1 * side / zoom.value));
  });
  stage.addEventListener("pointerdown", event => { if (zoom.value > 1) stage.setPointerCapture(event.pointerId); });
  stage.addEventListener("pointermove", event => {
    if (!stage.hasPointerCapture(event.pointerId)) return;
    move(-event.movementX / stage.clientWidth / zoom.value, -event.movementY / stage.clientHeight / zoom.value);
  });
  strength.addEventListener("input", () => {
    strength.nextElementSibling.value = strength.value + " %";
    redraw.get(card)?.();
  });
  opacity.addEventListener("input", () => {
    opacity.nextElementSibling.value = opacity.value + " %";
    stage.style.setProperty("--opacity", opacity.value / 100);
  });
  const own = JSON.parse(card.dataset.scales ?? "{}");
  const choice = card.querySelector(".choice"), scale = stage.parentElement.querySelector(".scale");
  const show = () => {
    const chosen = choice.querySelector("input:checked");
    all("img", stage).forEach((picture, index) => { picture.hidden = String(index) !== chosen.value; });
    const view = chosen.nextElementSibling.textContent;
    if (scale) explain(scale, own[view] ?? scales[view]);
  };
  choice.addEventListener("change", show);
  look();
  return show;
}

// The colours of an image and what they stand for; nothing below an image without a scale.
function explain(place, scale) {
  if (!scale) return place.replaceChildren();
  const bar = document.createElement("i"), ends = document.createElement("span");
  bar.style.background = "linear-gradient(to right, " + scale.colors.join(", ") + ")";
  for (const end of [scale.low, scale.unit, scale.high]) {
    ends.append(Object.assign(document.createElement("span"), { textContent: end }));
  }
  place.replaceChildren(bar, ends);
}

// Pairs in another order: the worst of a metric first, pairs without a value last.
all("#order").forEach(order => order.addEventListener("change", () => {
  const column = columns.indexOf(order.value);
  const better = column < 0 ? 0 : Number(all("tr.names button")[column].dataset.better);
  const keyed = [...cards.keys()].map(card => {
    const text = column < 0 || !card.dataset.row ? "" : rows[card.dataset.row].cells[column].dataset.v;
    return [text, card];
  });
  keyed.sort(([a], [b]) => (a === "") - (b === "") || better * (a - b));
  const last = all(".pair").at(-1), mark = document.createComment("");
  last.after(mark);
  keyed.forEach(([, card]) => mark.before(card));
  mark.remove();
  document.getElementById("ordered").textContent = "Pairs in order: " + order.selectedOptions[0].textContent;
}));
all("#overlay").forEach(choice => choice.addEventListener("change", event => {
  palette = palettes[event.target.value];
  document.documentElement.dataset.overlay = event.target.value;
  redraw.forEach(draw => draw());
}));
