"""(b) Orders out of e-mails into a Pydantic model: tokens that the schema forces are not decoded one by one."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from infercore.constrained import json_schema
from infercore.demo import peers
from infercore.demo.scenes.prompts import TokenIds, opening
from infercore.demo.stage import Counts, Outputs, Scene, Stage
from infercore.hf import GrammarProcessor

MAX_NEW_TOKENS = 120
SYSTEM = "You read e-mails with orders and write each order as JSON."


class Order(BaseModel):
    """What the model has to fill in."""

    model_config = ConfigDict(extra="forbid")  # without this any further key is allowed, and none is forced

    customer_name: str = Field(max_length=40)
    payment_method: Literal["credit card", "bank transfer"]
    delivery_city: str = Field(max_length=40)
    item_description: str = Field(max_length=40)
    item_quantity: int = Field(ge=1, le=999)


EXAMPLES = [
    (
        "Hi, this is Tom Baker from Leeds. Please send me three garden chairs. I pay by bank transfer.",
        ("Tom Baker", "bank transfer", "Leeds", "garden chairs", 3),
    ),
    (
        "Good evening, I want six tea cups in Bath. I pay by bank transfer. Regards, Mark Wood",
        ("Mark Wood", "bank transfer", "Bath", "tea cups", 6),
    ),
    (
        "Dear shop, one red bicycle to York, please. I pay by credit card. Thank you, Lucy Green",
        ("Lucy Green", "credit card", "York", "red bicycle", 1),
    ),
]
EMAILS = [
    "Good morning, I need two blue desk lamps in Bristol. I pay by credit card. Anna Keller",
    "Hello, please send 12 wine glasses to Oxford. I pay by bank transfer. Peter Novak",
    "Dear shop, I would like one coffee machine in Cambridge. I pay by credit card. Maria Lopez",
    "Hi! Five notebooks to Manchester, please. I pay by bank transfer. Regards, John Hill",
]
LATER_EMAIL = "Hello, four kitchen knives to Liverpool. I pay by credit card. Yours, Emma Stone"


def play(stage: Stage) -> Scene:
    """Four e-mails in one batch, below three worked examples that all prompts share."""
    prompts = [prompt(stage.tokenizer, email) for email in EMAILS]
    shared = peers.common_prefix(prompts)

    def by_generate() -> Outputs:
        prefix = stage.kept["extraction"] = peers.Kept.of(stage.model, shared)
        processor = GrammarProcessor(grammar(stage))
        outputs = peers.generate_batch(stage.model, prompts, MAX_NEW_TOKENS, prefix=prefix, logits_processor=processor)
        return outputs, Counts(num_reused=len(shared) * (len(prompts) - 1))

    def by_engine() -> Outputs:
        done = stage.engine.generate(prompts, max_new_tokens=MAX_NEW_TOKENS, grammar=grammar(stage))
        return [completion.token_ids for completion in done], Counts.of(done)

    theirs = stage.peer("generate, batch, prefix cache", by_generate, what="extraction", num_expected=MAX_NEW_TOKENS)
    ours = stage.ours(by_engine, what="extraction", num_expected=MAX_NEW_TOKENS)
    texts = [stage.tokenizer.decode(output, skip_special_tokens=True) for output in ours.outputs]
    title = "four e-mails into a Pydantic model, forced tokens not decoded"
    return Scene("extraction", title, EMAILS, texts, ours, [theirs], [validated(texts)])


def prompt(tokenizer: Any, email: str) -> TokenIds:
    """The worked examples, then `email`."""
    messages = [{"role": "system", "content": SYSTEM}]
    for asked, values in EXAMPLES:
        order = Order.model_validate(dict(zip(Order.model_fields, values, strict=True)))
        messages += [{"role": "user", "content": asked}, {"role": "assistant", "content": order.model_dump_json()}]
    return opening(tokenizer, [*messages, {"role": "user", "content": email}])


def validated(texts: list[str]) -> str:
    """How many of the outputs Pydantic accepts as an `Order`: all that were not cut off at `MAX_NEW_TOKENS`."""
    orders = []
    for text in texts:
        try:
            orders.append(Order.model_validate_json(text))
        except ValidationError:
            continue
    return f"validated with Pydantic: {len(orders)} of {len(texts)}" + (f", like {orders[0]!r}" if orders else "")


def grammar(stage: Stage) -> Any:
    """A fresh grammar for each side, so that none profits from masks that the other computed."""
    return json_schema(Order, whitespace="compact").bind(stage.engine.vocabulary)
