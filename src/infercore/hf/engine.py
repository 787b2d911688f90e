"""`Engine`: any Hugging Face causal LM with prefix reuse, grammars, speculation and continuous batching."""

import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList

from infercore.errors import RequestError
from infercore.hf.completion import completion_of
from infercore.hf.cost_curve import cost_curve
from infercore.hf.custom_generate import groups_of_copies, to_output, to_requests
from infercore.hf.factory import Prompt, RequestFactory, as_prompts, copy_of
from infercore.hf.graphs import check_wanted, step_graphs
from infercore.hf.handle import RequestHandle
from infercore.hf.host_cache import host_cache
from infercore.hf.packed_model import PackedModel
from infercore.hf.pool_size import default_num_pages
from infercore.hf.prefix_groups import grouping_for
from infercore.hf.report import report
from infercore.hf.request import Completion, Event, FinishEvent, Request, Score, checked_request
from infercore.hf.scheduler import Scheduler
from infercore.hf.settle import tell_of
from infercore.hf.state import RequestState
from infercore.hf.stats import EngineStats
from infercore.hf.step import Stepper
from infercore.hf.stopping import Tokenizer
from infercore.hf.stream import StreamChunk, StreamReader
from infercore.hf.weights import base_of, moved_namespace, namespace_of
from infercore.kernels import slot_mover
from infercore.radix import KVPool, Policy, PrefixCache
from infercore.sampling import SamplingParams
from infercore.speculative import Controller, CostCurve, Drafter


