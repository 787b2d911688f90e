"""What a forward costs by its rows, measured once for a model on a device and kept in the user's cache."""

import platform
from pathlib import Path

import numpy as np
import torch

from infercore import __version__
from infercore.hf.graphs import StepGraphs
from infercore.hf.packed_model import PackedModel
from infercore.hf.plan import Rows, build_plan
from infercore.radix import KVPool, PrefixCache
from infercore.speculative import CostCurve, TokenTree

_PAGE_SIZE = 16
_ROWS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 64)


def cost_curve(
    model: PackedModel,
    *,
    graphs: StepGraphs | None = None,
    context_len: int = 256,
    refresh: bool = False,
    folder: Path | None = None,
) -> CostCurve:
    """The curve of `model` for one sequence behind `context_len` tokens: from the cache, else measured and saved there.

    Args:
        graphs: those that steps run by, if any.
        refresh: measure even if the cache has one.
        folder: of the cache; None takes the user's.
    Cost: 66 forwards of 1 to 64 rows where nothing is cached.
    """
    key = _key(model, context_len) + (", by graphs" if graphs is not None and graphs.reason is None else "")
    if not refresh and (known := CostCurve.load(key, folder=folder)) is not None:
        return known
    curve = CostCurve.measure(_Forwards(model, graphs, context_len), rows=_ROWS)
    curve.save(key, folder=folder)
    return curve


class _Forwards:
    """Runs forwards of n rows, the last n - 1 of them a draft, in a pool of its own."""

    def __init__(self, model: PackedModel, graphs: StepGraphs | None, context_len: int) -> None:
        self._model = model
        num_pages = -(-(context_len + _ROWS[-1]) // _PAGE_SIZE) + 2
        self._pool = KVPool(num_pages, _PAGE_SIZE)
        most = num_pages * _PAGE_SIZE
        self._graphs = None if graphs is None else graphs.over(self._pool, max_seqs=1, max_tokens=most)
        self._sequence = PrefixCache(num_pages, _PAGE_SIZE, store=self._pool).open()
        token_ids = np.random.default_rng(0).integers(0, model.vocab_size, context_len).astype(np.int32)
        self._run(token_ids, TokenTree.empty())
        self._sequence.commit(token_ids)

    def __call__(self, num_rows: int) -> None:
        token_ids = np.arange(num_rows, dtype=np.int32) % self._model.vocab_size
        self._run(token_ids[:1], TokenTree.chain(token_ids[1:]))
        self._sequence.commit([])

    def _run(self, token_ids: np.ndarray, tree: TokenTree) -> None:
        num_rows = len(token_ids) + tree.num_nodes
        slots = self._sequence.append(num_rows)
        rows = Rows(self._sequence, token_ids, tree, slots, len(token_ids) - 1)
        with torch.no_grad(), self._model.faster(num_rows):
            logits = self._graphs.forward([rows]) if self._graphs is not None else None
            if logits is not None and self._graphs is not None:
                self._graphs.choices.tokens[:num_rows].cpu()  # waits for the forward and the choice within it
                return
            logits = self._model.forward(build_plan([rows], self._pool, self._model.device))
            logits.argmax(-1).cpu()


def _key(model: PackedModel, context_len: int) -> str:
    size = sum(p.numel() for p in model.model.parameters())
    device = torch.cuda.get_device_name(model.device) if model.device.type == "cuda" else _cpu_name()
    return ", ".join(
        (
            f"infercore {__version__}",
            f"torch {torch.__version__}",
            f"{type(model.model).__name__} of {size} parameters",
            f"{model.dtype}",
            device,
            f"{torch.get_num_threads()} threads",
            f"context {context_len}",
        )
    )


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":")[1].strip() for line in lines if "model name" in line), platform.machine())
