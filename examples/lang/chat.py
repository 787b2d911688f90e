"""A chat of several turns, streamed; each turn computes only what is new in it.

python examples/lang/chat.py
"""

from smollm2 import smollm2_backend

from infercore.lang import DoneEvent, assistant, function, gen, system, user

QUESTIONS = ("What is the capital of France?", "What river runs through it?", "Name one dish from there.")


@function
def chat(s, questions):
    s += system("You are a friendly travel guide. Answer in one short sentence.")
    for i, question in enumerate(questions):
        s += user(question)
        s += assistant(gen(f"answer {i}", max_tokens=32, stop="\n"))


def main() -> None:
    for event in chat.stream(smollm2_backend(), questions=QUESTIONS):
        if isinstance(event, DoneEvent):
            print()
            for message in event.run.messages:
                print(f"{message['role']:>9}: {message['content']}")
        else:
            print(event.text, end="", flush=True)


if __name__ == "__main__":
    main()
