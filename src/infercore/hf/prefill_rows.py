"""How many rows of prefill a step takes on a GPU: few by a graph, or as many as launching their kernels takes anyway.

A rough model of four constants, those of an H100 and its slow host: `bench/prefill.py` measures what it decides.
"""

from infercore.hf.graphs import ROWS

_LAUNCHES_S = 1e-3  # a layer's kernels, launched one by one
_PIECE_S = 3.5e-3  # a graph of 256 rows, if its arithmetic does not take longer
_PIECE_FLOPS, _FLOPS = 350e12, 600e12  # a second, in products of 256 rows and of thousands
_LEAST, _MOST = 2048, 16_384


def default_max_rows(num_parameters: int, num_layers: int) -> int:
    """Rows of a step that launches kernel by kernel: those whose arithmetic takes twice as long as the launches."""
    rows = int(2 * num_layers * _LAUNCHES_S * _FLOPS / (2 * num_parameters))
    return min(max(rows // ROWS[-1] * ROWS[-1], _LEAST), _MOST)


def prefill_by_graphs(num_parameters: int, num_layers: int) -> int:
    """Rows of prefill up to which a few steps by graphs are done before one that launches kernel by kernel."""
    piece_s = max(_PIECE_S, 2 * num_parameters * ROWS[-1] / _PIECE_FLOPS)
    return ROWS[-1] * int(num_layers * _LAUNCHES_S / piece_s)
