"""What the graders share.

A grader is given two modules, the one with the reader's chunk and the one with the
book's. It raises Wrong with one sentence, or returns the race: a function that takes a
module and returns the call to be timed. Beside the right result each knows what the usual
mistakes lead to, and so can name them.
"""
from __future__ import annotations

from typing import Any, Callable, Iterator

import numpy as np

from exercises.chunks import Module, Wrong
from exercises.diagnose import (
    agree, Array, check, check_gradient, Mistakes, seen, Untouched,
)

Race = Callable[[Module], Callable[[], object]]
Grader = Callable[[Module, Module], Race]
GRADERS: dict[str, Grader] = {}
LUCK: list[int] = []  # a number that makes all others different, in proof.py


def grader(name: str) -> Callable[[Grader], Grader]:
    """Enter a function into GRADERS as the one for this chunk."""
    def remember(function: Grader) -> Grader:
        GRADERS[name] = function
        return function
    return remember


def normal(*shape: int, seed: int = 0, dtype: Any = np.float64) -> Array:
    return np.random.default_rng([seed, *LUCK]).normal(size=shape).astype(dtype)


def find_parameters(layer: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every parameter of a layer, and of the layers within, with its path."""
    for name, value in vars(layer).items():
        if hasattr(value, "grad"):
            yield path + name, value
        elif hasattr(value, "backward"):
            yield from find_parameters(value, f"{path}{name}.")


def in_other_memory(*arrays: Array) -> Iterator[tuple[str, list[Array]]]:
    """The same numbers laid out otherwise, beside what is said of them."""
    yield "in Fortran order", [np.asfortranarray(array) for array in arrays]
    yield "that are views of larger ones", [spread(array) for array in arrays]
    yield "that are read-only", [frozen(array) for array in arrays]


def spread(array: Array) -> Array:
    """A view with gaps between its elements in memory, along every axis."""
    wide = np.zeros([2 * n for n in array.shape], array.dtype)
    view = wide[(slice(None, None, 2),) * array.ndim]
    view[...] = array
    return view


def frozen(array: Array) -> Array:
    array = array.copy()
    array.flags.writeable = False
    return array


def compare_layers(make: Callable[[Module], Any], mine: Module, book: Module,
                   runs: list[tuple[Array, Array]], mistakes: dict[str, Mistakes] = {},
                   factors: dict[str, float] = {}) -> None:
    """Run two layers forward and backward on each pair (x, dy), and compare them.

    The first pair is tried in other layouts in memory, too.
    """
    layers = make(mine), make(book)
    for number, (x, dy) in enumerate(runs):
        named = {} if number else mistakes  # they were computed for the first
        dx = compare_run("", layers, x, dy, named, factors)
        check_again(layers[0], dy, dx, [dict(find_parameters(layer)) for layer in layers])
    for kind, (x, dy) in in_other_memory(*runs[0]):
        compare_run(f"For arrays {kind}, ", layers, x, dy, {}, factors)


def compare_run(when: str, layers: tuple[Any, Any], x: Array, dy: Array,
                mistakes: dict[str, Mistakes], factors: dict[str, float]) -> Array | None:
    """Both layers, once forward and once backward; returns our dx."""
    parameters = [dict(find_parameters(layer)) for layer in layers]
    for p in (*parameters[0].values(), *parameters[1].values()):
        p.grad[...] = 1
    before = {name: p.grad for name, p in parameters[0].items()}
    with Untouched(x=x):
        y, right_y = (layer.forward(x) for layer in layers)
    check(f"{when}the output", y, right_y, mistakes.get("y", {}), factors)
    with Untouched(x=x, dy=dy, **left_by_forward(layers[0])):
        dx, right_dx = (layer.backward(dy) for layer in layers)
    for name, p in parameters[0].items():
        check_gradient(f"{when}{name}.grad", p, before[name], parameters[1][name].grad - 1,
                       mistakes.get(name, {}), factors)
    if right_dx is not None:
        check(f"{when}dx", dx, right_dx, mistakes.get("dx", {}), factors)
        check_owned("dx", dx, dy=dy, x=x)
    return dx


def left_by_forward(layer: Any) -> dict[str, Array]:
    """The arrays that `forward` has kept for `backward`."""
    return {f"self.{name}": value for name, value in vars(layer).items()
            if isinstance(value, np.ndarray)}


def check_owned(what: str, got: Array, **others: Array) -> None:
    """What is returned is the caller's to keep, and to change."""
    for name, array in others.items():
        if np.shares_memory(got, array):
            raise Wrong(f"{what} is {name}, or a view of it: return an array of its own, "
                        "for it is the caller's to keep and to change.")


def check_again(layer: Any, dy: Array, dx: Any, parameters: list[dict[str, Any]]) -> None:
    """A second backward, of -2 dy, goes as the first, and leaves its result alone."""
    first = None if dx is None else dx.copy()
    again = layer.backward(-2 * dy)
    if dx is not None and not agree(dx, first):
        raise Wrong("A second call of `backward` overwrites what the first one returned: "
                    "that was the caller's to keep.")
    if dx is not None and not agree(seen("dx of a second call", again), -2 * first):
        raise Wrong("A second call of `backward` returns something else: nothing may be left "
                    "over from the first.")
    for name, p in parameters[0].items():
        if not agree(seen(f"{name}.grad after a second call", p.grad),
                     2 - parameters[1][name].grad):
            raise Wrong(f"A second call of `backward` adds something else to {name}.grad: "
                        "nothing may be left over from the first.")


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
