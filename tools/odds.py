"""The true odds of every word that could come next in the small world (chapter 18).

A story is told again with loaded dice, which fall as a script says. So the rules of world.py
are not written twice. Its `Teller` keeps the odds, and adds up both ways to a favourite; so
habit needs no die. Where a script ends, it is run again with each side added; one that leaves
the story tells the odds of the word at which it left, and is dropped.
"""
from __future__ import annotations

from typing import Any, Sequence

from simple_llm.errors import UserError
from simple_llm.world import Teller, World


class Oracle(Teller):
    """A teller whose dice fall as a script says, and who stops where it ends."""

    def __init__(self, script: Sequence[Any]) -> None:
        super().__init__(self)  # it is its own dice
        self.script = iter(script)

    def choice(self, sides: Sequence[Any]) -> Any:
        self.sides = sides
        return next(self.script)  # StopIteration at its end

    def random(self) -> float:
        return self.coin

    def flip(self, chance: float) -> bool:
        self.coin = self.choice((0.0, 1.0))  # heads, or tails
        return super().flip(chance)

    def choose(self, *how: Any) -> str:
        self.coin = 1.0  # never by habit
        return super().choose(*how)


def odds(world: World, words: Sequence[str]) -> list[dict[str, float]]:
    """For each word of a story, the odds of every word that could have come."""
    found: list[dict[str, float]] = [{} for _ in words]
    scripts: list[tuple[Any, ...]] = [()]
    while scripts:
        script = scripts.pop()
        oracle = Oracle(script)
        try:
            world.tell_with(oracle)
        except StopIteration:
            if oracle.words == list(words[: len(oracle.words)]):
                scripts += [(*script, side) for side in oracle.sides]
        for at, came, word, p in zip(found, words, oracle.words, oracle.probabilities):
            at[word] = p
            if word != came:
                break
    for at, came in zip(found, words):
        if came not in at:
            raise UserError(f"no story has {came!r} here, but {' or '.join(at)}")
    return found