class Engine:
    """Runs requests on an unmodified transformers model, one packed forward a step.

    The model is switched to the attention named "infercore", which without the engine is its ordinary attention; the
    rest of the model stays untouched. All methods may be called from several threads; steps run one at a time.

    Args:
        model: a decoder-only causal LM of transformers, on any one device, in any dtype; or a `PeftModel` of one. What
            was computed with other adapters stays cached, in namespaces of its own.
        tokenizer: needed for text prompts, stop strings, grammars and text in completions.
        num_pages: size of the KV pool in pages, the reserved page included; None: room for 16k tokens on a CPU, 80% of
            the free memory on a GPU. Pool memory is claimed at a layer's first use.
        page_size: tokens a page.
        max_running: requests in one batch; more of them wait.
        max_rows: rows of a forward, decoding ones included, that prefill may fill. None: 512 on a CPU, 2048 on a GPU.
        controller: decides how many draft tokens are worth verifying; None takes each request's `max_draft_nodes`.
        vocabulary: the tokenizer's tokens as bytes, for grammars; built from `tokenizer` at the first use if None.
        cuda_graphs: run steps of up to 256 rows as CUDA graphs, see `warmup`; None: on a GPU, if the model allows it.
        fuse_layers: put the model's layers through torch.compile before they are captured: fewer kernels, logits that
            differ by rounding, and a first capture that takes longer, once a machine.
        overlap: start a step's forward before the tokens of the last one are read, where these are choices or draws,
            with grammars or without; None: on a GPU.
        policy: what leaves the prefix cache first, see `infercore.radix.eviction`; None: the least recently used.
        host_cache_bytes: keep what leaves the prefix cache in so much host memory, pinned where the model is on a GPU
            (a second or so for every few GB, now), and copy it back where a prompt goes on with it, while others run.
            None or 0: none. Memory that cannot be had is a warning, and the engine runs without.
        poison: fill freed pages with NaN, to show in tests that none is read.

    Raises: UnsupportedModel, naming the layer and what still works, if the packed forward is not right for this model.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any = None,
        *,
        num_pages: int | None = None,
        page_size: int = 16,
        max_running: int = 64,
        max_rows: int | None = None,
        controller: Controller | None = None,
        vocabulary: Any = None,
        cuda_graphs: bool | None = None,
        fuse_layers: bool = False,
        overlap: bool | None = None,
        policy: Policy | None = None,
        host_cache_bytes: int | None = None,
        poison: bool = False,
    ) -> None:
        check_wanted(next(model.parameters()).device, cuda_graphs)
        self._model = PackedModel(model)
        self.tokenizer: Tokenizer | None = tokenizer
        pages = num_pages or default_num_pages(self.bytes_per_token * page_size, page_size, self.device)
        self.pool = KVPool(pages, page_size, make_mover=slot_mover)
        self.cache = PrefixCache(pages, page_size, store=self.pool, policy=policy, poison=poison)
        if host_cache_bytes:
            host_cache(self.cache, self.pool, host_cache_bytes, self.bytes_per_token, self.device, poison=poison)
        self.stats = EngineStats()
        self._scheduler = Scheduler(self.cache, max_running=max_running)
        on_gpu = self.device.type == "cuda"
        most = self._model.max_positions or pages * page_size
        graphs = step_graphs(
            self._model, self.pool, cuda_graphs, fuse_layers=fuse_layers, max_seqs=max_running, max_tokens=most
        )
        self._stepper = Stepper(
            self._scheduler,
            self.pool,
            self._model,
            max_rows=max_rows or (2048 if on_gpu else 512),
            controller=controller,
            stats=self.stats,
            graphs=graphs,
            overlap=on_gpu if overlap is None else overlap,
            grouping=grouping_for(self.bytes_per_token, self._model.num_layers, page_size) if on_gpu else None,
        )
        self._factory = RequestFactory(tokenizer, self.model.generation_config, self.vocab_size, vocabulary)
        self._adapters = self._model.adapters
        self._handles: dict[int, RequestHandle] = {}
        self._events: list[Event] = []
        self._cancelled: list[RequestState] = []
        self._stepping = False
        self._lock = threading.RLock()

    # --- one request at a time, for people who write servers -------------------------------------------------------

    def submit(self, request: Request, *, copies: int = 1) -> list[RequestHandle]:
        """Queue a request, or several that continue one prompt, computed once and forked.

        Raises: RequestError, ValueError or TypeError, saying what to change; nothing was queued then.
        """
        request = checked_request(
            request,
            vocab_size=self.vocab_size,
            capacity_tokens=self.cache.counts().total * self.cache.page_size,
            max_positions=self._model.max_positions,
        )
        if copies < 1:
            raise RequestError(f"copies is {copies}, expected at least 1")
        with self._lock:
            self._notice_changes()
            request = replace(request, namespace=namespace_of(self._adapters, request.namespace))
            if self._model.watch(request.drafter) and self._stepper.graphs is not None:
                self._stepper.drop()  # a step that was started uses a graph
                self._stepper.graphs.clear()  # captured without what the drafter wants to see
            states = [self._factory.state(copy_of(request, i)) for i in range(copies)]
            states[0].followers = states[1:]
            self._scheduler.waiting.append(states[0])
            for state in states:
                self._handles[state.request_id] = RequestHandle(state, self._cancel)
            return [self._handles[state.request_id] for state in states]

    def step(self) -> list[Event]:
        """Run one packed forward over all running requests; returns what happened since the last call.

        With nothing to do it returns at once. After an exception (Ctrl-C, out of memory) the engine is as before.
        Callers' own code that runs in a step (processors, criteria, drafters) may cancel requests, but not step.
        """
        with self._lock:
            if self._stepping:
                raise RuntimeError("step() was called from within a step; let the running one return first")
            self._finish_done()  # of a step that was cut off
            self._stepping = True
            try:
                with torch.no_grad():
                    self._stepper.run(self._events)
            finally:
                self._stepping = False
            self._finish_done()
            events, self._events = self._events, []
            return events

    @property
    def num_unfinished(self) -> int:
        """Requests that are waiting or running."""
        return len(self._handles)

    # --- many prompts, or a stream ---------------------------------------------------------------------------------

    def generate(self, prompts: Prompt | Sequence[Prompt], *, n: int = 1, **options: Any) -> list[Completion]:
        """Continue every prompt; the completions stand in the order of the prompts, `n` for each.

        Args:
            prompts: one prompt or a list of them.
            n: independent completions a prompt.
            options: as in `request`.
        Raises: RequestError and the like before anything runs; an error of the caller's own processors, criteria or
            drafter, after all other prompts were cancelled.
        """
        listed = as_prompts(prompts)
        requests = [self.request(prompt, **options) for prompt in listed]
        handles: list[RequestHandle] = []
        try:
            for request in requests:
                handles += self.submit(request, copies=n)
            return [self._wait(handle) for handle in handles]
        finally:
            for handle in handles:
                handle.cancel()

    def stream(self, prompt: Prompt, **options: Any) -> Iterator[StreamChunk]:
        """Continue one prompt piece by piece; leaving the loop cancels the request and gives its pages back.

        Arguments are those of `generate`.
        """
        request = self.request(prompt, **options)
        return self._stream(request)

    def score(self, prompts: Prompt | Sequence[Prompt], completions: Prompt | Sequence[Prompt]) -> list[Score]:
        """Log probabilities of completions after their prompts; prefixes that prompts share are computed once.

        Text is encoded by itself, without special tokens in completions; tokens are not merged over the boundary.
        """
        pairs = list(zip(as_prompts(prompts), as_prompts(completions), strict=True))
        handles: list[RequestHandle] = []
        try:
            for prompt, completion in pairs:
                request = self.request(prompt, logprobs=0)
                scored = replace(request, completion_ids=self._factory.encode(completion, add_special_tokens=False))
                handles += self.submit(scored)
            done = [self._wait(handle) for handle in handles]
        finally:
            for handle in handles:
                handle.cancel()
        return [Score(c.token_ids, [entry.logprob for entry in c.logprobs or ()]) for c in done]

    def request(
        self,
        prompt: Prompt,
        *,
        max_new_tokens: int = 256,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        min_p: float = 0.0,
        repetition_penalty: float = 1.0,
        frequency_penalty: float = 0.0,
        presence_penalty: float = 0.0,
        stop: str | Sequence[str] | None = None,
        grammar: Any = None,
        drafter: Drafter | None = None,
        **options: Any,
    ) -> Request:
        """A `Request` from plain arguments; `options` are its further fields."""
        sampling = SamplingParams(
            temperature, top_k, top_p, min_p, repetition_penalty, frequency_penalty, presence_penalty
        )
        return self._factory.request(
            prompt, max_new_tokens, sampling, stop=stop, grammar=grammar, drafter=drafter, options=options
        )

    # --- the rest --------------------------------------------------------------------------------------------------

    @property
    def model(self) -> Any:
        """The transformers model."""
        return self._model.model

    @property
    def device(self) -> torch.device:
        return self._model.device

    @property
    def vocab_size(self) -> int:
        """Columns of the model's logits."""
        return self._model.vocab_size

    @property
    def bytes_per_token(self) -> int:
        """K/V of one token over all layers."""
        return self._model.bytes_per_token

    @property
    def controller(self) -> Controller | None:
        """Decides how many draft tokens are worth verifying; may be replaced between steps."""
        return self._stepper.controller

    @controller.setter
    def controller(self, controller: Controller | None) -> None:
        with self._lock:
            self._stepper.controller = controller

    def cost_curve(self, *, refresh: bool = False) -> CostCurve:
        """What a forward of this model costs on this device by its rows, for `SpeedController(curve)`.

        Measured at the first call and kept in the user's cache; `refresh` measures again. A controller that is given
        none learns it from the steps, which takes a few dozen of them.
        """
        with self._lock:
            return cost_curve(self._model, graphs=self._stepper.graphs, refresh=refresh)

    def warmup(self, *, batch: int | None = None, rows: int | None = None, progress: bool = True) -> float:
        """Capture CUDA graphs and compile kernels ahead; returns the seconds it took.

        Without it that happens when a shape is first met, which makes that step slow. On a CPU there is nothing to do.

        Args:
            batch: requests in a step; None: `max_running`.
            rows: rows of a step, prefill included; None: `max_rows`. Drafts of n tokens make 1 + n rows of a request.
        """
        with self._lock, torch.no_grad():
            graphs = self._stepper.graphs
            if graphs is None:
                return 0.0
            start = time.perf_counter()
            graphs.warmup(
                max_seqs=batch or self._scheduler.max_running,
                max_rows=rows or self._stepper.max_rows,
                progress=progress,
            )
            self._stepper.compile_kernels()
            if self.cache.host is not None:
                self.cache.host.warmup()
            return time.perf_counter() - start

    @property
    def vocabulary(self) -> Any:
        """The tokenizer's tokens as bytes (`infercore.constrained.Vocabulary`); grammars are bound to it."""
        return self._factory.vocabulary

    def invalidate(self) -> None:
        """Forget all computed K/V, for changes of weights that the engine cannot see; running ones start over."""
        with self._lock:
            self._start_over(insert=False)
            self.cache.clear()

    def report(self) -> str:
        """What the engine runs on, in a few lines: model, device, pool, compiled loops, requests."""
        return report(self._model, self.cache, self._stepper.graphs, self.stats, num_unfinished=self.num_unfinished)

    def __call__(
        self,
        model: nn.Module,
        input_ids: Tensor,
        logits_processor: LogitsProcessorList | None = None,
        stopping_criteria: StoppingCriteriaList | None = None,
        generation_config: GenerationConfig | None = None,
        grammar: Any = None,
        drafter: Drafter | None = None,
        seed: int | None = None,
        max_draft_nodes: int = 16,
        stop: str | Sequence[str] | None = None,
        **model_kwargs: Any,
    ) -> Any:
        """What `model.generate(..., custom_generate=engine)` calls.

        Besides Hugging Face's own arguments, `generate` then takes `grammar`, `drafter`, `max_draft_nodes`, `seed` (row
        i draws with seed + i) and `stop`. Transformers drops `streamer`, `assistant_model` and `tokenizer` before it
        calls a custom function: use `engine.stream` for the first, and `stop` in place of `stop_strings`.

        Raises: RequestError for beams, embeddings as input, another model than the engine's.
        """
        if model is not base_of(self.model):
            raise RequestError("this engine was built for another model object; build one Engine(model) for this one")
        if generation_config is None:
            raise RequestError(
                "generation_config is missing; call this through model.generate(..., custom_generate=engine)"
            )
        requests = to_requests(
            input_ids,
            logits_processor,
            stopping_criteria,
            generation_config,
            grammar=grammar,
            drafter=drafter,
            seed=seed,
            max_draft_nodes=max_draft_nodes,
            stop=stop,
            model_kwargs=model_kwargs,
        )
        handles: list[RequestHandle] = []
        try:
            first = 0
            for size in groups_of_copies(requests):
                handles += self.submit(requests[first], copies=size)
                first += size
            completions = [self._wait(handle) for handle in handles]
        finally:
            for handle in handles:
                handle.cancel()
        return to_output(input_ids, completions, generation_config)

    def _notice_changes(self) -> None:
        """Of weights: all K/V is void. Of adapters: K/V of each stays in its own namespace, running requests move."""
        adapters, before = self._model.adapters, self._adapters
        if self._model.has_changed():
            self.invalidate()
        elif adapters != before:
            self._start_over(insert=True)
        if adapters != before:
            self._adapters = adapters
            self._scheduler.rename(lambda namespace: moved_namespace(namespace, before, adapters))

    def _start_over(self, *, insert: bool) -> None:
        """Running requests wait again, to be computed anew with the model as it is; graphs of it as it was go."""
        self._stepper.drop()
        while self._scheduler.call_off():
            pass
        for state in reversed(list(self._scheduler.running)):
            assert state.sequence is not None
            state.sequence.close(insert=insert)
            state.sequence = None
            self._scheduler.running.remove(state)
            self._scheduler.waiting.appendleft(state)
        if self._stepper.graphs is not None:
            self._stepper.graphs.clear()

    def _wait(self, handle: RequestHandle) -> Completion:
        while handle.completion is None:
            self.step()
        if handle.completion.error is not None:
            raise handle.completion.error
        return handle.completion

    def _stream(self, request: Request) -> Iterator[StreamChunk]:
        (handle,) = self.submit(request)
        reader = StreamReader(handle, self.tokenizer, request.stop)
        try:
            while not handle.is_done:
                self.step()
                if (chunk := reader.read()) is not None:
                    yield chunk
        finally:
            handle.cancel()

    def _cancel(self, state: RequestState) -> None:
        with self._lock:
            if state.request_id not in self._handles:
                return
            self._cancelled.append(state)
            if not self._stepping:
                self._stepper.recover()
                self._finish_done()

    def _finish_done(self) -> None:
        """Finish every request that is done or cancelled, wherever it is."""
        while self._cancelled:
            state = self._cancelled.pop()
            state.finish_reason = "cancelled"
            self._finish(state)
        for state in [state for state in self._scheduler.running if state.is_done]:
            self._finish(state)

    def _finish(self, state: RequestState) -> None:
        """Give back what a request holds and make its completion."""
        handle = self._handles.get(state.request_id)
        if handle is None:
            return
        self._scheduler.remove(state)
        if state.sequence is not None:
            state.sequence.close(insert=state.error is None)
            state.sequence = None
        handle.completion = completion_of(state, self.tokenizer)
        del self._handles[state.request_id]
        self.stats.add_request(handle.completion.stats, len(handle.completion.token_ids))
        for listener in (state.request.drafter, self._stepper.controller):
            if listener is not None:
                listener.close(state.request_id)
        tell_of(state, self._events)  # of what an interrupted step had appended
        self._events.append(FinishEvent(state.request_id, handle.completion))
