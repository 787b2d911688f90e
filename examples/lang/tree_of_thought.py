"""Tree of thought: several plans, several ways to go on from each, every one scored, the best answered from.

python examples/lang/tree_of_thought.py
"""

from smollm2 import smollm2_backend

from infercore.lang import assistant, function, gen, select, user

QUESTION = "A farmer has 17 sheep. All but 9 run away. How many are left?"
GRADES = ("1", "2", "3", "4", "5")


@function
def propose(s, question, branches):
    """A plan, `branches` ways to carry it out, and a grade for each."""
    s += user(f"{question}\nPropose one plan to solve this. Do not solve it yet.")
    s += assistant(gen("plan", max_tokens=32, temperature=0.8))
    s += user("Carry the plan out step by step.")
    ways = s.fork(branches)
    for way in ways:
        way += assistant(gen("solution", max_tokens=48, temperature=0.8))
        way += user("Grade this solution from 1 (wrong) to 5 (right).")
        way += assistant(select("grade", GRADES))
    s.join(ways)


@function
def tree_of_thought(s, question, branches):
    s += "You solve riddles.\n"
    plans = s.fork(branches)
    for plan in plans:
        propose(plan, question, branches)
    s.join(plans)
    return s["solution"], s["grade"]


def main() -> None:
    run = tree_of_thought.run(smollm2_backend(), question=QUESTION, branches=2, seed=1)
    solutions, grades = run.value
    ranked = sorted(
        (
            (grade, text)
            for texts, row in zip(solutions, grades, strict=True)
            for grade, text in zip(row, texts, strict=True)
        ),
        reverse=True,
    )
    for grade, text in ranked:
        print(f"[{grade}] {text.strip()[:100]!r}")


if __name__ == "__main__":
    main()
