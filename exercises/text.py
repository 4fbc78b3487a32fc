"""Graders for batches, counting, sampling, and files: chapters 3, 4, 10 and 15."""
from __future__ import annotations

import itertools
import json
import tempfile
from pathlib import Path
from typing import Any, Callable

import numpy as np

from exercises.chunks import Module, Wrong
from exercises.common import grader, in_other_memory, normal, Race, rows_to_one
from exercises.diagnose import Array, check, Mistakes, seen, Untouched


# Chapter 3

@grader("pad-the-rows")
def grade_pad_rows(mine: Module, book: Module) -> Race:
    rows = [[5, 6, 7, 2], [8, 2], [9, 4, 2]]
    copy = [list(row) for row in rows]
    got, right = mine.pad_rows(rows), book.pad_rows(rows)
    if got is None:
        raise Wrong("pad_rows returns None: is a `return` missing?")
    if rows != copy:
        raise Wrong("It changes the rows that it was given.")
    ids, targets = right
    length = [len(row) for row in rows]
    late, early, last, padded = ids.copy(), targets.copy(), ids.copy(), targets.copy()
    for b, row in enumerate(rows):
        late[b, : len(row)] = row
        early[b, : len(row)] = [*row[1:], -1]
        last[b, len(row) : len(row) + 1] = 2
        padded[b, len(row) :] = 0
    if np.shape(got.ids)[1:] == (max(length) + 1,):
        raise Wrong("The batch is one column too wide: <bos> comes in, but the last token of "
                    "each row goes out of the ids, so it is as wide as the longest row.")
    check("ids", got.ids, ids, {
        "has no <bos> in front: position 0 sees <bos>, and all else moves by one": late,
        "has <eos> in it, which has nothing to predict": last,
        "has no <bos> at the first position": np.where(ids == 1, 0, ids),
        "is the targets: the two are exchanged": targets,
        "is padded with -1, which is no token": np.where(
            np.arange(max(length)) < np.array(length)[:, None], ids, -1)})
    check("targets", got.targets, targets, {
        "is moved by one: the target at t is what follows the input at t, and <bos> "
        "stands before the row already": early,
        "is <pad> behind the end, so that the model is graded on it; put -1": padded,
        "is the input: every position would only have to copy":
            np.where(targets < 0, -1, ids),
        "is never written: all of it is -1, which does not count": 0 * targets - 1,
        "has behind the end another number than -1, which alone does not count":
            np.where(targets < 0, np.asarray(got.targets).flat[-1], targets)})
    for others in ([[2]], [(7, 2)], [[5, 2], [6, 2]], [(2,), tuple(range(3, 9)), (4, 2)]):
        got, right = mine.pad_rows(others), book.pad_rows(others)
        check(f"For the rows {others}, ids", got.ids, right.ids)
        check(f"For the rows {others}, targets", got.targets, right.targets)
    return lambda module: lambda: module.pad_rows(rows)


# Chapter 4

@grader("count-and-blend")
def grade_ngram(mine: Module, book: Module) -> Race:
    text = [1, 5, 6, 5, 6, 7, 5, 2]
    models = [module.NGram(3, 9) for module in (mine, book)]
    for model in models:
        model.learn(text)
    ours, right = models
    if sum(ours.counts.values()) == 0 or sum(ours.totals.values()) == 0:
        raise Wrong("`learn` leaves `counts` or `totals` empty.")
    if max(map(len, ours.counts)) > 3:
        raise Wrong("`counts` has contexts that are too long: at most n - 1 tokens, and "
                    "the one that follows.")
    if any(len(key) == 1 and key[0] == 1 for key in ours.counts):
        raise Wrong("`learn` counts <bos> as if it had been predicted: begin with the "
                    "token behind it.")
    if ours.counts and () not in ours.totals:
        raise Wrong("`totals` lacks the empty context, which the unigram counts in.")
    for key in right.counts:
        if ours.counts[key] != right.counts[key]:
            raise Wrong(f"`counts[{key}]` is {ours.counts[key]}, not "
                        f"{right.counts[key]}, after learning {text}.")
    for key in right.totals:
        if ours.totals[key] != right.totals[key]:
            raise Wrong(f"`totals[{key}]` is {ours.totals[key]}, not "
                        f"{right.totals[key]}, after learning {text}.")
    for context in [(), (5,), (5, 6), (8, 8)]:
        got = [ours.probability(context, token) for token in range(9)]
        wanted = [right.probability(context, token) for token in range(9)]
        seen = np.array([right.counts[(*context, token)] for token in range(9)])
        total = right.totals[context]
        check(f"The probability after {context}", np.array(got), np.array(wanted), {
            "is of counts alone: blend in that of the shorter context": seen / max(total, 1),
            "lacks that of the shorter context, though the divisor has it": seen / (total + 1),
            "leaves off the wrong token of the context: the first is the farthest away":
                np.array([nearest_left_off(right, context, t) for t in range(9)]),
            **({} if context else {"takes 1 where 1/V belongs": (seen + 1) / (total + 1)}),
            "takes 1/V for the shorter context, which itself has counts":
                (seen + 1 / 9) / (total + 1),
            "forgets that the blended one counts as an observation: divide by one more":
                (seen + np.array([right.probability(context[1:], t) if context else 1 / 9
                                  for t in range(9)])) / max(total, 1)})
    check_other_ngrams(mine, book, text)
    return lambda module: lambda: module.NGram(3, 9).learn(text)


