"""Programs on `infercore.hf.Engine`: prefixes are reused, constraints become grammars, `select` costs one forward."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import count
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from infercore.hf import Engine, RequestHandle
from infercore.lang.backends.token_scores import TreeScorer, common_length
from infercore.lang.chat import ChatFormat
from infercore.lang.scoring import decide
from infercore.lang.types import GenJob, GenOptions, GenResult, Job, Result, SelectJob, SelectResult, Transcript
from infercore.speculative import Drafter, SuffixDrafter

_TAIL = 256  # characters of the prompt encoded again with each choice, to see how its end merges with it
_SAFE = 8  # tokens in front of a choice that must come out the same from the tail as from the whole prompt


class EngineBackend:
    """Runs jobs on an engine that was built with a tokenizer.

    Args:
        drafter: proposes drafts for generations; the output does not depend on it. "auto": a `SuffixDrafter` where the
            engine has a controller, which verifies drafts only where they save time, else none.

    Text is encoded as a whole, as plain code around the model would: with the tokenizer's special tokens in front of a
    transcript without turns, without where the chat template brings its own.
    """

    def __init__(self, engine: Engine, *, drafter: Drafter | Literal["auto"] | None = "auto") -> None:
        if engine.tokenizer is None:
            raise ValueError("the engine has no tokenizer; build it with one: Engine(model, tokenizer)")
        self.engine = engine
        if drafter == "auto":
            drafter = SuffixDrafter() if engine.controller is not None else None
        self._drafter = drafter
        self._chat = ChatFormat(engine.tokenizer)
        self._tickets = count(1)
        self._generations: dict[int, RequestHandle] = {}
        self._selections: dict[int, _Selection] = {}
        self._grammars: dict[GenOptions, Any] = {}

    def submit(self, job: Job) -> int:
        ticket = next(self._tickets)
        if isinstance(job, GenJob):
            self._generations[ticket] = self._generate(job)
        else:
            self._selections[ticket] = _Selection(self, job)
        return ticket

    def step(self) -> Mapping[int, Result]:
        self.engine.step()
        done: dict[int, Result] = {}
        for ticket, handle in list(self._generations.items()):
            if (completion := handle.completion) is not None:
                del self._generations[ticket]
                if completion.error is not None:
                    raise completion.error
                done[ticket] = GenResult(completion.text, completion.finish_reason)
        for ticket, selection in list(self._selections.items()):
            if (result := selection.poll()) is not None:
                del self._selections[ticket]
                done[ticket] = result
        return done

    def partial(self, ticket: int) -> str:
        handle = self._generations.get(ticket)
        if handle is None:
            return ""
        assert self.engine.tokenizer is not None
        return self.engine.tokenizer.decode(handle.token_ids, skip_special_tokens=True).rstrip("\ufffd")

    def cancel(self, ticket: int) -> None:
        if (handle := self._generations.pop(ticket, None)) is not None:
            handle.cancel()
        if (selection := self._selections.pop(ticket, None)) is not None:
            selection.cancel()

    def render(self, transcript: Transcript) -> str:
        """The text that the model sees."""
        return self._chat.render(transcript) if transcript.has_roles else transcript.text

    def encode(self, text: str, *, add_special_tokens: bool) -> npt.NDArray[np.int32]:
        """Token ids of a text."""
        assert self.engine.tokenizer is not None
        return np.asarray(self.engine.tokenizer.encode(text, add_special_tokens=add_special_tokens), np.int32)

    def _generate(self, job: GenJob) -> RequestHandle:
        options = job.options
        prompt = self.encode(self.render(job.transcript), add_special_tokens=not job.transcript.has_roles)
        request = self.engine.request(
            prompt if len(prompt) else _start(self),
            max_new_tokens=options.max_tokens,
            temperature=options.temperature,
            top_p=options.top_p,
            top_k=options.top_k,
            min_p=options.min_p,
            stop=options.stop,
            seed=job.seed,
            grammar=self._grammar(options),
            drafter=self._drafter,
        )
        return self.engine.submit(request)[0]

    def _grammar(self, options: GenOptions) -> Any:
        if options.regex is None and options.schema is None and options.choices is None:
            return None
        if options not in self._grammars:
            self._grammars[options] = _grammar_spec(options).bind(self.engine.vocabulary)
        return self._grammars[options]


def _grammar_spec(options: GenOptions) -> Any:
    from infercore import constrained  # here: programs without constraints do not need it

    if options.regex is not None:
        return constrained.regex(options.regex)
    if options.choices is not None:
        return constrained.choices(options.choices)
    assert options.schema is not None
    return constrained.json_schema(json.loads(options.schema))


class _Selection:
    """One `select` in progress: a scorer for the prompt, and one for no prompt where the method asks for it."""

    def __init__(self, backend: EngineBackend, job: SelectJob) -> None:
        self._job = job
        text = backend.render(job.transcript)
        special = not job.transcript.has_roles
        prompt = backend.encode(text, add_special_tokens=special)
        prompt, self._choices = _split_choices(backend, text, prompt, job.choices, add_special_tokens=special)
        if len(prompt) == 0:
            prompt = _start(backend)
        self._scorers = [TreeScorer(backend.engine, prompt, self._choices)]
        if job.method == "unconditional":
            self._scorers.append(TreeScorer(backend.engine, _start(backend), self._choices))

    def poll(self) -> SelectResult | None:
        rows = [scorer.poll() for scorer in self._scorers]
        if rows[0] is None or rows[-1] is None:
            return None
        return decide(self._choices, rows[0], method=self._job.method, unconditional=rows[-1])

    def cancel(self) -> None:
        for scorer in self._scorers:
            scorer.cancel()


def _start(backend: EngineBackend) -> npt.NDArray[np.int32]:
    """What stands before nothing: the tokenizer's first token, or the model's end of text where it has none."""
    tokenizer: Any = backend.engine.tokenizer
    for name in ("bos_token_id", "eos_token_id"):
        if (token_id := getattr(tokenizer, name, None)) is not None:
            return np.array([token_id], np.int32)
    raise ValueError("the text is empty so far, and the tokenizer has no bos or eos token; append something first")


def _split_choices(
    backend: EngineBackend,
    text: str,
    prompt: npt.NDArray[np.int32],
    choices: Sequence[str],
    *,
    add_special_tokens: bool,
) -> tuple[npt.NDArray[np.int32], list[list[int]]]:
    """The prompt's tokens that stand whatever follows, and each choice's tokens after them.

    A choice may merge with the end of the prompt into other tokens; the prompt is then cut before those, for all
    choices alike. Only the prompt's tail is encoded with each choice, where its tokens show that this is the same.
    """
    tail = text[-_TAIL:] if len(text) > 2 * _TAIL else text
    whole_tail = tail is text
    tail_ids = prompt if whole_tail else backend.encode(tail, add_special_tokens=False)
    with_choice = []
    for choice in choices:
        ids = backend.encode(tail + choice, add_special_tokens=add_special_tokens and whole_tail)
        kept = common_length(ids, tail_ids)
        window = slice(max(kept - _SAFE, 0), kept)
        offset = len(prompt) - len(tail_ids)
        same = kept >= _SAFE and np.array_equal(ids[window], prompt[offset + window.start : offset + window.stop])
        if not whole_tail and not same:
            ids = backend.encode(text + choice, add_special_tokens=add_special_tokens)
            with_choice.append((common_length(ids, prompt), ids, 0))
        else:
            with_choice.append((kept + offset, ids, offset))
    cut = min(kept for kept, _, _ in with_choice)
    return prompt[:cut], [ids[cut - offset :].tolist() for _, ids, offset in with_choice]
