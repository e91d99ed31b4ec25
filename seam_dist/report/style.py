"""The report's style sheet: readable from 400 pixels width up, in light and dark schemes, and in print."""

CSS = """
:root { color-scheme: light dark; --ground: #ffffff; --card: #f6f7f9; --ink: #1b1f24; --quiet: #59636e;
  --rule: #d4d9df;
  --s0: #0b62ab; --s1: #b65200; --s2: #00795a; --s3: #8c3aa8; --s4: #636b74; --warn: #fff4d6; --warn-ink: #5c4300; }
@media (prefers-color-scheme: dark) { :root { --ground: #14171b; --card: #1d2127; --ink: #e7eaee; --quiet: #a3adb8;
  --rule: #3a424c; --s0: #5fb2f7; --s1: #f7a04b; --s2: #45cfa3; --s3: #d596ea; --s4: #a9b2bc; --warn: #3b2f0e;
  --warn-ink: #f5dfa4; } }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0; background: var(--ground); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
main { max-width: 1280px; margin: 0 auto; padding: 24px 20px 64px; }
h1 { font-size: 1.75rem; line-height: 1.2; margin: 0 0 4px; overflow-wrap: anywhere; }
h2 { font-size: 1.3rem; margin: 44px 0 8px; padding-top: 14px; border-top: 1px solid var(--rule); }
h3 { font-size: 1.02rem; margin: 22px 0 6px; }
p { margin: 6px 0 12px; max-width: 78ch; }
.lead, .caption { color: var(--quiet); }
.caption { font-size: .92rem; }
nav { margin: 14px 0 0; display: flex; flex-wrap: wrap; gap: 4px 18px; font-size: .95rem; }
a { color: var(--s0); }
code { font: .88em ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; overflow-wrap: anywhere; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(170px, 1fr)); gap: 12px; margin: 20px 0; }
.tile { background: var(--card); border: 1px solid var(--rule); border-radius: 8px; padding: 12px 14px; }
.tile b { display: block; font-size: 1.6rem; white-space: nowrap; line-height: 1.15; font-weight: 650;
  font-variant-numeric: tabular-nums; }
.tile span { font-size: .86rem; color: var(--quiet); display: block; }
.scroll { overflow-x: auto; margin: 8px 0 14px; }
table { border-collapse: collapse; font-size: .93rem; }
th, td { padding: 6px 12px 6px 0; text-align: left; vertical-align: top; border-bottom: 1px solid var(--rule); }
thead th { font-weight: 600; color: var(--quiet); font-size: .86rem; vertical-align: bottom; }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; padding-left: 10px; }
td.n { white-space: nowrap; }
tr.own td { font-weight: 650; }
tr.total td { border-top: 2px solid var(--rule); font-weight: 650; }
.who { white-space: nowrap; } th.n { min-width: 5.5em; }
.settings td { overflow-wrap: anywhere; min-width: 6em; } .settings td:last-child { min-width: 15em; }
.settings td:first-child code { white-space: nowrap; }
.bar { display: inline-block; height: 9px; border-radius: 2px; background: var(--s0); vertical-align: middle;
  min-width: 1px; }
.barbox { display: inline-block; width: 90px; }
.chip { display: inline-block; width: 12px; height: 12px; border-radius: 3px; border: 1px solid var(--quiet);
  vertical-align: -1px; margin-right: 6px; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 340px), 1fr)); gap: 14px 22px;
  align-items: start; }
.charts figure { margin: 0; max-width: 520px; }
figcaption { font-size: .9rem; color: var(--quiet); }
.charts figcaption b { color: var(--ink); }
svg { display: block; width: 100%; height: auto; }
svg text { font: 12.5px system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; fill: var(--quiet); }
.grid { stroke: var(--rule); stroke-width: 1; } .axis, .tick { stroke: var(--quiet); stroke-width: 1; fill: none; }
.line { fill: none; stroke: currentColor; stroke-width: 2.4; stroke-linejoin: round; stroke-linecap: round; }
.raw { fill: none; stroke: currentColor; stroke-width: 1; opacity: .38; }
.d1 { stroke-dasharray: 9 5; } .d2 { stroke-dasharray: 2 5; } .d3 { stroke-dasharray: 10 4 2 4; }
  .d4 { stroke-dasharray: 5 3; }
.mark { fill: currentColor; stroke: var(--ground); stroke-width: 1.6; }
.s0 { color: var(--s0); } .s1 { color: var(--s1); } .s2 { color: var(--s2); } .s3 { color: var(--s3); }
  .s4 { color: var(--s4); }
.legend { display: flex; flex-wrap: wrap; gap: 4px 20px; list-style: none; margin: 8px 0 10px; padding: 0;
  font-size: .92rem; }
.legend li { display: flex; align-items: center; gap: 7px; }
.swatch { display: inline-block; width: 28px; height: 11px; flex: none; margin-right: 6px; vertical-align: -1px; }
.swatch.small { width: 14px; height: 14px; margin-right: 0; }
.example { background: var(--card); border: 1px solid var(--rule); border-radius: 8px; padding: 10px 12px;
  margin: 0 0 12px; }
.example p { margin: 0 0 8px; font-size: .92rem; max-width: none; overflow-wrap: anywhere; }
.views { display: grid; grid-template-columns: repeat(auto-fit, minmax(136px, 1fr)); gap: 8px; }
.views.v5, .views.v9, .views.v10 { grid-template-columns: repeat(5, 1fr); }
  .views.v11 { grid-template-columns: repeat(6, 1fr); }
  .views.v8 { grid-template-columns: repeat(4, 1fr); } .views.v4 { grid-template-columns: repeat(4, 1fr); }
  .views.v3 { grid-template-columns: repeat(3, 1fr); }
.views figure { margin: 0; }
.views img { display: block; width: 100%; height: auto; border-radius: 4px; }
.views figcaption { font-size: .82rem; padding-top: 2px; }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 560px), 1fr)); gap: 0 20px; }
.scale { display: inline-block; width: 120px; height: 10px; border-radius: 2px; vertical-align: -1px; margin: 0 6px; }
.missing { background: var(--warn); color: var(--warn-ink); border-radius: 8px; padding: 10px 14px; max-width: none; }
.missing p { margin: 4px 0; }
summary { cursor: pointer; margin: 8px 0; }
@media (max-width: 620px) { main { padding: 16px 14px 40px; }
  .views.v5, .views.v3 { grid-template-columns: repeat(3, 1fr); }
  .views.v4 { grid-template-columns: repeat(2, 1fr); }
  th, td { padding-right: 8px; } .barbox { width: 48px; } }
@media print { .example, figure, tr { break-inside: avoid; } }
"""
