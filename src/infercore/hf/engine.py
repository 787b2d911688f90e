"""`Engine`: any Hugging Face causal LM with prefix reuse, grammars, speculation and continuous batching."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor, nn
from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList

from infercore.errors import RequestError
from infercore.hf.core import EngineCore
from infercore.hf.custom_generate import groups_of_copies, to_output, to_requests
from infercore.hf.factory import Prompt, as_prompts
from infercore.hf.handle import RequestHandle
from infercore.hf.request import Completion, Request, Score
from infercore.hf.stream import StreamChunk, StreamReader
from infercore.hf.weights import base_of
from infercore.sampling import SamplingParams
from infercore.speculative import Drafter


class Engine(EngineCore):
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
        max_rows: rows of a forward, decoding ones included, that prefill may fill. None: 512 on a CPU; on a GPU 2048,
            of small models more. There short prompts are read 256 rows at a time, by graphs, if that is faster.
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

    @property
    def vocabulary(self) -> Any:
        """The tokenizer's tokens as bytes (`infercore.constrained.Vocabulary`); grammars are bound to it."""
        return self._factory.vocabulary

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
