"""The small world and its floor, batches, and counting."""
import itertools
import math
import random
import re
from collections import Counter

import pytest

from simple_llm.batches import pad_rows
from simple_llm.ngram import NGram, ladder
from simple_llm.world import StoryCorpus, World, floor

TINY = World(
    people=("anna", "ben"), places=("attic", "barn"), things=("apple", "bell"),
    habit=0.3, sentences=(2, 2), questions=1,
)


# Every story there is, with its probability


class Coin:
    """What random() returns: `coin < chance` is a decision."""

    def __init__(self, decide):
        self.decide = decide

    def __lt__(self, chance):
        return self.decide([chance, 1 - chance]) == 0


class Script:
    """Takes the place of random.Random: follows a path and weighs it."""

    def __init__(self, path):
        self.path, self.probability, self.at = path, 1.0, 0

    def decide(self, chances):
        if self.at == len(self.path):
            self.path.append([0, len(chances)])
        chosen = self.path[self.at][0]
        self.at += 1
        self.probability *= chances[chosen]
        return chosen

    def random(self):
        return Coin(self.decide)

    def choice(self, options):
        return options[self.decide([1 / len(options)] * len(options))]


def all_paths(world):
    """Each path of decisions: the story at its end and the path's probability."""
    path = []
    while True:
        script = Script(path)
        story = world.tell(script)
        yield story, script.probability
        while path and path[-1][0] == path[-1][1] - 1:
            path.pop()
        if not path:
            return
        path[-1][0] += 1


def enumerate_stories(world):
    stories, odds = {}, Counter()
    for story, probability in all_paths(world):
        words = tuple(story.words)
        stories[words] = story
        odds[words] += probability
    return stories, odds


WORLDS = {"tiny": TINY, "longer": World(
    people=("anna", "ben", "cleo"), places=("attic", "barn", "cellar"),
    things=("apple", "bell", "coin"), habit=0.25, sentences=(2, 3), questions=2,
)}


@pytest.fixture(scope="module", params=WORLDS)
def enumerated(request):
    world = WORLDS[request.param]
    return world, *enumerate_stories(world)


def test_each_words_probability_is_the_true_one_given_the_words_before(enumerated):
    world, stories, odds = enumerated
    assert len(odds) > 50
    assert sum(odds.values()) == pytest.approx(1, abs=1e-12)
    beginnings = Counter()
    for words, probability in odds.items():
        for end in range(len(words) + 1):
            beginnings[words[:end]] += probability
    for words, story in stories.items():
        assert len(story.probabilities) == len(words)
        for n, recorded in enumerate(story.probabilities):
            true = beginnings[words[:n + 1]] / beginnings[words[:n]]
            assert abs(recorded / true - 1) < 1e-9, (words, n)


def test_the_floor_of_many_stories_is_the_entropy_per_word(enumerated):
    world, stories, odds = enumerated
    entropy = -sum(p * math.log(p) for p in odds.values())
    length = sum(p * len(words) for words, p in odds.items())
    rng = random.Random(2)
    told = [world.tell(rng) for _ in range(5000)]
    assert floor(told) == pytest.approx(entropy / length, rel=0.01)


def test_stories_are_told_as_often_as_their_probability_says(enumerated):
    world, stories, odds = enumerated
    rng, n = random.Random(1), 20_000
    seen = Counter(tuple(world.tell(rng).words) for _ in range(n))
    assert seen.keys() <= odds.keys()
    frequent = [words for words in odds if n * odds[words] >= 10]
    assert len(frequent) > 20
    chi = sum((seen[w] - n * odds[w]) ** 2 / (n * odds[w]) for w in frequent)
    assert abs(chi - len(frequent)) < 5 * math.sqrt(2 * len(frequent))


def test_the_floor_by_hand():
    story = World().tell(random.Random(0))
    made = story._replace(probabilities=[0.5, 1.0, 0.25, 1.0])
    assert floor([made]) == pytest.approx(3 * math.log(2) / 4)
    assert floor([made, made._replace(probabilities=[0.5])]) == pytest.approx(
        4 * math.log(2) / 5)


# Stories


def told(n=500, seed=0, world=World()):
    rng = random.Random(seed)
    return [world.tell(rng) for _ in range(n)]


SENTENCE = re.compile(
    r"(?P<person>\w+) \w+ (?:to the (?P<place>\w+)|the (?P<thing>\w+)) \. "
)
QUESTION = re.compile(r"what about (\w+) \? the (\w+) \. ")


def parse(words):
    """The facts of a story and its questions with answers, from its text alone."""
    text = " ".join(words)
    facts, at = {}, 0
    while match := SENTENCE.match(text, at):
        assert match["person"] not in facts
        facts[match["person"]] = match["place"] or match["thing"]
        at = match.end()
    questions = QUESTION.findall(text, at)
    rest = QUESTION.sub("", text[at:])
    assert rest == "<eos>", text
    return facts, questions


def test_every_answer_stands_in_the_story_is_no_surprise_and_is_marked_where_it_stands():
    world = World()
    for story in told():
        facts, questions = parse(story.words)
        assert len(story.answers) == len(questions) > 0
        for answer, (person, word) in zip(story.answers, questions):
            assert facts[person] == word == story.words[answer.position]
            before = story.words[answer.position - 5:answer.position]
            assert before == ["what", "about", person, "?", "the"]
            assert story.probabilities[answer.position] == 1
            number = world.people.index(person)
            assert answer.habitual == (word in (world.places[number], world.things[number]))


def test_people_keep_to_their_habits_as_often_as_the_world_says():
    world = World()
    went = [what == world.likes(person, True) for story in told(1000)
            for person, what in parse(story.words)[0].items() if what in world.places]
    wanted = world.habit + (1 - world.habit) / len(world.places)
    assert sum(went) / len(went) == pytest.approx(wanted, abs=5 * (0.25 / len(went)) ** 0.5)