def check_other_ngrams(mine: Module, book: Module, text: list[int]) -> None:
    """Another n, two texts, a tuple, a text of <bos> alone; and texts are left as they are."""
    before = text.copy()
    for n in (1, 2, 4):
        models = mine.NGram(n, 11), book.NGram(n, 11)
        for model in models:
            for each in (text, (1, 6, 5, 2), [1]):
                model.learn(each)
        contexts = [(), (6,), (6, 5), (5, 6, 5)][:n]
        ours, right = (np.array([[model.probability(context, token) for token in range(11)]
                                 for context in contexts]) for model in models)
        check(f"For n = {n} and several texts, the probability", ours, right)
    if text != before:
        raise Wrong("`learn` changes the text that it is given.")


def nearest_left_off(model: Any, context: tuple[int, ...], token: int) -> float:
    """The probability if contexts are shortened at the wrong end."""
    shorter = nearest_left_off(model, context[:-1], token) if context else 1 / 9
    return (model.counts[(*context, token)] + shorter) / (model.totals[context] + 1)


# Chapter 10

@grader("next-token-probabilities")
def grade_probabilities(mine: Module, book: Module) -> Race:
    z = np.log(np.array([0.15, 0.5, 0.05, 0.3], np.float32))
    ours, right = mine.next_token_probabilities, book.next_token_probabilities
    one = np.exp(z.astype(np.float64))

    def power(t: float) -> Array:
        return one**t / (one**t).sum()

    def keep(*tokens: int) -> Array:
        kept = np.isin(np.arange(4), tokens) * one
        return kept / kept.sum()

    cases: list[tuple[dict[str, Any], Mistakes]] = [
        ({}, {"is not divided by its sum": np.exp(z - z.max())}),
        ({"temperature": 0.5}, {
            "is multiplied by the temperature: divide the logits": power(0.5),
            "ignores the temperature": one,
            "has the temperature applied to probabilities, not to logits":
                rows_to_one(one / 0.5)}),
        ({"temperature": 0}, {"is drawn, though temperature 0 is greedy": one}),
        ({"top_k": 2}, {"keeps the first k of the vocabulary, not the likeliest": keep(0, 1),
                        "keeps the least likely tokens": keep(0, 2),
                        "keeps one token too many": keep(0, 1, 3),
                        "keeps one token too few": keep(1),
                        "is not divided by what is left": np.where(keep(1, 3) > 0, one, 0)}),
        ({"top_p": 0.7}, {
            "lacks the token with which the sum reaches top_p: keep that, too": keep(1),
            "keeps one token too many": keep(0, 1, 3),
            "keeps the least likely tokens": keep(0, 2),
            "is not divided by what is left": np.where(keep(1, 3) > 0, one, 0)}),
        ({"top_p": 0.1}, {}),
        ({"top_p": 0.0}, {"has no token left: keep the likeliest in any case": 0 * one,
                          "is 0/0: keep the likeliest in any case": one * np.nan}),
        ({"top_p": 1.0}, {"lacks the least likely token: the sum of those before it is less "
                          "than 1": keep(0, 1, 3)}),
        ({"top_k": 9}, {}),
        ({"top_k": 0}, {"has no token left: a top_k of 0 counts as 1": 0 * one,
                        "is 0/0: a top_k of 0 counts as 1": one * np.nan,
                        "keeps all tokens: a top_k of 0 counts as 1": one}),
        ({"temperature": 2.0, "top_p": 0.75}, {
            "takes top_p of the probabilities before the temperature: first that":
                (kept := power(0.5) * np.isin(np.arange(4), (1, 3))) / kept.sum(),
            "ignores the temperature": keep(1, 3)}),
        ({"temperature": 0.5, "top_k": 2}, {}),
        ({"top_k": 2, "top_p": 0.6}, {
            "takes top_p of what there was before top_k: it is a share of what is left":
                keep(1, 3)}),
        ({"temperature": 0.01}, {}), ({"temperature": 1e-9}, {}),
    ]
    for options, mistakes in cases:
        with Untouched(logits=z), np.errstate(all="ignore"):
            got, wanted = ours(z, **options), right(z, **options)
        given = ", ".join(f"{name}={value}" for name, value in options.items())
        check(f"With {given or 'no options'}, the result", got, wanted,
              {**mistakes, **options_left_out(right, z, options)})
    with np.errstate(all="ignore"):
        check("For logits near 1000, the result", ours(z + 1000), right(z + 1000))
    double = z.astype(np.float64)
    for options in ({}, {"temperature": 2.0, "top_k": 3}):
        with Untouched(**{"logits, which are float64": double}):
            got = ours(double, **options)
        check("For float64, the result", got, right(double, **options))
    check("For four equal logits and top_p=0.5, the result",
          ours(np.zeros(4, np.float32), top_p=0.5), right(np.zeros(4, np.float32), top_p=0.5),
          {"keeps a third, though two reach the sum": np.array([1, 1, 1, 0]) / 3})
    check("For equal logits and top_k=2, the result", ours(np.zeros(4, np.float32), top_k=2),
          right(np.zeros(4, np.float32), top_k=2),
          {"keeps all that are as likely as the k-th: k tokens, no more": np.full(4, 0.25)})
    check("For equal logits and temperature=0, the result",
          ours(np.zeros(4, np.float32), 0), right(np.zeros(4, np.float32), 0),
          {"is shared among the likeliest: greedy takes the first of them": np.full(4, 0.25)})
    check_pairs_of_options(ours, right)
    big = normal(50257, dtype=np.float32)
    return lambda module: lambda: module.next_token_probabilities(big, 0.8, 40, 0.9)


