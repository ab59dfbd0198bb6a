"""What starts, solvers and the certificate share.

The natural-gradient rule, L-BFGS, Newton, refits, statistics.
"""
