"""Parallel tips: an outline, one expansion per point side by side, and a summary of all.

python examples/lang/tips.py
"""

from smollm2 import smollm2_backend

from infercore.lang import assistant, function, gen, user

POINTS = ("sleep", "food", "sport")


@function
def tips(s, topic):
    s += user(f"Give me advice on {topic}: " + ", ".join(POINTS) + ". One point at a time.")
    forks = s.fork(len(POINTS))
    for fork, point in zip(forks, POINTS, strict=True):
        fork += assistant(f"About {point}:", gen("tip", max_tokens=24, stop="\n"))
    s.join(forks)
    s += assistant("".join(f"- {point}: {tip}\n" for point, tip in zip(POINTS, s["tip"], strict=True)))
    s += user("Put that into one sentence.")
    s += assistant(gen("summary", max_tokens=32, stop="\n"))
    return s["summary"]


def main() -> None:
    run = tips.run(smollm2_backend(), topic="staying healthy")
    for point, tip in zip(POINTS, run["tip"], strict=True):
        print(f"{point}: {tip}")
    print(f"In short: {run.value}")


if __name__ == "__main__":
    main()
