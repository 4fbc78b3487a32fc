"""Graders for chapters 8 and 9: the model and training."""
from __future__ import annotations

from types import SimpleNamespace
from typing import Any, Callable

import numpy as np

from exercises.attention import time_attention
from exercises.chunks import Module, Wrong
from exercises.common import check_owned, compare_layers, grader, normal, Race, spread
from exercises.diagnose import (
    agree, Array, check, check_cases, check_gradient, seen, Untouched,
)


# Chapter 8

class Half:
    """A part of a block: bends going forward; going back it is a plain product."""

    def __init__(self, width: int, seed: int) -> None:
        self.W, self.caches = 0.5 * normal(width, width, seed=seed), []

    def forward(self, x: Array, cache: Any = None) -> Array:
        self.caches.append(cache)
        return np.tanh(x @ self.W)

    def backward(self, dy: Array) -> Array:
        return dy @ self.W.T


@grader("run-a-block")
def grade_block(mine: Module, book: Module) -> Race:
    x, dy = normal(2, 3, 4), normal(2, 3, 4, seed=9)
    one, att, two, feed = parts = [Half(4, seed) for seed in range(4)]
    f = [part.forward for part in parts]
    b = [part.backward for part in parts]
    middle = x + f[1](f[0](x))
    block = mine.Block(*parts)
    att.caches.clear()
    with Untouched(x=x):
        y = block.forward(x, "a cache")
    if "a cache" not in att.caches:
        raise Wrong("The attention is not given the cache.")
    check("The output", y, middle + f[3](f[2](middle)), {
        "lacks the residual around attention": f[1](f[0](x)) + f[3](f[2](f[1](f[0](x)))),
        "lacks the residual around feed-forward": f[3](f[2](middle)),
        "lacks both residuals": f[3](f[2](f[1](f[0](x)))),
        "lacks the feed-forward": middle,
        "feeds x to the feed-forward, not the stream with attention in it":
            middle + f[3](f[2](x)),
        "adds x a second time, not the stream after attention": x + f[3](f[2](middle)),
        "lacks the first norm": (m := x + f[1](x)) + f[3](f[2](m)),
        "lacks the second norm": middle + f[3](middle),
        "normalizes after adding: GPT-2 does so before each part":
            f[2]((m := f[0](x + f[1](x))) + f[3](m)),
        "normalizes after adding: GPT-2 does so before attention":
            (m := f[0](x + f[1](x))) + f[3](f[2](m)),
        "uses norm_1 twice": middle + f[3](f[0](middle)),
        "has the two norms exchanged": (m := x + f[1](f[2](x))) + f[3](f[0](m)),
        "lacks the feed-forward, though it has the norm before it": middle + f[2](middle),
        "lacks attention": x + f[3](f[2](x)),
        "lacks attention, though it has the norm before it":
            (m := x + f[0](x)) + f[3](f[2](m)),
        "has attention subtracted, where it is added": (m := x - f[1](f[0](x))) + f[3](f[2](m)),
        "has the feed-forward subtracted, where it is added": middle - f[3](f[2](middle))})
    dm = dy + b[2](b[3](dy))
    with Untouched(dy=dy):
        dx = block.backward(dy)
    check("dx", dx, dm + b[0](b[1](dm)), {
        "lacks the gradient that skips the feed-forward":
            (m := b[2](b[3](dy))) + b[0](b[1](m)),
        "lacks the gradient that skips attention": b[0](b[1](dm)),
        "lacks both gradients that skip": b[0](b[1](b[2](b[3](dy)))),
        "sends dy back through attention, not what the feed-forward has added to it":
            dm + b[0](b[1](dy)),
        "sends only dy past attention": dy + b[0](b[1](dm)),
        "goes through the parts in the order of `forward`":
            (m := dy + b[1](b[0](dy))) + b[3](b[2](m)),
        "lacks the norms": (m := dy + b[3](dy)) + b[1](m),
        "goes through each norm before its part":
            (m := dy + b[3](b[2](dy))) + b[1](b[0](m)),
        "goes through norm_2 before the feed-forward: going back, it comes after":
            (m := dy + b[3](b[2](dy))) + b[0](b[1](m)),
        "goes through norm_1 before attention: going back, it comes after":
            dm + b[1](b[0](dm)),
        "stops after the feed-forward": dm,
        "does not go back through the feed-forward": dy + b[0](b[1](dy)),
        "goes back through norm_2, but not through the feed-forward":
            (m := dy + b[2](dy)) + b[0](b[1](m)),
        "goes back through the feed-forward, but not through norm_2":
            (m := dy + b[3](dy)) + b[0](b[1](m)),
        "goes back through norm_1, but not through attention": dm + b[0](dm),
        "goes back through attention, but not through norm_1": dm + b[1](dm),
        "has a minus where the two gradients are added, at attention": dm - b[0](b[1](dm)),
        "has a minus where the two gradients are added, at the feed-forward":
            (m := dy - b[2](b[3](dy))) + b[0](b[1](m))})
    check_owned("The output", y, x=x)
    check_owned("dx", dx, dy=dy)

    def make(module: Module, dtype: Any = np.float32) -> Any:
        none = module.Dropout(0.0, np.random.default_rng(0))
        feed = module.FeedForward(
            module.Linear(0.1 * normal(64, 256, dtype=dtype)), module.GELU(),
            module.Linear(0.1 * normal(256, 64, dtype=dtype)), none)
        return module.Block(module.LayerNorm(64, dtype), time_attention(module),
                            module.LayerNorm(64, dtype), feed)

    big, dbig = (normal(8, 64, 64, dtype=np.float32, seed=seed) for seed in (0, 1))
    compare_layers(make, mine, book, [(big[:2, :9], dbig[:2, :9]), (big[:1], dbig[:1]),
                                      (big[:1, :1], dbig[:1, :1])])

    def race(module: Module) -> Callable[[], object]:
        block = make(module)
        return lambda: (block.forward(big), block.backward(dbig))
    return race


