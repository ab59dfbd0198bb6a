"""The report's pictures, as data URIs. The one file that imports matplotlib; no state of it moves.

pyplot is not imported: it keeps every figure, and chooses a window system.
"""

import base64
import io
import warnings
from collections.abc import Iterator

import numpy as np
from jaxtyping import Float, Int

from ..certify.psis import khat_threshold, tail_size
from ..results import MissingExtraError
from .contents import Contents, Picture

try:
    import matplotlib.style
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter, MaxNLocator
except ImportError as error:
    raise MissingExtraError("matplotlib", "plots", "A report (fit.report)") from error

# Blue and vermilion of Okabe and Ito: told apart with any colour vision, and in grey.
Q, CORRECTED = "#0072B2", "#D55E00"
_INK, _SOFT = "#24292f", "#57606a"  # text, and text beside it: the greys of the page
STYLE = {
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#8c959f",
    "axes.labelcolor": _INK,
    "text.color": _INK,
    "xtick.color": _SOFT,
    "ytick.color": _SOFT,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#eaeef2",
    "legend.frameon": False,
    "svg.hashsalt": "tightbound",  # else ids in the file are random
    "figure.facecolor": "white",
}
_MARGINALS, _PAIRS = 12, 4  # values shown: three rows of histograms; six scatter plots
_BINS = 40  # 4,000 draws: a hundred in each on average
_POINTS = 1200  # dots of each colour in a pair plot
_WIDTH, _HALF = 10.0, 5.4  # inches: plots across the page, and of half of it
_TAIL_POINTS = 400  # dots of the weight plot; all of 16,000 would be two megabytes


def plots_of(contents: Contents) -> dict[str, Picture]:
    """The pictures by name, in the order of the page; one that would show nothing is left out."""
    makers = {"marginals": marginals, "pairs": pairs, "weights": weight_tail, "path": path}
    made = {}
    with (
        matplotlib.style.context(["default", STYLE]),
        warnings.catch_warnings(),
        np.errstate(all="ignore"),
    ):
        # A user's name in a script the font lacks
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        for name, make in makers.items():
            picture = make(contents)
            if picture is not None:
                made[name] = picture
    return made


