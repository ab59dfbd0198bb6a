"""`fit.report(path)`: a fit and its certificate as one HTML page that needs no other file."""

from pathlib import Path

from ..storage import AnyPath, write_whole
from ..summary import Reported
from .contents import gather
from .page import render


def write(fit: Reported, path: AnyPath, *, title: str | None = None) -> Path:
    """Write the report of `fit` to `path`; returns the path.

    The page holds the verdict in plain words, the findings, the summary table, the way of the
    objective, the marginals of q against the corrected draws, the pairs of the values that the
    weights move most, the tail of the importance weights, and how it was run. Its draws follow from
    the fit's key: the same fit gives the same page. Cost: some 4,000 evaluations of the log
    density.

    Arguments:
        fit: what `tb.fit` returned.
        path: of the page; the file appears whole or not at all.
        title: heading of the page; by default what the file is called.

    Raises:
        MissingExtraError: matplotlib is not installed.
        OSError: the file cannot be written; the message names the path and the way out.
    """
    from .plots import plots_of  # matplotlib takes half a second to import

    contents = gather(fit)
    heading = Path(path).stem.replace("_", " ").capitalize() if title is None else title
    page = render(contents, plots_of(contents), heading)
    return write_whole(path, page.encode(), "report")


__all__ = ["write"]