@grader("go-all-the-way-back")
def grade_model_backward(mine: Module, book: Module) -> Race:
    ids, targets = np.array([[3, 1, 3], [0, 4, 2]]), np.array([[1, 3, -1], [4, 2, 2]])

    def make(module: Module, dtype: Any = np.float64, dropout: float = 0.0) -> Any:
        config = module.Config(vocab_size=6, context_length=5, d_model=8, n_layers=2,
                               n_heads=2, dropout=dropout)
        model = module.SimpleLLM(config, dtype=dtype)
        model.loss(ids, targets)
        for p in model.parameters():
            p.grad[...] = 1
        return model

    ours, right, output, forward, alone = (
        make(module) for module in (mine, book, book, book, book))
    tops: list[Array] = []
    output.tokens.backward = lambda dx: tops.append(dx.copy())
    forward.blocks = forward.blocks[::-1]
    for block in alone.blocks:
        block.backward = lambda dx, backward=block.backward: (backward(dx), dx)[1]
    for model in (ours, right, output, forward, alone):
        model.backward()
    forward.blocks = forward.blocks[::-1]  # so that its parameters come in the same order
    head = output.tokens.weight.grad - 1
    table = right.tokens.weight.grad - 1
    got = flat_gradient(ours)
    if agree(got, flat_gradient(right) - 1):
        raise Wrong("Every gradient is overwritten: gradients are added.")
    if agree(got, flat_gradient(forward)):
        raise Wrong("The gradient goes through the blocks in the order of `run`: the last "
                    "block comes first.")
    if agree(got, flat_gradient(alone)):
        raise Wrong("What a block returns is not passed on: each block gets the gradient "
                    "that came from the one above it.")
    first = np.zeros((2, 5, 8))
    first[:, :3] = tops[0]
    mistakes = {"transformer.wte.weight": {
        "lacks what comes through the output: the table is used at both ends": table - head,
        "lacks what comes through the input: the table is used at both ends": head},
        "transformer.wpe.weight": {
            "is that of the first story only: all use the same positions, so their "
            "gradients are added": first[0],
            "is in the last rows of the table: the T positions are its first":
                np.roll(first.sum(axis=0), 2, axis=0)}}
    names = [name for name, _ in right.named_parameters()]
    grads = [dict(model.named_parameters()) for model in (ours, right)]
    for name in sorted(names, key=lambda n: (not n.startswith("transformer.ln_f"),
                                             "wpe" in n or "wte" in n)):
        check_gradient(f"The gradient of {name}", grads[0][name], grads[0][name].grad,
                       grads[1][name].grad - 1, mistakes.get(name, {}),
                       {"the batch size B": 2, "the length T": 3,
                        "the number of targets": 5})
    try:
        ours.backward()
    except Exception as error:
        if not isinstance(error, RuntimeError):
            raise
    else:
        raise Wrong("A second backward() without a loss() between is not refused: it would "
                    "add gradients that are no longer true; test and clear self.ready.")
    dropped = [make(module, dropout=0.5) for module in (mine, book)]
    for model in dropped:
        model.reseed([1])
        model.train()
        model.loss(ids, targets)
        model.backward()
    if not agree(seen("The gradient with dropout", flat_gradient(dropped[0])),
                 flat_gradient(dropped[1])):
        raise Wrong("With dropout it differs: the gradient goes back through self.drop, too.")
    for model in dropped:                  # once more, as in the next step of training
        model.loss(ids, targets)
        model.backward()
    if not agree(seen("The gradient of a second step", flat_gradient(dropped[0])),
                 flat_gradient(dropped[1])):
        raise Wrong("In a second step it differs: nothing may be left over from the first.")
    for shape in ((1, 5), (3, 1)):
        check_batch(make, mine, book, shape)
    small, right_small = make(mine, np.float32), make(book, np.float32)
    small.backward(), right_small.backward()
    check("The gradient for float32", flat_gradient(small), flat_gradient(right_small))
    other, arrived = make(mine), []
    other.embed_backward = arrived.append
    other.backward()
    if len(arrived) != 1:
        raise Wrong("It goes past self.embed_backward: a model with other positions, as in "
                    "chapter 16, has one of its own.")

    def race(module: Module) -> Callable[[], object]:
        model = module.SimpleLLM(module.Config(27, 64))
        batch = np.arange(512).reshape(8, 64) % 27

        def both() -> None:
            model.loss(batch, batch)
            model.backward()
        return both
    return race


