"""Style sheet and script of the run report; both are put into the page, which loads nothing."""

__all__ = ["SCRIPT", "STYLE"]

STYLE = """
:root {
  color-scheme: light dark;
  --page: #f6f7f9; --card: #ffffff; --text: #16202c; --soft: #5a6776; --line: #e3e7ec; --grid: #edf0f3;
  --mark: #b9c3cf;
  --blue: #2f6fde; --green: #2c9c5a; --warm: #d97a12; --violet: #8054d1; --sky: #35a5cf; --rose: #d2477f;
  --teal: #178a86; --olive: #8f8a1f; --grey: #8793a1;
}
@media screen and (prefers-color-scheme: dark) {
  :root {
    --page: #0f141a; --card: #171e26; --text: #e6ebf1; --soft: #93a1b1; --line: #29323d; --grid: #222a34;
    --mark: #46525f;
    --blue: #6aa2ff; --green: #54c784; --warm: #f0a14a; --violet: #ab88f2; --sky: #63c7ea; --rose: #f07fac;
    --teal: #3fbdb6; --olive: #c4bd4c; --grey: #8b98a7;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--page); color: var(--text);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
}
main { max-width: 1240px; margin: 0 auto; padding: 36px 28px 60px; }
header .made { color: var(--soft); margin: 0; font-size: 13px; letter-spacing: .02em; }
h1 { font-size: 27px; line-height: 1.2; margin: 2px 0 4px; letter-spacing: -.015em; overflow-wrap: anywhere; }
h2 { font-size: 18px; margin: 40px 0 2px; letter-spacing: -.01em; }
p.lead { margin: 0 0 14px; color: var(--soft); max-width: 90ch; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(146px, 1fr)); gap: 12px; margin: 22px 0 8px; }
.tile { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 13px 16px 12px; }
.tile span { display: block; font-size: 12.5px; color: var(--soft); }
.tile b {
  display: block; font-size: 23px; line-height: 1.3; font-weight: 620; letter-spacing: -.02em;
  font-variant-numeric: tabular-nums; white-space: nowrap;
}
.tile small { display: block; font-size: 12.5px; color: var(--soft); font-variant-numeric: tabular-nums; }
.tile small.good { color: var(--green); }
.tile small.bad { color: var(--warm); }
.grid { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 480px), 1fr)); gap: 14px; }
.card, figure.plot {
  margin: 0; background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 13px 16px 8px;
}
.alarm { border-left: 5px solid var(--warm); margin-top: 18px; }
.alarm p { margin: 0 0 5px; }
figure.plot { position: relative; break-inside: avoid; }
figcaption b, .split p b { font-weight: 620; }
figcaption span, .split p span { color: var(--soft); font-size: 13px; margin-left: 4px; }
ul.legend {
  list-style: none; display: flex; flex-wrap: wrap; gap: 0 14px; margin: 2px 0 4px; padding: 0; font-size: 12.5px;
  color: var(--soft);
}
ul.legend i {
  display: inline-block; width: 14px; height: 0; border-top: 2px solid var(--c); vertical-align: 4px;
  margin-right: 5px;
}
ul.legend i.area {
  height: 10px; width: 10px; border: 0; border-radius: 2px; background: var(--c); vertical-align: -1px;
}
ul.legend i.level { border-top-width: 3.5px; }
ul.legend i.dashed { border-top-style: dashed; }
svg { display: block; width: 100%; height: auto; touch-action: pan-y; }
svg text {
  font: 11px system-ui, -apple-system, "Segoe UI", Roboto, Arial, sans-serif; fill: var(--soft);
  font-variant-numeric: tabular-nums;
}
.blue { --c: var(--blue); }
.green { --c: var(--green); }
.warm { --c: var(--warm); }
.violet { --c: var(--violet); }
.sky { --c: var(--sky); }
.rose { --c: var(--rose); }
.teal { --c: var(--teal); }
.olive { --c: var(--olive); }
.grey { --c: var(--grey); }
.ink { --c: var(--soft); }
svg .rule { stroke: var(--grid); }
svg .base { stroke: var(--mark); }
svg .mark { stroke: var(--mark); stroke-dasharray: 3 3; }
svg .mark.many { opacity: .45; }
svg .name { font-size: 10px; opacity: .8; }
svg .line { fill: none; stroke: var(--c); stroke-width: 1.7; stroke-linejoin: round; stroke-linecap: round; }
svg .level { fill: none; stroke: var(--c); stroke-width: 3; }
svg .level.dashed { stroke-width: 1.8; stroke-dasharray: 5 3; }
svg .range { fill: var(--c); opacity: .13; }
svg .area { fill: var(--c); stroke: var(--card); stroke-width: .4; }
svg .dot { fill: var(--c); }
svg .hover line { stroke: var(--text); stroke-width: 1; opacity: .4; }
svg .hover circle { fill: var(--c); stroke: var(--card); stroke-width: 1.5; }
.tip {
  position: absolute; z-index: 3; pointer-events: none; background: var(--card); border: 1px solid var(--mark);
  border-radius: 8px;
  box-shadow: 0 4px 18px rgb(0 0 0 / .16); padding: 7px 11px; font-size: 12.5px; line-height: 1.45;
  white-space: nowrap;
  font-variant-numeric: tabular-nums;
}
.tip em { font-style: normal; color: var(--soft); display: block; }
.tip div { display: flex; gap: 8px; align-items: center; }
.tip div b { margin-left: auto; padding-left: 14px; font-weight: 620; }
.tip i { width: 9px; height: 9px; border-radius: 2px; background: var(--c); }
.shares { display: flex; height: 26px; border-radius: 6px; overflow: hidden; margin: 6px 0 8px; gap: 1px; }
.shares i { background: var(--c); }
.split p { margin: 0; }
.split { margin-bottom: 14px; padding-bottom: 10px; }
.split ul.legend b { color: var(--text); font-weight: 620; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: 13.5px; font-variant-numeric: tabular-nums; }
th {
  text-align: right; font-weight: 560; color: var(--soft); padding: 4px 9px 6px;
  border-bottom: 1px solid var(--line); white-space: nowrap;
}
td { text-align: right; padding: 4px 9px; border-bottom: 1px solid var(--grid); white-space: nowrap; }
th:first-child, td:first-child { text-align: left; padding-left: 2px; }
td.text, th.text { text-align: left; white-space: normal; }
tr:last-child td { border-bottom: 0; }
td.bad { color: var(--warm); font-weight: 560; }
details { margin: 0 0 10px; }
details summary { cursor: pointer; font-weight: 560; }
details summary span { font-weight: 400; color: var(--soft); }
pre {
  overflow: auto; max-height: 460px; font: 12.5px/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace;
  margin: 10px 0 4px;
}
footer { color: var(--soft); font-size: 12.5px; margin-top: 36px; }
@media (max-width: 560px) {
  main { padding: 20px 12px 40px; }
  .plot { padding: 10px 8px 6px; }
  table { font-size: 12.5px; }
  th, td { padding: 4px 7px; }
  .scroll th:first-child, .scroll td:first-child { position: sticky; left: 0; background: var(--card); }
  table.log, .log tbody, .log tr, .log td { display: block; text-align: left; }
  .log thead { display: none; }
  .log tr { padding: 6px 0; border-bottom: 1px solid var(--grid); }
  .log td { border: 0; padding: 1px 2px; white-space: normal; overflow-wrap: anywhere; }
  .log td:empty { display: none; }
  .windows td { display: flex; justify-content: space-between; }
  .windows td:first-child { font-weight: 560; }
  .windows td::before { content: attr(data-label); color: var(--soft); }
}
@media print {
  :root { --page: #fff; }
  body { font-size: 12px; }
  main { max-width: none; padding: 0; }
  .tip, .hover { display: none; }
  .grid { grid-template-columns: 1fr 1fr; gap: 8px; }
  .scroll { overflow: visible; }
  h2 { break-after: avoid; }
  table { font-size: 10.5px; }
  th, td { padding: 3px 5px; }
  * { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
}
"""

