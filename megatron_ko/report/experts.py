"""Experts over a run: curves of their load balance, and a map of the load of every expert in every layer."""

import base64
import json
from pathlib import Path

import numpy as np
import orjson
from numpy.typing import NDArray

from megatron_ko.report.chart import Chart, Series
from megatron_ko.report.store import RunRecord

_MOST_CELLS = 400_000  # of the map; each takes one byte in the page
_EVEN = 128  # the byte for an even load; +32 means twice the load, -32 half

HEAT_STYLE = """
.heat { margin: 16px 0 0; padding: 14px 18px 10px; background: var(--card); border: 1px solid var(--line);
  border-radius: 10px; }
.heat .scale { font-size: 12.5px; color: var(--soft); display: flex; align-items: center; gap: 6px; }
.heat .scale canvas { width: 160px; height: 10px; border-radius: 3px; }
.heat .plot { height: auto; margin-left: 64px; }
.heat .plot canvas { display: block; width: 100%; image-rendering: pixelated; border-radius: 3px; }
.heat .cell { position: absolute; border: 1.5px solid var(--ink); display: none; pointer-events: none; }
@media print { .heat canvas { print-color-adjust: exact; } }
"""

HEAT_SCRIPT = """
for (const figure of document.querySelectorAll("figure.heat")) {
  const data = JSON.parse(figure.querySelector("script").textContent);
  const bytes = Uint8Array.from(atob(data.loads), c => c.charCodeAt(0)), columns = data.steps.length;
  const band = data.experts + data.gap, rows = data.layers * band - data.gap;
  const plot = figure.querySelector(".plot"), map = plot.querySelector("canvas");
  const scale = figure.querySelector(".scale canvas"), cell = plot.querySelector(".cell");
  const box = plot.querySelector("output");
  const rgb = name => {
    const probe = document.createElement("i"); probe.style.color = `var(${name})`; figure.append(probe);
    const found = getComputedStyle(probe).color.match(/[0-9.]+/g).slice(0, 3).map(Number); probe.remove(); return found;
  };
  const draw = () => {
    const even = rgb("--line"), less = rgb("--blue"), more = rgb("--orange");
    const shade = byte => {
      const share = Math.min(1, Math.abs(byte - 128) / 96), end = byte < 128 ? less : more;
      return even.map((channel, i) => channel + share * (end[i] - channel));
    };
    const fill = (canvas, width, height, byteAt) => {
      canvas.width = width; canvas.height = height;
      const context = canvas.getContext("2d"), picture = context.createImageData(width, height);
      for (let y = 0; y < height; y++) for (let x = 0; x < width; x++) {
        const byte = byteAt(x, y); if (byte < 0) continue;
        picture.data.set([...shade(byte), 255], 4 * (y * width + x));
      }
      context.putImageData(picture, 0, 0);
    };
    fill(map, columns, rows, (x, y) => {
      const layer = Math.floor(y / band), expert = y % band;
      return expert < data.experts ? bytes[(layer * data.experts + expert) * columns + x] : -1;
    });
    fill(scale, 193, 1, x => 32 + x);
  };
  draw();
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  const hide = () => { cell.style.display = box.style.display = "none"; };
  plot.addEventListener("pointerleave", hide);
  plot.addEventListener("pointermove", event => {
    const area = map.getBoundingClientRect();
    const x = Math.floor((event.clientX - area.left) / area.width * columns);
    const y = Math.floor((event.clientY - area.top) / area.height * rows);
    const layer = Math.floor(y / band), expert = y % band;
    if (x < 0 || x >= columns || y < 0 || y >= rows || expert >= data.experts) return hide();
    const byte = bytes[(layer * data.experts + expert) * columns + x];
    const load = byte ? Math.pow(2, (byte - 128) / 32).toPrecision(3) : "almost none";
    cell.style.display = box.style.display = "block";
    cell.style.cssText += `left:${100 * x / columns}%;top:${100 * y / rows}%;` +
      `width:max(4px,${100 / columns}%);height:max(4px,${100 / rows}%)`;
    const place = `layer ${layer + 1}, expert ${expert}`;
    box.textContent = [`step ${data.steps[x].toLocaleString("en")}`, place, `load ${load}`].join("\\n");
    const right = x > columns / 2;
    box.style.left = right ? "auto" : `calc(${100 * x / columns}% + 14px)`;
    box.style.right = right ? `calc(${100 - 100 * x / columns}% + 6px)` : "auto";
    box.style.top = `min(${100 * y / rows}%, calc(100% - 70px))`;
  });
}
"""