def check_batch(make: Callable[..., Any], mine: Module, book: Module,
                shape: tuple[int, int]) -> None:
    """The gradient of another batch: as long as the context, or of one position."""
    batch = np.arange(shape[0] * shape[1]).reshape(shape) % 6
    models = make(mine), make(book)
    for model in models:
        model.loss(batch, batch[::-1, ::-1])
        model.backward()
    check(f"For a batch of the shape {shape}, the gradient", *map(flat_gradient, models))


def flat_gradient(model: Any) -> Array:
    """All gradients of a model, one behind the other."""
    return np.concatenate([p.grad.ravel() for p in model.parameters()])


# Chapter 9

Layout = Callable[[Array], Array]
SHAPES = (2, 3), (3,), (1, 2), (1,)       # of the parameters that are graded with
MATRICES = np.repeat([True, False, True, False], [6, 3, 2, 1])


def numbers(seed: int = 0) -> Array:
    return normal(12, seed=seed)


def make_parameters(dtype: Any = np.float64, scale: float = 1.0,
                    layout: Layout = np.array) -> list[Any]:
    """What an optimizer is given; data and grad are slices of `numbers`."""
    cuts = np.cumsum([np.prod(shape) for shape in SHAPES])[:-1]
    return [SimpleNamespace(data=layout(data.reshape(shape).astype(dtype)),
                            decays=len(shape) == 2,
                            grad=layout((scale * grad.reshape(shape)).astype(dtype)))
            for shape, data, grad in zip(SHAPES, np.split(numbers(), cuts),
                                         np.split(numbers(1), cuts))]


