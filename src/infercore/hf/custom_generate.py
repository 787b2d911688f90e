"""`model.generate(..., custom_generate=engine)`: Hugging Face's arguments to requests, completions to its outputs."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList
from transformers.generation.utils import GenerateDecoderOnlyOutput

from infercore.errors import RequestError
from infercore.hf.processors import foreign_criteria, foreign_processors
from infercore.hf.request import Completion, Request, as_stop_strings
from infercore.sampling import SamplingParams

# what `generate` hands over besides, and the packed forward has no use for
_IGNORED = {
    "attention_mask", "cache", "cache_position", "logits_to_keep", "past_key_values", "position_ids", "synced_gpus",
    "token_type_ids", "use_cache",
}  # fmt: skip


def to_requests(
    input_ids: Int64[Tensor, "batch length"],
    logits_processor: LogitsProcessorList | None,
    stopping_criteria: StoppingCriteriaList | None,
    config: GenerationConfig,
    *,
    grammar: Any,
    drafter: Any,
    seed: int | None,
    max_draft_nodes: int,
    stop: str | Sequence[str] | None,
    model_kwargs: dict[str, Any],
) -> list[Request]:
    """One request a row of `input_ids`, padding taken off.

    Raises: RequestError for what the engine does not do (beams, embeddings as input, guidance by a second forward).
    """
    _refuse_unsupported(config, model_kwargs)
    mask = model_kwargs.get("attention_mask")  # None where `generate` found it to be all ones
    keeps_dict = bool(config.return_dict_in_generate)
    length = input_ids.shape[1]
    requests = []
    for row in range(input_ids.shape[0]):
        ids = input_ids[row]
        kept = ids if mask is None else ids[mask[row].bool()]
        num_padding = length - len(kept)
        requests.append(
            Request(
                kept.to(torch.int32).cpu().numpy(),
                max_new_tokens=config.max_length - length,
                sampling=_sampling(config),
                seed=None if seed is None else seed + row,
                grammar=grammar,
                drafter=drafter,
                max_draft_nodes=max_draft_nodes,
                eos_token_ids=_eos_token_ids(config),
                stop=as_stop_strings(config.stop_strings if stop is None else stop),
                return_logits=keeps_dict and bool(config.output_logits),
                return_scores=keeps_dict and bool(config.output_scores),
                logits_processors=foreign_processors(logits_processor, config),
                stopping_criteria=foreign_criteria(stopping_criteria),
                padding_ids=tuple(ids[:num_padding].tolist()),
            )
        )
    return requests


def groups_of_copies(requests: list[Request]) -> list[int]:
    """Sizes of runs of equal prompts, as `num_return_sequences` lays them out."""
    sizes: list[int] = []
    for i, request in enumerate(requests):
        if i and request.prompt_ids.tobytes() == requests[i - 1].prompt_ids.tobytes():
            sizes[-1] += 1
        else:
            sizes.append(1)
    return sizes


def to_output(
    input_ids: Int64[Tensor, "batch length"], completions: list[Completion], config: GenerationConfig
) -> Tensor | GenerateDecoderOnlyOutput:
    """Ids, prompts included, padded on the right; or transformers' record of them with logits and scores.

    Rows that end early have zeros in the logits and scores behind their end, where `generate` has those of padding.
    """
    longest = max(len(c.token_ids) for c in completions)
    pad = config._pad_token_tensor
    pad_id = int(pad) if pad is not None else 0
    new = torch.full((len(completions), longest), pad_id, dtype=input_ids.dtype)
    for row, completion in enumerate(completions):
        new[row, : len(completion.token_ids)] = torch.tensor(completion.token_ids, dtype=input_ids.dtype)
    sequences = torch.cat([input_ids, new.to(input_ids.device)], dim=1)
    if not config.return_dict_in_generate:
        return sequences
    return GenerateDecoderOnlyOutput(
        sequences=sequences,
        scores=_stacked(completions, longest, lambda c: c.scores) if config.output_scores else None,
        logits=_stacked(completions, longest, lambda c: c.logits) if config.output_logits else None,
    )


def _refuse_unsupported(config: GenerationConfig, model_kwargs: dict[str, Any]) -> None:
    if (config.num_beams or 1) > 1:
        raise RequestError(
            f"num_beams is {config.num_beams}; the engine samples or decodes greedily. Use plain model.generate for "
            "beams (infercore.hf.GrammarProcessor works there), or num_beams=1"
        )
    for name in ("output_attentions", "output_hidden_states"):
        if getattr(config, name, False):
            raise RequestError(f"{name} is not available from the packed forward; use plain model.generate for it")
    unknown = sorted(k for k, v in model_kwargs.items() if v is not None and k not in _IGNORED)
    if unknown:
        raise RequestError(f"the engine takes text models' token ids only, but got {', '.join(unknown)}; remove it")


def _sampling(config: GenerationConfig) -> SamplingParams:
    """Warpers and the repetition penalty are taken from here; the penalty does not see padding."""
    penalty = 1.0 if config.repetition_penalty is None else float(config.repetition_penalty)
    if not config.do_sample:
        return SamplingParams(repetition_penalty=penalty)
    return SamplingParams(
        repetition_penalty=penalty,
        temperature=1.0 if config.temperature is None else float(config.temperature),
        top_k=config.top_k or 0,
        top_p=1.0 if config.top_p is None else float(config.top_p),
        min_p=0.0 if config.min_p is None else float(config.min_p),
    )


def _eos_token_ids(config: GenerationConfig) -> tuple[int, ...]:
    eos = config._eos_token_tensor
    return () if eos is None else tuple(eos.reshape(-1).tolist())


def _stacked(
    completions: list[Completion], longest: int, rows_of: Callable[[Completion], Tensor | None]
) -> tuple[Tensor, ...]:
    rows = [rows_of(c) for c in completions]
    vocab = max(r.shape[1] for r in rows if r is not None)
    padded = torch.zeros(len(rows), longest, vocab)
    for i, r in enumerate(rows):
        if r is not None:
            padded[i, : len(r)] = r
    return tuple(padded.unbind(1))
