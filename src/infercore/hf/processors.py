"""Hugging Face's logits processors: which ones the engine does itself, and which may keep state from call to call."""

from typing import Any

from transformers import (
    GenerationConfig,
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    StoppingCriteriaList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)
from transformers.generation.stopping_criteria import EosTokenCriteria, MaxLengthCriteria, StopStringCriteria

_OWN_WARPERS = (TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper, MinPLogitsWarper)
_OWN_CRITERIA = (MaxLengthCriteria, EosTokenCriteria, StopStringCriteria)
_STATEFUL = {
    "UnbatchedClassifierFreeGuidanceLogitsProcessor",
    "WatermarkLogitsProcessor",
    "SynthIDTextWatermarkLogitsProcessor",
}


def foreign_processors(processors: LogitsProcessorList | None, config: GenerationConfig) -> tuple[Any, ...]:
    """Those that the engine does not take from the generation config: all but the warpers and its own penalty."""
    return tuple(p for p in processors or () if type(p) not in _OWN_WARPERS and not _is_own_penalty(p, config))


def foreign_criteria(criteria: StoppingCriteriaList | None) -> tuple[Any, ...]:
    """Those that are not length, end tokens or stop strings, which the engine takes from the generation config."""
    return tuple(c for c in criteria or () if type(c) not in _OWN_CRITERIA)


def keeps_state(processor: Any) -> bool:
    """Whether a processor's answer may depend on earlier calls, so that it must see each position once, in order.

    Those of transformers are known. Anyone else's is taken to keep state unless it says `keeps_state = False`.
    """
    declared = getattr(processor, "keeps_state", None)
    if declared is not None:
        return bool(declared)
    if type(processor).__module__.startswith("transformers."):
        return type(processor).__name__ in _STATEFUL
    return True


def _is_own_penalty(processor: Any, config: GenerationConfig) -> bool:
    """The repetition penalty that `generate` made from the config; one that a caller made to skip the prompt is not."""
    return (
        type(processor) is RepetitionPenaltyLogitsProcessor
        and processor.penalty == config.repetition_penalty
        and not isinstance(processor.prompt_ignore_length, int)
    )