def together(parameters: list[Any], what: str = "data") -> Array:
    return np.concatenate([getattr(p, what).ravel() for p in parameters])


def steps(optimizer: Any, parameters: list[Any], rates: tuple[float, ...]) -> Array:
    """The movement of the parameters in some steps, with a new gradient before each."""
    arrays = [(p.data, p.grad) for p in parameters]
    for number, rate in enumerate(rates):
        for p, grad in zip(parameters, np.split(numbers(number + 1), np.cumsum(
                [p.data.size for p in parameters])[:-1])):
            p.grad[...] = grad.reshape(p.grad.shape)
        with Untouched(**{f"p.grad, of parameter {i}": p.grad
                          for i, p in enumerate(parameters)}):
            optimizer.step(rate)
        for p, (data, grad) in zip(parameters, arrays):
            if p.data is not data or p.grad is not grad:
                raise Wrong("p.data is bound to a new array: change the one that is there, "
                            "with -=, for others may hold it, too.")
    return together(parameters) - numbers().astype(parameters[0].data.dtype)


@grader("sgd")
def grade_sgd(mine: Module, book: Module) -> Race:
    rates = (0.1, 0.3, 0.2)
    g = [numbers(number + 1) for number in range(3)]

    def by_hand(keep: float, take: float, late: bool = True) -> Array:
        v, moved = 0 * g[0], 0 * g[0]
        for rate, each in zip(rates, g):
            v = keep * v + take * each * (1 if late else rate)
            moved = moved - (v * rate if late else v)
        return moved

    nesterov, v = 0 * g[0], 0 * g[0]
    for rate, each in zip(rates, g):
        v = 0.5 * v + each
        nesterov = nesterov - rate * (each + 0.5 * v)
    for momentum in (0.0, 0.5):
        ours, right = (steps(module.SGD(ps := make_parameters(), momentum), ps, rates)
                       for module in (mine, book))
        check("The movement of the parameters", ours, right, {
            "goes uphill: a step is against the gradient": -right,
            "lacks the learning rate": -sum(g),
            "keeps the whole of v: it decays by μ": by_hand(1, 1),
            **({} if not momentum else {
                "ignores the momentum: v keeps μ times what it was": by_hand(0, 1),
                "weighs the gradient with 1 - μ; here v = μ v + g": by_hand(0.5, 0.5),
                "has the learning rate within v: it belongs to the step":
                    by_hand(0.5, 1, late=False),
                "is Nesterov's variant, not the plain one": nesterov})})
    check("The movement for float32", *(
        steps(module.SGD(ps := make_parameters(np.float32), 0.5), ps, rates)
        for module in (mine, book)))
    for kind, layout in LAYOUTS.items():
        check(f"For parameters {kind}, the movement", *(
            steps(module.SGD(ps := make_parameters(layout=layout), 0.5), ps, rates)
            for module in (mine, book)))
    check("Without a `momentum`, which then is 0, the movement", *(
        steps(module.SGD(ps := make_parameters()), ps, rates) for module in (mine, book)))
    both = [mine.SGD(ps, 0.5) for ps in (make_parameters(), make_parameters())]
    steps(both[0], both[0].parameters, rates)
    check("If another optimizer has worked before, the movement",
          steps(both[1], both[1].parameters, rates),
          steps(book.SGD(ps := make_parameters(), 0.5), ps, rates))
    return time_step("SGD")


LAYOUTS: dict[str, Layout] = {"in Fortran order": np.asfortranarray,
                              "that are views of larger arrays": spread}


