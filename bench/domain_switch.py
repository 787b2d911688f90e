"""What does a stream cost whose drafts are accepted, then always rejected, then accepted again?

    python bench/domain_switch.py [--save]              on SmolLM2: every step is run and timed
    python bench/domain_switch.py --gpu [--save]        the same in bfloat16 by CUDA graphs
    python bench/domain_switch.py --modelled [--save]   no model: steps cost what a curve says (5% noise on what the
                                                        controller sees), drafting is free; also steps that
                                                        overlap where nobody drafts, as a GPU's do, and eight
                                                        streams at once whose drafts do not pay there

The drafter knows the text; per stretch it is right about a token with a given chance, and claims 0.8 throughout. Four
ways to decide: plain, always 8 nodes, the controller, and an oracle that knows the switches. On the model each of them
is an engine of its own, and whoever has come least far takes the next step, so that all see the machine alike.

On a GPU, where a step's forward goes on after the step, they run one behind the other instead, several rounds; of each
the round of median length counts. Rounding may decide there between two tokens otherwise than when the text was made:
the text then goes on as this engine's does (made anew between two steps, not timed).
"""

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from infercore.speculative import Controller, DraftRequest, FixedBudget, SpeedController, TokenTree, verify_greedy

CHANCES = (0.8, 0.0, 0.8)  # per stretch, that the drafter is right about a token
WIDTH = 8
ROWS = [1, 2, 4, 8, 16, 32, 64]
CURVES = {
    "two cores, general matrix products": (0.025, [1, 1.70, 1.61, 1.65, 2.07, 2.75, 3.14]),
    "nearly flat (a GPU's)": (0.008, [1, 1.005, 1.01, 1.02, 1.04, 1.08, 1.14]),
}


@dataclass(frozen=True)
class Overlapped:
    """Seconds of steps on a GPU (SmolLM2 on an H100): one for which drafts are asked cannot begin before its time."""

    rest: float
    after_draft: float
    asked: float
    by_row: float

    def seconds(self, num_rows: int, *, was_asked: bool, is_behind: bool) -> float:
        if was_asked:
            return self.asked + self.by_row * num_rows
        return self.rest if is_behind else self.after_draft


ONE_STREAM = Overlapped(0.00106, 0.0012, 0.0013, 0.000003)
EIGHT_STREAMS = Overlapped(0.0011, 0.00125, 0.00155, 0.000006)


@dataclass
class Step:
    position: int
    num_nodes: int
    num_gained: int
    seconds: float