def options_left_out(right: Callable[..., Array], z: Array, options: dict[str, Any]
                     ) -> dict[str, Array]:
    """What the result is if an option is not heeded, or another value put in its place."""
    others = [("temperature", 0, "is greedy, as with temperature=0"),
              *((name, None, f"is as if {name} were not given") for name in ("top_k", "top_p")),
              ("temperature", 1.0, "is as if the temperature were 1"),
              ("top_k", 1, "keeps only the likeliest token")]
    return {sentence: right(z, **{**options, name: value}) for name, value, sentence in others}


def check_pairs_of_options(ours: Callable[..., Array], right: Callable[..., Array]) -> None:
    """All options together, with ties, in other layouts; and a vocabulary of one."""
    z = normal(40)
    z[7:27] = z.max() - 0.5  # twenty that are equally likely
    for temperature, top_k, top_p in itertools.product(
            (0, 0.7, 1.5), (None, 0, 1, 12, 40), (None, 0.0, 0.4, 0.999, 1.0)):
        options = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
        given = ", ".join(f"{name}={value}" for name, value in options.items())
        with np.errstate(all="ignore"):
            check(f"With {given}, the result", ours(z, **options), right(z, **options),
                  options_left_out(right, z, options))
    for kind, [other] in in_other_memory(z.astype(np.float32)):
        with Untouched(logits=other):
            check(f"For logits {kind}, the result", ours(other, 0.7, 12, 0.4),
                  right(other, 0.7, 12, 0.4))
    hidden = np.where(np.arange(40) % 3 == 0, -np.inf, z)
    check("Where some logits are -inf, the result", ours(hidden, 0.7, 30, 0.9),
          right(hidden, 0.7, 30, 0.9))
    check("For a vocabulary of one token, the result", ours(z[:1], 0.7, 5, 0.5), np.ones(1))


