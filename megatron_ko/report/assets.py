"""Styles of the page, and the script that shows values under the pointer. Nothing is loaded from elsewhere."""

STYLE = """
:root { color-scheme: light dark; --paper: #fff; --card: #fafaf9; --ink: #1c1917; --soft: #6b6560; --line: #e7e5e4;
  --blue: #2b63d9; --orange: #cf6a12; --red: #d02b3a; --green: #1a7f4b; }
@media (prefers-color-scheme: dark) { :root { --paper: #151413; --card: #1d1b1a; --ink: #ece9e6; --soft: #a09890;
  --line: #33302d; --blue: #7da6ff; --orange: #f0a35e; --red: #ff7d86; --green: #6ccf9b; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 15px/1.5 system-ui, -apple-system, "Segoe UI",
  "Apple SD Gothic Neo", "Malgun Gothic", "Noto Sans KR", "Noto Sans CJK KR", sans-serif;
  font-variant-numeric: tabular-nums; -webkit-text-size-adjust: 100%; }
main { max-width: 1120px; margin: 0 auto; padding: 40px 24px 56px; }
h1 { font-size: 30px; line-height: 1.2; font-weight: 650; letter-spacing: -.01em; margin: 2px 0 8px;
  overflow-wrap: anywhere; }
h2 { font-size: 17px; font-weight: 600; margin: 44px 0 12px; }
h3 { font-size: 14px; font-weight: 600; margin: 0; }
h3 small { font-weight: 400; color: var(--soft); font-size: 13px; margin-left: 4px; }
.over, .lead, .note { color: var(--soft); margin: 0; }
.over { font-size: 13px; }
.state { color: var(--ink); font-weight: 550; }
.state::before { content: ""; display: inline-block; width: 8px; height: 8px; border-radius: 50%; margin-right: 7px;
  background: var(--orange); }
.state.done::before { background: var(--green); }
.warn { border-left: 3px solid var(--red); padding: 4px 12px; margin: 16px 0 0; }
.figures { display: grid; grid-template-columns: repeat(4, 1fr); gap: 1px; background: var(--line); margin: 28px 0 0;
  border: 1px solid var(--line); border-radius: 10px; overflow: hidden; }
.figures div { background: var(--paper); padding: 14px 16px; }
.figures dt { color: var(--soft); font-size: 13px; }
.figures dd { margin: 0; font-size: 22px; font-weight: 600; line-height: 1.35; letter-spacing: -.01em; }
.figures dd small { font-size: 13px; font-weight: 400; color: var(--soft); margin-left: 3px; letter-spacing: 0; }
.figures p { margin: 0; font-size: 12.5px; color: var(--soft); min-height: 1.5em; }
.charts { display: grid; grid-template-columns: 1fr 1fr; gap: 16px; margin-top: 28px; }
.chart { margin: 0; padding: 14px 18px 10px; background: var(--card); border: 1px solid var(--line);
  border-radius: 10px; min-width: 0; break-inside: avoid; }
.chart.wide { grid-column: 1 / -1; }
figcaption { display: flex; flex-wrap: wrap; gap: 2px 16px; justify-content: space-between; align-items: baseline; }
.legend { list-style: none; display: flex; flex-wrap: wrap; gap: 0 14px; margin: 0; padding: 0; font-size: 12.5px;
  color: var(--soft); }
.legend li::before { content: ""; display: inline-block; width: 14px; height: 0; border-top: 2px solid var(--blue);
  vertical-align: middle; margin-right: 6px; }
.legend .raw::before { opacity: .4; }
.legend .second::before, .legend .dots::before { border-color: var(--orange); }
.legend .dots::before { width: 7px; height: 7px; border: 0; border-radius: 50%; background: var(--orange); }
.plot { position: relative; height: 190px; margin: 16px 16px 26px 44px; touch-action: pan-y; }
.wide .plot { height: 340px; }
.plot svg { position: absolute; inset: 0; width: 100%; height: 100%; overflow: visible; }
.plot path { fill: none; stroke-width: 1.8; stroke: var(--blue); vector-effect: non-scaling-stroke;
  stroke-linejoin: round; stroke-linecap: round; }
.plot path.grid { stroke: var(--line); stroke-width: 1; }
.plot path.raw { stroke-opacity: .32; stroke-width: 1; }
.plot path.second, .plot path.dots { stroke: var(--orange); stroke-width: 1.5; }
.plot path.dot { stroke: var(--blue); stroke-width: 6; }
.plot path.dot.dots { stroke: var(--orange); }
.plot path.resumed { stroke: var(--soft); stroke-width: 1; stroke-dasharray: 4 4; }
.plot path.skipped { stroke: var(--red); stroke-width: 1.5; stroke-linecap: butt; }
.plot span { position: absolute; font-size: 12px; line-height: 1; color: var(--soft); white-space: nowrap; }
.plot .y { right: calc(100% + 8px); transform: translateY(-50%); }
.plot .x { top: calc(100% + 9px); transform: translateX(-50%); }
.plot .session { top: 2px; margin: 0 6px; background: var(--card); padding: 2px 0; }
.plot .session.right { transform: translateX(-100%) translateX(-12px); }
.cross { position: absolute; top: 0; bottom: 0; width: 1px; background: var(--soft); display: none; }
.plot output { position: absolute; top: 0; display: none; padding: 7px 10px; border-radius: 7px; font-size: 12.5px;
  line-height: 1.5; white-space: pre; background: var(--ink); color: var(--paper); pointer-events: none; z-index: 1; }
.note { font-size: 12.5px; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: 14px; }
th { text-align: left; font-weight: 500; color: var(--soft); font-size: 13px; }
th, td { padding: 7px 16px 7px 0; border-bottom: 1px solid var(--line); white-space: nowrap; }
td.path { white-space: normal; overflow-wrap: anywhere; min-width: 12em; }
.number { text-align: right; }
code, pre { font: 13px/1.5 ui-monospace, "SF Mono", Menlo, Consolas, "D2Coding", "Noto Sans Mono CJK KR", monospace; }
dl.facts { display: grid; grid-template-columns: max-content 1fr; gap: 4px 20px; margin: 0 0 16px; font-size: 14px; }
dl.facts dt { color: var(--soft); } dl.facts dd { margin: 0; overflow-wrap: anywhere; }
details { border: 1px solid var(--line); border-radius: 10px; background: var(--card); }
summary { cursor: pointer; padding: 10px 16px; font-weight: 550; }
pre { margin: 0; padding: 4px 16px 16px; overflow-x: auto; }
footer { margin-top: 44px; color: var(--soft); font-size: 13px; }
@media (max-width: 720px) { main { padding: 24px 16px 40px; } h1 { font-size: 25px; }
  .figures { grid-template-columns: 1fr 1fr; } .charts { grid-template-columns: minmax(0, 1fr); }
  .chart { padding: 12px 12px 4px; } .wide .plot { height: 260px; }
  dl.facts { grid-template-columns: 1fr; gap: 0; } dl.facts dd { margin-bottom: 8px; } }
@media print { :root { color-scheme: light; --paper: #fff; --card: #fff; --ink: #1c1917; --soft: #57534e;
  --line: #d6d3d1; --blue: #2b63d9; --orange: #cf6a12; --red: #d02b3a; --green: #1a7f4b; }
  body { font-size: 12px; } main { padding: 0; max-width: none; } h2 { break-after: avoid; }
  .plot { height: 150px; } .wide .plot { height: 260px; } details { border: 0; } summary { padding: 0; }
  .figures, .figures div, .plot path, .legend li::before { print-color-adjust: exact; } }
"""

