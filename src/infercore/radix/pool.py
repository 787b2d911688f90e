"""The tensors that hold K and V of every page, one pair per layer."""

import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Int32, Int64

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from infercore.radix.side import SideRows

    SlotMover = Callable[[np.ndarray, np.ndarray], bool]


class KVPool:
    """Per layer `k [num_pages, page_size, num_kv_heads, k_head_dim]` and `v` likewise; no tokens, no owners.

    A layer's tensors are made, zero-filled, at its first use, since head counts, head sizes, dtypes and devices differ
    between layers. Implements `PageStore`. torch is imported when tensors are first needed.
    """

    def __init__(
        self,
        num_pages: int,
        page_size: int = 16,
        *,
        dtype: "torch.dtype | None" = None,
        device: "torch.device | str | None" = None,
        zero_on_alloc: bool | None = None,
        make_mover: "Callable[[list[Tensor]], SlotMover | None] | None" = None,
    ) -> None:
        """
        Args:
            dtype, device: of every layer; None takes those of the layer's first write.
            zero_on_alloc: zero a page when it is handed out. None: only once pages have been poisoned, because what
                stands in a page otherwise is zeros or old rows, finite both.
            make_mover: makes, of the tensors of all layers, what moves slots in all of them at once
                (`infercore.kernels.slot_mover`); it gives False for moves that it leaves to the pool.
        """
        if num_pages < 2 or page_size < 1:
            raise ValueError(f"num_pages {num_pages}, page_size {page_size}; expected at least 2 and 1")
        self.num_pages = num_pages
        self.page_size = page_size
        self.dtype = dtype
        self.device = device
        self.zero_on_alloc = zero_on_alloc
        self.layers: dict[int, tuple[Tensor, Tensor]] = {}
        self._poisoned = False
        self._make_mover = make_mover
        self._mover: tuple[int, SlotMover | None] | None = None
        self._gathered: list[tuple[np.ndarray, np.ndarray]] | None = None
        self._sides: list[weakref.ref[SideRows]] = []

    def attach(self, side: "SideRows") -> None:
        """Have rows that somebody keeps beside this pool's follow its pages, as long as somebody keeps `side`."""
        self._sides.append(weakref.ref(side, self._sides.remove))

    def layer(
        self, layer_idx: int, k_like: "Tensor | None" = None, v_like: "Tensor | None" = None
    ) -> "tuple[Tensor, Tensor]":
        """K and V of one layer, made on first use with the head counts, sizes, dtype and device of `k_like`, `v_like`.

        Args: k_like, v_like: `[rows, num_kv_heads, head_dim]`, read for their shape only.
        Raises: KeyError if the layer does not exist yet and no examples were given; ValueError if they do not fit.
        """
        pair = self.layers.get(layer_idx)
        if pair is None:
            if k_like is None or v_like is None:
                raise KeyError(f"layer {layer_idx} has no tensors yet; pass k_like and v_like to make them")
            import torch

            k, v = (
                torch.zeros(
                    (self.num_pages, self.page_size, *like.shape[1:]),
                    dtype=self.dtype or like.dtype,
                    device=self.device or like.device,
                )
                for like in (k_like, v_like)
            )
            pair = self.layers[layer_idx] = (k, v)
        elif k_like is not None and (
            k_like.shape[1:] != pair[0].shape[2:] or (v_like is not None and v_like.shape[1:] != pair[1].shape[2:])
        ):
            raise ValueError(
                f"layer {layer_idx} holds heads {tuple(pair[0].shape[2:])} and {tuple(pair[1].shape[2:])}, got rows of "
                f"{tuple(k_like.shape[1:])}; one pool serves one model"
            )
        return pair

    @property
    def size_bytes(self) -> int:
        return sum(tensor.nbytes for pair in self.layers.values() for tensor in pair)

    def move_slots(self, src: Int64[np.ndarray, "n"], dst: Int64[np.ndarray, "n"]) -> None:
        """Copy rows `src` to rows `dst` in every layer, as if all were read before any is written."""
        if len(src) == 0:
            return
        if self._gathered is not None:
            self._gathered.append((src, dst))
            return
        for side in self._sides_alive():
            side.move(src, dst)
        if self._moved_together(src, dst):
            return
        for tensor, at in self._each_tensor(np.stack([src, dst])):
            rows = tensor.view(-1, *tensor.shape[2:])
            rows[at[1]] = rows[at[0]]  # indexing on the right makes a copy first, so overlaps are safe

    def gather_moves(self) -> None:
        """Put off moves until `move_gathered`: those of several sequences then take one launch.

        Until then none of them may touch a slot of another, nor anyone read or write these slots.
        """
        self._gathered = []

    def move_gathered(self) -> None:
        """Make the moves that were asked for since `gather_moves`."""
        gathered, self._gathered = self._gathered, None
        if gathered:
            src, dst = zip(*gathered, strict=True)
            self.move_slots(np.concatenate(src), np.concatenate(dst))

    def catch_up(self) -> None:
        """Make the moves that were put off so far; later ones are put off as before."""
        if self._gathered:
            self.move_gathered()
            self.gather_moves()

    def zero_pages(self, page_ids: Int32[np.ndarray, "n"]) -> None:
        """Zero pages that are handed out, if this pool does that (see `zero_on_alloc`)."""
        for side in self._sides_alive():
            side.forget(page_ids)
        if self.zero_on_alloc if self.zero_on_alloc is not None else self._poisoned:
            for tensor, at in self._each_tensor(page_ids.astype(np.int64)):
                tensor[at] = 0

    def poison_pages(self, page_ids: Int32[np.ndarray, "n"]) -> None:
        """Fill freed pages with NaN, so that whoever still reads them is found out. For tests."""
        self.catch_up()  # some of these pages are sources
        self._poisoned = True
        for side in self._sides_alive():
            side.poison(page_ids)
        for tensor, at in self._each_tensor(page_ids.astype(np.int64)):
            tensor[at] = float("nan")

    def export_pages(self, page_ids: Int32[np.ndarray, "n"]) -> "dict[str, Tensor]":
        """Copies of these pages on the CPU: `layer.<i>.k` and `layer.<i>.v`, shaped as in the pool with n pages."""
        import torch

        at = torch.from_numpy(page_ids.astype(np.int64))
        return {
            f"layer.{layer_idx}.{name}": tensor[at.to(tensor.device)].cpu()
            for layer_idx, pair in self.layers.items()
            for name, tensor in zip("kv", pair, strict=True)
        }

    def check_import(self, tensors: "dict[str, Tensor]") -> None:
        """Raises: ValueError if these tensors are not pages of a pool like this one. Layers not made yet fit any."""
        for name, pages in tensors.items():
            kind, layer_idx, half = [*name.split("."), "", ""][:3]
            if kind != "layer" or not layer_idx.isdigit() or half not in ("k", "v") or pages.ndim != 4:
                raise ValueError(f"tensor {name!r} of shape {tuple(pages.shape)} is no K or V of a layer")
            if f"layer.{layer_idx}.{'v' if half == 'k' else 'k'}" not in tensors:
                raise ValueError(f"layer {layer_idx} has only one of K and V")
            pair = self.layers.get(int(layer_idx))
            mine = pair["kv".index(half)] if pair else None
            if pages.shape[1] != self.page_size or (
                mine is not None and (mine.shape[1:] != pages.shape[1:] or mine.dtype != pages.dtype)
            ):
                raise ValueError(
                    f"{name} has pages of {tuple(pages.shape[1:])} {pages.dtype}, this pool of "
                    f"{tuple(mine.shape[1:]) if mine is not None else (self.page_size, '...')} "
                    f"{mine.dtype if mine is not None else ''}"
                )
        if missing := {f"layer.{i}.{half}" for i in self.layers for half in "kv"} - tensors.keys():
            raise ValueError(f"it lacks {sorted(missing)[0]}")

    def import_pages(self, page_ids: Int32[np.ndarray, "n"], tensors: "dict[str, Tensor]") -> None:
        """Write what `export_pages` gave into `page_ids`; layers that do not exist are made."""
        import torch

        at = torch.from_numpy(page_ids.astype(np.int64))
        for name in sorted(tensors):
            layer_idx, half = int(name.split(".")[1]), name.split(".")[2]
            k_like, v_like = (tensors[f"layer.{layer_idx}.{h}"][:, 0] for h in "kv")
            tensor = self.layer(layer_idx, k_like, v_like)["kv".index(half)]
            tensor[at.to(tensor.device)] = tensors[name].to(tensor.device)

    def _sides_alive(self) -> "list[SideRows]":
        return [side for ref in self._sides if (side := ref()) is not None] if self._sides else []

    def _moved_together(self, src: Int64[np.ndarray, "n"], dst: Int64[np.ndarray, "n"]) -> bool:
        """Let `make_mover`'s mover do it, if it can; it is made anew when a layer came."""
        if self._make_mover is None:
            return False
        if self._mover is None or self._mover[0] != len(self.layers):
            mover = self._make_mover([tensor for pair in self.layers.values() for tensor in pair])
            self._mover = len(self.layers), mover
        mover = self._mover[1]
        return mover is not None and mover(src, dst)

    def _each_tensor(self, index: "np.ndarray[tuple[int, ...], np.dtype[np.int64]]") -> "list[tuple[Tensor, Tensor]]":
        """Every K and V with `index` on its device, which is copied there once per device."""
        import torch

        host = torch.from_numpy(np.ascontiguousarray(index))
        on_device: dict[torch.device, Tensor] = {}
        return [
            (tensor, on_device.setdefault(tensor.device, host.to(tensor.device)))
            for pair in self.layers.values()
            for tensor in pair
        ]