@grader("kv-cache")
def grade_cache(mine: Module, book: Module) -> Race:
    ours = mine.KVCache(2, 3, 8, 4, np.float32)
    k, v = normal(2, 3, 7, 4, dtype=np.float32), normal(2, 3, 7, 4, seed=1, dtype=np.float32)
    done = 0
    for count in (3, 1, 2):
        new = slice(done, done + count)
        with Untouched(k=k, v=v):
            got = ours.append(k[:, :, new], v[:, :, new])
        if not isinstance(got, tuple) or len(got) != 2:
            raise Wrong("append is to return the keys and the values, two arrays.")
        done += count
        for name, array, whole, other in (("keys", got[0], k, v), ("values", got[1], v, k)):
            if array.shape[2] == 8:
                raise Wrong(f"The {name} that are returned include room that is still "
                            "empty: return the first S only.")
            if array.shape[2] == count and done > count:
                raise Wrong(f"Only the new {name} are returned: attention wants all of "
                            "them so far.")
            check(f"The array of {name} that is returned", array, whole[:, :, :done], {
                f"is not that of the {name}: keys and values are exchanged": other[:, :, :done]})
        if seen("length", ours.length) != done:
            raise Wrong(f"After {done} positions, length is {ours.length}.")
    first, second = mine.KVCache(1, 1, 4, 2, np.float32), mine.KVCache(1, 1, 4, 2, np.float32)
    first.append(np.ones((1, 1, 1, 2), np.float32), np.ones((1, 1, 1, 2), np.float32))
    if second.length:
        raise Wrong("Two caches share their contents: each layer has its own.")
    for kind, (k, v) in in_other_memory(normal(1, 2, 5, 3), normal(1, 2, 5, 3, seed=1)):
        check_full_cache(mine.KVCache(1, 2, 5, 3, np.float64), kind, k, v)

    def race(module: Module) -> Callable[[], object]:
        one = np.ones((1, 4, 1, 16), np.float32)

        def fill() -> None:
            cache = module.KVCache(1, 4, 256, 16, np.float32)
            for _ in range(256):
                cache.append(one, one)
        return fill
    return race


def check_full_cache(cache: Any, kind: str, k: Array, v: Array) -> None:
    """Of float64, filled to its last place; what was appended may be used for other things."""
    for new in (slice(0, 1), slice(1, 4)):
        k_new, v_new = k[:, :, new].copy(), v[:, :, new].copy()
        cache.append(k_new, v_new)
        k_new[...] = v_new[...] = 0
    with Untouched(k=k, v=v):
        keys, values = cache.append(k[:, :, 4:], v[:, :, 4:])
    for name, got, right in (("keys", keys, k), ("values", values, v)):
        check(f"For arrays {kind}, the array of {name}", got, right, {
            "changes when arrays are changed that were appended: copy what they hold":
                np.where(np.arange(5)[:, None] < 4, 0, right)})


@grader("window-start")
def grade_window(mine: Module, book: Module) -> Race:
    name = mine.window_start.__name__
    for context in (8, 7, 2, 1, 64, 1000):
        for length in (*range(1, 40), 64, 65, 96, 97, 1000, 1501, 123_457):
            got, right = mine.window_start(length, context), book.window_start(length, context)
            if got is None:
                raise Wrong(f"{name} returns None: is a `return` missing?")
            seen(f"window_start({length}, {context})", got)
            if got == right and isinstance(got, (int, np.integer)):
                continue
            call = f"window_start({length}, {context}) is {got}"
            if not isinstance(got, (int, np.integer)):
                raise Wrong(f"{call}, a {type(got).__name__}: a position is a whole number.")
            if length <= context:
                raise Wrong(f"{call}, not 0, though the whole text fits into the context.")
            if length - got > context:
                raise Wrong(f"{call}, so {length - got} tokens are in view, more than the "
                            "context holds: round up.")
            if got >= length:
                raise Wrong(f"{call}, so nothing of the text is in view.")
            if got == length - context:
                raise Wrong(f"{call}, not {right}: if the window slides with every token, "
                            "the cache is worthless; move it by half a context at a time.")
            raise Wrong(f"{call}, not {right}: the view moves by half a context at a time, "
                        "and no sooner than it must.")
    return lambda module: lambda: module.window_start(1000, 73)


# Chapter 15