SCRIPT = """
"use strict";
// A crosshair and a tooltip for each plot; plots over the same axis share the crosshair.
const NS = document.querySelector("svg") ? document.querySelector("svg").namespaceURI : "";
const plots = [...document.querySelectorAll("figure.plot")].map((figure) => ({
  figure, svg: figure.querySelector("svg"), hover: figure.querySelector(".hover"), axis: figure.dataset.axis,
  data: JSON.parse(figure.querySelector("script").textContent),
}));
const add = (parent, name, attributes) => {
  const node = document.createElementNS(NS, name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  parent.append(node);
};
const nearest = (xs, x) => {
  let low = 0, high = xs.length - 1;
  while (high - low > 1) { const middle = (low + high) >> 1; if (xs[middle] < x) low = middle; else high = middle; }
  return high >= 0 && Math.abs(xs[high] - x) < Math.abs(xs[low] - x) ? high : low;
};
const clear = (plot) => {
  plot.hover.replaceChildren();
  plot.figure.querySelector(".tip")?.remove();
};
const show = (plot, x, withTip) => {
  clear(plot);
  const { data } = plot;
  if (!data.x.length) return;
  const index = nearest(data.x, x), px = data.x[index];
  add(plot.hover, "line", { x1: px, x2: px, y1: 20, y2: 204 });
  for (const s of data.s) {
    const y = s.y.length ? s.y[index] : null;
    if (y !== null) add(plot.hover, "circle", { class: s.c, cx: px, cy: y, r: 4 });
  }
  if (!withTip) return;
  const tip = document.createElement("div");
  tip.className = "tip";
  const place = document.createElement("em");
  place.textContent = data.t[index] + (data.w[index] ? " \\u00b7 " + data.w[index] : "");
  tip.append(place);
  for (const s of data.s) {
    if (!s.v[index]) continue;
    const row = document.createElement("div"), swatch = document.createElement("i");
    const value = document.createElement("b");
    swatch.className = s.c; value.textContent = s.v[index];
    row.append(swatch, s.n, value); tip.append(row);
  }
  plot.figure.append(tip);
  const box = plot.svg.getBoundingClientRect();
  const left = box.left - plot.figure.getBoundingClientRect().left + px / 560 * box.width;
  const room = plot.figure.clientWidth - left > tip.offsetWidth + 24;
  tip.style.left = Math.max(4, room ? left + 14 : left - tip.offsetWidth - 14) + "px";
  tip.style.top = plot.figure.clientHeight - box.height + 6 + "px";
};
for (const plot of plots) {
  plot.svg.addEventListener("pointermove", (event) => {
    const box = plot.svg.getBoundingClientRect(), x = (event.clientX - box.left) / box.width * 560;
    for (const other of plots) if (other.axis === plot.axis) show(other, x, other === plot);
  });
  plot.svg.addEventListener("pointerleave", () => plots.forEach(clear));
}
"""
