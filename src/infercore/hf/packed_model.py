"""`PackedModel`: a transformers model whose forward takes a plan; what engine and drafters run."""

from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from infercore.errors import InfercoreError
from infercore.hf import attention, self_check, weights
from infercore.hf.features import Features, feature_observers
from infercore.hf.few_rows import FewRows
from infercore.hf.plan import Plan
from infercore.speculative import Drafter


class PackedModel:
    """A decoder-only causal LM, switched to the attention named "infercore" and checked; the rest of it is untouched.

    Raises: UnsupportedModel, naming the layer and what still works, if the packed forward is not right for this model;
        the model is then as it was.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        self_check.refuse_by_config(model)
        attention.register()
        parameter = next(model.parameters())
        self.device: torch.device = parameter.device
        self.dtype: torch.dtype = parameter.dtype
        self.vocab_size = _num_logits(model)
        previous = model.config._attn_implementation
        self_check.use_packed_attention(model)
        self._dummy_mask = torch.zeros(1, 1, 1, 1, device=self.device, dtype=self.dtype)
        self._slices_logits = bool(model._supports_logits_to_keep())
        self._few_rows = FewRows(model)
        try:
            self.bytes_per_token = self_check.self_check(
                model, self._checked, vocab_size=self.vocab_size, device=self.device
            )
        except InfercoreError:
            model.set_attn_implementation(previous)
            raise
        self._weights = weights.WeightWatch(model)
        self._features: dict[tuple[int, ...], Features] = {}

    def forward(self, plan: Plan) -> Tensor:
        """Logits `[len(plan.logits_rows), vocab]`; K/V of all rows go to the plan's pool."""
        slices = self._slices_logits and plan.logits_rows is not None
        kwargs: dict[str, Any] = {"logits_to_keep": plan.logits_rows} if slices else {}
        logits: Tensor = self.model(
            input_ids=plan.token_ids[None],
            position_ids=plan.position_ids[None],
            attention_mask=self._dummy_mask,
            use_cache=False,
            infercore=plan,
            **kwargs,
        ).logits[0]
        return logits if slices or plan.logits_rows is None else logits[plan.logits_rows]

    def faster(self, num_rows: int) -> AbstractContextManager[None]:
        """Wrap a forward of `num_rows` rows, and what is done with its logits, in this: see `FewRows.during`."""
        return self._few_rows.during(num_rows)

    def watch(self, drafter: Drafter | None) -> bool:
        """From now on note the features that `drafter` works on; True if they were not noted before.

        Graphs captured before do not note them. Raises: UnsupportedModel if the model has no such layers.
        """
        new = {o.feature_layers for o in feature_observers(drafter)} - self._features.keys()
        self._features |= {layers: Features(self.model, layers) for layers in new}
        return bool(new)

    def features(self, layers: tuple[int, ...], num_rows: int) -> Tensor:
        """`[num_rows, columns]` that the last forward, of that many rows, put into `layers`; see `Features.rows`."""
        return self._features[layers].rows(num_rows)

    @property
    def adapters(self) -> weights.Adapters:
        """PEFT adapters that a forward goes through now."""
        return weights.active_adapters(self.model)

    def has_changed(self) -> bool:
        """Whether weights changed since the last call, so that K/V computed before is void."""
        return self._weights.has_changed()

    @property
    def max_positions(self) -> int | None:
        """Longest text that the model's positions allow; None if its config does not say."""
        return getattr(self.model.config.get_text_config(), "max_position_embeddings", None)

    @property
    def num_parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.model.parameters())

    @property
    def num_layers(self) -> int:
        return int(self.model.config.get_text_config().num_hidden_layers)

    def describe(self) -> str:
        """One line for reports."""
        fast = f", {self._few_rows.num_layers} linear layers by our loops" if self._few_rows.num_layers else ""
        return f"{type(self.model).__name__}, {self.device}, {self.dtype}{fast}"

    def _checked(self, plan: Plan) -> Tensor:
        with self.faster(len(plan.token_ids)):
            return self.forward(plan)


def _num_logits(model: Any) -> int:
    head = model.get_output_embeddings()
    return int(head.weight.shape[0]) if head is not None else int(model.config.get_text_config().vocab_size)
