"""Weights that the user brings, as an .npz file."""

from __future__ import annotations

import numpy as np

from influence_batch.dataset.arrays import OneArrayError, read_npz
from influence_batch.errors import InputError
from influence_batch.storage import Place, as_input_error, as_place

_KEY = "model.weights"


def check_exists(path: str) -> None:
    """Refuse a path without a file, before any work.

    Raises:
        InputError: no such file.
    """
    place = as_place(path, _KEY)
    with as_input_error(place, _KEY):
        if not place.is_file():
            raise InputError(f"{_KEY}: {path} does not exist; expected an .npz with `coef`")


def load_weights(path: str | Place, *, k: int, d: int, intercept: bool) -> np.ndarray:
    """Weights (k, d) or, with an intercept, (k, d + 1), from `coef` (d, k) or (d,) and `intercept` (k,).

    Raises:
        InputError: no such file, not an .npz, an array that is missing, not numeric, of the wrong
            shape or not finite.
    """
    expected = f"`coef` of shape ({d}, {k})" + (f" or ({d},)" if k == 1 else "")
    expected += f" and `intercept` of shape ({k},)" if intercept else ""
    try:
        arrays, names = read_npz(as_place(path, _KEY), ("coef", "intercept"))
    except FileNotFoundError:
        raise InputError(f"{_KEY}: {path} does not exist; expected an .npz with {expected}") from None
    except OneArrayError:
        raise InputError(f"{_KEY}: {path} is one array; expected an .npz with {expected}") from None
    except ValueError as error:
        raise InputError(
            f"{_KEY}: {path} cannot be read as an .npz of numbers ({error}); expected {expected}"
        ) from None
    if "coef" not in arrays or (intercept and "intercept" not in arrays):
        raise InputError(f"{_KEY}: {path} has the arrays {', '.join(names) or 'none'}; expected {expected}")
    if not intercept and "intercept" in arrays:
        raise InputError(
            f"{_KEY}: {path} has an `intercept` and model.intercept is false; expected {expected}"
        )
    for name, array in arrays.items():
        if not np.issubdtype(array.dtype, np.number) or np.iscomplexobj(array):
            raise InputError(f"{_KEY}: `{name}` of {path} has the type {array.dtype}; expected real numbers")
        if not np.all(np.isfinite(array)):
            bad = int(np.count_nonzero(~np.isfinite(array)))
            raise InputError(
                f"{_KEY}: `{name}` of {path} has {bad} NaN or infinite {'entry' if bad == 1 else 'entries'}; "
                "expected finite numbers"
            )
    coef = arrays["coef"].astype(np.float64)
    if coef.shape != (d, k) and not (k == 1 and coef.shape == (d,)):
        raise InputError(f"{_KEY}: `coef` of {path} has the shape {coef.shape}; expected {expected}")
    weights = coef.reshape(d, k).T
    if not intercept:
        return np.ascontiguousarray(weights)
    bias = arrays["intercept"].astype(np.float64)
    if bias.shape != (k,) and not (k == 1 and bias.shape == ()):
        raise InputError(f"{_KEY}: `intercept` of {path} has the shape {bias.shape}; expected {expected}")
    return np.concatenate([weights, bias.reshape(k, 1)], axis=1)
