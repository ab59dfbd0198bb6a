"""A fit as an ArviZ DataTree."""


def to_datatree(fit, n=1000):
    raise NotImplementedError
