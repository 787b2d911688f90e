"""Token ids as the compiled loops take them: one type of array, so that there is one version of each loop."""

from array import array

import numpy as np
import numpy.typing as npt

from infercore.typing import TokenIds, as_token_ids

_INT32 = np.dtype(np.int32)


def as_key(token_ids: TokenIds) -> npt.NDArray[np.int32]:
    """As `as_token_ids`, and writable, since read-only arrays would be a second type to the compiled functions."""
    if type(token_ids) is np.ndarray and token_ids.dtype is _INT32 and token_ids.ndim == 1 and token_ids.flags.carray:
        return token_ids  # type: ignore[return-value]  # dtype was just checked
    if type(token_ids) is list:
        try:
            tokens = np.frombuffer(array("i", token_ids), _INT32)  # a third faster than numpy's own way
        except (TypeError, OverflowError):
            tokens = as_token_ids(token_ids)  # which says what is wrong with it
        else:
            if len(tokens) and tokens.min() < 0:
                return as_token_ids(token_ids)
    else:
        tokens = as_token_ids(token_ids)
    return tokens if tokens.flags.carray else tokens.copy()
