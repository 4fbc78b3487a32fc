"""What the book's page shows beside its model: python tools/live_data.py

It trains the model of `make train` once more (a minute on two cores, more on one), and
writes tools/live.json: what it said and where it looked at some twenty moments, since the
weights of so many checkpoints would not fit into a page; and questions to be asked again
when a head is taken away. The story is one of figures.py's.
"""
from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "build")]

import numpy as np  # noqa: E402

from experiments import USUAL  # noqa: E402
from figures import EXAMPLE  # noqa: E402
from simple_llm.engine.fast import FastLLM  # noqa: E402
from simple_llm.engine.parallel import make_team  # noqa: E402
from simple_llm.inside import logit_lens, look_inside, looks_of_an_answer  # noqa: E402
from simple_llm.model import Config  # noqa: E402
from simple_llm.tokenizer import Tokenizer  # noqa: E402
from simple_llm.train import Moment, Options, train  # noqa: E402
from simple_llm.world import StoryCorpus, World  # noqa: E402

ANSWER = "kitchen"
MOST_WORDS, QUESTIONS = 24, 60


def watch_the_jump() -> dict[str, Any]:
    """The example, read at each moment of the training at which the model is evaluated."""
    corpus = StoryCorpus(World(), 64, 10)
    model = FastLLM(Config(corpus.tokenizer.vocab_size, corpus.longest))
    words = [*EXAMPLE.split(), ANSWER]
    ids = [Tokenizer.bos, *map(corpus.tokenizer.ids.get, words[:-1])]
    points: list[dict[str, Any]] = []

    def report(moment: Moment) -> None:
        if not moment.score:
            return
        view = look_inside(model, ids)
        p = logit_lens(model, view.streams[-1:])[0, -1]                     # (V,)
        loss, answers, unusual = (round(float(each), 4) for each in moment.score)
        points.append({
            "epoch": moment.epoch, "loss": loss, "answers": answers, "unusual": unusual,
            "said": [(corpus.tokenizer.tokens[v], round(float(p[v]), 3)) for v in np.argsort(-p)[:5]],
            "looks": looks_of_an_answer(view.attention, words, len(words) - 1)})    # (3, n, H)
        print(moment.epoch, points[-1]["said"][0], unusual, file=sys.stderr)

    options = Options(100, workers=1, **USUAL)
    with make_team(model, options) as team:
        train(team, corpus, options, report)
    # The heads are those that look best at the end.
    first, second = (int(points[-1]["looks"][kind, layer].argmax()) for kind, layer in ((1, 0), (0, 1)))
    for point in points:
        looks = point["looks"]
        point["looks"] = [
            (f"layer 1, head {first + 1}: “{ANSWER}” at “ben”", round(float(looks[1, 0, first]), 3)),
            (f"layer 2, head {second + 1}: “the” at “{ANSWER}”", round(float(looks[0, 1, second]), 3))]
    return {"story": EXAMPLE, "answer": ANSWER, "points": points}


def questions() -> list[tuple[str, str]]:
    """The first answers of short held-out stories: the text before each, and the answer."""
    found = []
    for story in StoryCorpus(World()).held_out:
        place = story.answers[0].position
        if place < MOST_WORDS and len(found) < QUESTIONS:
            found.append((" ".join(story.words[:place]), story.words[place]))
    return found


def main() -> None:
    data = {"jump": watch_the_jump(), "questions": questions()}
    text = json.dumps(data, ensure_ascii=False, indent=0).replace("\n", " ").replace("}, {", "},\n{")
    Path(__file__).with_name("live.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
