"""Backends for tests: one that records another's results in a file, and one that gives them again without any model."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from itertools import count
from pathlib import Path
from typing import Any

from infercore.lang.types import Backend, GenJob, GenResult, Job, Result, SelectResult


class RecordingBackend:
    """Passes jobs on to `backend`, and writes every result to `path` as it comes."""

    def __init__(self, backend: Backend, path: str | Path) -> None:
        self._backend = backend
        self._path = Path(path)
        self._jobs: dict[int, Job] = {}
        self._known: dict[str, Any] = json.loads(self._path.read_text()) if self._path.exists() else {}

    def submit(self, job: Job) -> int:
        ticket = self._backend.submit(job)
        self._jobs[ticket] = job
        return ticket

    def step(self) -> Mapping[int, Result]:
        done = self._backend.step()
        for ticket, result in done.items():
            kind = "gen" if isinstance(result, GenResult) else "select"
            self._known[job_key(self._jobs.pop(ticket))] = {kind: asdict(result)}
        if done:
            self._path.write_text(json.dumps(self._known, indent=1, ensure_ascii=False))
        return done

    def partial(self, ticket: int) -> str:
        return self._backend.partial(ticket)

    def cancel(self, ticket: int) -> None:
        self._jobs.pop(ticket, None)
        self._backend.cancel(ticket)


class ReplayingBackend:
    """Gives the results that a `RecordingBackend` wrote; KeyError for a job that is not among them."""

    def __init__(self, path: str | Path) -> None:
        self._known: dict[str, Any] = json.loads(Path(path).read_text())
        self._tickets = count(1)
        self._ready: dict[int, Result] = {}

    def submit(self, job: Job) -> int:
        key = job_key(job)
        if key not in self._known:
            raise KeyError(f"the recording has no result for this job; record it again: {job}")
        ((kind, content),) = self._known[key].items()
        ticket = next(self._tickets)
        if kind == "gen":
            self._ready[ticket] = GenResult(**content)
        else:
            self._ready[ticket] = SelectResult(content["index"], tuple(content["scores"]))
        return ticket

    def step(self) -> Mapping[int, Result]:
        done, self._ready = self._ready, {}
        return done

    def partial(self, ticket: int) -> str:
        return ""

    def cancel(self, ticket: int) -> None:
        self._ready.pop(ticket, None)


def job_key(job: Job) -> str:
    """A hash of a job that is the same in every process."""
    kind = "gen" if isinstance(job, GenJob) else "select"
    text = json.dumps([kind, asdict(job)], sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()
