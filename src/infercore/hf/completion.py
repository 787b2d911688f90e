"""From a request that has ended to what its caller gets."""

import time

import torch

from infercore.hf.request import Completion, FinishReason
from infercore.hf.state import RequestState
from infercore.hf.stopping import Tokenizer
from infercore.hf.text import decode


def completion_of(state: RequestState, tokenizer: Tokenizer | None) -> Completion:
    """The completion of a finished request; an error of the caller's tokenizer ends this request, not the others."""
    request = state.request
    token_ids = state.output_ids.tolist()
    text = ""
    try:
        text = decode(tokenizer, token_ids, end=state.stop_string)
    except Exception as error:
        state.fail(error)
    reason: FinishReason = state.finish_reason or "cancelled"
    state.stats.total_time_s = time.perf_counter() - state.submitted_at
    return Completion(
        state.request_id,
        token_ids,
        text,
        reason,
        state.stats,
        state.stop_string,
        state.logprobs if request.logprobs is not None else None,
        torch.stack(state.logits) if state.logits else None,
        torch.stack(state.scores) if state.scores else None,
        state.notes,
        state.error,
    )