def marginals(contents: Contents) -> Picture | None:
    """Histograms of the values that the weights move most: q filled, corrected as an outline."""
    shown = _with_spread(contents, _MARGINALS)
    if not shown:
        return None
    columns = min(4, len(shown))
    rows = -(-len(shown) // columns)
    figure = _figure(rows * 1.75 + 0.5)
    figure.set_layout_engine("constrained", wspace=0.05)  # histograms have no labels between them
    for place, j in enumerate(shown):
        axes = figure.add_subplot(rows, columns, place + 1)
        _marginal(axes, contents.values[:, j], contents.weights)
        axes.set_title(shortened(contents.names[j]), parse_math=False)
    _legend(figure, contents)
    everything = len(shown) == len(contents.names)
    of = "all" if everything else f"the {len(shown)} of {len(contents.names):,}"
    moved = "" if everything else " that the importance weights move most"
    caption = f"Marginals of {of} values{moved}, the largest correction first. {_colours(contents)}"
    return Picture(
        _svg(figure), f"Histograms of {', '.join(contents.names[j] for j in shown)}.", caption
    )


def pairs(contents: Contents) -> Picture | None:
    """Scatter plots of the worst values against each other: draws of q, resampled ones in front."""
    shown = _with_spread(contents, _PAIRS)
    if len(shown) < 2:
        return None
    size = len(shown) - 1
    figure = _figure(0.5 + 1.9 * size, width=2.4 * size + 1.2)
    clouds = list(_clouds(contents))
    for row, j in enumerate(shown[1:]):
        for column, i in enumerate(shown[: row + 1]):
            axes = figure.add_subplot(size, size, row * size + column + 1)
            _scatter(axes, contents, i, j, clouds)
            axes.tick_params(labelbottom=row == size - 1, labelleft=column == 0)
            # A $ in a user's name is a dollar
            axes.set_xlabel(
                shortened(contents.names[i]) if row == size - 1 else "", parse_math=False
            )
            axes.set_ylabel(shortened(contents.names[j]) if column == 0 else "", parse_math=False)
    _legend(figure, contents)
    caption = f"Pairs of the values that the importance weights move most. {_colours(contents)}"
    return Picture(
        _png(figure), f"Scatter plots of {', '.join(contents.names[j] for j in shown)}.", caption
    )


def weight_tail(contents: Contents) -> Picture | None:
    """Sorted importance ratios on log-log axes, the fitted Pareto tail, and the steepest good one.

    Of a Pareto tail with shape k the r-th largest of S falls as r^-k: a straight line.
    """
    log_w, smoothed = contents.draws.log_w, contents.draws.smoothed
    finite = np.isfinite(log_w)
    if finite.sum() < 10:
        return None
    count, tail = len(log_w), tail_size(len(log_w))
    ratio = np.sort(np.exp(log_w - log_w[finite].max()))[::-1]
    ratio = ratio / ratio.mean()
    rank = np.arange(1, count + 1)
    figure = _figure(3.4, _HALF)
    axes = figure.add_subplot()
    some = np.unique(np.geomspace(1, np.count_nonzero(ratio), _TAIL_POINTS).astype(int)) - 1
    axes.loglog(
        rank[some], ratio[some], ".", ms=4.5, mew=0, color=Q, label="weights (1 is the average)"
    )
    if np.isfinite(smoothed.khat):
        fitted = np.sort(smoothed.weights)[::-1][:tail] * count
        label = f"fitted tail, k-hat {smoothed.khat:.2f}"
        axes.loglog(rank[:tail], fitted, color=CORRECTED, lw=1.8, label=label)
    limit = khat_threshold(count)
    steepest = ratio[tail] * (rank[: tail + 1] / (tail + 1)) ** -limit
    label = f"slope of a tail at the limit, {limit:.2f}"
    axes.loglog(rank[: tail + 1], steepest, "--", color=_SOFT, lw=1.2, label=label)
    axes.set_ylim(
        bottom=min(0.1, max(ratio[ratio > 0].min(), 1e-3)), top=3 * max(ratio[0], steepest[0])
    )
    axes.set_xlabel("rank of the draw (1 has the largest weight)")
    axes.set_ylabel("importance weight")
    figure.legend(loc="outside upper left")
    caption = (
        f"The importance weights of {count:,} draws, largest first. A tail that rises to the left"
        " more steeply than the dashed line means that a few draws decide every corrected number."
    )
    return Picture(_svg(figure), f"Sorted importance weights; k-hat {smoothed.khat:.2f}.", caption)


def path(contents: Contents) -> Picture | None:
    """Minus the loss along the fit, against the gradients used."""
    x, y = np.asarray(contents.trace.evaluations), -np.asarray(contents.trace.loss)
    good = np.isfinite(y)
    x, y = x[good], y[good]
    if len(y) < 2:
        return None
    figure = _figure(3.4, _HALF)
    axes = figure.add_subplot()
    if len(y) <= 100:
        axes.plot(x, y, "-o", ms=3.5, lw=1.4, color=Q, label="along the fit (minus the loss)")
    else:
        thin = slice(None, None, max(1, len(y) // 2000))
        axes.plot(x[thin], y[thin], lw=0.7, alpha=0.4, color=Q)
        average = _running_mean(y, len(y) // 50)
        axes.plot(
            x[thin],
            average[thin],
            lw=1.6,
            color=Q,
            label="along the fit (minus the loss, running mean)",
        )
    elbo = contents.elbo
    if np.isfinite(elbo.value):
        axes.axhline(
            elbo.value, color=CORRECTED, lw=1.3, label=f"ELBO of the result on fresh draws: {elbo}"
        )
    _from_where_it_matters(axes, y, elbo.value)
    axes.set_xlabel("gradients of the log density")
    axes.set_ylabel("nats")
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    figure.legend(loc="outside upper left")
    caption = (
        "Minus the loss at each step of the last search, which is the ELBO of that step where the"
        " ELBO was maximised."
    )
    return Picture(
        _svg(figure), f"Minus the loss along {len(y)} steps; it ends at {y[-1]:.3f} nats.", caption
    )


def _from_where_it_matters(axes: Axes, y: Float[np.ndarray, "steps"], final: float) -> None:
    """The first steps may lie a million nats below the rest: cut them off, and say so."""
    top = max(y.max(), final) if np.isfinite(final) else y.max()
    low = top - max(4 * (top - np.quantile(y[len(y) // 4 :], 0.1)), 2.0)
    if y.min() < low:
        margin = 0.06 * (top - low)
        axes.set_ylim(low, top + 2 * margin)
        note = f"it starts at {y[0]:,.4g}" if y[0] < low else f"its lowest is {y.min():,.4g}"
        axes.annotate(
            f"↓ {note}",
            (0.98, 0.04),
            xycoords="axes fraction",
            ha="right",
            color=_SOFT,
            fontsize=8.5,
        )


def _marginal(
    axes: Axes, x: Float[np.ndarray, "n"], weights: Float[np.ndarray, "n"] | None
) -> None:
    low, high = _range(x, weights)
    bins = np.linspace(low, high, _BINS + 1).tolist()
    axes.hist(x, bins, density=True, histtype="stepfilled", color=Q, alpha=0.35, lw=0)
    if weights is not None:
        axes.hist(x, bins, weights=weights, density=True, histtype="step", color=CORRECTED, lw=1.5)
    axes.set_xlim(low, high)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.grid(visible=False)


def _scatter(
    axes: Axes,
    contents: Contents,
    i: int,
    j: int,
    clouds: list[tuple[str, Int[np.ndarray, "dots"]]],
) -> None:
    for colour, index in clouds:
        axes.plot(
            contents.values[index, i],
            contents.values[index, j],
            ".",
            ms=3,
            mew=0,
            alpha=0.4,
            color=colour,
        )
    axes.set_xlim(*_range(contents.values[:, i], contents.weights))
    axes.set_ylim(*_range(contents.values[:, j], contents.weights))
    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.yaxis.set_major_locator(MaxNLocator(4))


def _range(
    x: Float[np.ndarray, "n"], weights: Float[np.ndarray, "n"] | None
) -> tuple[float, float]:
    """Nearly all of both laws, so that one far draw does not squeeze the rest."""
    kept = np.isfinite(x)
    x, low_high = x[kept], (0.002, 0.998)
    low, high = np.quantile(x, low_high)
    if weights is not None:
        order = np.argsort(x)
        mass = np.cumsum(weights[kept][order])
        ends = np.interp(np.asarray(low_high) * mass[-1], mass, x[order])
        low, high = min(low, ends[0]), max(high, ends[1])
    pad = 0.03 * (high - low)
    return float(low - pad), float(high + pad)


def _with_spread(contents: Contents, most: int) -> list[int]:
    """The worst values whose draws are (nearly all) finite and not all the same, at most `most`."""
    found = []
    for j in contents.worst:
        x = contents.values[:, j]
        x = x[np.isfinite(x)]
        if len(x) > 0.99 * len(contents.values) and np.quantile(x, 0.998) > np.quantile(x, 0.002):
            found.append(int(j))
        if len(found) == most:
            break
    return found


def _clouds(contents: Contents) -> Iterator[tuple[str, Int[np.ndarray, "dots"]]]:
    """Colour and indices of the dots: of q, then corrected ones where weights can be used.

    Those of q come from the first half of the draws (the other half mirrors it), the corrected
    ones by cumulative weight.
    """
    count = len(contents.values)
    positions = (np.arange(min(_POINTS, count // 2)) + 0.5) / min(_POINTS, count // 2)
    yield Q, (positions * (count // 2)).astype(int)
    if contents.weights is not None:
        yield (
            CORRECTED,
            np.minimum(np.searchsorted(np.cumsum(contents.weights), positions), count - 1),
        )


def _running_mean(y: Float[np.ndarray, "steps"], width: int) -> Float[np.ndarray, "steps"]:
    """The mean of `width` neighbours, of fewer at the ends."""
    kernel = np.ones(width)
    return np.convolve(y, kernel, "same") / np.convolve(np.ones(len(y)), kernel, "same")


def _legend(figure: Figure, contents: Contents) -> None:
    from matplotlib.patches import Patch

    handles = [Patch(color=Q, alpha=0.45, label="q")]
    if contents.weights is not None:
        handles.append(Patch(facecolor="none", edgecolor=CORRECTED, lw=1.5, label="corrected"))
    figure.legend(handles=handles, loc="outside upper right", ncols=2, fontsize=9)


def _colours(contents: Contents) -> str:
    if contents.weights is None:
        return "Only q is shown: its importance weights are not good enough to correct it."
    return "Blue: draws of q. Orange: the same draws, corrected by their importance weights."


def _figure(height: float, width: float = _WIDTH) -> Figure:
    return Figure(figsize=(width, height), layout="constrained")


def shortened(name: str, most: int = 26) -> str:
    """On one line, with the middle of a long name left out."""
    name = " ".join(name.split())
    return name if len(name) <= most else f"{name[: most // 2]}…{name[-most // 2 + 1 :]}"


def svg_bytes(figure: Figure) -> bytes:
    """The figure as an SVG file, without the time, so that equal pictures are equal files."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()


def _svg(figure: Figure) -> str:
    return _uri("image/svg+xml", svg_bytes(figure))


def _png(figure: Figure) -> str:
    """For thousands of dots, which are smaller as pixels than as paths."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=144, metadata={"Software": None})
    return _uri("image/png", buffer.getvalue())


def _uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
