"""The page of a report: its style, its script, and the shell around its sections."""

from __future__ import annotations

import base64
import hashlib
from html import escape

_LIGHT = """
--page:#f6f6f4;--card:#fff;--ink:#0b0b0b;--ink2:#52514e;--muted:#898781;--grid:#ecebe6;
--axis:#c3c2b7;--edge:rgba(11,11,11,.09);--bad:#d03b3b;--good:#0a7d34;
--c0:#2a78d6;--c1:#eb6834;--c2:#1baf7a;--c3:#eda100;--c4:#e87ba4;--c5:#008300;--c6:#4a3aa7;
--c7:#e34948;--ramp0:#9ec5f4;--ramp1:#0d2f5c;--empty:#ecebe6;color-scheme:light
"""
_DARK = """
--page:#0f0f0e;--card:#1a1a19;--ink:#fff;--ink2:#c3c2b7;--muted:#898781;--grid:#2a2a28;
--axis:#4a4a46;--edge:rgba(255,255,255,.09);--bad:#e66767;--good:#3fb46a;
--c0:#3987e5;--c1:#d95926;--c2:#199e70;--c3:#c98500;--c4:#d55181;--c5:#45a745;--c6:#9085e9;
--c7:#e66767;--ramp0:#184f95;--ramp1:#cde2fb;--empty:#2a2a28;color-scheme:dark
"""

_STYLE = (
    f":root{{{_LIGHT}}}"
    f"@media(prefers-color-scheme:dark){{:root:not([data-theme=light]){{{_DARK}}}}}"
    f":root[data-theme=dark]{{{_DARK}}}"
    """
*{box-sizing:border-box}
body{margin:0;background:var(--page);color:var(--ink);
font:14px/1.5 system-ui,-apple-system,"Segoe UI",sans-serif}
main{max-width:1240px;margin:0 auto;padding:28px 24px 64px}
header{display:flex;align-items:flex-start;gap:16px;justify-content:space-between}
h1{font-size:24px;line-height:1.25;margin:0;overflow-wrap:anywhere}
h2{font-size:15px;margin:36px 0 12px;font-weight:600}
h3{font-size:14px;margin:0;font-weight:600}
.sub{color:var(--ink2);margin:4px 0 0}
button{font:inherit;font-size:12px;color:var(--ink2);background:var(--card);
border:1px solid var(--edge);border-radius:8px;padding:5px 12px;cursor:pointer;white-space:nowrap}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(165px,1fr));gap:12px;margin-top:22px}
.tile,.card{background:var(--card);border:1px solid var(--edge);border-radius:12px}
.tile{padding:14px 16px}
.tile b{display:block;font-size:26px;line-height:1.2;font-weight:600;letter-spacing:-.01em}
.tile .what{color:var(--ink2);font-size:12.5px;overflow-wrap:anywhere}
.tile small,.card small{color:var(--muted);font-size:12px;font-weight:400}
.tile.lead b{font-size:30px}
.tile.warn b{color:var(--bad)}
.cards{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(440px,100%),1fr));gap:14px}
.card{padding:14px 16px 10px;min-width:0}
.card.wide{grid-column:1/-1}
.head{display:flex;gap:12px;align-items:baseline;justify-content:space-between}
.log-switch{font-size:12px;color:var(--ink2);cursor:pointer;user-select:none;white-space:nowrap}
.log-switch input{vertical-align:-2px;margin:0 4px 0 0;accent-color:var(--c0)}
.legend{display:flex;flex-wrap:wrap;gap:2px 14px;margin:4px 0 6px;font-size:12px;color:var(--ink2);
max-height:66px;overflow:auto}
.legend i{display:inline-block;width:12px;height:3px;border-radius:2px;margin-right:6px;
vertical-align:middle}
.legend b{font-weight:600;color:var(--ink);font-variant-numeric:tabular-nums}
.chart{position:relative}
section svg{display:block;overflow:visible}
section>svg,.chart>svg{width:100%;height:auto}
.chart svg svg{overflow:hidden}
.grid{stroke:var(--grid)}.axis{stroke:var(--axis)}
svg text{font-family:inherit}
text.tick{fill:var(--muted);font-size:11px;font-variant-numeric:tabular-nums}
text.name{fill:var(--ink2);font-size:12px}
text.value{font-size:11.5px;font-variant-numeric:tabular-nums;pointer-events:none}
.line,.faint,.bad,.dots{fill:none;stroke-linejoin:round;stroke-linecap:round}
.line{stroke-width:2}.faint{stroke-width:1;opacity:.28}.bad{stroke-width:2}.dots{stroke-width:6}
.best{fill:none;stroke:var(--c1);stroke-width:2.5;rx:3;pointer-events:none}
.empty{fill:var(--empty)}
.cursor{stroke:var(--muted);stroke-dasharray:3 3;pointer-events:none}
.card:has(.log-switch input:checked) .lin,.card:has(.log-switch input:not(:checked)) .log
{display:none}
#tip{position:fixed;z-index:9;display:none;pointer-events:none;background:var(--card);
border:1px solid var(--edge);border-radius:8px;padding:8px 11px;font-size:12px;color:var(--ink2);
box-shadow:0 4px 18px rgba(0,0,0,.16);max-width:340px}
#tip b{color:var(--ink);font-variant-numeric:tabular-nums}
#tip div{display:flex;gap:14px;justify-content:space-between}
#tip i{display:inline-block;width:10px;height:3px;border-radius:2px;margin-right:6px;
vertical-align:middle}
pre{margin:6px 0;overflow:auto;font:12px/1.5 ui-monospace,SFMono-Regular,Menlo,Consolas,monospace}
table{border-collapse:collapse;font-size:13px;width:100%}
td{padding:4px 12px 4px 0;border-top:1px solid var(--grid);vertical-align:top;
overflow-wrap:anywhere}
tr:first-child td{border-top:0}
td:first-child{color:var(--ink2);width:42%}
td:last-child{font-variant-numeric:tabular-nums}
.members{overflow-x:auto}.members td,.members th{white-space:nowrap;text-align:right;
padding:4px 0 4px .9em;width:auto;border-top:1px solid var(--grid)}
.members tr>:first-child{text-align:left;padding-left:0}.members tr:first-child th{border-top:0}
.members i{display:inline-block;width:12px;height:3px;border-radius:2px;margin-right:7px;
vertical-align:middle}
.drawing{overflow:auto}.drawing svg{max-width:100%;width:auto;margin:6px auto}
.nothing{padding:40px;text-align:center;color:var(--ink2)}
@media print{button,.log-switch{display:none}.card,.tile{break-inside:avoid}}
"""
)

