"""Estimators of contaminated data: closed forms and quadratures that only such targets have."""
