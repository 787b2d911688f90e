"""Programs of prompts: Python functions whose gaps a model fills, run many at a time with shared prefixes.

Use it when a task takes several generations that build on each other: few-shot classification, chats, search over
alternatives, extraction, tools. A single prompt needs no program; `Engine.generate` does that.

    @function
    def classify(s, review):
        s += "Review: great food\\nMood: good\\n\\nReview: " + review + "\\nMood: "
        s += select("mood", ["good", "bad"])

    runs = classify.run_batch(EngineBackend(engine), [{"review": r} for r in reviews])
    moods = [run["mood"] for run in runs]

A program is traced into a typed intermediate representation, optimised, and interpreted over one packed batch; where
its Python code looks at generated values it runs op by op instead, with the same results. Text only: images are out of
scope.

Files in reading order: `nodes.py` (what a program appends) and `state.py` (to what), `function.py` (how it is run),
`types.py` (what a backend is), `trace.py`, `symbols.py` (what stands for values meanwhile), `ir.py`, `passes/`,
`interpreter.py`, `eager.py`, `values.py`, `references.py`, `location.py`, `beginnings.py`, `scoring.py`, `chat.py`;
then `backends/` (`EngineBackend` and others, imported from there).
"""

from infercore.lang.function import Function, Mode, function
from infercore.lang.interpreter import DoneEvent, Run, TextEvent
from infercore.lang.ir import Program
from infercore.lang.nodes import Gen, Message, Select, assistant, gen, select, system, user
from infercore.lang.passes import optimise
from infercore.lang.state import State
from infercore.lang.types import Backend, GenJob, GenOptions, GenResult, Job, SelectJob, SelectResult, Transcript

__all__ = [
    "Backend",
    "DoneEvent",
    "Function",
    "Gen",
    "GenJob",
    "GenOptions",
    "GenResult",
    "Job",
    "Message",
    "Mode",
    "Program",
    "Run",
    "Select",
    "SelectJob",
    "SelectResult",
    "State",
    "TextEvent",
    "Transcript",
    "assistant",
    "function",
    "gen",
    "optimise",
    "select",
    "system",
    "user",
]
