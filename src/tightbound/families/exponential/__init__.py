"""Exponential families in natural form, one file per kind of value, and the product of named
factors.
"""