class Stream:
    """A text of three stretches, and a drafter that knows it and is wrong where it was decided beforehand."""

    def __init__(self, text: np.ndarray, length: int) -> None:
        self.text, self.length = text, length
        luck = np.random.default_rng(0).random(len(text))
        self.is_right = luck < np.array([CHANCES[self.stretch(i)] for i in range(len(text))])

    def stretch(self, position: int) -> int:
        return min(position // self.length, len(CHANCES) - 1)

    def draft(self, position: int, num_nodes: int) -> TokenTree:
        draft = self.text[position : position + num_nodes].copy()
        wrong = ~self.is_right[position : position + num_nodes]
        draft[wrong] = (draft[wrong] + 1) % 1000
        depths = np.arange(1, len(draft) + 1)
        return TokenTree(draft.astype(np.int32), (depths - 2).astype(np.int32), None, (0.8**depths).astype(np.float32))


class Oracle(FixedBudget):
    """Drafts where drafts are right."""

    def __init__(self, stream: Stream) -> None:
        super().__init__(WIDTH)
        self.stream = stream
        self.position: Callable[[], int] = lambda: 0

    def budget(self, request_ids: Any, *, num_other_rows: int = 0) -> list[int]:
        return [WIDTH if CHANCES[self.stream.stretch(self.position())] else 0]


# ----------------------------------------------------------------------------------------------------------- modelled


def modelled(stream: Stream, controller: Controller, cost: Callable[[int], float]) -> list[Step]:
    noise = np.random.default_rng(1)
    steps: list[Step] = []
    position = 0
    if isinstance(controller, Oracle):
        controller.position = lambda: position
    while position < len(CHANCES) * stream.length:
        tree = stream.draft(position, min(WIDTH, controller.budget([0])[0]))
        if tree.num_nodes:
            (tree,) = controller.select([0], [tree])
        (verdict,) = verify_greedy([tree], [stream.text[position : position + tree.num_nodes + 1]])
        seconds = cost(1 + tree.num_nodes)
        controller.update([0], [tree], [verdict], step_time_s=seconds * noise.lognormal(0, 0.05))
        steps.append(Step(position, tree.num_nodes, verdict.accept_length, seconds))
        position += verdict.accept_length
    return steps


class Streams:
    """Several texts at once, each with stretches that its drafter knows and stretches that it does not."""

    def __init__(self, count: int, length: int, *, known: float, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.length = length
        self.texts = rng.integers(0, 1000, (count, length + 64))
        self.is_right = np.empty(self.texts.shape, np.bool_)
        for row in self.is_right:
            position = 0
            while position < len(row):
                size = int(rng.geometric(1 / 40))
                chance = 0.85 if rng.random() < known else 0.2
                row[position : position + size] = rng.random(len(row[position : position + size])) < chance
                position += size

    def draft(self, index: int, position: int, num_nodes: int) -> TokenTree:
        draft = self.texts[index, position : position + num_nodes].copy()
        wrong = ~self.is_right[index, position : position + num_nodes]
        draft[wrong] = (draft[wrong] + 1) % 1000
        depths = np.arange(1, num_nodes + 1)
        return TokenTree(draft.astype(np.int32), (depths - 2).astype(np.int32), None, (0.6**depths).astype(np.float32))


def overlapped(
    draft: Callable[[int, int, int], TokenTree],
    texts: np.ndarray,
    length: int,
    width: int,
    controller: Controller,
    cost: Overlapped,
) -> list[Step]:
    """The order of the engine's steps on a GPU, `budget` asked ahead and `watch` included; until one text has ended.

    Steps count the tokens and nodes of all texts; their position is the first one's.
    """
    noise = np.random.default_rng(1)
    ids = list(range(len(texts)))
    positions = [0] * len(texts)
    empty = [TokenTree.empty()] * len(texts)
    if isinstance(controller, Oracle):
        controller.position = lambda: positions[0]

    def depart() -> tuple[list[TokenTree], bool]:
        budgets = controller.budget(ids)
        if not any(budgets):
            return empty, False
        trees = [draft(i, positions[i], min(width, budget)) for i, budget in zip(ids, budgets, strict=True)]
        return controller.select(ids, trees), True

    steps: list[Step] = []
    (trees, was_asked), is_behind = depart(), False
    while max(positions) < length:
        num_nodes = sum(tree.num_nodes for tree in trees)
        follows = not num_nodes and not any(controller.budget(ids))
        verdicts = verify_greedy(
            trees, [text[p : p + t.num_nodes + 1] for text, p, t in zip(texts, positions, trees, strict=True)]
        )
        seconds = cost.seconds(len(ids) + num_nodes, was_asked=was_asked, is_behind=is_behind)
        num_gained = sum(verdict.accept_length for verdict in verdicts)
        steps.append(Step(positions[0], num_nodes, num_gained, seconds))
        positions = [p + verdict.accept_length for p, verdict in zip(positions, verdicts, strict=True)]
        controller.update(ids, trees, verdicts, step_time_s=seconds * noise.lognormal(0, 0.05))
        if follows:
            watched = controller.watch(ids)
            if any(watched):
                controller.select(
                    ids, [draft(i, positions[i], min(width, n)) for i, n in zip(ids, watched, strict=True)]
                )
            trees, was_asked, is_behind = empty, False, True
        else:
            (trees, was_asked), is_behind = depart(), False
    return steps


def eight_streams() -> list[str]:
    """How plain decoding, 16 nodes throughout and the controller do on eight streams at once, 0.8 s of them."""
    lines = [
        "| steps overlap, eight streams | drafts known | tokens a turn | tokens/s over plain | steps with drafts |",
        "| --- | --- | --- | --- | --- |",
    ]
    for known in (0.0, 0.3, 0.6, 0.9):
        streams = Streams(8, 2000, known=known)
        of_plain = 1.0
        for name, controller, width in (
            ("plain", FixedBudget(0), 16),
            ("always 16", FixedBudget(16), 16),
            ("controller", SpeedController(clock=lambda: 0.0), 16),
        ):
            steps = overlapped(streams.draft, streams.texts, streams.length, width, controller, EIGHT_STREAMS)
            gained = sum(step.num_gained for step in steps)
            speed = gained / sum(step.seconds for step in steps)
            of_plain = speed if name == "plain" else of_plain
            share = sum(step.num_nodes > 0 for step in steps) / len(steps)
            lines.append(f"| {name} | {known} | {gained / len(steps) / 8:.2f} | {speed / of_plain:.3f} | {share:.2f} |")
    return lines


# ----------------------------------------------------------------------------------------------------------- measured


class StreamDrafter:
    """`Stream` as a drafter of the engine."""

    def __init__(self, stream: Stream, num_prompt: int) -> None:
        self.stream, self.num_prompt = stream, num_prompt

    def propose(self, requests: list[DraftRequest]) -> list[TokenTree]:
        return [self.stream.draft(len(r.token_ids) - self.num_prompt, min(WIDTH, r.max_nodes)) for r in requests]

    def commit(self, request_id: int, accepted_token_ids: Any, features: Any = None) -> None: ...

    def close(self, request_id: int) -> None: ...


def measured(length: int, arguments: argparse.Namespace) -> tuple[dict[str, list[Step]], Stream]:
    from infercore.hf import Engine
    from speculative import load_model, prompt_ids, questions

    model, tokenizer = load_model(arguments.model)
    prompt = prompt_ids(tokenizer, questions()[0])
    total = length * len(CHANCES)
    options: dict[str, Any] = {"max_new_tokens": total + 2 * WIDTH, "eos_token_ids": ()}
    plain = Engine(model, tokenizer, num_pages=256)
    stream = Stream(np.array(plain.generate([prompt], **options)[0].token_ids), length)
    curve = plain.cost_curve(refresh=True)
    controllers: dict[str, Controller] = {
        "plain": FixedBudget(0),
        "always 8": FixedBudget(WIDTH),
        "controller": SpeedController(curve, max_nodes=WIDTH),
        "oracle": Oracle(stream),
    }
    engines, handles = {}, {}
    histories: dict[str, list[Step]] = {name: [] for name in controllers}
    for name, controller in controllers.items():
        engines[name] = engine = Engine(model, tokenizer, num_pages=256, controller=controller)
        drafter = StreamDrafter(stream, len(prompt))
        (handles[name],) = engine.submit(engine.request(prompt, drafter=drafter, max_draft_nodes=WIDTH, **options))
        if isinstance(controller, Oracle):
            controller.position = lambda handle=handles[name]: len(handle.output_ids)
        engine.step()  # the prompt, and the first token
    while running := {name: len(handles[name].output_ids) for name in engines if len(handles[name].output_ids) < total}:
        name = min(running, key=running.__getitem__)
        engine = engines[name]
        before = engine.stats.num_rows
        start = time.perf_counter()
        engine.step()
        seconds = time.perf_counter() - start
        gained = len(handles[name].output_ids) - running[name]
        histories[name].append(Step(running[name], engine.stats.num_rows - before - 1, gained, seconds))
    for name, handle in handles.items():
        assert handle.token_ids[:total] == stream.text[:total].tolist(), f"{name} changed the output"
        handle.cancel()
    print("curve measured ahead:", {rows: round(1e3 * s, 1) for rows, s in curve.table().items()}, file=sys.stderr)
    return histories, stream


PROMPT = "Tell me the story of a lighthouse keeper who finds a map in a bottle, from the first evening to the last."


def measured_on_gpu(length: int, rounds: int, model_path: Path | None) -> tuple[dict[str, list[Step]], Stream, str]:
    """As `measured`, by CUDA graphs; also how often rounding changed the text, and what the steps ran on."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from infercore.demo.fetch import ensure_smollm2
    from infercore.hf import Engine

    path = model_path or ensure_smollm2()
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.bfloat16).cuda().eval()
    tokenizer = AutoTokenizer.from_pretrained(path)
    chat = [{"role": "user", "content": PROMPT}]
    prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=True)["input_ids"]
    total = length * len(CHANCES)
    options: dict[str, Any] = {"eos_token_ids": ()}

    def make(controller: Controller | None = None) -> Engine:
        return Engine(model, tokenizer, num_pages=512, max_running=2, fuse_layers=True, controller=controller)

    plain = make()
    text = plain.generate([prompt], max_new_tokens=total + 2 * WIDTH, **options)[0].token_ids
    stream = Stream(np.array(text), length)
    curve = plain.cost_curve(refresh=True)
    decide: dict[str, Callable[[], Controller]] = {
        "plain": lambda: FixedBudget(0),
        "always 8": lambda: FixedBudget(WIDTH),
        "controller": lambda: SpeedController(curve, max_nodes=WIDTH),
        "oracle": lambda: Oracle(stream),
    }
    engines = {name: make(controller()) for name, controller in decide.items()}
    runs: dict[str, list[list[Step]]] = {name: [] for name in decide}
    num_changed = 0
    for round_ in range(rounds + 1):
        for name, engine in engines.items():
            stream.text = np.array(text)
            engine.cache.clear()
            engine.controller = controller = decide[name]()
            drafter = StreamDrafter(stream, len(prompt))
            request = engine.request(
                prompt, max_new_tokens=total + 2 * WIDTH, drafter=drafter, max_draft_nodes=WIDTH, **options
            )
            (handle,) = engine.submit(request)
            if isinstance(controller, Oracle):
                controller.position = lambda handle=handle: len(handle.output_ids)
            engine.step()  # the prompt, and the first token
            steps: list[Step] = []
            while (position := len(handle.output_ids)) < total:
                before = engine.stats.num_rows
                start = time.perf_counter()
                engine.step()
                seconds = time.perf_counter() - start
                gained = len(handle.output_ids) - position
                steps.append(Step(position, engine.stats.num_rows - before - 1, gained, seconds))
                come = handle.output_ids[position:]
                if not np.array_equal(come, stream.text[position : position + gained]):
                    num_changed += round_ > 0
                    so_far = handle.output_ids.tolist()
                    rest = total + 2 * WIDTH - len(so_far)
                    torch.cuda.synchronize()
                    more = plain.generate([prompt + so_far], max_new_tokens=rest, **options)[0].token_ids
                    stream.text[: len(so_far)] = so_far
                    stream.text[len(so_far) :] = more
            handle.cancel()
            engine.step()
            if round_:  # the first one captures
                runs[name].append(steps)
    histories = {
        name: sorted(some, key=lambda steps: sum(step.seconds for step in steps))[len(some) // 2]
        for name, some in runs.items()
    }
    graphs = "; ".join(line for line in engines["controller"].report().splitlines() if line.startswith("graphs"))
    print("curve measured ahead:", {rows: round(1e3 * s, 2) for rows, s in curve.table().items()}, file=sys.stderr)
    return histories, stream, f"rounding changed the text {num_changed} times in {4 * rounds} runs | {graphs}"


# ------------------------------------------------------------------------------------------------------------ results


def table(name: str, histories: dict[str, list[Step]], stream: Stream) -> list[str]:
    """Rows of the table. The bad stretch of plain decoding is what others' time in it is held against, per token."""
    lines = []
    oracle = sum(step.seconds for step in histories["oracle"])

    def per_token(steps: list[Step]) -> float:
        return sum(step.seconds for step in steps) / sum(step.num_gained for step in steps)

    def within(steps: list[Step], stretch: int) -> list[Step]:
        return [step for step in steps if step.position // stream.length == stretch]

    for decider, steps in histories.items():
        bad, again = within(steps, 1), within(steps, 2)
        off = next((i for i in range(len(bad)) if not any(s.num_nodes for s in bad[i : i + 20])), None)
        on = next((i for i, step in enumerate(again) if step.num_nodes), None)
        total = sum(step.seconds for step in steps)
        lines.append(
            f"| {name} | {decider} | {total:.2f} | {total / oracle:.3f} | "
            f"{per_token(bad) / per_token(within(histories['plain'], 1)):.3f} | {'never' if off is None else off} | "
            f"{'never' if on is None else on} |"
        )
    return lines


HEADER = [
    "| costs | decided by | total, s | over the oracle | bad stretch over plain | steps until off | until on |",
    "| --- | --- | --- | --- | --- | --- | --- |",
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--save", action="store_true", help="write table and plot to bench/results/")
    parser.add_argument("--modelled", action="store_true", help="no model: costs from two curves")
    parser.add_argument("--gpu", action="store_true", help="SmolLM2 in bfloat16 by CUDA graphs")
    parser.add_argument("--rounds", type=int, default=3, help="on a GPU")
    parser.add_argument("--commit", help="named in the header of a GPU run, where there is no git")
    parser.add_argument("--length", type=int, default=0, help="tokens a stretch; default 300 measured, 600 modelled")
    parser.add_argument("--threads", type=int, default=0, help="torch threads; 0 leaves torch's choice")
    parser.add_argument("--model", type=Path, help="folder of the model; default: the one that the demo converted")
    arguments = parser.parse_args()
    folder = Path(__file__).parent / "results"
    if arguments.modelled:
        length = arguments.length or 600
        stream = Stream(np.random.default_rng(0).integers(0, 1000, len(CHANCES) * length + 4 * WIDTH), length)
        from speculative import commit

        lines = [f"commit {commit()} | no model: costs from two curves, stretches of {length} tokens", "", *HEADER]
        runs: dict[str, Callable[[Controller], list[Step]]] = {}
        for name, (base, factors) in CURVES.items():
            cost = lambda rows, base=base, factors=factors: base * float(np.interp(rows, ROWS, factors))  # noqa: E731
            runs[name] = lambda controller, cost=cost: modelled(stream, controller, cost)  # type: ignore[misc]
        runs["overlapped (a GPU's)"] = lambda controller: overlapped(
            lambda _, position, num_nodes: stream.draft(position, num_nodes),
            stream.text[None], len(CHANCES) * length, WIDTH, controller, ONE_STREAM,
        )  # fmt: skip
        for name, run in runs.items():
            controllers: dict[str, Controller] = {
                "plain": FixedBudget(0),
                "always 8": FixedBudget(WIDTH),
                "controller": SpeedController(clock=lambda: 0.0),
                "oracle": Oracle(stream),
            }
            lines += table(name, {who: run(how) for who, how in controllers.items()}, stream)
        lines += ["", *eight_streams()]
        text, name = "\n".join(lines), "domain_switch_modelled"
    elif arguments.gpu:
        from engine import machine as gpu

        length = arguments.length or 300
        histories, stream, notes = measured_on_gpu(length, arguments.rounds, arguments.model)
        conditions = (
            f"{gpu(arguments.commit)} | SmolLM2-135M-Instruct bf16, batch 1, fused layers | stretches of {length} "
            f"tokens, drafts right with chance {CHANCES}, whole steps timed, round of median length of "
            f"{arguments.rounds} | {notes}"
        )
        name, image = "domain_switch_gpu", "domain_switch_gpu.png"
    else:
        import torch

        from speculative import commit, machine

        if arguments.threads:
            torch.set_num_threads(arguments.threads)
        length = arguments.length or 300
        histories, stream = measured(length, arguments)
        conditions = (
            f"machine: {machine()} | commit {commit()} | SmolLM2 fp32, batch 1, {torch.get_num_threads()} threads, "
            f"stretches of {length} tokens, drafts right with chance {CHANCES}, whole steps timed"
        )
        name, image = "domain_switch", "domain_switch.svg"
    if not arguments.modelled:
        text = "\n".join([conditions, "", *HEADER, *table("measured", histories, stream)])
        if arguments.save:
            plot(histories, length, folder / image)
    print(text)
    if arguments.save:
        (folder / f"{name}.md").write_text(text + "\n")


def plot(histories: dict[str, list[Step]], length: int, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "domain_switch"
    from matplotlib import pyplot

    figure, (speed, nodes) = pyplot.subplots(2, 1, figsize=(8, 5), sharex=True)
    for decider, steps in histories.items():
        elapsed = np.cumsum([step.seconds for step in steps])
        positions = np.array([step.position + step.num_gained for step in steps])
        speed.plot(positions, elapsed, label=decider, lw=1.2)
        if decider in ("controller", "oracle"):
            nodes.step([step.position for step in steps], [step.num_nodes for step in steps], label=decider, lw=0.9)
    speed.set_ylabel("seconds so far")
    nodes.set_ylabel("nodes verified in the step")
    nodes.set_xlabel("tokens generated")
    for axis in (speed, nodes):
        for boundary in range(1, len(CHANCES)):
            axis.axvline(boundary * length, color="grey", lw=0.6, ls=":")
        axis.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None, dpi=150)


if __name__ == "__main__":
    main()
