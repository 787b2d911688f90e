"""Few-shot classification: the examples are computed once, and every question adds one short row of its own.

python examples/lang/few_shot.py
"""

from smollm2 import smollm2_backend

from infercore.lang import function, select

EXAMPLES = (
    ("The soup was cold and the waiter rude.", "negative"),
    ("A lovely evening, we will come back!", "positive"),
    ("My parcel arrived broken, and nobody answers.", "negative"),
    ("Fast delivery and great quality.", "positive"),
)
REVIEWS = (
    "I have never slept so well in a hotel.",
    "The battery died after two days.",
    "What a wonderful film!",
    "They charged me twice and will not pay it back.",
)


@function
def classify(s, review):
    s += "Decide whether a review is positive or negative.\n\n"
    for text, mood in EXAMPLES:
        s += f"Review: {text}\nMood: {mood}\n\n"
    s += f"Review: {review}\nMood:"
    s += select("mood", [" positive", " negative"])
    return s["mood"]


def main() -> None:
    backend = smollm2_backend()
    for review, run in zip(REVIEWS, classify.run_batch(backend, [{"review": r} for r in REVIEWS]), strict=True):
        print(f"{run['mood'].strip():>9}  {review}")


if __name__ == "__main__":
    main()
