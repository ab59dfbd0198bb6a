"""A remedy for a flaw of JAX 0.10.

NumPy arrays that a function closes over keep the precision of their first use.
"""

import functools
import weakref

import numpy as np


@functools.cache
def mend_numpy_constants() -> None:
    """Make JAX look at the precision flag each time that it meets a NumPy array.

    The first call acts.

    JAX remembers the canonical form of a NumPy array for as long as anything holds that form, such
    as a jaxpr in one of its caches, and forgets that the form depends on the flag. So an array that
    a user's jitted function closes over in float32 stays float32 inside our scope of float64 (and
    the other way round after a fit), while its type says float64. The program then fails with
    "requires compatible types for all operands" or RuntimeProgramInputMismatch. The remedy is the
    same memory, with the dtype in its key.
    """
    try:
        from jax._src.dtypes import canonicalize_dtype, register_canonicalize_value_handler
        from jax._src.literals import TypedNdArray
    except ImportError:
        # a JAX with other internals; tests/targets/test_constants.py says whether it needs a remedy
        return

    remembered: dict[tuple[int, np.dtype], tuple[weakref.ref, weakref.ref]] = {}

    def canonical(array: np.ndarray) -> TypedNdArray:
        dtype = np.dtype(canonicalize_dtype(array.dtype))
        key = (id(array), dtype)
        if key in remembered:
            source, form = (reference() for reference in remembered[key])
            if source is array and form is not None:  # not another array that has been given its id
                return form
        form = TypedNdArray(np.asarray(array, dtype))
        remembered[key] = (
            weakref.ref(array),
            weakref.ref(form, lambda _: remembered.pop(key, None)),
        )
        return form

    register_canonicalize_value_handler(np.ndarray, canonical)
