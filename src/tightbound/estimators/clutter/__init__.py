"""Estimators of contaminated data.

Closed forms and one-dimensional quadratures that only such targets have.
"""
