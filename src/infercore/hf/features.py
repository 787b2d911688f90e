"""`Features`: hidden states of an unmodified model, taken from the forward that runs anyway.

Hooks on the model's layers note what passes. Steps of few rows are copied into memory that stays where it is, so that a
captured CUDA graph, in which no hook runs again, writes there at each replay; of larger steps, which no graph serves,
the tensors themselves are kept.
"""

import weakref
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from infercore.errors import UnsupportedModel
from infercore.radix import KVPool, Sequence
from infercore.speculative import Drafter, FeatureObserver

_FEW_ROWS = 256  # what graphs serve
LAST_HIDDEN = -1


class Features:
    """What the last packed forward of `model` put into some of its layers.

    Args:
        layers: as `FeatureObserver.feature_layers`.
    Raises: UnsupportedModel if the model has no such layer.
    """

    def __init__(self, model: Any, layers: tuple[int, ...]) -> None:
        decoder = decoder_layers(model)
        if not all(LAST_HIDDEN <= index <= len(decoder) for index in layers):
            raise UnsupportedModel(
                f"{type(model).__name__} has {len(decoder)} decoder layers, but a drafter wants the inputs of "
                f"layers {layers}; expected -1 (the last hidden state) to {len(decoder)}: is it for another target?"
            )
        parameter = next(model.parameters())
        width = int(model.get_input_embeddings().weight.shape[1])
        self._buffer = torch.zeros(_FEW_ROWS, len(layers) * width, dtype=parameter.dtype, device=parameter.device)
        self._parts: list[Tensor] = [self._buffer[:0, :width]] * len(layers)
        self._width = width
        handles = []
        for column, index in enumerate(layers):
            if index == LAST_HIDDEN:
                handles.append(model.base_model.register_forward_hook(_after(weakref.WeakMethod(self._keep), column)))
            elif index == len(decoder):
                handles.append(decoder[-1].register_forward_hook(_after(weakref.WeakMethod(self._keep), column)))
            else:
                before = _before(weakref.WeakMethod(self._keep), column)
                handles.append(decoder[index].register_forward_pre_hook(before, with_kwargs=True))
        weakref.finalize(self, _remove, handles)

    def rows(self, num_rows: int) -> Tensor:
        """`[num_rows, columns]` of the last forward, which had that many rows; overwritten by the next one."""
        if num_rows <= _FEW_ROWS:
            return self._buffer[:num_rows]
        return torch.cat([part[:num_rows] for part in self._parts], -1)

    def _keep(self, column: int, hidden: Tensor) -> None:
        rows = hidden.detach().flatten(0, -2)
        if len(rows) <= _FEW_ROWS:
            start = column * self._width
            self._buffer[: len(rows), start : start + self._width].copy_(rows)
        self._parts[column] = rows


def decoder_layers(model: Any) -> list[nn.Module]:
    """The model's layers in order; none where they do not stand in one list."""
    number = model.config.get_text_config().num_hidden_layers
    lists = (m for m in model.base_model.modules() if isinstance(m, nn.ModuleList) and len(m) == number)
    return list(next(lists, ()))


def feature_observers(drafter: Drafter | None) -> list[FeatureObserver]:
    """The drafters that want features among `drafter` and, where it combines several, those it holds."""
    if drafter is None:
        return []
    inner = getattr(drafter, "drafters", None)
    if inner is not None:
        return [observer for each in inner for observer in feature_observers(each)]
    # Asked in every step: `isinstance` with a protocol takes ten times as long.
    return [drafter] if hasattr(drafter, "feature_layers") else []  # type: ignore[list-item]


@runtime_checkable
class PageObserver(FeatureObserver, Protocol):
    """A `FeatureObserver` that keeps what it makes of a text with the text's pages, for whoever finds those again.

    Laws: `begin` comes before the first `see` of a request, again where it starts anew, and behind a `fork`; `publish`
    while the request still holds its pages.
    """

    def begin(self, request_id: int, sequence: Sequence, pool: KVPool) -> bool:
        """A request goes on behind the tokens of `sequence`, which were computed by others or an earlier run of it.

        Returns: whether the features of the last one of them are wanted; its row may then be computed once more.
        """
        ...

    def publish(self, request_id: int) -> None:
        """The request is about to leave its pages to the prefix cache."""
        ...


@runtime_checkable
class CapturingObserver(FeatureObserver, Protocol):
    """A `FeatureObserver` that drafts by CUDA graphs."""

    def warmup(self, *, batch: int, num_tokens: int) -> None:
        """Capture what drafts for up to `batch` requests need whose texts have up to `num_tokens`."""
        ...


@runtime_checkable
class PassingObserver(FeatureObserver, Protocol):
    """A `FeatureObserver` that copies features while the host waits for their forward."""

    def passed(self, features: Tensor) -> None:
        """Features of all rows of a forward that was launched just now; the next `see`, if one comes, is of it.

        They stand there once the device has run what was queued before, and until the next forward is launched.
        """
        ...


def page_observers(observers: list[FeatureObserver]) -> list[PageObserver]:
    """Those that keep something with the pages."""
    return [observer for observer in observers if isinstance(observer, PageObserver)]


def _before(keep: Any, column: int) -> Any:
    def hook(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if (alive := keep()) is not None:
            alive(column, args[0] if args else kwargs["hidden_states"])

    return hook


def _after(keep: Any, column: int) -> Any:
    def hook(module: nn.Module, args: Any, output: Any) -> None:
        if (alive := keep()) is not None:
            alive(column, output if isinstance(output, Tensor) else output[0])

    return hook


def _remove(handles: list[Any]) -> None:
    for handle in handles:
        handle.remove()
