// A chart over time in SVG, and a list of bars. Neither knows what its figures mean.
import { element } from "./server.js";

const WIDTH = 240;
const HEIGHT = 72;
const TOP = 6;
const LEAST_POINTS = 30;
const CLASSES = ["one", "two"];

function shape(name, attributes) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [attribute, value] of Object.entries(attributes)) made.setAttribute(attribute, value);
  return made;
}

/** The smallest of 1, 2, 5, 10, 20, ... that holds a value. */
export function ceiling(value) {
  if (!(value > 0)) return 1;
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 5, 10].map((factor) => factor * power).find((one) => one >= value * (1 - 1e-9));
}

/** Lines over the last `length` points; null leaves a gap. series: names of one or two. format: a value as text. */
export class Chart {
  constructor(host, { name, title, series, format, most, least = 0, length }) {
    Object.assign(this, { series, format, most, least, length, title, points: [] });
    this.values = series.map((one, place) => {
      const value = element("b", {}, "–");
      return { value, box: element("span", { class: `value ${CLASSES[place]}` }, value, element("span", { class: "key" }, one)) };
    });
    this.svg = shape("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", role: "img" });
    for (const y of [TOP, (TOP + HEIGHT) / 2, HEIGHT]) this.svg.append(shape("line", { class: "grid", x1: 0, x2: WIDTH, y1: y, y2: y }));
    this.fill = shape("path", { class: "fill" });
    this.lines = series.map((_, place) => shape("path", { class: `stroke ${CLASSES[place]}` }));
    this.cursor = shape("line", { class: "cursor", y1: 0, y2: HEIGHT });
    this.svg.append(this.fill, ...[...this.lines].reverse(), this.cursor);
    this.top = element("span", { class: "most" });
    this.ends = element("p", { class: "ends" }, element("span"), element("span", {}, "now"));
    host.append(element("figure", { class: "chart", "data-chart": name }, element("h3", {}, title),
      element("div", { class: "values" }, ...this.values.map((one) => one.box)), element("div", { class: "plot" }, this.svg, this.top), this.ends));
    this.svg.addEventListener("pointermove", (event) => this.point(event));
    this.svg.addEventListener("pointerleave", () => this.release());
  }

  /** One more point: a value, or null, for each series. */
  push(values) {
    this.points.push(values);
    if (this.points.length > this.length) this.points.shift();
    this.draw();
  }

  /** Points that the width stands for: it grows with the first ones. */
  get shown() {
    return Math.max(LEAST_POINTS, this.points.length);
  }

  x(place) {
    return WIDTH * (1 - (this.points.length - 1 - place) / (this.shown - 1));
  }

  draw() {
    const most = this.most ?? ceiling(Math.max(this.least, ...this.points.flat().filter((value) => value !== null)));
    const y = (value) => HEIGHT - (HEIGHT - TOP) * Math.min(1, value / most);
    this.lines.forEach((stroke, series) => {
      const runs = this.runs(series).map((run) => run.map(([place, value]) => `${this.x(place).toFixed(1)} ${y(value).toFixed(1)}`));
      stroke.setAttribute("d", runs.map((run) => `M${run.join("L")}${run.length === 1 ? "h.1" : ""}`).join(""));
      if (!series) this.fill.setAttribute("d", runs.map((run) => `M${run[0].split(" ")[0]} ${HEIGHT}L${run.join("L")}V${HEIGHT}Z`).join(""));
    });
    this.top.textContent = this.format(most);
    this.ends.firstChild.textContent = `${this.shown} s ago`;
    if (this.held === undefined) this.tell(this.points.length - 1);
    const said = this.series.map((one, place) => `${one} ${this.format(this.points.at(-1)[place])}`).join(", ");
    this.svg.setAttribute("aria-label", `${this.title}: ${said}`);
  }

  /** Neighbours that have values, as lists of [place, value]. */
  runs(series) {
    const found = [];
    let open = false;
    this.points.forEach((values, place) => {
      if (values[series] === null) open = false;
      else if (open) found.at(-1).push([place, values[series]]);
      else { found.push([[place, values[series]]]); open = true; }
    });
    return found;
  }

  tell(place) {
    this.values.forEach(({ value }, series) => { value.textContent = this.format(this.points[place]?.[series] ?? null); });
    this.ends.lastChild.textContent = place === this.points.length - 1 ? "now" : `${this.points.length - 1 - place} s ago`;
  }

  point(event) {
    const box = this.svg.getBoundingClientRect();
    const back = Math.round((1 - (event.clientX - box.left) / box.width) * (this.shown - 1));
    const place = this.points.length - 1 - back;
    if (place < 0 || place >= this.points.length) return this.release();
    this.held = place;
    this.cursor.setAttribute("x1", this.x(place));
    this.cursor.setAttribute("x2", this.x(place));
    this.cursor.style.visibility = "visible";
    return this.tell(place);
  }

  release() {
    this.held = undefined;
    this.cursor.style.visibility = "hidden";
    this.tell(this.points.length - 1);
  }
}

/** Bars beside each other's names, the longest the whole width. */
export class Bars {
  constructor(host, { name, title, note }) {
    this.list = element("ul", { class: "bars" });
    host.append(element("figure", { class: "chart broad", "data-chart": name }, element("h3", {}, title), this.list,
      element("p", { class: "ends" }, element("span", {}, note))));
  }

  show(counts, format) {
    const most = Math.max(1, ...Object.values(counts));
    this.list.replaceChildren(...Object.entries(counts).map(([name, count]) => {
      const svg = shape("svg", { viewBox: "0 0 100 10", preserveAspectRatio: "none", "aria-hidden": "true" });
      svg.append(shape("rect", { width: (100 * count) / most, height: 10 }));
      return element("li", {}, element("span", {}, name), svg, element("b", {}, format(count)));
    }));
  }
}
