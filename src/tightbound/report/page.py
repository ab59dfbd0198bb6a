"""The report's HTML. Every piece of text passes through `text` or `prose`, which escape it."""

import html
import re
from collections.abc import Iterable, Mapping

import numpy as np
from jaxtyping import Float

from ..certify.certificate import Certificate
from ..certify.finding import Finding, Verdict
from ..certify.psis import khat_threshold
from .contents import Contents, Picture
from .style import CSS

_ROWS = 200  # of the summary table; a page of 100,000 rows opens in no browser
_SIGNS = {Verdict.PASS: "✓", Verdict.CAUTION: "!", Verdict.FAIL: "✕"}
# The policy forbids scripts and any request, should some text ever slip through unescaped.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
_HEADINGS = {
    "marginals": "Marginals: q and corrected",
    "pairs": "Pairs that the weights move most",
    "weights": "Tail of the importance weights",
    "path": "The way of the objective",
}


def render(contents: Contents, pictures: Mapping[str, Picture], title: str) -> str:
    """The page."""
    verdict = contents.certificate.verdict
    body = [
        f"<header><h1>{text(title)}</h1><p>{prose(contents.result)}</p></header>",
        _verdict(contents.certificate),
        _tiles(contents),
        _summary(contents),
        *(_figure(name, pictures[name]) for name in ("marginals", "pairs") if name in pictures),
        _findings(contents.certificate),
        _side_by_side(
            [_figure(name, pictures[name]) for name in ("weights", "path") if name in pictures]
        ),
        _facts(contents.facts),
    ]
    head = (
        '<meta charset="utf-8"><meta http-equiv="Content-Security-Policy"'
        f' content="{_POLICY}"><meta name="viewport" content="width=device-width,'
        f' initial-scale=1"><link rel="icon" href="data:,"><title>{text(title)}:'
        f" {verdict}</title><style>{CSS}</style>"
    )
    return (
        "<!doctype html>\n<html"
        f' lang="en"><head>{head}</head>\n<body><main>\n{"".join(body)}\n</main></body></html>\n'
    )


def text(value: object) -> str:
    """Escaped for any place in the page, attributes included."""
    return html.escape(str(value), quote=True)


def prose(sentence: str) -> str:
    """A sentence, escaped; what stands in backticks is shown as code."""
    return re.sub(r"`([^`]*)`", r"<code>\1</code>", text(sentence))


def number(value: float, digits: int = 4) -> str:
    """`value` to some digits, with a real minus; a dash for what is not there."""
    value = float(value)
    if np.isnan(value):
        return "–"
    if np.isinf(value):
        return "∞" if value > 0 else "−∞"
    return f"{value:,.{digits}g}".replace("-", "−")


def decimals(values: Iterable[float], sd: float) -> list[str]:
    """Numbers of one row to a common number of decimals: three digits of `sd`."""
    values = [float(value) for value in values]
    finite = [abs(value) for value in values if np.isfinite(value)]
    # Beyond these sizes fixed decimals are long rows of zeros
    if not (np.isfinite(sd) and sd > 1e-5 and max(finite, default=0.0) < 1e7):
        return [number(value) for value in values]
    places = int(np.clip(2 - np.floor(np.log10(sd)), 0, 7))
    # Adding zero turns -0.0, which rounding makes of -1e-17, into 0.0
    return [
        f"{round(v, places) + 0.0:,.{places}f}".replace("-", "−") if np.isfinite(v) else number(v)
        for v in values
    ]


def _verdict(certificate: Certificate) -> str:
    """What `certificate.explain()` says, with its dashes as a list."""
    first, *rest = certificate.explain().splitlines()
    meaning = first.partition(":")[2].strip() or first
    items = "".join(
        f"<li>{prose(line.strip()[2:])}</li>" for line in rest if line.strip().startswith("- ")
    )
    others = "".join(
        f"<p>{prose(line.strip())}</p>" for line in rest if not line.strip().startswith("- ")
    )
    verdict = certificate.verdict
    badge = f'<span class="badge">{_SIGNS[verdict]} {verdict.upper()}</span>'
    listed = f"<ul>{items}</ul>" if items else ""
    return (
        f'<section class="verdict {verdict}"><h2>{badge}'
        f" {prose(meaning)}</h2>{listed}{others}</section>"
    )


def _tiles(contents: Contents) -> str:
    certificate, smoothed = contents.certificate, contents.draws.smoothed
    if "rhat" in certificate:
        return _cells(_chain_tiles(certificate))
    count, (lower, upper) = len(contents.values), certificate.log_evidence
    bounds = decimals((lower, upper), upper - lower)
    # One digit more than the standard error settles, and never more than three decimals
    elbo = decimals([contents.elbo.value], 10 * max(contents.elbo.stderr, 1e-3))
    tiles = [
        (
            "k-hat",
            decimals([certificate.khat], 1.0)[0],
            f"weights can be trusted below {khat_threshold(count):.2g}",
        ),
        ("Effective draws", f"{smoothed.ess:,.0f}", f"of {count:,} drawn from q"),
        ("ELBO", elbo[0], f"± {number(contents.elbo.stderr, 2)} nats"),
        ("Log evidence", f"≥ {bounds[0]}", f"and ≤ {bounds[1]} nats"),
    ]
    return _cells(tiles)


