"""What bench/lang.py measures against: plain Hugging Face code that computes the same texts, in three ways.

`SequentialHF` is one `generate` call per gap of a program, in order. `few_shot` and `tree_of_thought` are written by
hand as a careful user would: `generate` over all gaps that are ready at once, padded on the left, behind a prefix whose
K/V are computed once. `tree_of_thought_kept` also keeps the K/V of what it generated from stage to stage.
"""

import copy
import json
from collections.abc import Mapping, Sequence
from itertools import count
from typing import Any

import torch
from transformers import DynamicCache, LogitsProcessorList

from infercore import constrained
from infercore.hf import GrammarProcessor, cache_argument
from infercore.lang import Job
from infercore.lang.chat import ChatFormat
from infercore.lang.scoring import decide
from infercore.lang.types import GenJob, GenResult, Result
from lang_programs import CHOICES, GRADES, PLANS, STYLES


class SequentialHF:
    """A backend for programs in eager mode: every job is one `generate` call when its turn comes."""

    def __init__(self, model: Any, tokenizer: Any, vocabulary: Any) -> None:
        self.model, self.tokenizer, self.vocabulary = model, tokenizer, vocabulary
        self.chat = ChatFormat(tokenizer)
        self.tickets = count()
        self.waiting: dict[int, Job] = {}
        self.pad = tokenizer.eos_token_id

    def submit(self, job: Job) -> int:
        ticket = next(self.tickets)
        self.waiting[ticket] = job
        return ticket

    def step(self) -> Mapping[int, Result]:
        ticket, job = self.waiting.popitem()
        return {ticket: self.generate(job) if isinstance(job, GenJob) else self.select(job)}

    def partial(self, ticket: int) -> str:
        return ""

    def cancel(self, ticket: int) -> None:
        self.waiting.pop(ticket, None)

    def encode(self, job: Job) -> torch.Tensor:
        text = self.chat.render(job.transcript) if job.transcript.has_roles else job.transcript.text
        special = not job.transcript.has_roles
        return self.tokenizer(text, return_tensors="pt", add_special_tokens=special).input_ids

    def generate(self, job: GenJob) -> GenResult:
        options = job.options
        ids = self.encode(job)
        processors = LogitsProcessorList()
        if options.schema is not None or options.regex is not None:
            spec = (
                constrained.json_schema(json.loads(options.schema))
                if options.schema is not None
                else constrained.regex(options.regex)
            )
            processors.append(GrammarProcessor(spec.bind(self.vocabulary)))
        out = self.model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=options.max_tokens,
            do_sample=False,
            stop_strings=list(options.stop) or None,
            tokenizer=self.tokenizer if options.stop else None,
            logits_processor=processors,
            pad_token_id=self.pad,
        )
        text = self.tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)
        for stop in options.stop:
            text = text.split(stop)[0]
        return GenResult(text)

    def select(self, job: Any) -> Result:
        ids = self.encode(job)
        tokens = [self.tokenizer(c, add_special_tokens=False).input_ids for c in job.choices]
        if all(len(t) == 1 for t in tokens):  # one step of generate says it all
            out = self.model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=1,
                do_sample=False,
                return_dict_in_generate=True,
                output_logits=True,
                pad_token_id=self.pad,
            )
            rows = [[out.logits[0][0].log_softmax(-1)[t[0]].item()] for t in tokens]
        else:
            rows = []
            for t in tokens:
                whole = torch.cat([ids, torch.tensor([t])], 1)
                with torch.no_grad():
                    logprobs = self.model(whole, use_cache=False, logits_to_keep=len(t) + 1).logits[0].log_softmax(-1)
                rows.append(logprobs[torch.arange(len(t)), t].tolist())
        return decide(tokens, rows, method=job.method)


class Batch:
    """Conversations side by side: their tokens, padded where they need it, and the K/V of all but the last token."""

    def __init__(self, peer: SequentialHF, prefix: list[int], *, cache: Any = None) -> None:
        """`prefix` in one row, computed now unless its cache is given, which is then copied."""
        self.peer = peer
        self.ids = torch.tensor([prefix])
        self.mask = torch.ones_like(self.ids)
        if cache is None:
            self.cache = DynamicCache(config=peer.model.config)
            with torch.no_grad():
                peer.model(self.ids, logits_to_keep=1, **cache_argument(peer.model, self.cache))
        else:
            self.cache = copy.deepcopy(cache)

    def repeat(self, times: int) -> None:
        self.cache.batch_repeat_interleave(times)
        self.ids = self.ids.repeat_interleave(times, 0)
        self.mask = self.mask.repeat_interleave(times, 0)

    def generate(self, suffixes: Sequence[list[int]], max_new_tokens: int, *, grades: bool = False) -> Any:
        """Append a suffix to each row and generate; returns texts, or the logits of the one next token for `grades`."""
        longest = max(map(len, suffixes))
        pad = self.peer.pad
        added = torch.tensor([[pad] * (longest - len(s)) + list(s) for s in suffixes])
        added_mask = torch.tensor([[0] * (longest - len(s)) + [1] * len(s) for s in suffixes])
        self.ids, self.mask = torch.cat([self.ids, added], 1), torch.cat([self.mask, added_mask], 1)
        start = self.ids.shape[1]
        out = self.peer.model.generate(
            self.ids,
            attention_mask=self.mask,
            max_new_tokens=max_new_tokens,
            do_sample=False,
            pad_token_id=pad,
            return_dict_in_generate=grades,
            output_logits=grades,
            **cache_argument(self.peer.model, self.cache),
        )
        if grades:
            return out.logits[0]
        new = out[:, start:]
        kept = (new != self.peer.tokenizer.eos_token_id).long()  # what a row generated before its end token
        self.ids, self.mask = out, torch.cat([self.mask, kept], 1)
        return [self.peer.tokenizer.decode(row, skip_special_tokens=True) for row in new]


