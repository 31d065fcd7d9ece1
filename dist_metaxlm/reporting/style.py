"""Style sheet of the report page: system fonts, two colour schemes, one column on a narrow screen."""

from __future__ import annotations

CSS = """
:root {
  color-scheme: light dark;
  --paper: #f6f7f8; --surface: #ffffff; --ink: #1b1f24; --muted: #5c6570; --grid: #dfe3e7; --soft: #eef1f4;
  --untrained: #8a929c; --meta: #2f6fb3; --cross: #c2562a; --joint: #6f58b0;
  --objective-1: #2f6fb3; --objective-2: #23877a; --objective-3: #b9791a;
  --other: #6f58b0; --heat: #c2562a; --heat-ink: #ffffff;
  --sans: system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", "Helvetica Neue", Arial, sans-serif;
  --mono: ui-monospace, "SF Mono", "Cascadia Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace;
}
@media (prefers-color-scheme: dark) { :root {
  --paper: #14171a; --surface: #1c2024; --ink: #e6e9ec; --muted: #98a2ad; --grid: #343a41; --soft: #252a30;
  --untrained: #7d8691; --meta: #6aa9e9; --cross: #ec8759; --joint: #a590e8;
  --objective-1: #6aa9e9; --objective-2: #55bfb0; --objective-3: #e0a548;
  --other: #a590e8; --heat: #d9683a; --heat-ink: #ffffff;
} }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.55 var(--sans);
  -webkit-text-size-adjust: 100%; }
main { max-width: 1120px; margin: 0 auto; padding: 40px 24px 64px; }
header h1 { font-size: 30px; line-height: 1.2; font-weight: 650; letter-spacing: -.015em; margin: 0 0 6px;
  overflow-wrap: anywhere; }
header .facts { color: var(--muted); margin: 0; }
header .lead { font-size: 18px; max-width: 46em; margin: 18px 0 0; }
header .lead + .note { margin-top: 22px; }
header .note { margin: 8px 0 0; }
header .note:last-child { margin-bottom: 18px; }
h2 { font-size: 20px; font-weight: 620; letter-spacing: -.01em; margin: 52px 0 4px; }
h3 { font-size: 15px; font-weight: 600; margin: 0 0 8px; }
.note { color: var(--muted); max-width: 52em; margin: 0 0 18px; font-size: 15px; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(160px, 1fr)); gap: 12px; margin: 28px 0 0; }
.card, .panel { background: var(--surface); border: 1px solid var(--grid); border-radius: 10px; }
.card { padding: 14px 16px; }
.card .label { color: var(--muted); font-size: 13px; }
.card .value { font-size: 26px; line-height: 1.25; font-weight: 620; letter-spacing: -.02em;
  font-variant-numeric: tabular-nums; }
.card .aside { color: var(--muted); font-size: 13px; }
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(400px, 100%), 1fr)); gap: 16px;
  align-items: start; }
.panel { padding: 16px 18px; min-width: 0; margin: 0; overflow-x: auto; }
.panel > svg { display: block; width: 100%; max-width: 600px; height: auto; overflow: visible; }
svg text { font-family: var(--sans) !important; }
table { border-collapse: collapse; width: 100%; font-size: 14px; font-variant-numeric: tabular-nums; }
th { font-weight: 500; color: var(--muted); text-align: right; padding: 3px 8px; }
td { text-align: right; padding: 3px 8px; border-top: 1px solid var(--soft); }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
td:last-child, th:last-child { padding-right: 0; }
table.heat { table-layout: fixed; border-spacing: 2px; border-collapse: separate; font-size: 12.5px; }
table.heat th { text-align: center; padding: 1px 0; }
table.heat td { text-align: center; border: 0; padding: 2px 0; border-radius: 3px; }
table.heat th:first-child, table.heat td:first-child { width: 4.4em; text-align: left; overflow: hidden; }
table.heat td.gap, table.heat th.gap { width: 8px; }
table.heat td.few { opacity: .55; }
.bars { columns: 3 240px; column-gap: 28px; font-size: 13px; font-variant-numeric: tabular-nums; }
.bar { display: grid; grid-template-columns: 6.2em 1fr 3.6em; align-items: center; gap: 8px; break-inside: avoid;
  line-height: 1.65; }
.track { position: relative; height: 9px; background: var(--soft); border-radius: 3px; }
.fill { position: absolute; inset: 0 auto 0 0; border-radius: 3px; }
.tick { position: absolute; top: -3px; bottom: -3px; width: 2px; margin-left: -1px; background: var(--ink); }
.bar > span:first-child { white-space: nowrap; overflow: hidden; text-overflow: ellipsis; }
.bar .figure { text-align: right; color: var(--muted); }
.mask { margin: 0 0 10px; font-size: 17px; overflow-wrap: anywhere; }
.mask mark { background: var(--soft); color: var(--muted); border-radius: 4px; padding: 1px 6px;
  font: 14px var(--mono); }
.guess { display: grid; grid-template-columns: minmax(5em, 9em) 1fr 3.4em; gap: 10px; align-items: center;
  font-size: 14px; font-variant-numeric: tabular-nums; }
.guess .figure { text-align: right; color: var(--muted); }
details { border-top: 1px solid var(--grid); padding: 12px 0; }
details:last-of-type { border-bottom: 1px solid var(--grid); }
summary { cursor: pointer; font-weight: 600; }
pre { font: 13px/1.5 var(--mono); overflow-x: auto; background: var(--surface); border: 1px solid var(--grid);
  border-radius: 8px; padding: 14px 16px; }
code { font: .92em var(--mono); overflow-wrap: anywhere; }
td.text, th.text { text-align: left; overflow-wrap: anywhere; }
.panel.wide { grid-column: 1 / -1; }
.below { margin-top: 16px; }
@media (max-width: 560px) { main { padding: 24px 14px 48px; } header h1 { font-size: 25px; }
  .panel { padding: 12px; } table { font-size: 12.5px; } th, td { padding: 3px 4px; }
  .cards { grid-template-columns: 1fr 1fr; } .card .value { font-size: 22px; } }
@media print { body { background: #fff; } .panel, .card { break-inside: avoid; } }
"""