@grader("write-safetensors")
def grade_safetensors(mine: Module, book: Module) -> Race:
    tensors = {"b": normal(3, 2).T, "a": normal(4, dtype=np.float32),
               "é": np.arange(6).reshape(1, 2, 3)}
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "model.safetensors"
        with Untouched(**tensors):
            mine.save_safetensors(path, dict(tensors))
        if not path.is_file():
            raise Wrong("No file is written.")
        check_bytes(path.read_bytes())
        size, count = header_and_data(path.read_bytes())
        if count != 4 * sum(array.size for array in tensors.values()):
            raise Wrong(f"Behind the header of {size} bytes there are {count}, not "
                        f"{4 * sum(array.size for array in tensors.values())}: float32 has "
                        "4 bytes a number.")
        try:
            back = book.load_safetensors(path)
        except book.UserError as error:
            raise Wrong(f"Reading it back: {str(error).replace(str(path), 'the file')}.") \
                from None
        if back.keys() != tensors.keys():
            raise Wrong(f"The file has the names {sorted(back)}, not {sorted(tensors)}.")
        for name, array in tensors.items():
            right = array.astype(np.float32)
            check(f"The array {name!r}, read back,", back[name], right, {
                "has its elements in the order of memory: make it contiguous first":
                    right.ravel(order="K").reshape(right.shape)})
        check_other_tensors(mine, book, path)
        before = path.stat().st_ino
        mine.save_safetensors(path, {"one": np.float32([1.0])})
        if path.stat().st_ino == before:
            raise Wrong("It writes over the old file: with `write_atomically` that one is "
                        "whole until the new one is.")
        check_bytes(path.read_bytes())
        if b'"format":"pt"' not in path.read_bytes().replace(b" ", b""):
            raise Wrong('The header lacks "__metadata__": {"format": "pt"}, without which '
                        "transformers refuses the file.")
    one = normal(106_496, dtype=np.float32)

    def race(module: Module) -> Callable[[], object]:
        def save() -> None:
            with tempfile.TemporaryDirectory() as directory:
                module.save_safetensors(Path(directory) / "x.safetensors", {"x": one})
        return save
    return race


def check_other_tensors(mine: Module, book: Module, path: Path) -> None:
    """Metadata, names and shapes of every kind; and headers of eight lengths."""
    whole = normal(4, 6)
    kinds = {"a number": np.array(2.5), "no element": np.zeros((0, 3)), '"quoted"': whole,
             "big-endian": whole.astype(">f4"), "half": whole.astype(np.float16),
             **{f"of an array {kind}": other for kind, [other] in in_other_memory(whole)}}
    for length in range(8):
        more = {"step": "1" * length}
        mine.save_safetensors(path, kinds, **more)
        check_bytes(path.read_bytes())
        size, _ = header_and_data(path.read_bytes())
        metadata = json.loads(path.read_bytes()[8 : 8 + size]).get("__metadata__")
        if metadata != {"format": "pt", **more}:
            raise Wrong(f"The header's __metadata__ is {metadata}, not "
                        f"{ {'format': 'pt', **more} }: the arguments `more` belong into it.")
    back = book.load_safetensors(path)
    for name, array in kinds.items():
        check(f"The array {name!r}, read back,", back[name], array.astype(np.float32))
    mine.save_safetensors(path, {})
    check_bytes(path.read_bytes())


def header_and_data(data: bytes) -> tuple[int, int]:
    """How many bytes are in the header, and how many behind it."""
    length = int.from_bytes(data[:8], "little")
    return length, len(data) - 8 - length


def check_bytes(data: bytes) -> None:
    """The outer form of a safetensors file."""
    length, big = (int.from_bytes(data[:8], order) for order in ("little", "big"))
    if length > len(data) >= big + 8:
        raise Wrong("The length of the header is big-endian: it must be little-endian.")
    if data[:2] == b'{"':
        raise Wrong("The file begins with the header: its length, in eight bytes, comes "
                    "first.")
    if length > len(data) - 8 or data[8:9] != b"{":
        raise Wrong("The first eight bytes are not the length of the header, which is to "
                    "follow them.")
    if data[7 + length : 8 + length] not in (b" ", b"}"):
        raise Wrong("The length of the header is not the number of bytes that it has.")
    if length % 8:
        raise Wrong(f"The header has {length} bytes: fill it up with spaces to a multiple "
                    "of 8, so that the numbers are aligned.")
