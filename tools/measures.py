"""Measurements of a few lines, for the numbers in the book's sentences (numbers.txt)."""
from __future__ import annotations

import math
import random
import re
import sys
import unicodedata
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent


def counting(n: int):
    """An n-gram model of 2,000 stories, and held-out stories with their ids."""
    from simple_llm.world import StoryCorpus, World
    from simple_llm.ngram import NGram
    corpus, rng = StoryCorpus(World()), random.Random(0)
    ids, model = corpus.tokenizer.ids, NGram(n, corpus.tokenizer.vocab_size)
    for _ in range(2000):
        model.learn([1] + [ids[word] for word in World().tell(rng).words])
    return model, ids, [(story, [1] + [ids[word] for word in story.words])
                        for story in corpus.held_out]


def lost_on_answers() -> float:
    """Of what lies between the trigram's loss and the floor, the share of the answers."""
    from simple_llm.world import floor
    model, _, held_out = counting(3)
    lost, tokens = 0.0, 0
    for story, ids in held_out:
        tokens += len(ids) - 1
        for place, _ in story.answers:
            context = tuple(ids[place - 1:place + 1])
            lost -= math.log(model.probability(context, ids[place + 1]))
    above = model.loss(ids for _, ids in held_out) - floor(story for story, _ in held_out)
    return lost / tokens / above


def bigram(word: str, following: str) -> float:
    model, ids, _ = counting(2)
    return model.probability((ids[word],), ids[following])


def padding() -> float:
    """The share of an epoch's batches that is padding."""
    from simple_llm.world import StoryCorpus, World
    return float(np.mean([(b.targets < 0).mean() for b in StoryCorpus(World()).batches(1)]))


def unicode_characters() -> int:
    """How many characters Unicode has assigned, for this Python."""
    return sum(unicodedata.category(chr(code)) not in ("Cn", "Co", "Cs")
               for code in range(sys.maxunicode + 1))


def parameters(vocabulary: int, context: int, width: int, blocks: int) -> int:
    """Of a model of these sizes, by the formula of exercise 8.4."""
    return ((vocabulary + context) * width + 2 * width
            + blocks * (12 * width * width + 13 * width))


def width_inside() -> int:
    """How wide feed-forward makes the vectors of the small model."""
    from simple_llm.model import Config, SimpleLLM
    return SimpleLLM(Config(27, 73), seed=0).blocks[0].feed_forward.widen.weight.data.shape[1]


def orthogonalizing(width: int, blocks: int, tokens: int) -> float:
    """Muon's operations in a step, as a share of those of the blocks' products."""
    def five_rounds(rows: int, columns: int) -> int:
        rows, columns = min(rows, columns), max(rows, columns)
        return 5 * (4 * rows * rows * columns + 2 * rows**3)

    work = 4 * five_rounds(width, width) + 2 * five_rounds(width, 4 * width)
    return work * blocks / (6 * 12 * width**2 * blocks * tokens)