def test_stories_keep_to_the_numbers_and_repeat_neither_a_question_at_once_nor_a_thing():
    world, lengths, asked = World(), set(), set()
    for story in told(1000):
        facts, questions = parse(story.words)
        lengths.add(len(facts))
        asked.add(len(questions))
        assert all(a != b for a, b in itertools.pairwise(questions))
        things = [what for what in facts.values() if what in world.things]
        assert len(set(things)) == len(things)
    assert lengths == set(range(world.sentences[0], world.sentences[1] + 1))
    assert asked == set(range(1, world.questions + 1))
    assert told(20, seed=5) == told(20, seed=5) != told(20, seed=6)


# Batches


def test_rows_are_shifted_by_one_and_padded():
    ids, targets = pad_rows([[6, 12, 2], [5, 11, 9, 8, 2], [2]])
    assert ids.tolist() == [[1, 6, 12, 0, 0], [1, 5, 11, 9, 8], [1, 0, 0, 0, 0]]
    assert targets.tolist() == [
        [6, 12, 2, -1, -1], [5, 11, 9, 8, 2], [2, -1, -1, -1, -1],
    ]


def small_corpus(**options):
    sizes = {"batch_size": 8, "steps_per_epoch": 5, "held_out": 50}
    return StoryCorpus(World(), **{**sizes, **options})


def test_a_batch_of_stories_can_be_read_back():
    corpus = small_corpus()
    stories = corpus.held_out[:7]
    batch = corpus.batch(stories)
    for story, ids, targets in zip(stories, *batch):
        words = [corpus.tokenizer.tokens[token] for token in targets if token >= 0]
        assert words == story.words            # so each answer's position is that of its target
        read = [corpus.tokenizer.tokens[token] for token in ids if token]
        assert read == ["<bos>", *story.words[:-1]]


def texts(corpus, epoch):
    return [tuple(map(int, row[row >= 0]))
            for batch in corpus.batches(epoch) for row in batch.targets]


def test_an_epoch_is_the_same_again_and_another_epoch_or_seed_has_other_stories():
    assert [len(batch.ids) for batch in small_corpus().batches(1)] == 5 * [8]
    one = texts(small_corpus(), 1)
    assert one == texts(small_corpus(), 1) != texts(small_corpus(), 2)
    assert one != texts(small_corpus(seed=1), 1)
    assert small_corpus(seed=1).held_out == small_corpus(seed=2).held_out


def test_held_out_stories_never_occur_in_training():
    corpus = StoryCorpus(TINY, batch_size=50, steps_per_epoch=20, held_out=25)
    ids = corpus.tokenizer.ids
    secret = {tuple(ids[word] for word in story.words) for story in corpus.held_out}
    seen = {text for epoch in range(1, 4) for text in texts(corpus, epoch)}
    assert len(seen) > 2 * len(secret)         # so few that they would, by chance
    assert not secret & seen


def test_the_corpus_knows_the_longest_story_and_every_word():
    corpus = small_corpus()
    stories = told(3000, seed=3)
    assert max(len(story.words) for story in stories) <= corpus.longest
    words = {word for story in stories for word in story.words}
    assert set(corpus.tokenizer.tokens) == words | set(corpus.tokenizer.specials)


# Counting


ROWS = [[1, 4, 5, 4, 6, 2], [1, 4, 5, 5, 2]]


def by_hand(context, token):
    """The book's formula, by scanning the rows."""
    seen = follows = 0
    for row in ROWS:
        for end in range(1, len(row)):
            start = end - len(context)
            if start >= 0 and tuple(row[start:end]) == context:
                seen += 1
                follows += row[end] == token
    shorter = by_hand(context[1:], token) if context else 1 / 7
    return (follows + shorter) / (seen + 1)


@pytest.mark.parametrize("n", [1, 2, 3])
def test_ngrams_have_the_probabilities_of_the_formula_and_their_mean_surprise_is_the_loss(n):
    model, V, texts = NGram(n, 7), range(7), [[1, 4, 6, 2], [1, 5]]
    for row in ROWS:
        model.learn(row)
    for context in itertools.product(V, repeat=n - 1):
        found = [model.probability(context, token) for token in V]
        assert found == pytest.approx([by_hand(context, t) for t in V], rel=1e-12)
        assert sum(found) == pytest.approx(1, rel=1e-12)
    terms = [-math.log(by_hand(tuple(text[max(0, end - n + 1):end]), text[end]))
             for text in texts for end in range(1, len(text))]
    assert model.loss(texts) == pytest.approx(sum(terms) / 4, rel=1e-12)


def test_a_unigram_that_saw_much_has_the_entropy_of_its_text():
    row = [1] + [4] * 3000 + [5] * 1000
    rungs = ladder([row], [row], 6)
    wanted = -0.75 * math.log(0.75) - 0.25 * math.log(0.25)
    assert rungs["unigram"] == pytest.approx(wanted, abs=0.002)
    assert rungs["uniform"] == math.log(6)


def test_the_ladder_leads_down_to_the_floor():
    corpus = small_corpus()
    ids = corpus.tokenizer.ids
    rows = [[1, *(ids[w] for w in story.words)] for story in told(500, seed=9)]
    held = [[1, *(ids[w] for w in story.words)] for story in corpus.held_out]
    rungs = ladder(rows, held, corpus.tokenizer.vocab_size)
    losses = [*rungs.values(), floor(corpus.held_out)]
    assert list(rungs) == ["uniform", "unigram", "bigram", "trigram"]
    assert all(a > b for a, b in itertools.pairwise(losses))
