"""`AsyncEngine`: the engine in an asyncio program. Steps run in a worker thread, one at a time."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from infercore.hf.engine import Engine
from infercore.hf.factory import Prompt
from infercore.hf.handle import RequestHandle
from infercore.hf.request import Completion, Event
from infercore.hf.stream import StreamChunk, StreamReader


class AsyncEngine:
    """Many coroutines share one engine: whoever waits lets all requests advance together, in packed batches.

        engine = AsyncEngine(Engine(model, tokenizer))
        one, two = await asyncio.gather(engine.generate("Hello"), engine.generate("Bonjour", temperature=0.7))

    Cancelling a task cancels its request and gives its pages back.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._step_done: asyncio.Future[list[Event]] | None = None

    async def generate(self, prompt: Prompt, **options: Any) -> Completion:
        """Continue one prompt; arguments and errors as in `Engine.generate`."""
        (handle,) = self.engine.submit(self.engine.request(prompt, **options))
        try:
            while handle.completion is None:
                await self._step()
        finally:
            handle.cancel()
        return _result(handle)

    async def stream(self, prompt: Prompt, **options: Any) -> AsyncIterator[StreamChunk]:
        """Continue one prompt piece by piece; arguments and errors as in `Engine.stream`."""
        request = self.engine.request(prompt, **options)
        (handle,) = self.engine.submit(request)
        reader = StreamReader(handle, self.engine.tokenizer, request.stop)
        try:
            while not handle.is_done:
                await self._step()
                if (chunk := reader.read()) is not None:
                    yield chunk
        finally:
            handle.cancel()

    async def _step(self) -> None:
        """Start a step, or join the one that runs."""
        if self._step_done is None:
            self._step_done = asyncio.ensure_future(asyncio.to_thread(self.engine.step))
            self._step_done.add_done_callback(self._clear)
        await asyncio.shield(self._step_done)

    def _clear(self, _: object) -> None:
        self._step_done = None


def _result(handle: RequestHandle) -> Completion:
    assert handle.completion is not None
    if handle.completion.error is not None:
        raise handle.completion.error
    return handle.completion