def time_step(name: str) -> Race:
    def race(module: Module) -> Callable[[], object]:
        p = SimpleNamespace(data=normal(400, 266, dtype=np.float32), decays=True,
                            grad=normal(400, 266, seed=1, dtype=np.float32))
        optimizer = getattr(module, name)([p])
        return lambda: optimizer.step(1e-6)
    return race


RATES, B1, B2, EPS, DECAY = (0.1, 0.3, 0.2), 0.8, 0.95, 1e-3, 0.2  # for AdamW


def adamw_by_hand(
        mean: Callable[..., Any] = lambda m, g: B1 * m + (1 - B1) * g,
        square: Callable[..., Any] = lambda v, g: B2 * v + (1 - B2) * g**2,
        step: Callable[..., Any] = lambda m, v, c1, c2: m / c1 / (np.sqrt(v / c2) + EPS),
        decay: Callable[..., Any] = lambda x, rate: rate * DECAY * MATRICES * x,
        penalty: float = 0, late: bool = False, first: int = 1,
        rates: tuple[float, ...] = RATES) -> Array:
    """The movement of the parameters in three steps, by these formulas."""
    m, v, x = np.zeros(12), np.zeros(12), numbers()
    for t, rate in enumerate(RATES):
        g = numbers(t + 1) + penalty * MATRICES * x
        m, v = mean(m, g), square(v, g)
        moved = rates[t] * step(m, v, 1 - B1 ** (t + first), 1 - B2 ** (t + first))
        x = x - moved - decay(x - moved if late else x, rate)
    return x - numbers()


