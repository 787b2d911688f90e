"""Programs against a server that speaks OpenAI's HTTP interface: SGLang, vLLM, llama.cpp, a hosted model.

What crosses the wire is standard where a standard exists: `/completions`, `/chat/completions`, `response_format` for
JSON Schemas, echoed log probabilities for `select`. Regexes and choices have none; `dialect` says whose is spoken.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from itertools import count
from typing import Any, Literal

from infercore.lang.chat import ChatFormat
from infercore.lang.scoring import decide
from infercore.lang.types import GenJob, GenOptions, GenResult, Job, Result, SelectJob, SelectResult

Dialect = Literal["openai", "vllm", "sglang"]


class HttpBackend:
    """Runs each job as a request of its own, `max_parallel` at a time; the server batches them.

    Args:
        base_url: up to and including the version, as in "http://localhost:30000/v1".
        model: its name on the server.
        tokenizer: a Hugging Face tokenizer of that model. With it, chats are rendered here and sent as text, which
            `select` inside a turn needs; without it they are sent as messages.
        dialect: how regexes and choices are sent; "openai" has neither, and such a `gen` is refused.
        api_key: sent as a bearer token. timeout_s: for one request. transport: for tests, an `httpx` transport.
    """

    def __init__(
        self,
        base_url: str,
        *,
        model: str,
        tokenizer: Any = None,
        dialect: Dialect = "openai",
        api_key: str | None = None,
        max_parallel: int = 32,
        timeout_s: float = 600.0,
        transport: Any = None,
    ) -> None:
        try:
            import httpx
        except ImportError as error:
            raise ImportError("HttpBackend needs httpx: pip install 'infercore[http]'") from error
        headers = {} if api_key is None else {"Authorization": f"Bearer {api_key}"}
        self._client = httpx.Client(
            base_url=base_url.rstrip("/"), headers=headers, timeout=timeout_s, transport=transport
        )
        self._model = model
        self._chat = None if tokenizer is None else ChatFormat(tokenizer)
        self._dialect = dialect
        self._pool = ThreadPoolExecutor(max_parallel, thread_name_prefix="infercore-http")
        self._tickets = count(1)
        self._futures: dict[int, Future[Result]] = {}

    def submit(self, job: Job) -> int:
        work = self._prepared(job)
        ticket = next(self._tickets)
        self._futures[ticket] = self._pool.submit(work)
        return ticket

    def step(self) -> Mapping[int, Result]:
        wait(self._futures.values(), return_when=FIRST_COMPLETED)
        done = {ticket: future for ticket, future in self._futures.items() if future.done()}
        for ticket in done:
            del self._futures[ticket]
        failed = next((future for future in done.values() if future.exception() is not None), None)
        if failed is not None:
            self._futures.update({t: f for t, f in done.items() if f is not failed})
            failed.result()
        return {ticket: future.result() for ticket, future in done.items()}

    def partial(self, ticket: int) -> str:
        return ""

    def cancel(self, ticket: int) -> None:
        if (future := self._futures.pop(ticket, None)) is not None:
            future.cancel()

    def close(self) -> None:
        """Give back threads and connections."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._client.close()

    def _prepared(self, job: Job) -> Any:
        """A call that does the job; what cannot be sent is refused here, before anything is queued."""
        if isinstance(job, SelectJob):
            text = self._text(job)
            if text is None:
                raise ValueError(
                    "select inside a chat scores text, so the chat template must be known: "
                    "pass HttpBackend(..., tokenizer=AutoTokenizer.from_pretrained(...))"
                )
            return lambda: self._select(job, text)
        body = self._sampling(job)
        text = self._text(job)
        if text is not None:
            return lambda: self._complete({**body, "prompt": text})
        messages = job.transcript.messages()
        if job.transcript.open_role == "assistant":
            if not messages[-1]["content"]:
                messages.pop()
            elif self._dialect == "openai":
                raise ValueError(
                    "an assistant turn that has begun cannot be continued by messages; pass a tokenizer, or a dialect"
                )
            else:
                body |= {"continue_final_message": True, "add_generation_prompt": False}
        return lambda: self._chat_complete({**body, "messages": messages})

    def _text(self, job: Job) -> str | None:
        if not job.transcript.has_roles:
            return job.transcript.text
        return None if self._chat is None else self._chat.render(job.transcript)

    def _sampling(self, job: GenJob) -> dict[str, Any]:
        options = job.options
        body: dict[str, Any] = {
            "model": self._model,
            "max_tokens": options.max_tokens,
            "temperature": options.temperature,
            "top_p": options.top_p,
        }
        if options.stop:
            body["stop"] = list(options.stop)
        if job.seed is not None:
            body["seed"] = job.seed % 2**31
        if self._dialect != "openai":
            body |= {"top_k": options.top_k or -1, "min_p": options.min_p}
        elif options.top_k or options.min_p:
            raise ValueError('top_k and min_p are not part of OpenAI\'s interface; pass dialect="vllm" or "sglang"')
        return body | self._constraint(options)

    def _constraint(self, options: GenOptions) -> dict[str, Any]:
        if options.schema is not None:
            schema = json.loads(options.schema)
            return {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "answer", "schema": schema, "strict": True},
                }
            }
        regex = options.regex
        if options.choices is not None:
            if self._dialect == "vllm":
                return {"structured_outputs": {"choice": list(options.choices)}}
            regex = "(" + "|".join(_escaped(c) for c in options.choices) + ")"
        if regex is None:
            return {}
        if self._dialect == "openai":
            raise ValueError(
                'regex and choices need dialect="vllm" or "sglang"; OpenAI\'s interface has no field for them'
            )
        return {"structured_outputs": {"regex": regex}} if self._dialect == "vllm" else {"regex": regex}

    def _complete(self, body: dict[str, Any]) -> GenResult:
        choice = self._post("/completions", body)["choices"][0]
        return GenResult(choice["text"], choice.get("finish_reason") or "stop")

    def _chat_complete(self, body: dict[str, Any]) -> GenResult:
        choice = self._post("/chat/completions", body)["choices"][0]
        return GenResult(choice["message"]["content"] or "", choice.get("finish_reason") or "stop")

    def _select(self, job: SelectJob, text: str) -> SelectResult:
        scored = [self._score(text, choice) for choice in job.choices]
        tokens = [[hash(token) for token in row_tokens] for row_tokens, _ in scored]
        rows = [row for _, row in scored]
        unconditional = None
        if job.method == "unconditional":
            unconditional = [self._score("", choice)[1] for choice in job.choices]
        return decide(tokens, rows, method=job.method, unconditional=unconditional)

    def _score(self, text: str, choice: str) -> tuple[list[str], list[float]]:
        """The tokens of a choice after `text`, and their log probabilities, from an echoed prompt.

        A token that begins in the text and ends in the choice counts as the choice's. The server has no log probability
        for the very first token of all; it is left out.
        """
        body = {
            "model": self._model,
            "prompt": text + choice,
            "max_tokens": 1,
            "temperature": 0,
            "echo": True,
            "logprobs": 1,
        }
        logprobs = self._post("/completions", body)["choices"][0].get("logprobs")
        if logprobs is None:
            raise ValueError("the server gave no log probabilities for an echoed prompt, which select needs")
        end = len(text) + len(choice)
        tokens: list[str] = []
        values: list[float] = []
        for token, value, start in zip(
            logprobs["tokens"], logprobs["token_logprobs"], logprobs["text_offset"], strict=True
        ):
            if start < end and start + len(token) > len(text) and value is not None:
                tokens.append(token)
                values.append(value)
        return tokens, values

    def _post(self, path: str, body: dict[str, Any]) -> Any:
        response = self._client.post(path, json=body)
        if response.is_error:
            raise ValueError(f"{path} answered {response.status_code}: {response.text[:500]}")
        return response.json()


def _escaped(text: str) -> str:
    return "".join("\\" + c if c in r"\.^$*+?{}[]()|-/" else c for c in text)
