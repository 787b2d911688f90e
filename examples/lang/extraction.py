"""JSON extraction into a Pydantic model: the text can only be an instance, and what the schema forces is not generated.

python examples/lang/extraction.py
"""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field
from smollm2 import smollm2_backend

from infercore.lang import assistant, function, gen, user

TEXTS = (
    "Ann Lee, 34, is an engineer in Oslo. She joined in 2019.",
    "In 2021 we hired Bob Ray (28) from Lima as a designer.",
)


class Person(BaseModel):
    model_config = ConfigDict(extra="forbid")  # else a schema allows any further keys, and small models invent some

    name: str = Field(max_length=30)
    age: int = Field(ge=0, le=120)
    role: Literal["engineer", "designer", "other"]


@function
def extract(s, text):
    s += user(f"Who is this about? Answer as JSON with name, age and role.\n{text}")
    s += assistant(gen("person", schema=Person, max_tokens=64))
    return s["person"]


def main() -> None:
    backend = smollm2_backend()
    for text, run in zip(TEXTS, extract.run_batch(backend, [{"text": t} for t in TEXTS]), strict=True):
        print(f"{text}\n  {run.value!r}")


if __name__ == "__main__":
    main()
