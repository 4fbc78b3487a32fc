"""What the graders share.

A grader is given two modules, the one with the reader's chunk and the one with the
book's. It raises Wrong with one sentence, or returns the race: a function that takes a
module and returns the call to be timed. Beside the right result each knows what the usual
mistakes lead to, and so can name them.
"""
from __future__ import annotations

from typing import Any, Callable

import numpy as np

from exercises.chunks import Module
from exercises.diagnose import Array, check, check_gradient, Mistakes, Untouched
from simple_llm.gradcheck import find_parameters

Race = Callable[[Module], Callable[[], object]]
Grader = Callable[[Module, Module], Race]
GRADERS: dict[str, Grader] = {}


def grader(name: str) -> Callable[[Grader], Grader]:
    """Enter a function into GRADERS as the one for this chunk."""
    def remember(function: Grader) -> Grader:
        GRADERS[name] = function
        return function
    return remember


def normal(*shape: int, seed: int = 0, dtype: Any = np.float64) -> Array:
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


def compare_layers(make: Callable[[Module], Any], mine: Module, book: Module,
                   runs: list[tuple[Array, Array]], mistakes: dict[str, Mistakes] = {},
                   factors: dict[str, float] = {}) -> None:
    """Run two layers forward and backward on each pair (x, dy), and compare them."""
    layers = make(mine), make(book)
    parameters = [dict(find_parameters(layer)) for layer in layers]
    for number, (x, dy) in enumerate(runs):
        if number:
            mistakes = {}          # they were computed for the first
        for p in (*parameters[0].values(), *parameters[1].values()):
            p.grad[...] = 1
        before = {name: p.grad for name, p in parameters[0].items()}
        with Untouched(x=x):
            y, right_y = (layer.forward(x) for layer in layers)
        check("The output", y, right_y, mistakes.get("y", {}), factors)
        with Untouched(x=x, dy=dy):
            dx, right_dx = (layer.backward(dy) for layer in layers)
        for name, p in parameters[0].items():
            check_gradient(f"{name}.grad", p, before[name], parameters[1][name].grad - 1,
                           mistakes.get(name, {}), factors)
        if right_dx is not None:
            check("dx", dx, right_dx, mistakes.get("dx", {}), factors)


def float32(*arrays: Array) -> tuple[Array, ...]:
    return tuple(array.astype(np.float32) for array in arrays)


def time_backward(make: Callable[[Module], Any], x: Array, dy: Array) -> Race:
    def race(module: Module) -> Callable[[], object]:
        layer = make(module)
        layer.forward(x)
        return lambda: layer.backward(dy)
    return race


def rows_to_one(e: Array) -> Array:
    """Softmax."""
    e = np.exp(e - e.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)