def common_prefix(rows: Sequence[list[int]]) -> list[int]:
    """The tokens that all rows begin with."""
    length = 0
    while all(length < len(row) and row[length] == rows[0][length] for row in rows):
        length += 1
    return rows[0][:length]


def few_shot(peer: SequentialHF, batch: list[dict[str, Any]], *, batch_size: int = 25) -> list[Any]:
    """`batch_size` questions at a time behind a copy of the prefix's cache."""
    rows = peer.tokenizer([entry["prompt"] + f"Review: {entry['review']}\nMood:" for entry in batch]).input_ids
    prefix = common_prefix(rows)
    computed = Batch(peer, prefix)
    choices = [peer.tokenizer.encode(c)[0] for c in CHOICES]
    values: list[Any] = []
    for first in range(0, len(batch), batch_size):
        suffixes = [row[len(prefix) :] for row in rows[first : first + batch_size]]
        asked = Batch(peer, prefix, cache=computed.cache)
        asked.repeat(len(suffixes))
        values += [CHOICES[int(row[choices].argmax())] for row in asked.generate(suffixes, 1, grades=True)]
    return values


def tree_of_thought(peer: SequentialHF, batch: list[dict[str, Any]]) -> list[Any]:
    """Three calls of `generate`, each over all conversations of its stage, behind a copy of the riddle's cache."""
    turns = [{"role": "user", "content": batch[0]["riddle"]}]
    prefix = peer.tokenizer.apply_chat_template(turns, tokenize=True, return_dict=False)
    computed = Batch(peer, prefix)

    def run(conversations: list[list[dict[str, str]]], max_new_tokens: int, **options: Any) -> Any:
        texts = [_rendered(peer, c) for c in conversations]
        suffixes = [ids[len(prefix) :] for ids in peer.tokenizer(texts, add_special_tokens=False).input_ids]
        stage = Batch(peer, prefix, cache=computed.cache)
        stage.repeat(len(suffixes))
        return stage.generate(suffixes, max_new_tokens, **options)

    opened = [[*turns, {"role": "assistant", "content": f"I will solve this by {how}. Plan:"}] for how in PLANS]
    plans = run(opened, 32)
    solved = []
    for conversation, plan in zip(opened, plans, strict=True):
        done = _continued(conversation, plan, "Carry out this plan.")
        solved += [[*done, {"role": "assistant", "content": f"Here is a {style} solution:"}] for style in STYLES]
    solutions = run(solved, 48)
    graded = []
    for conversation, solution in zip(solved, solutions, strict=True):
        done = _continued(conversation, solution, "Grade this solution from 1 to 5. Answer with the number.")
        graded.append([*done, {"role": "assistant", "content": _OPEN}])
    return [_outcome(peer, plans, solutions, run(graded, 1, grades=True))]


def tree_of_thought_kept(peer: SequentialHF, batch: list[dict[str, Any]]) -> list[Any]:
    """As above, but each stage goes on from the K/V of the one before, rows repeated where the tree branches."""
    turns = [{"role": "user", "content": batch[0]["riddle"]}]
    stage = Batch(peer, peer.tokenizer.apply_chat_template(turns, tokenize=True, return_dict=False))

    def encoded(text: str) -> list[int]:
        return list(peer.tokenizer(text, add_special_tokens=False).input_ids)

    stage.repeat(len(PLANS))
    plans = stage.generate([encoded(f"<|im_start|>assistant\nI will solve this by {how}. Plan:") for how in PLANS], 32)
    stage.repeat(len(STYLES))
    turn = "<|im_end|>\n<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
    carry_out = turn.format("Carry out this plan.")
    solutions = stage.generate(
        [encoded(f"{carry_out}Here is a {style} solution:") for _ in PLANS for style in STYLES], 48
    )
    grade = encoded(turn.format("Grade this solution from 1 to 5. Answer with the number."))
    return [_outcome(peer, plans, solutions, stage.generate([grade] * len(solutions), 1, grades=True))]


_OPEN = "\ue010"  # content of a turn that stays empty; templates would strip nothing


def _rendered(peer: SequentialHF, conversation: list[dict[str, str]]) -> str:
    text = peer.tokenizer.apply_chat_template(conversation, tokenize=False, continue_final_message=True)
    return str(text).split(_OPEN)[0]


def _continued(conversation: list[dict[str, str]], generated: str, question: str) -> list[dict[str, str]]:
    last = {"role": "assistant", "content": conversation[-1]["content"] + generated}
    return [*conversation[:-1], last, {"role": "user", "content": question}]


def _outcome(peer: SequentialHF, plans: list[str], solutions: list[str], logits: Any) -> Any:
    choices = [peer.tokenizer.encode(g)[0] for g in GRADES]
    grades = [GRADES[int(row[choices].argmax())] for row in logits]
    n = len(STYLES)
    split = [
        tuple(values[i * n : i * n + n] for i in range(len(PLANS))) for values in (tuple(solutions), tuple(grades))
    ]
    return (tuple(plans), *split)