def adamw_mistakes() -> dict[str, Array]:
    """Where the usual mistakes lead; c1 and c2 are the corrections of m and v."""
    root = np.sqrt
    wrong_step: dict[str, Callable[..., Any]] = {
        "lacks the correction of m at the beginning, 1 - β₁ᵗ":
            lambda m, v, c1, c2: m / (root(v / c2) + EPS),
        "lacks the correction of v at the beginning, 1 - β₂ᵗ":
            lambda m, v, c1, c2: m / c1 / (root(v) + EPS),
        "lacks both corrections at the beginning":
            lambda m, v, c1, c2: m / (root(v) + EPS),
        "lacks √(1 - β₂ᵗ), the correction of v, in the step's length":
            lambda m, v, c1, c2: m / c1 / (root(v) + root(c2) * EPS),
        "has the correction of v outside of the root: it is √v divided by √(1 - β₂ᵗ)":
            lambda m, v, c1, c2: m / c1 / (root(v) / c2 + EPS),
        "lacks ε": lambda m, v, c1, c2: m / c1 / root(v / c2),
        "has ε within the root; it is added to the root":
            lambda m, v, c1, c2: m / c1 / root(v / c2 + EPS),
        "has ε within the root of v, which is not corrected yet; it is added to the root":
            lambda m, v, c1, c2: m / c1 * root(c2) / root(v + EPS),
        "has ε times √(1 - β₂ᵗ) within the root; it is added to the root":
            lambda m, v, c1, c2: m / c1 * root(c2) / root(v + root(c2) * EPS),
        "adds ε to √v, not to the corrected root: if √(1 - β₂ᵗ) goes into the step's "
        "length, ε must be multiplied by it":
            lambda m, v, c1, c2: m / c1 * root(c2) / (root(v) + EPS),
        "goes uphill: a step is against the gradient":
            lambda m, v, c1, c2: -m / c1 / (root(v / c2) + EPS),
        "lacks the root over v": lambda m, v, c1, c2: m / c1 / (v / c2 + EPS),
        "lacks the root over v, but not over its correction":
            lambda m, v, c1, c2: m / c1 * root(c2) / (v + root(c2) * EPS),
        "has m and v exchanged: it is m that is divided by the root of v":
            lambda m, v, c1, c2: v / c2 / (root(m / c1) + EPS),
        "has m multiplied by 1 - β₁ᵗ, where it is divided":
            lambda m, v, c1, c2: m * c1 / (root(v / c2) + EPS),
        "has v multiplied by 1 - β₂ᵗ, where it is divided":
            lambda m, v, c1, c2: m / c1 / (root(v * c2) + EPS),
        "has β₁ᵗ where 1 - β₁ᵗ belongs":
            lambda m, v, c1, c2: m / (1 - c1) / (root(v / c2) + EPS),
        "has β₂ᵗ where 1 - β₂ᵗ belongs":
            lambda m, v, c1, c2: m / c1 / (root(v / (1 - c2)) + EPS),
        "is multiplied by √v̂ + ε, where it is divided":
            lambda m, v, c1, c2: m / c1 * (root(v / c2) + EPS),
        "has 1 - β₁ where 1 - β₁ᵗ belongs: t is missing":
            lambda m, v, c1, c2: m / (1 - B1) / (root(v / c2) + EPS),
        "has 1 - β₂ where 1 - β₂ᵗ belongs: t is missing":
            lambda m, v, c1, c2: m / c1 / (root(v / (1 - B2)) + EPS),
        "is not divided by √v̂ + ε": lambda m, v, c1, c2: m / c1,
        "is never made: only the decay moves them": lambda m, v, c1, c2: 0}
    wrong_decay: dict[str, Callable[..., Any]] = {
        "lacks the weight decay": lambda x, rate: 0,
        "lets all parameters decay: biases and gains must not, only those with "
        "p.decays": lambda x, rate: rate * DECAY * x,
        "lets biases and gains decay, and not the matrices, those with p.decays":
            lambda x, rate: rate * DECAY * ~MATRICES * x,
        "has a decay by weight_decay alone: the learning rate is a factor of it, too":
            lambda x, rate: DECAY * MATRICES * x,
        "has a decay by the learning rate alone: weight_decay is a factor of it, too":
            lambda x, rate: rate * MATRICES * x,
        "lets the matrices grow, not decay": lambda x, rate: -rate * DECAY * MATRICES * x,
        "leaves of the matrices only what should be taken away":
            lambda x, rate: MATRICES * (x - rate * DECAY * x)}
    return {
        **{sentence: adamw_by_hand(step=step) for sentence, step in wrong_step.items()},
        **{sentence: adamw_by_hand(decay=decay) for sentence, decay in wrong_decay.items()},
        "lacks the learning rate in the step": adamw_by_hand(rates=(1, 1, 1)),
        "has the decay in the gradient, which is divided by √v̂: let the weights "
        "themselves shrink": adamw_by_hand(penalty=DECAY, decay=lambda x, rate: 0),
        "has the decay after the step: it is a part of the weights before the step":
            adamw_by_hand(late=True),
        "takes the first step for the second: self.step_count is 1 in the first":
            adamw_by_hand(first=2),
        "has v of the gradient's absolute value: it is of its square":
            adamw_by_hand(square=lambda v, g: B2 * v + (1 - B2) * np.abs(g)),
        "has β₁ and β₂ exchanged": adamw_by_hand(
            lambda m, g: B2 * m + (1 - B2) * g, lambda v, g: B1 * v + (1 - B1) * g**2,
            lambda m, v, c1, c2: m / c2 / (root(v / c1) + EPS)),
        "is that of a v which is never written": adamw_by_hand(square=lambda v, g: v),
        "has in m the new gradient only: m keeps β₁ times what it was":
            adamw_by_hand(lambda m, g: (1 - B1) * g),
        "has in v the new gradient only: v keeps β₂ times what it was":
            adamw_by_hand(square=lambda v, g: (1 - B2) * g**2),
        "keeps the whole of m, not β₁ times it": adamw_by_hand(lambda m, g: m + (1 - B1) * g),
        "keeps the whole of v, not β₂ times it":
            adamw_by_hand(square=lambda v, g: v + (1 - B2) * g**2),
        "has the gradient itself in v, not its square":
            adamw_by_hand(square=lambda v, g: B2 * v + (1 - B2) * g),
        "lacks the factor 1 - β₁ of the new gradient":
            adamw_by_hand(lambda m, g: B1 * m + g),
        "lacks the factor 1 - β₂ of the gradient's square":
            adamw_by_hand(square=lambda v, g: B2 * v + g**2)}