POINTER = """
for (const figure of document.querySelectorAll("figure.chart")) {
  const data = JSON.parse(figure.querySelector("script").textContent);
  const plot = figure.querySelector(".plot"), cross = plot.querySelector(".cross"), box = plot.querySelector("output");
  const nearest = (xs, x) => {
    let low = 0, high = xs.length - 1;
    while (high - low > 1) { const middle = (low + high) >> 1; if (xs[middle] < x) low = middle; else high = middle; }
    return Math.abs(xs[low] - x) <= Math.abs(xs[high] - x) ? low : high;
  };
  const hide = () => { cross.style.display = box.style.display = "none"; };
  plot.addEventListener("pointerleave", hide);
  plot.addEventListener("pointermove", event => {
    const area = plot.getBoundingClientRect(), share = (event.clientX - area.left) / area.width;
    const [from, to] = data.x, wanted = from + share * (to - from);
    const curves = data.curves.filter(curve => curve.x.length);
    if (share < 0 || share > 1 || !curves.length) return hide();
    const step = curves[0].x[nearest(curves[0].x, wanted)];
    const rows = curves.map(curve => {
      const i = nearest(curve.x, step);
      const away = curve.x[i] === step ? "" : "  (step " + curve.x[i].toLocaleString("en") + ")";
      return curve.name + "  " + curve.y[i].toLocaleString("en", { maximumSignificantDigits: 5 }) + away;
    });
    const left = 100 * Math.min(1, Math.max(0, (step - from) / (to - from)));
    cross.style.display = box.style.display = "block";
    cross.style.left = left + "%";
    box.textContent = ["step " + step.toLocaleString("en"), ...rows].join("\\n");
    box.style.left = left < 50 ? "calc(" + left + "% + 10px)" : "auto";
    box.style.right = left < 50 ? "auto" : "calc(" + (100 - left) + "% + 10px)";
  });
}
"""
