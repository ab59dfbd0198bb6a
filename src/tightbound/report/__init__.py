"""Fit + Certificate -> one self-contained HTML page."""


def write(fit, path):
    raise NotImplementedError