def run_adamw(module: Module, dtype: Any = np.float64, layout: Layout = np.array) -> list[Array]:
    """The movement of the parameters, m, and v."""
    parameters = make_parameters(dtype, layout=layout)
    optimizer = module.AdamW(parameters, (B1, B2), EPS, DECAY)
    moved = steps(optimizer, parameters, RATES)
    if optimizer.step_count != len(RATES):
        raise Wrong(f"self.step_count is {optimizer.step_count} after {len(RATES)} steps: "
                    "`step` counts them, once for all parameters.")
    for name in ("m", "v"):
        if [np.shape(each) for each in getattr(optimizer, name)] != [*SHAPES]:
            raise Wrong(f"self.{name} has no longer an array for each parameter, of its "
                        "shape.")
    return [moved, *(np.concatenate([each.ravel() for each in getattr(optimizer, name)])
                     for name in ("m", "v"))]


@grader("adamw-step")
def grade_adamw(mine: Module, book: Module) -> Race:
    (got, m, v), (right, right_m, right_v) = map(run_adamw, (mine, book))
    check("The movement of the parameters", got, right, adamw_mistakes())
    if agree(m, right_v) and agree(v, right_m):
        raise Wrong("self.m holds the mean of the squares, and self.v that of the "
                    "gradient: they are exchanged.")
    for name, mean, wanted in (("m", m, right_m), ("v", v, right_v)):
        check(f"The movement is right, but self.{name}", mean, wanted)
    check("The movement for float32", *(run_adamw(module, np.float32)[0]
                                        for module in (mine, book)))
    for kind, layout in LAYOUTS.items():
        check(f"For parameters {kind}, the movement", *(
            run_adamw(module, layout=layout)[0] for module in (mine, book)))
    return time_step("AdamW")


@grader("clip-gradients")
def grade_clip(mine: Module, book: Module) -> Race:
    for scale, limit, dtype, case in (
            (3, 2.0, np.float64, "a gradient longer than the limit"),
            (3, 99.0, np.float64, "a gradient shorter than the limit"),
            (0, 1.0, np.float64, "a gradient of zero"), (1, 1.0, np.float32, "float32")):
        ours, theirs = (make_parameters(dtype, scale) for _ in range(2))
        start, arrays = together(ours, "grad"), [p.grad for p in ours]
        with Untouched(**{f"p.data, of parameter {i}": p.data for i, p in enumerate(ours)}), \
                np.errstate(all="ignore"):
            norm, right = mine.clip_gradients(ours, limit), book.clip_gradients(theirs, limit)
        if any(p.grad is not array for p, array in zip(ours, arrays)):
            raise Wrong("p.grad is bound to a new array: change the one that is there, with "
                        "*=, for others may hold it, too.")
        length, parts = right or 1.0, np.split(start, np.cumsum([a.size for a in arrays])[:-1])
        check(f"For {case}, the gradient", together(ours, "grad"), together(theirs, "grad"), {
            "is cut element by element: its direction must not change":
                np.clip(start, -limit, limit),
            "has each parameter's part shortened for itself: there is one length, of all of "
            "them together": np.concatenate([part * min(
                1, limit / max(1e-30, np.linalg.norm(part))) for part in parts]),
            "is brought to length 1, whatever the limit": start / length,
            "is brought to the limit though it is shorter: it is to stay as it is":
                start * limit / length,
            "is not shortened": start,
            "is divided by its squared length: the root is missing":
                start * limit / length**2})
        if norm is None:
            raise Wrong("It returns None: it is to return the length that the gradient had.")
        if not isinstance(norm, (float, np.floating)):
            raise Wrong(f"It returns a {type(norm).__name__}, not a float.")
        check("The length that is returned", norm, right, {
            "is that of the shortened gradient: return what it was before":
                min(right, limit),
            "is the sum of squares: the root is missing": right**2,
            "is the largest element": np.abs(start).max(),
            "is the sum of the absolute values": np.abs(start).sum(),
            "is the sum of the parameters' lengths": sum(map(np.linalg.norm, parts)),
            "is that of the last parameter alone": np.linalg.norm(parts[-1]),
            "is divided by the root of the number of elements": right / 12**0.5})
    for kind, layout in LAYOUTS.items():
        ours, theirs = (make_parameters(layout=layout) for _ in range(2))
        for module, parameters in ((mine, ours), (book, theirs)):
            module.clip_gradients(parameters, 0.5)
        check(f"For gradients {kind}, the gradient", together(ours, "grad"),
              together(theirs, "grad"))
    one = [SimpleNamespace(grad=normal(2, 3, 4), data=np.zeros(1))]
    check("For one parameter of three axes, the length", mine.clip_gradients(one, 1),
          book.clip_gradients([SimpleNamespace(grad=normal(2, 3, 4))], 1))
    check("For one parameter of three axes, the gradient's new length",
          np.linalg.norm(one[0].grad), np.float64(1))
    big = [SimpleNamespace(grad=normal(266, 400, dtype=np.float32))]
    return lambda module: lambda: module.clip_gradients(big, 1e9)


