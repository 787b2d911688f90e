"""The programs of bench/lang.py that two peers compute by hand: 100 few-shot questions, and a tree of thought."""

from infercore.lang import assistant, function, gen, select, user

CHOICES = (" positive", " negative")
REVIEWS = [
    f"The {thing} was {how}, and {what}."
    for thing in ("room", "soup", "parcel", "film", "staff")
    for how in ("lovely", "broken", "great", "awful")
    for what in ("we will come back", "nobody helped us", "I told my friends", "it was late", "they smiled")
]


def few_shot_prompt() -> str:
    """51 examples, 1000 tokens of SmolLM2."""
    moods = {"lovely": "positive", "great": "positive", "broken": "negative", "awful": "negative"}
    shots = [f"Review: {r}\nMood: {moods[next(m for m in moods if m in r)]}\n\n" for r in REVIEWS]
    return "Decide whether a review is positive or negative.\n\n" + "".join(shots[i * 37 % 100] for i in range(51))


@function
def few_shot(s, prompt, review):
    s += prompt
    s += f"Review: {review}\nMood:"
    s += select("mood", CHOICES)
    return s["mood"]


RIDDLE = "A farmer has 17 sheep. All but 9 run away. Then 4 come back. How many sheep does the farmer have now?"
PLANS = ("drawing a picture", "counting step by step", "writing an equation")
STYLES = ("short", "careful", "detailed")
GRADES = ("1", "2", "3", "4", "5")


@function
def tree_of_thought(s, riddle):
    """Three plans, three solutions of each, all graded."""
    s += user(riddle)
    plans = s.fork(len(PLANS))
    for plan, how in zip(plans, PLANS, strict=True):
        plan += assistant(f"I will solve this by {how}. Plan:", gen("plan", max_tokens=32))
        plan += user("Carry out this plan.")
        ways = plan.fork(len(STYLES))
        for way, style in zip(ways, STYLES, strict=True):
            way += assistant(f"Here is a {style} solution:", gen("solution", max_tokens=48))
            way += user("Grade this solution from 1 to 5. Answer with the number.")
            way += assistant(select("grade", GRADES))
        plan.join(ways)
    s.join(plans)
    return s["plan"], s["solution"], s["grade"]