_SCRIPT = """
const root=document.documentElement,tip=document.getElementById('tip');
document.getElementById('theme').onclick=()=>{
  const dark=root.dataset.theme?root.dataset.theme==='dark'
    :matchMedia('(prefers-color-scheme:dark)').matches;
  root.dataset.theme=dark?'light':'dark'};
const show=v=>v===null?'not a number':Math.abs(v)>=1e5||(v&&Math.abs(v)<1e-3)
  ?v.toExponential(3):String(+v.toPrecision(5));
for(const chart of document.querySelectorAll('.chart')){
  const data=JSON.parse(chart.querySelector('script').textContent),
    svg=chart.querySelector('svg'),line=svg.querySelector('.cursor');
  const hide=()=>{tip.style.display='none';line.style.display='none'};
  svg.onpointerleave=hide;
  svg.onpointermove=event=>{
    const box=svg.getBoundingClientRect(),
      at=(event.clientX-box.left)/box.width*data.width,
      wanted=data.low+(at-data.left)/(data.right-data.left)*(data.high-data.low);
    let step=null;
    for(const s of data.series)for(const x of s.steps)
      if(step===null||Math.abs(x-wanted)<Math.abs(step-wanted))step=x;
    if(step===null)return hide();
    const x=data.left+(step-data.low)/(data.high-data.low)*(data.right-data.left);
    line.setAttribute('x1',x);line.setAttribute('x2',x);line.style.display='';
    tip.replaceChildren();
    const title=document.createElement('div');
    title.textContent='step '+step.toLocaleString('en');tip.append(title);
    for(const s of data.series){
      let i=0;
      s.steps.forEach((v,k)=>{if(Math.abs(v-step)<Math.abs(s.steps[i]-step))i=k});
      if(!s.steps.length||Math.abs(s.steps[i]-step)>(data.high-data.low)/50)continue;
      const row=document.createElement('div'),name=document.createElement('span'),
        mark=document.createElement('i'),value=document.createElement('b');
      mark.style.background=s.color;name.append(mark,s.name);value.textContent=show(s.values[i]);
      row.append(name,value);tip.append(row)}
    tip.style.display='block';
    const wide=tip.offsetWidth,right=event.clientX+16+wide>innerWidth;
    tip.style.left=(right?event.clientX-16-wide:event.clientX+16)+'px';
    tip.style.top=Math.max(4,Math.min(event.clientY+12,innerHeight-tip.offsetHeight-4))+'px'}}
"""

_HASH = base64.b64encode(hashlib.sha256(_SCRIPT.encode()).digest()).decode()
_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; "
    f"form-action 'none'; script-src 'sha256-{_HASH}'"  # that of the page, and no other
)


def page(*, title: str, subtitle: str, tiles: str, sections: str) -> str:
    """A whole page: no network, no other file; light and dark."""
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width,initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<title>{escape(title)}</title>
<style>{_STYLE}</style>
</head>
<body>
<main>
<header><div><h1>{escape(title)}</h1><p class="sub">{escape(subtitle)}</p></div>
<button id="theme" type="button">light / dark</button></header>
<div class="tiles">{tiles}</div>
{sections}
</main>
<div id="tip"></div>
<script>{_SCRIPT}</script>
</body>
</html>
"""


def section(title: str, cards: list[str]) -> str:
    """A heading over cards; nothing without cards."""
    return f'<h2>{escape(title)}</h2><div class="cards">{"".join(cards)}</div>' if cards else ""


def card(title: str, content: str, *, note: str = "", corner: str = "", wide: bool = False) -> str:
    """A box with a heading."""
    small = f" <small>{escape(note)}</small>" if note else ""
    kind = "card wide" if wide else "card"
    head = f'<div class="head"><h3>{escape(title)}{small}</h3>{corner}</div>'
    return f'<section class="{kind}">{head}{content}</section>'


def tile(what: str, value: str, note: str = "", *, kind: str = "") -> str:
    """A number that is seen first."""
    return (
        f'<div class="tile {kind}"><span class="what">{escape(what)}</span>'
        f"<b>{escape(value)}</b><small>{escape(note)}</small></div>"
    )


def table(rows: list[tuple[str, str]]) -> str:
    """Names and values."""
    cells = "".join(f"<tr><td>{escape(k)}</td><td>{escape(v)}</td></tr>" for k, v in rows)
    return f"<table>{cells}</table>"
