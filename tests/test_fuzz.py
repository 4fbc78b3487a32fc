"""Files that were spoilt in many ways: a sentence or a right answer, always."""
import json
import random
import tracemalloc

import numpy as np
import pytest

from simple_llm.checkpoint import load_safetensors
from simple_llm.engine.fast import FastLLM
from simple_llm.engine.resume import CHECKPOINT, Run, read_checkpoint
from simple_llm.errors import UserError
from simple_llm.model import Config, SimpleLLM
from simple_llm.tokenizer import Tokenizer
from simple_llm.train import Moment, Options, Score
from simple_llm.world import StoryCorpus, World


WORDS = [b"0", b"-1", b"1e999", b"9" * 30, b"null", b"true", b"[]", b"{}", b'"x"', b"\0",
         b"\xff", b"NaN", b"[" * 2000, b'"F32"', b'"I64"', b'"data_offsets"', b"4294967296",
         b"__metadata__", b"\\ud800", b'"__reduce__"', b",", b":", b"2.5"]


def mutate(data, dice, edge):
    """Spoil some bytes; `edge` bytes at the beginning are hit most of the time."""
    data = bytearray(data)
    for _ in range(dice.choice([1, 1, 1, 2, 3, 8])):
        size = len(data) if dice.random() < 0.2 else min(edge, len(data))
        at = dice.randrange(size + 1)
        digits = [i for i in range(size) if data[i] in b"0123456789"]
        match dice.randrange(6):
            case 0 if data:
                data[min(at, len(data) - 1)] ^= 1 << dice.randrange(8)
            case 1:
                del data[at : dice.choice([at + dice.randrange(1, 40), len(data)])]
            case 2:
                data[at : at + dice.randrange(12)] = dice.choice(WORDS)
            case 3 if digits:                  # another number in the place of a number
                data[dice.choice(digits)] = dice.choice(b"0123456789")
            case _:
                other = dice.randrange(len(data) + 1)
                data[at:at] = data[other : other + dice.randrange(60)]
    return bytes(data)


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """A model directory with a checkpoint, as a training leaves it."""
    home = tmp_path_factory.mktemp("model")
    corpus = StoryCorpus(World(), 4, 2, 4)
    model = FastLLM(Config(corpus.tokenizer.vocab_size, 8, 8, 1, 2))
    model.save_pretrained(home)
    corpus.tokenizer.save(home)
    run = Run(model, corpus, Options(epochs=1), home / CHECKPOINT, {})
    run.optimizer.step_count = 1
    run.history.append(Moment(0, 1, 2, 3.0, 0, Score(3.0, 0.5, None)))
    run.save()
    return home


def use_model(home):
    model = SimpleLLM.from_pretrained(home)
    assert all(np.isfinite(p.data).all() for p in model.parameters())
    if sum(p.data.size for p in model.parameters()) < 1e6:
        model.forward(np.zeros((1, 1), int))


def use_tokenizer(home):
    tokenizer = Tokenizer.load(home)
    ids = tokenizer.encode("anna took the key .")
    assert all(0 <= token < tokenizer.vocab_size for token in ids)
    tokenizer.decode(ids)


FILES = {"model.safetensors": use_model, "config.json": use_model,
         "tokenizer.json": use_tokenizer,
         "training.safetensors": lambda home: read_checkpoint(home / "training.safetensors")}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", FILES)
def test_300_spoilt_files_give_a_sentence_or_a_right_answer(directory, tmp_path, name):
    for path in directory.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    data = (directory / name).read_bytes()
    header = 8 + int.from_bytes(data[:8], "little")
    edge = header if name.endswith("safetensors") else len(data)
    dice, refused = random.Random(f"spoil {name}"), 0
    for n in range(300):
        spoilt = mutate(data, dice, edge)
        (tmp_path / name).write_bytes(spoilt)
        try:
            FILES[name](tmp_path)
        except UserError as error:
            refused += 1
            assert "\n" not in str(error) and len(str(error)) < 500, str(error)
        except Exception as error:
            raise AssertionError(f"mutation {n} of {name}: {spoilt[:300]}") from error
    assert refused > 75


def test_no_bit_of_a_checkpoint_can_be_flipped_without_being_noticed(directory, tmp_path):
    """But for those of names that nobody reads, such as the format's."""
    path, data = tmp_path / "c", (directory / "training.safetensors").read_bytes()
    length = int.from_bytes(data[:8], "little")
    path.write_bytes(data)
    whole = read_checkpoint(path)
    dice = random.Random(5)
    places = [*range(0, 8 + length, 3), *dice.sample(range(8 + length, len(data)), 300)]
    for at in places:
        path.write_bytes(data[:at] + bytes([data[at] ^ 1 << dice.randrange(8)])
                         + data[at + 1:])
        try:
            found = read_checkpoint(path)
        except UserError:
            continue
        assert found._replace(arrays={}) == whole._replace(arrays={})
        for name in ("data", "m", "v"):
            assert found.arrays[name].tobytes() == whole.arrays[name].tobytes()


HEADERS = [
    {"x": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}},
    {f"x{i}": {"dtype": "F32", "shape": [256], "data_offsets": [0, 1024]}
     for i in range(1000)},
    {"x": {"dtype": "BOOL", "shape": [0, 2**60], "data_offsets": [0, 0]}},
    None,
]


@pytest.mark.parametrize("entries", HEADERS, ids=[
    "terabytes", "the same bytes a thousand times", "nothing times much", "a long header"])
def test_memory_is_bounded_by_the_size_of_the_file(tmp_path, entries):
    header, path = json.dumps(entries).encode(), tmp_path / "a"
    length = len(header) if entries else 2**33
    path.write_bytes(length.to_bytes(8, "little") + header + b"\0" * 1024)
    tracemalloc.start()
    with pytest.raises(UserError):
        load_safetensors(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1e6 + 20 * path.stat().st_size


@pytest.mark.parametrize("sizes", [
    {"n_embd": 2**31}, {"n_layer": 10**9}, {"vocab_size": 10**12}, {"n_positions": 10**9},
    {"n_positions": 10_000},                               # of its mask, the square
], ids=str)
def test_sizes_that_the_weights_do_not_have_are_refused_before_memory_is_taken(
        directory, tmp_path, sizes):
    for path in directory.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    config = json.loads((directory / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, **sizes}))
    tracemalloc.start()
    with pytest.raises(UserError):
        SimpleLLM.from_pretrained(tmp_path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 3e6