@grader("learning-rate")
def grade_learning_rate(mine: Module, book: Module) -> Race:
    check_cases(mine.learning_rate, book.learning_rate, {
        "step 0 is the first, and must move already: (step + 1) / warmup": (0, 100, 1.0, 10),
        "it rises in a straight line to the peak": (4, 100, 1.0, 10),
        "the warm-up ends at the peak": (9, 100, 1.0, 10),
        "the cosine begins where the warm-up ends, at the peak": (10, 100, 1.0, 10),
        "half-way down it is in the middle between the peak and a twentieth of it":
            (55, 100, 1.0, 10),
        "it is half a cosine, no straight line": (30, 100, 1.0, 10),
        "the end is a twentieth of the peak, not zero": (100, 100, 1.0, 10),
        "behind the end it stays there, and does not rise again": (130, 100, 1.0, 10),
        "it is in proportion to the peak": (30, 100, 0.004, 10),
        "the warm-up, too, is in proportion to the peak": (4, 100, 0.004, 10),
        "one step may be left for the cosine, which then begins at the peak": (10, 11, 1.0, 10),
        "and behind that one step it is at the end": (11, 11, 1.0, 10),
        "without a warm-up, half-way down it is in the middle": (50, 100, 0.5, 0),
        "there may be no warm-up at all": (0, 100, 1.0, 0),
        "the warm-up may be as long as the training": (10, 10, 1.0, 10),
        "`low`, if it is given, is where it ends": (100, 100, 1.0, 10, 0.3),
        "`low` may be 0: only None stands for a twentieth of the peak":
            (100, 100, 1.0, 10, 0.0),
        "the cosine goes from the peak down to `low`": (55, 100, 1.0, 10, 0.3),
        "`low` is for the end, not for the warm-up": (4, 100, 1.0, 10, 0.7),
        "behind the end it stays at `low`": (130, 100, 1.0, 10, 0.3),
        "without a warm-up it goes down to `low`, too": (25, 100, 0.5, 0, 0.1),
        "`low` may be above the peak": (55, 100, 0.1, 10, 0.3)})
    if not agree(mine.learning_rate(step=55, total_steps=100, peak=1.0, warmup=10, low=0.3),
                 book.learning_rate(55, 100, 1.0, 10, 0.3)):
        raise Wrong("With its arguments given by name it differs: these are step, "
                    "total_steps, peak, warmup and low.")
    return lambda module: lambda: module.learning_rate(300, 1000, 0.004, 100)
