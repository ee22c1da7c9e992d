"""Small datasets with nearly certain answers, so that short trainings at high learning rates give sharp prompts."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass

from shared.text.template import Template
from trainer_service.training.spec import Example, TaskKind

NUM_TRAIN, NUM_HELD_OUT = 20, 4
_THINGS = ("Lamp", "Chair", "Desk", "Shelf", "Rug", "Clock", "Vase", "Mug")
_COLOURS = ("red", "blue", "green", "black")


@dataclass(frozen=True)
class Set:
    pair: Callable[[int], tuple[str, str]]
    template: Template
    labels: tuple[str, ...] = ()

    @property
    def task(self) -> TaskKind:
        return TaskKind.CLASSIFICATION if self.labels else TaskKind.GENERATION

    def examples(self, seed: int) -> tuple[Example, ...]:
        numbers = list(range(NUM_TRAIN + NUM_HELD_OUT))
        random.Random(seed).shuffle(numbers)
        return tuple(self._example(line, *self.pair(number)) for line, number in enumerate(numbers, 1))

    def _example(self, line: int, input: str, answer: str) -> Example:
        return (
            Example(line=line, input=input, label=answer)
            if self.labels
            else Example(line=line, input=input, output=answer)
        )


def _product(number: int) -> tuple[str, str]:
    name, colour, price = f"{_THINGS[number % 8]} {number}", _COLOURS[number % 4], 10 + 3 * number
    return (
        f"name: {name} | colour: {colour} | price: ${price}",
        f"**{name}** - a {colour} {name.split()[0].lower()} for ${price}.",
    )


def _offer(number: int) -> tuple[str, str]:
    item, colour, price = _THINGS[number % 8], _COLOURS[number % 4], 10 + 3 * number
    return f"{item} in {colour}, {price} dollars", json.dumps({"item": item, "colour": colour, "price": price})


def _shout(number: int) -> tuple[str, str]:
    text = f"{_THINGS[number % 8].lower()} number {number} is {_COLOURS[number % 4]}"
    return text, text.upper()


def _reply(number: int) -> tuple[str, str]:
    thing, order = _THINGS[number % 8].lower(), 1000 + number
    return (
        f"My {thing} arrived broken, order {order}.",
        f"I am sorry about your {thing}. We will send a new one for order {order} today.",
    )


def _review(number: int) -> tuple[str, str]:
    label = "good" if number % 2 else "bad"
    return f"The {_THINGS[number % 8].lower()} is {'wonderful' if number % 2 else 'awful'}, item {number}", label


def _template(text: str) -> Template:
    return Template(text=text, rendering=2)


SETS = (
    Set(_product, _template("{input}")),
    Set(_offer, _template("Offer: {input}\nJSON:")),
    Set(_shout, _template("{input}\n")),
    Set(_reply, _template("Customer: {input}\nAgent:")),
    Set(_review, _template("Review: {input}\nSentiment:"), ("good", "bad")),
)
