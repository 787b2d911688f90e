"""`EngineCore`: a model, its KV pool and its requests, and the steps that carry them on."""

import threading
import time
from dataclasses import replace
from typing import Any

import torch

from infercore.errors import RequestError
from infercore.hf.completion import completion_of
from infercore.hf.cost_curve import cost_curve
from infercore.hf.factory import RequestFactory, copy_of
from infercore.hf.features import CapturingObserver, feature_observers
from infercore.hf.graphs import check_wanted, step_graphs
from infercore.hf.handle import RequestHandle
from infercore.hf.host_cache import host_cache
from infercore.hf.packed_model import PackedModel
from infercore.hf.pool_size import default_num_pages
from infercore.hf.prefill_rows import default_max_rows, prefill_by_graphs
from infercore.hf.prefix_groups import grouping_for
from infercore.hf.report import report
from infercore.hf.request import Event, FinishEvent, Request, checked_request
from infercore.hf.scheduler import Scheduler
from infercore.hf.settle import tell_of
from infercore.hf.state import RequestState
from infercore.hf.stats import EngineStats
from infercore.hf.step import Stepper
from infercore.hf.stopping import Tokenizer
from infercore.hf.weights import moved_namespace, namespace_of
from infercore.kernels import slot_mover
from infercore.radix import KVPool, Policy, PrefixCache
from infercore.speculative import Controller, CostCurve, Drafter


class EngineCore:
    """Requests that are submitted one by one and move on by steps, for people who write servers.

    `Engine` says what the arguments are; it adds prompts and completions as one has them in a script.
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
        size = self._model.num_parameters, self._model.num_layers
        graphs = step_graphs(
            self._model, self.pool, cuda_graphs, fuse_layers=fuse_layers, max_seqs=max_running, max_tokens=most
        )
        self._stepper = Stepper(
            self._scheduler,
            self.pool,
            self._model,
            max_rows=max_rows or (default_max_rows(*size) if on_gpu else 512),
            controller=controller,
            stats=self.stats,
            graphs=graphs,
            prefill_by_graphs=prefill_by_graphs(*size),
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
            self._watch(request.drafter)
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

    def warmup(
        self,
        *,
        batch: int | None = None,
        rows: int | None = None,
        drafter: Drafter | None = None,
        tokens: int = 2000,
        progress: bool = True,
    ) -> float:
        """Capture CUDA graphs and compile kernels ahead; returns the seconds it took.

        Without it that happens when a shape is first met, which makes that step slow. On a CPU there is nothing to do.

        Args:
            batch: requests in a step; None: `max_running`.
            rows: rows of a step, prefill included; None: `max_rows`. Drafts of n tokens make 1 + n rows of a request.
            drafter: which requests will come with, if it works on the model's features (an EAGLE or Medusa head, or a
                `Union` with one): the model's graphs are captured with these, and the head's own drafts as well.
            tokens: longest text that the head's drafts are captured for.
        Raises: UnsupportedModel if the model has no such features.
        """
        with self._lock, torch.no_grad():
            self._watch(drafter)
            graphs = self._stepper.graphs
            if graphs is None:
                return 0.0
            start = time.perf_counter()
            for observer in feature_observers(drafter):
                if isinstance(observer, CapturingObserver):
                    observer.warmup(batch=batch or self._scheduler.max_running, num_tokens=tokens)
            graphs.warmup(
                max_seqs=batch or self._scheduler.max_running,
                max_rows=rows or self._stepper.max_rows,
                progress=progress,
            )
            self._stepper.compile_kernels()
            if self.cache.host is not None:
                self.cache.host.warmup()
            return time.perf_counter() - start

    def invalidate(self) -> None:
        """Forget all computed K/V, for changes of weights that the engine cannot see; running ones start over."""
        with self._lock:
            self._start_over(insert=False)
            self.cache.clear()

    def report(self) -> str:
        """What the engine runs on, in a few lines: model, device, pool, compiled loops, requests."""
        return report(self._model, self.cache, self._stepper.graphs, self.stats, num_unfinished=self.num_unfinished)

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

    def _watch(self, drafter: Drafter | None) -> None:
        """Note what `drafter` works on from now on."""
        if self._model.watch(drafter) and self._stepper.graphs is not None:
            self._stepper.drop()  # a step that was started uses a graph
            self._stepper.graphs.clear()  # captured without what the drafter wants to see

    def _start_over(self, *, insert: bool) -> None:
        """Running requests wait again, to be computed anew with the model as it is; graphs of it as it was go."""
        self._stepper.drop()
        while self._scheduler.call_off():
            pass
        for state in reversed(list(self._scheduler.running)):
            state.close_sequence(insert=insert)
            self._scheduler.running.remove(state)
            self._scheduler.waiting.appendleft(state)
        if self._stepper.graphs is not None:
            self._stepper.graphs.clear()

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
            state.close_sequence(insert=state.error is None)
        handle.completion = completion_of(state, self.tokenizer)
        del self._handles[state.request_id]
        self.stats.add_request(handle.completion.stats, len(handle.completion.token_ids))
        for listener in (state.request.drafter, self._stepper.controller):
            if listener is not None:
                listener.close(state.request_id)
        tell_of(state, self._events)  # of what an interrupted step had appended
        self._events.append(FinishEvent(state.request_id, handle.completion))
