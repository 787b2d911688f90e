"""A request's output piece by piece, for whoever drives the steps."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch

from infercore.hf.handle import RequestHandle
from infercore.hf.request import Completion
from infercore.hf.stopping import Tokenizer
from infercore.hf.text import TextStream


@dataclass(frozen=True, slots=True)
class StreamChunk:
    """A piece of a streamed output; `completion` comes with the last one only."""

    text: str
    token_ids: tuple[int, ...]
    completion: Completion | None = None


class StreamReader:
    """Reads what came since the last read."""

    def __init__(self, handle: RequestHandle, tokenizer: Tokenizer | None, stop: tuple[str, ...]) -> None:
        self._handle = handle
        self._text = TextStream(tokenizer, stop) if tokenizer is not None else None
        self._num_read = 0

    def read(self) -> StreamChunk | None:
        """The next piece; None if nothing new came. The last piece carries the completion.

        Raises: the error that ended the request, if one did.
        """
        completion = self._handle.completion
        if completion is not None and completion.error is not None:
            raise completion.error
        output = self._handle.output_ids
        new = tuple(output[self._num_read :].tolist())
        self._num_read += len(new)
        if completion is not None:
            return StreamChunk(self._text.finish(completion.text) if self._text else "", new, completion)
        if not new:
            return None
        return StreamChunk(self._text.push(output) if self._text else "", new)


def feed(streamer: Any, prompt_ids: Any, chunks: Iterable[StreamChunk]) -> Completion:
    """Give a transformers streamer (`TextStreamer`, `TextIteratorStreamer`) what `engine.stream` yields.

        streamer = TextIteratorStreamer(tokenizer, skip_prompt=True)
        Thread(target=feed, args=(streamer, ids, engine.stream(ids, max_new_tokens=100))).start()
        for text in streamer: ...

    For `generate` drops its streamer before it calls a custom function. The streamer ends also where an error does.
    """
    streamer.put(torch.as_tensor(prompt_ids).view(-1))
    completion = None
    try:
        for chunk in chunks:
            if chunk.token_ids:
                for token_id in chunk.token_ids:
                    streamer.put(torch.tensor([token_id]))
            completion = chunk.completion
    finally:
        streamer.end()
    assert completion is not None
    return completion