def expert_charts(run: RunRecord) -> list[Chart]:
    """Curves of a model with experts; none for a dense one."""
    train, step = run.train, run.train["step"]
    if not np.isfinite(train["expert_imbalance"]).any():
        return []
    imbalance = [
        Series(name="mean of the layers", x=step, y=train["expert_imbalance"]),
        Series(name="worst layer", x=step, y=train["expert_imbalance_worst"], style="second"),
    ]
    note = "1: every expert of a layer computes equally many tokens"
    entropy = Series(name="entropy", x=step, y=train["router_entropy"])
    charts = [
        Chart(key="imbalance", title="Busiest expert", unit="multiples of even load", series=imbalance, note=note),
        Chart(key="entropy", title="Router entropy", unit="nats a token", series=[entropy]),
    ]
    if np.nanmax(train["expert_dropped"]) > 0:
        dropped = Series(name="dropped", x=step, y=100 * train["expert_dropped"])
        charts.append(Chart(key="dropped", title="Dropped", unit="% of the choices", series=[dropped], from_zero=True))
    return charts


def heat_map(run: RunRecord) -> str:
    """The map as one ``<figure>``: time from left to right, layers from top to bottom, one row per expert."""
    steps, loads = read_loads(run.directory / "metrics" / "experts.jsonl", int(run.train["step"][-1]))
    if not len(steps):
        return ""
    _, layers, experts = loads.shape
    most = max(20, _MOST_CELLS // (layers * experts))
    shown = np.unique(np.linspace(0, len(steps) - 1, min(len(steps), most)).astype(int))
    with np.errstate(divide="ignore"):
        levels = np.clip(np.round(_EVEN + 32 * np.log2(loads[shown])), 0, 255).astype(np.uint8)
    gap = 1 if experts <= 32 else 3
    height = min(900, max(160, 3 * layers * (experts + gap)))
    data = {
        "steps": [int(step) for step in steps[shown]],
        "layers": layers,
        "experts": experts,
        "gap": gap,
        "loads": base64.b64encode(levels.transpose(1, 2, 0).tobytes()).decode(),
    }
    return (
        '<figure class="heat" id="plot-experts"><figcaption><h3>Load of every expert <small>multiples of an even share'
        '</small></h3><span class="scale">⅛<canvas></canvas>8</span></figcaption>'
        f'<div class="plot"><canvas style="height:{height}px" role="img" '
        f'aria-label="load of {experts} experts in {layers} layers over steps"></canvas>{_labels(steps[shown], layers)}'
        '<i class="cell"></i><output></output></div>'
        f'<p class="note">each band is a layer, each row one of its {experts} experts</p>'
        f'<script type="application/json">{json.dumps(data, separators=(",", ":"))}</script></figure>'
    )


def _labels(steps: NDArray[np.int64], layers: int) -> str:
    every = -(-layers // 24)
    names = "".join(
        f'<span class="y" style="top:{100 * (layer + 0.5) / layers:.2f}%">layer {layer + 1}</span>'
        for layer in range(0, layers, every)
    )
    ends = {0: ("left", "none"), 50: ("left", "translateX(-50%)"), 100: ("right", "none")}
    for share, (side, moved) in ends.items() if len(steps) > 2 else ():
        step = int(steps[share * (len(steps) - 1) // 100])
        names += f'<span class="x" style="{side}:{share % 100}%;transform:{moved}">step {step:,}</span>'
    return names


def read_loads(path: Path, last_step: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Recorded steps [r] and loads [r, layers, experts]; if a step was computed again, the later values."""
    rows: dict[int, list[list[float]]] = {}
    for line in path.read_bytes().splitlines() if path.is_file() else []:
        try:
            record = orjson.loads(line)
            step, loads = int(record["step"]), record["loads"]
        except (orjson.JSONDecodeError, KeyError, TypeError):
            continue  # cut off by a kill
        rows = {known: row for known, row in rows.items() if known < step}
        rows[step] = loads
    steps = sorted(step for step in rows if step <= last_step)
    return np.array(steps, dtype=np.int64), np.array([rows[step] for step in steps], dtype=np.float64)
