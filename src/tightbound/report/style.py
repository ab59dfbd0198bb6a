"""The look of the report page: one style sheet, no fonts or images from elsewhere."""

CSS = """
:root { color-scheme: light; --ink: #1f2328; --soft: #57606a; --line: #d8dee4; --paper: #fff;
  --desk: #f3f5f7; --pass: #116329; --pass-tint: #e6f4ea; --caution: #7a4d00;
  --caution-tint: #fff5d6; --fail: #a40e26; --fail-tint: #ffebe9; --q: #0072b2;
  --corrected: #b34700; }
* { box-sizing: border-box }
body { margin: 0; background: var(--desk); color: var(--ink);
  font: 15px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial,
  sans-serif }
main { max-width: 68rem; margin: 0 auto; padding: 2rem 1.25rem 3rem }
header { margin: 0 0 1.25rem }
header p { margin: .2rem 0 0; color: var(--soft) }
h1 { margin: 0; font-size: 1.75rem; line-height: 1.2; letter-spacing: -.01em;
  overflow-wrap: anywhere }
h2 { margin: 0 0 .2rem; font-size: 1.1rem }
section { background: var(--paper); border: 1px solid var(--line); border-radius: 12px;
  padding: 1.25rem 1.4rem; margin: 0 0 1.1rem; box-shadow: 0 1px 2px rgb(31 35 40 / 4%) }
section > p, figcaption { margin: 0 0 .8rem; color: var(--soft); font-size: .9rem;
  max-width: 52rem }
code { font: .88em ui-monospace, SFMono-Regular, Menlo, Consolas, monospace;
  background: var(--desk); padding: .08em .35em; border-radius: 4px; overflow-wrap: anywhere }
.verdict { border-left: 8px solid; padding-left: 1.3rem }
.verdict h2 { font-size: 1.35rem; display: flex; align-items: center; gap: .6rem; flex-wrap: wrap }
.verdict ul { margin: .7rem 0; padding-left: 1.2rem }
.verdict li { margin: .25rem 0 }
.verdict p { color: var(--ink); font-size: .95rem; margin: .4rem 0 0 }
.badge { display: inline-block; border-radius: 999px; padding: .08rem .65rem; font-size: .8rem;
  font-weight: 600; white-space: nowrap }
.verdict .badge { font-size: 1.05rem; padding: .12rem .9rem; color: #fff }
.pass { border-left-color: var(--pass) } .caution { border-left-color: #bf8700 }
.fail { border-left-color: var(--fail) }
.badge.pass { background: var(--pass-tint); color: var(--pass) }
.badge.caution { background: var(--caution-tint); color: var(--caution) }
.badge.fail { background: var(--fail-tint); color: var(--fail) }
.verdict.pass .badge { background: var(--pass); color: #fff }
.verdict.caution .badge { background: var(--caution); color: #fff }
.verdict.fail .badge { background: var(--fail); color: #fff }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr)); gap: .8rem;
  margin: 0 0 1.1rem; padding: 0 }
.tiles div { background: var(--paper); border: 1px solid var(--line); border-radius: 12px;
  padding: .8rem 1rem }
.tiles dt { color: var(--soft); font-size: .8rem }
.tiles dd { margin: 0; font-size: 1.25rem; font-weight: 600; font-variant-numeric: tabular-nums;
  line-height: 1.35 }
.tiles dd small { display: block; font-size: .8rem; font-weight: 400; color: var(--soft) }
.scroll { overflow-x: auto }
table { border-collapse: collapse; width: 100%; font-size: .9rem;
  font-variant-numeric: tabular-nums }
th { text-align: left; font-weight: 600; color: var(--soft); font-size: .8rem;
  border-bottom: 2px solid var(--line); white-space: nowrap }
th, td { padding: .38rem .7rem .38rem 0; vertical-align: top }
tbody tr + tr > * { border-top: 1px solid #eaeef2 }
tbody th { color: var(--ink); font-size: inherit; border-bottom: 0 }
.number { text-align: right; white-space: nowrap; padding-right: 1.1rem }
.source { color: var(--soft); font-size: .82rem }
td.corrected { color: var(--corrected); font-weight: 600 } td.q { color: var(--q);
  font-weight: 600 }
figure { margin: 0 }
figure img { display: block; width: 100%; height: auto; margin-top: .3rem }
figure img.narrow { max-width: 46rem; margin-left: auto; margin-right: auto }
.two { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(26rem, 100%), 1fr));
  gap: 0 1.1rem }
.facts { display: grid; grid-template-columns: minmax(7rem, auto) 1fr; gap: .35rem 1.2rem;
  margin: .5rem 0 0; font-size: .92rem }
.facts dt { color: var(--soft) } .facts dd { margin: 0; overflow-wrap: anywhere }
@media print { body { background: #fff } main { max-width: none; padding: 0 }
section { break-inside: avoid; box-shadow: none } }
"""
