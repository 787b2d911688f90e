"""A ReAct loop with a calculator: the model thinks, calls the tool, reads the result, until it finishes.

Its Python code looks at what was generated, so it runs op by op; a batch still shares every step.

    python examples/lang/react.py
"""

import ast
import operator

from smollm2 import smollm2_backend

from infercore.lang import function, gen, select

QUESTIONS = ("What is 12 * 7?", "What is 125 + 250?")
_OPERATORS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}


def calculate(expression: str) -> str:
    """The value of an arithmetic expression, or what is wrong with it."""

    def value(node: ast.expr) -> float:
        match node:
            case ast.Constant(value=int() | float() as number):
                return number
            case ast.BinOp(left, op, right) if type(op) in _OPERATORS:
                return _OPERATORS[type(op)](value(left), value(right))
        raise ValueError("only numbers and + - * /")

    try:
        return f"{value(ast.parse(expression.strip(), mode='eval').body):g}"
    except (SyntaxError, ValueError, ZeroDivisionError) as error:
        return f"error: {error}"


@function
def react(s, question, max_steps=3):
    s += (
        "Question: What is 3 * 5?\nThought: I need to multiply.\nAction: calculate\nInput: 3 * 5\nResult: 15\n"
        "Thought: I know the answer.\nAction: finish\nAnswer: 15\n\n"
    )
    s += f"Question: {question}\n"
    for _ in range(max_steps):
        s += "Thought:"
        s += gen("thought", max_tokens=20, stop="\n")
        s += "\nAction:"
        s += select("action", [" calculate", " finish"])
        if s["action"] == " finish":
            break
        s += "\nInput: "
        s += gen("input", regex=r"[0-9]{1,4} [+*/-] [0-9]{1,4}", max_tokens=12)
        s += f"\nResult: {calculate(s['input'])}\n"
    s += "\nAnswer: "
    s += gen("answer", dtype=float, max_tokens=8)
    return s["answer"]


def main() -> None:
    backend = smollm2_backend()
    for question, run in zip(QUESTIONS, react.run_batch(backend, [{"question": q} for q in QUESTIONS]), strict=True):
        print(f"{question} -> {run.value:g}\n{run.text.split(question)[1]}\n")


if __name__ == "__main__":
    main()
