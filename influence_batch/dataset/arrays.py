"""Reading the .npz files that users bring."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence

import numpy as np

from influence_batch.storage import Place, as_os_error


class OneArrayError(ValueError):
    """The file is an .npy: one array without a name."""


def read_npz(path: Place, wanted: Sequence[str]) -> tuple[dict[str, np.ndarray], list[str]]:
    """Those of the wanted arrays that an .npz has, and the names of all that it has.

    Pickled arrays can run code when loaded; none is ever loaded here.

    Raises:
        FileNotFoundError: no such file.
        OneArrayError: an .npy.
        ValueError: not readable as an .npz of plain arrays; the message says why.
    """
    try:
        with as_os_error(path), path.open("rb") as stream:
            file = np.load(stream, allow_pickle=False)
            if not isinstance(file, np.lib.npyio.NpzFile):
                raise OneArrayError("it is one array")
            with file:
                arrays = {name: file[name] for name in wanted if name in file.files}
                names = list(file.files)
    except (FileNotFoundError, OneArrayError):
        raise
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        # numpy advises to load pickles unsafely.
        plain = "allow_pickle" not in str(error)
        raise ValueError(error if plain else "it is no .npz, or has pickled objects in it") from None
    for name, array in arrays.items():
        if not isinstance(array, np.ndarray):
            raise ValueError(f"{name} is no array")
    return arrays, names