def _chain_tiles(certificate: Certificate) -> list[tuple[str, str, str]]:
    """The tiles of a sampler's draws: they have no weights, no ELBO, no bounds on the evidence."""
    mixing, effective, runaway = (certificate[name] for name in ("rhat", "ess", "divergences"))
    return [
        ("R-hat", f"{mixing.value:.3f}", f"the largest; chains agree below {mixing.threshold:.2f}"),
        (
            "Effective draws",
            f"{effective.value:,.0f}",
            f"the fewest of any value; {effective.threshold:,.0f} are enough",
        ),
        ("Divergences", f"{runaway.value:,.0f}", "transitions that ran away"),
    ]


def _cells(tiles: list[tuple[str, str, str]]) -> str:
    cells = "".join(
        f"<div><dt>{text(a)}</dt><dd>{text(b)}<small>{text(c)}</small></dd></div>"
        for a, b, c in tiles
    )
    return f'<dl class="tiles">{cells}</dl>'


def _summary(contents: Contents) -> str:
    table = contents.summary
    columns = [name for name in table.columns if name != "draws"]
    note = (
        "Moments and quantiles of each value. A row is <em>corrected</em> by the importance weights"
        " where the correction exceeds its own Monte Carlo error, and is that of q elsewhere."
    )
    if len(table) > _ROWS:
        keep = sorted(contents.worst[:_ROWS])
        table = table.iloc[keep]
        of = f"{_ROWS} of {len(contents.names):,} values"
        note += f" Shown are the {of} that the weights move most; fit.summary() has all."
    head = "".join(f'<th class="number" scope="col">{text(name)}</th>' for name in columns)
    values = zip(
        table.index, table[columns].to_numpy(float), table["sd"], table["draws"], strict=True
    )
    rows = "".join(
        _summary_row(str(name), row, float(sd), str(kind)) for name, row, sd, kind in values
    )
    head = f'<tr><th scope="col">value</th>{head}<th scope="col">draws</th></tr>'
    return f"<section><h2>Summary</h2><p>{note}</p>{_table('summary', head, rows)}</section>"


def _table(name: str, head: str, rows: str) -> str:
    return (
        '<div class="scroll"><table'
        f' id="{name}"><thead>{head}</thead><tbody>{rows}</tbody></table></div>'
    )


def _summary_row(name: str, values: Float[np.ndarray, "columns"], sd: float, kind: str) -> str:
    cells = "".join(f'<td class="number">{value}</td>' for value in decimals(values, sd))
    return (
        f'<tr><th scope="row"><code>{text(name)}</code></th>{cells}<td'
        f' class="{text(kind)}">{text(kind)}</td></tr>'
    )


def _findings(certificate: Certificate) -> str:
    columns = {
        "finding": "",
        "verdict": "",
        "value": "number",
        "s.e.": "number",
        "threshold": "number",
        "why": "",
    }
    head = "".join(f'<th scope="col" class="{css}">{name}</th>' for name, css in columns.items())
    rows = "".join(_finding_row(finding) for finding in certificate.findings)
    note = (
        "Each check of the fit: its number, the standard error of that number, and where it passes."
        " The worst of them is the verdict. No check can see a mode that neither a draw nor a"
        " search has reached."
    )
    table = _table("findings", f"<tr>{head}</tr>", rows)
    return f"<section><h2>Findings</h2><p>{note}</p>{table}</section>"


def _finding_row(finding: Finding) -> str:
    threshold = "" if finding.threshold is None else number(finding.threshold, 3)
    where = (
        "".join(f" <code>{text(name.strip('`'))}</code>" for name in finding.where)
        if _adds(finding)
        else ""
    )
    return (
        f'<tr><th scope="row">{text(finding.name)}</th><td><span class="badge'
        f' {finding.verdict}">{_SIGNS[finding.verdict]} {finding.verdict}</span></td><td'
        f' class="number">{number(finding.value, 3)}</td><td'
        f' class="number">{number(finding.stderr, 2)}</td><td'
        f' class="number">{threshold}</td><td>{prose(finding.why)}{where} <span'
        f' class="source">{text(finding.source)}</span></td></tr>'
    )


def _adds(finding: Finding) -> bool:
    """Whether the names that a finding points at say more than its sentence does."""
    return finding.verdict is not Verdict.PASS and any(
        name.strip("`") not in finding.why for name in finding.where
    )


def _figure(name: str, picture: Picture) -> str:
    narrow = ' class="narrow"' if name == "pairs" else ""
    heading = f"<h2>{_HEADINGS[name]}</h2>"
    caption = f"<figcaption>{text(picture.caption)}</figcaption>"
    image = f'<img{narrow} src="{picture.uri}" alt="{text(picture.alt)}">'
    return f'<section id="{name}"><figure>{heading}{caption}{image}</figure></section>'


def _side_by_side(sections: list[str]) -> str:
    return f'<div class="two">{"".join(sections)}</div>'


def _facts(facts: tuple[tuple[str, str], ...]) -> str:
    rows = "".join(f"<dt>{text(what)}</dt><dd>{text(value)}</dd>" for what, value in facts)
    return f'<section><h2>How it was run</h2><dl class="facts">{rows}</dl></section>'
