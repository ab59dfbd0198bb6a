"""Exponential families in natural form, a file for each kind of value, and products of them."""
