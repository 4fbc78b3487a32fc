"""The command line as a user types it. Bad input gets one sentence and no traceback."""
import importlib
import math
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import simple_llm
import simple_llm.__main__ as command_line
from simple_llm.__main__ import COMMANDS, make_options, make_parser, read_arguments
from simple_llm.corpus import StoryCorpus, TextCorpus, World
from simple_llm.figures import write_curve
from simple_llm.model import Config, SimpleLLM
from simple_llm.optimizer import AdamW
from simple_llm.resume import CHECKPOINT, read_checkpoint
from simple_llm.tokenizer import Tokenizer
from simple_llm.train import Moment, Options, Score, train

BUILD = Path(simple_llm.__file__).parent.parent
ENV = {**os.environ, "PYTHONPATH": str(BUILD), "PYTHONIOENCODING": "utf-8"}
ENV.pop("PYTHONUNBUFFERED", None)       # its users have not set it, and it hides mistakes
TEXT = "the cat sat on the mat.\nthe dog sat on the log.\n" * 12
TINY = ("--layers", "1", "--heads", "2", "--width", "8", "--context", "8",
        "--epochs", "1", "--workers", "1", "--no-ladder")


def run(*arguments, cwd, stdin=None, module="simple_llm"):
    return subprocess.run(
        [sys.executable, "-m", module, *map(str, arguments)], cwd=cwd, env=ENV,
        capture_output=True, text=True, encoding="utf-8", timeout=60, stdin=stdin,
    )


def assert_one_sentence(done, *says):
    """Exit status 1 and a single line on stderr, which says what is wrong."""
    assert "Traceback" not in done.stderr, done.stderr
    assert done.returncode == 1, (done.returncode, done.stderr)
    lines = [x for x in done.stderr.splitlines() if x and not x.startswith("epoch")]
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("simple_llm: ")
    for word in says:
        assert word in lines[0]


def assert_refused(done, *says):
    """Exit status 2 and one sentence, which says where the help is."""
    assert done.returncode == 2, (done.returncode, done.stderr)
    assert len(done.stderr.splitlines()) == 1 and done.stdout == "", done.stderr
    assert done.stderr.startswith("simple_llm: ") and "--help" in done.stderr
    for word in says:
        assert word in done.stderr


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A directory with a text, and a model that was trained on it."""
    home = tmp_path_factory.mktemp("home")
    (home / "text.txt").write_text(TEXT)
    done = run("train", "--corpus", "text.txt", *TINY, cwd=home)
    assert done.returncode == 0, done.stderr
    (home / "printed.txt").write_text(done.stdout)
    (home / "progress.txt").write_text(done.stderr, encoding="utf-8")
    return home


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A directory with a model of the small world."""
    home = tmp_path_factory.mktemp("world")
    done = run("train", "--epochs", 1, "--layers", 1, "--heads", 2, "--width", 8,
               "--batch-size", 4, "--workers", 2, "--no-ladder", cwd=home)
    assert done.returncode == 0, done.stderr
    (home / "printed.txt").write_text(done.stdout)
    return home


# What works


def test_training_leaves_a_model_directory_as_hugging_face_reads_it(home):
    names = {path.name for path in (home / "model").iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json",
            "tokenizer_config.json"} <= names
    assert not [name for name in names if name.endswith(".tmp")]
    model, tokenizer = SimpleLLM.from_pretrained(home / "model"), Tokenizer.load(
        home / "model")
    assert model.config.vocab_size == tokenizer.vocab_size
    assert (model.config.n_layers, model.config.d_model) == (1, 8)


def test_training_tells_the_loss_that_the_saved_model_has(home):
    told = re.search(r"loss (\d+\.\d+) nats", (home / "printed.txt").read_text())
    done = run("eval", "--corpus", "text.txt", cwd=home)
    assert done.returncode == 0, done.stderr
    found = re.search(r"loss (\d+\.\d+) nats", done.stdout)
    assert abs(float(told[1]) - float(found[1])) < 2e-3


def test_progress_without_a_terminal_is_plain_lines(home):
    progress = (home / "progress.txt").read_text(encoding="utf-8")
    assert "\r" not in progress and "\x1b" not in progress
    assert 1 <= len(progress.splitlines()) <= 50
    assert "tok/s" in progress and "left" in progress


def test_the_same_seed_trains_to_the_same_bytes(home, tmp_path):
    done = run("train", "--corpus", home / "text.txt", *TINY, cwd=tmp_path)
    assert done.returncode == 0
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        assert (tmp_path / "model" / name).read_bytes() == (
            home / "model" / name).read_bytes()


def test_generate_continues_the_prompt_and_repeats_itself_with_a_seed(home):
    ask = ("generate", "--prompt", "the ", "--max-new-tokens", 20, "--seed", 3)
    one, two = run(*ask, cwd=home), run(*ask, cwd=home)
    assert one.returncode == 0 and one.stderr == ""
    assert one.stdout.startswith("the ") and len(one.stdout) > 5
    assert one.stdout == two.stdout


def test_generate_begins_a_text_without_a_prompt(home):
    done = run("generate", "--max-new-tokens", 5, "--temperature", 0, cwd=home)
    assert (done.returncode, done.stderr) == (0, "")


def test_generate_takes_a_prompt_longer_than_the_context(home):
    prompt = "the cat sat on the mat. the dog"
    done = run("generate", "--prompt", prompt, "--max-new-tokens", 30, cwd=home)
    assert done.returncode == 0 and done.stdout.startswith(prompt)
    assert "note: the prompt has" in done.stderr and "in view" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_an_unknown_character_in_the_prompt_is_named(home):
    done = run("generate", "--prompt", "the é", "--max-new-tokens", 3, cwd=home)
    assert done.returncode == 0
    assert "'é'" in done.stderr and len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("options", [
    ("--top-k", 1), ("--top-k", 1000), ("--top-p", 0), ("--top-p", 1),
    ("--temperature", 0), ("--temperature", "1e-6"), ("--temperature", "1e6"),
], ids=str)
def test_extreme_options_of_generate_work(home, options):
    done = run("generate", "--max-new-tokens", 9, *options, cwd=home)
    assert (done.returncode, done.stderr) == (0, "")


def test_words_can_be_tokens(home, tmp_path):
    done = run("train", "--corpus", home / "text.txt", "--tokenizer", "word", *TINY,
               cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert Tokenizer.load(tmp_path / "model").kind == "word"


def test_the_small_world_is_trained_and_evaluated(world):
    printed = (world / "printed.txt").read_text()
    assert "floor" in printed and "against habit" in printed
    told = re.search(r"loss (\d+\.\d+) - floor (\d+\.\d+) = (-?\d+\.\d+)", printed)
    assert abs(float(told[1]) - float(told[2]) - float(told[3])) < 0.0016
    done = run("eval", cwd=world)
    assert done.returncode == 0, done.stderr
    found = re.search(r"loss (\d+\.\d+) - floor", done.stdout)
    assert abs(float(told[1]) - float(found[1])) < 1e-3
    assert "questions answered" in done.stdout and "perplexity" in done.stdout


def test_the_loss_curve_is_a_picture(world, home):
    import xml.etree.ElementTree
    for directory in (world, home):
        picture = (directory / "model" / "loss.svg").read_text(encoding="utf-8")
        root = xml.etree.ElementTree.fromstring(picture)
        assert root.tag.endswith("svg")
        assert "nan" not in picture.lower()


@pytest.mark.parametrize("losses", [(1.0, 0.0), (0.0, 0.0), (3.0, 3.0)], ids=str)
def test_a_loss_of_zero_can_be_drawn(tmp_path, losses):
    """A text of one letter is learned perfectly."""
    history = [Moment(1, step, 1, 0.0, 9, Score(loss, None, None))
               for step, loss in enumerate(losses)]
    write_curve(tmp_path / "loss.svg", history, {"uniform": 0.0, "ours": 0.0}, None, 1)
    assert "nan" not in (tmp_path / "loss.svg").read_text(encoding="utf-8")


@pytest.mark.parametrize("command", [(), ("train",), ("generate",), ("eval",)], ids=str)
def test_help_exits_0_and_shows_options(command, tmp_path):
    done = run(*command, "--help", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("usage: ")


def test_train_py_in_build_trains(home, tmp_path):
    done = subprocess.run(
        [sys.executable, "train.py", "--corpus", home / "text.txt", *TINY,
         "--out", tmp_path / "m"], cwd=BUILD, capture_output=True, text=True,
        encoding="utf-8", timeout=60, env={**ENV, "PYTHONPATH": ""})
    assert done.returncode == 0, done.stderr
    SimpleLLM.from_pretrained(tmp_path / "m")


def test_simple_llm_train_can_be_run_as_a_module(home, tmp_path):
    done = run("--corpus", home / "text.txt", *TINY, cwd=tmp_path,
               module="simple_llm.train")
    assert done.returncode == 0, done.stderr
    SimpleLLM.from_pretrained(tmp_path / "model")


def test_a_corpus_may_have_the_line_ends_of_windows(home, tmp_path):
    (tmp_path / "text.txt").write_bytes(TEXT.replace("\n", "\r\n").encode())
    done = run("train", "--corpus", "text.txt", *TINY, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert Tokenizer.load(tmp_path / "model").tokens == Tokenizer.load(
        home / "model").tokens


def test_a_terminal_that_knows_only_ascii_gets_an_answer(tmp_path):
    (tmp_path / "text.txt").write_text("né là où ça été\n" * 30, encoding="utf-8")
    env = {**ENV, "PYTHONIOENCODING": "ascii"}
    for arguments in (("train", "--corpus", "text.txt", *TINY), ("generate",)):
        done = subprocess.run([sys.executable, "-m", "simple_llm", *arguments], env=env,
                              cwd=tmp_path, capture_output=True, timeout=60)
        assert (done.returncode, b"Traceback" in done.stderr) == (0, False)


# Bad input


@pytest.mark.parametrize(("data", "says"), [
    (b"", "empty"), (b"\n \n", "empty"), (b"\x7fELF\0\0\1", "NUL"),
    (b"abc\xff\xfe" * 100, "UTF-8"), (b"too short", "too few"),
])
def test_a_corpus_that_cannot_be_used(tmp_path, data, says):
    (tmp_path / "text.txt").write_bytes(data)
    done = run("train", "--corpus", "text.txt", *TINY, cwd=tmp_path)
    assert_one_sentence(done, says)
    assert not (tmp_path / "model").exists()


def test_a_corpus_shorter_than_the_context(home, tmp_path):
    done = run("train", "--corpus", home / "text.txt", *TINY, "--context", 5000,
               cwd=tmp_path)
    assert_one_sentence(done, "context", "5000")


def test_a_corpus_that_cannot_be_read(tmp_path):
    done = run("train", "--corpus", "missing.txt", *TINY, cwd=tmp_path)
    assert_one_sentence(done, "cannot read", "missing.txt")


def test_a_directory_without_text(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_bytes(b"\xff\xd8")
    done = run("train", "--corpus", "photos", *TINY, cwd=tmp_path)
    assert_one_sentence(done, "photos", "no text", ".txt")


def test_a_corpus_without_a_name(tmp_path):
    done = run("train", "--corpus", "", *TINY, cwd=tmp_path)
    assert_one_sentence(done, "cannot read")


@pytest.mark.parametrize("options", [
    ("train", "--no-such-option"), ("train", "--epochs", "0"),
    ("train", "--width", "-8"),
    ("train", "--epochs", "many"), ("generate", "--top-k", "0"), ("fly",), (),
    ("train", "--tokenizer", "syllable"), ("generate", "--max-new-tokens", "-1"),
    ("train", "--learning-rate", "fast"),
], ids=str)
def test_a_wrong_option_exits_2(tmp_path, options):
    done = run(*options, cwd=tmp_path)
    assert_refused(done)


@pytest.mark.parametrize("options", [
    ("train", "--learning-rate", "nan"), ("train", "--learning-rate", "-1"),
    ("train", "--learning-rate", "0"), ("train", "--seed", "-1"),
    ("train", "--dropout", "1"), ("train", "--dropout", "nan"),
    ("generate", "--temperature", "nan"), ("generate", "--temperature", "-1"),
    ("generate", "--seed", "-1"), ("generate", "--top-p", "nan"),
    ("generate", "--top-p", "-1"),
], ids=str)
def test_a_number_that_makes_no_sense_is_refused(home, tmp_path, options):
    extra = ("--corpus", "text.txt", *TINY, "--out", tmp_path / "m")
    done = run(*options, *(extra if options[0] == "train" else ()), cwd=home)
    assert "Traceback" not in done.stderr, done.stderr
    assert done.returncode in (1, 2)


@pytest.mark.parametrize("command", ["generate", "eval"])
def test_a_model_directory_that_is_not_there(tmp_path, command):
    done = run(command, "--model", "nowhere", cwd=tmp_path)
    assert_one_sentence(done, "cannot read", "nowhere", "make train")


def test_heads_that_cannot_share_the_width(home, tmp_path):
    done = run("train", "--corpus", home / "text.txt", *TINY, "--heads", 3,
               cwd=tmp_path)
    assert_one_sentence(done, "3 heads", "8")
    assert not (tmp_path / "model").exists()


def test_a_model_that_is_cut_short(home, tmp_path):
    for path in (home / "model").iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    data = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(data[:-5])
    assert_one_sentence(run("generate", "--model", ".", cwd=tmp_path), "damaged")


def test_a_tokenizer_of_another_model(home, world, tmp_path):
    for path in (home / "model").iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    other = (world / "model" / "tokenizer.json").read_bytes()
    (tmp_path / "tokenizer.json").write_bytes(other)
    done = run("generate", "--model", ".", cwd=tmp_path)
    assert_one_sentence(done, "do not belong together")


def test_eval_of_a_text_model_on_the_small_world(home):
    assert_one_sentence(run("eval", cwd=home), "--corpus")


def test_an_output_directory_that_is_a_file(home, tmp_path):
    (tmp_path / "model").write_text("precious")
    done = run("train", "--corpus", home / "text.txt", *TINY, cwd=tmp_path)
    assert_one_sentence(done, "model")
    assert (tmp_path / "model").read_text() == "precious"


@pytest.mark.parametrize("rate", ["1e3", "1e20", "1e38"])
def test_a_learning_rate_that_is_too_high_spoils_no_saved_model(home, tmp_path, rate):
    done = run("train", "--corpus", home / "text.txt", *TINY, "--epochs", 5,
               "--learning-rate", rate, cwd=tmp_path)
    assert "Traceback" not in done.stderr
    assert done.returncode in (0, 1)           # some rates only learn nothing
    if done.returncode:
        assert_one_sentence(done, "--learning-rate")
    if (tmp_path / "model" / "model.safetensors").exists():
        model = SimpleLLM.from_pretrained(tmp_path / "model")
        assert np.isfinite(model.forward(np.array([[1, 4, 5]]))).all()


def test_training_that_breaks_down_keeps_the_last_good_model(home, tmp_path):
    for path in (home / "model").iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    done = run("train", "--corpus", home / "text.txt", *TINY, "--learning-rate", "1e38",
               "--out", ".", cwd=tmp_path)
    assert done.returncode == 1 and "--learning-rate" in done.stderr
    kept = SimpleLLM.from_pretrained(tmp_path)
    assert np.isfinite(kept.forward(np.array([[1, 4, 5]]))).all()


# Stopping


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_leaves_a_model_that_can_be_loaded(home, tmp_path, sent):
    command = [sys.executable, "-m", "simple_llm", "train", "--corpus",
               str(home / "text.txt"), *TINY, "--epochs", "100000"]
    process = subprocess.Popen(command, cwd=tmp_path, env=ENV, text=True,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.readline()
    process.stdout.readline()                  # it is about to start
    time.sleep(0.5)
    process.send_signal(sent)
    _, said = process.communicate(timeout=20)
    assert process.returncode == 130
    assert "Traceback" not in said
    assert "stopped at step" in said
    done = run("generate", "--max-new-tokens", 5, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("arguments", [
    ("generate", "--max-new-tokens", "2000", "--temperature", "5"),
    ("train", "--corpus", "text.txt", *TINY, "--out", "piped"),
], ids=lambda arguments: arguments[0])
def test_a_reader_that_goes_away_causes_no_traceback(home, arguments):
    command = [sys.executable, "-m", "simple_llm", *arguments]
    process = subprocess.Popen(command, cwd=home, env=ENV, stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE)
    process.stdout.read(1)
    process.stdout.close()
    said = process.stderr.read().decode()
    process.wait(timeout=60)
    assert "Traceback" not in said and "BrokenPipe" not in said


def test_a_full_disk_gives_one_sentence(home):
    if not os.path.exists("/dev/full"):
        pytest.skip("this system has no /dev/full")
    command = [sys.executable, "-m", "simple_llm", "generate"]
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, cwd=home, env=ENV, stdout=full, text=True,
                              stderr=subprocess.PIPE)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr and "No space left" in done.stderr


# Looking inside, talking, counting; texts from everywhere

TRAINED = Path(__file__).parent / "trained"


def chat(text, cwd, *options):
    return subprocess.run(
        [sys.executable, "-m", "simple_llm", "chat", "--model", str(TRAINED), *options],
        cwd=cwd, env=ENV, input=text, capture_output=True, text=True, timeout=60,
    )


def test_chat_remembers_statements_and_answers_questions(tmp_path):
    done = chat("anna took the key . ben went to the barn .\n"
                "what about anna ?\nwhat about ben ?\nwhat about anna ?\n", tmp_path)
    assert done.returncode == 0 and done.stderr == ""
    assert done.stdout == "the key\nthe barn\nthe key\n"


def test_chat_takes_several_statements_and_empty_lines(tmp_path):
    done = chat("cleo took the bell .\n\nben went to the attic .\nwhat about cleo ?\n",
                tmp_path)
    assert done.stdout == "the bell\n"


def test_a_chat_longer_than_the_context_goes_on(tmp_path):
    story = "anna took the key . ben went to the barn .\n" + "what about ben ?\n" * 15
    done = chat(story, tmp_path)
    assert done.returncode == 0 and len(done.stdout.splitlines()) == 15


def test_info_counts_every_parameter(tmp_path):
    done = run("info", TRAINED, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    counts = [int(number.replace(",", ""))
              for number in re.findall(r"([\d,]+) parameters", done.stdout)]
    assert counts[-1] == sum(counts[:-1]) == 106_496
    assert "word tokenizer" in done.stdout


def test_inspect_writes_a_page(tmp_path):
    done = run("inspect", "anna took the key . what about anna ? the", "--model", TRAINED,
               "--out", "page.html", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "page.html" in done.stdout
    assert (tmp_path / "page.html").read_text().startswith("<!doctype html>")


def test_inspect_refuses_a_text_that_is_longer_than_the_context(tmp_path):
    done = run("inspect", "the " * 80, "--model", TRAINED, cwd=tmp_path)
    assert_one_sentence(done, "81 tokens", "73")


def test_a_prompt_from_standard_input(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "simple_llm", "generate", "--model", str(TRAINED),
         "--prompt", "-", "--temperature", "0", "--max-new-tokens", "2"],
        cwd=tmp_path, env=ENV, input="ben took the coin . what about ben ?\n",
        capture_output=True, text=True, timeout=60)
    assert done.stdout == "ben took the coin . what about ben ? the coin\n"


def test_texts_are_joined_from_files_directories_and_standard_input(tmp_path):
    from simple_llm.corpus import gather_text
    (tmp_path / "b").mkdir()
    (tmp_path / "a.txt").write_text("one")
    (tmp_path / "b" / "2.md").write_text("three")
    (tmp_path / "b" / "1.txt").write_text("two")
    (tmp_path / "b" / "x.bin").write_bytes(b"\0")
    text = gather_text([str(tmp_path / "a.txt"), str(tmp_path / "b")])
    assert text == "one\ntwo\nthree"
    assert len(gather_text(["pydoc"])) > 300_000


def test_fine_tuning_keeps_the_sizes_and_the_vocabulary(home):
    (home / "more.txt").write_text("the dog sat on the cat.\n" * 20)
    done = run("train", "--corpus", "more.txt", "--from", "model", "--out", "tuned",
               "--epochs", 1, "--workers", 1, "--no-ladder", cwd=home)
    assert done.returncode == 0, done.stderr
    assert "bits per byte" in done.stdout
    old, new = (SimpleLLM.from_pretrained(home / name) for name in ("model", "tuned"))
    assert old.config == new.config and not np.array_equal(old.data, new.data)
    assert Tokenizer.load(home / "tuned").tokens == Tokenizer.load(home / "model").tokens


def test_dropout_of_a_model_that_is_trained_further_is_that_of_the_command_line(home):
    """In the model and in its config, from which the helpers make theirs."""
    from simple_llm.__main__ import make_corpus, make_model
    model, corpus = Path(home) / "model", str(Path(home) / "text.txt")
    args = read_arguments(["train", "--from", str(model), "--corpus", corpus,
                           "--dropout", "0.25", "--workers", "1"])
    made = make_model(args, make_corpus(args))
    assert made.config.dropout == 0.25 and {d.p for d in made.dropouts} == {0.25}


def test_fine_tuning_refuses_other_sizes(home):
    done = run("train", "--corpus", "text.txt", "--from", "model", "--layers", 3, cwd=home)
    assert_refused(done, "--layers", "--from")


def test_a_model_of_a_text_cannot_go_on_with_the_small_world(home):
    done = run("train", "--from", "model", cwd=home)
    assert_one_sentence(done, "small world", "--corpus")


def test_bits_per_byte_do_not_depend_on_how_a_text_is_cut():
    """Two tokenizers that spread the same cost over tokens of different size agree."""
    from simple_llm.corpus import TextCorpus
    text = "ab cd ef gh " * 200
    chars = TextCorpus(text, Tokenizer.from_text(text, "char"), 8)
    tokens = len(chars.validation)
    assert chars.bits_per_byte(math.log(2)) == pytest.approx(1.0)      # 1 bit a letter
    words = TextCorpus(text, Tokenizer.from_text(text, "word"), 8)
    nats = math.log(2) * 2                                             # 2 bits a word
    in_bytes = len(words.tokenizer.decode(words.validation.tolist()).encode())
    assert words.bits_per_byte(nats) == pytest.approx(
        2 * len(words.validation) / in_bytes)
    assert tokens > len(words.validation)


# Byte-pair encoding, and tokenize


@pytest.fixture(scope="module")
def bpe(tmp_path_factory):
    """A directory with a byte-pair model of the text."""
    home = tmp_path_factory.mktemp("bpe")
    (home / "text.txt").write_text(TEXT + "né 🙂\n", encoding="utf-8")
    done = run("train", "--corpus", "text.txt", "--tokenizer", "bpe", "--vocab-size", 270,
               *TINY, cwd=home)
    assert done.returncode == 0, done.stderr
    return home


def test_a_byte_pair_model_is_trained_measured_and_writes(bpe):
    tokenizer = Tokenizer.load(bpe / "model")
    assert (tokenizer.kind, tokenizer.vocab_size) == ("bpe", 270)
    done = run("eval", "--corpus", "text.txt", cwd=bpe)
    assert done.returncode == 0 and "perplexity" in done.stdout, done.stderr
    done = run("generate", "--prompt", "né 🙂 the", "--seed", 1, cwd=bpe)
    assert done.returncode == 0 and done.stdout.startswith("né 🙂 the"), done.stderr


def test_a_vocabulary_that_is_too_small_is_refused(bpe, tmp_path):
    done = run("train", "--corpus", bpe / "text.txt", "--tokenizer", "bpe",
               "--vocab-size", 100, *TINY, cwd=tmp_path)
    assert_one_sentence(done, "260")


def test_tokenize_shows_tokens_with_their_ids_beneath(bpe):
    done = run("tokenize", "the mat\né\t!", cwd=bpe)
    assert (done.returncode, done.stderr) == (0, "")
    lines, tokenizer = done.stdout.splitlines(), Tokenizer.load(bpe / "model")
    assert lines[0].startswith("the") and "·" in lines[0] and lines[0].endswith("⏎")
    assert "\\xc3" in lines[3] and "⇥" in lines[3] and "\x1b" not in done.stdout
    ids = [int(id) for line in (lines[1], lines[4]) for id in line.split()]
    assert ids == tokenizer.encode("the mat\né\t!")
    assert lines[-1] == f"{len(ids)} tokens, 11 characters, 12 bytes: " \
                        f"{12 / len(ids):.2f} bytes per token"


@pytest.mark.parametrize("words", [(), ("-",)])
def test_tokenize_reads_any_bytes_from_standard_input(words, bpe):
    with open(bpe / "bytes", "wb+") as file:
        file.write(b"the \xff\r\n")
        file.seek(0)
        done = run("tokenize", *words, cwd=bpe, stdin=file)
    assert done.returncode == 0, done.stderr
    assert "\\xff" in done.stdout and "\\r" in done.stdout and "7 bytes" in done.stdout


def test_tokenize_shows_words_and_what_is_unknown(world):
    done = run("tokenize", "anna went mars", cwd=world)
    assert done.returncode == 0 and "<unk>" in done.stdout and "mars" in done.stderr


def test_inspect_shows_white_space(bpe):
    assert run("inspect", "the mat", cwd=bpe).returncode == 0
    assert ">·" in (bpe / "inspect.html").read_text(encoding="utf-8")


def test_what_is_printed_while_training_has_no_control_characters(bpe, tmp_path):
    done = run("train", "--corpus", bpe / "text.txt", "--tokenizer", "bpe",
               "--vocab-size", 270, *TINY, cwd=tmp_path)
    samples = [line for line in done.stdout.splitlines() if line.startswith("step ")]
    assert len(samples) >= 2 and all(line.isprintable() for line in samples)


def test_tokenize_of_nothing_shows_nothing(bpe):
    assert run("tokenize", "", cwd=bpe).stdout.startswith("0 tokens")


@pytest.mark.parametrize("variable", [{}, {"NO_COLOR": "1"}, {"TERM": "dumb"}], ids=str)
def test_tokenize_is_coloured_on_a_terminal_that_wants_it(variable, bpe):
    pty = pytest.importorskip("pty")
    master, slave = pty.openpty()
    env = {key: value for key, value in ENV.items() if key != "NO_COLOR"}
    subprocess.run([sys.executable, "-m", "simple_llm", "tokenize", "the mat"], cwd=bpe,
                   env={**env, "TERM": "xterm", **variable}, stdout=slave, timeout=60)
    os.close(slave)
    shown = os.read(master, 10_000).decode()
    os.close(master)
    assert ("\x1b[" in shown) == (not variable)


def test_no_row_of_tokens_is_wider_than_the_terminal(bpe):
    from simple_llm.__main__ import rows_of_tokens
    tokenizer = Tokenizer.load(bpe / "model")
    ids = tokenizer.encode("the cat sat 日本 🙂 on the mat " * 5)
    rows = list(rows_of_tokens(tokenizer, ids, 30))
    assert len(rows) > 6 and max(map(len, rows)) <= 30
    shown = [id for row in rows[1::2] for id in row.split()]
    assert shown == [str(id) for id in ids]


def test_a_model_with_a_few_rows_more_than_its_tokenizer_is_no_error(bpe, tmp_path):
    from dataclasses import replace
    model = SimpleLLM.from_pretrained(bpe / "model")
    Tokenizer.load(bpe / "model").save(tmp_path / "model")
    for surplus, status in ((8, 0), (500, 1)):
        config = replace(model.config, vocab_size=270 + surplus)
        SimpleLLM(config).save_pretrained(tmp_path / "model")
        done = run("generate", "--prompt", "the", "--max-new-tokens", 1, "--temperature",
                   0, cwd=tmp_path)
        assert done.returncode == status, done.stderr
    assert_one_sentence(done, "770", "270", "do not belong together")


# Exactly so many steps


def test_max_steps_ends_after_exactly_so_many(home, tmp_path):
    shape = TINY[:TINY.index("--epochs")]
    done = run("train", "--corpus", home / "text.txt", *shape, "--max-steps", 37,
               "--workers", 1, "--no-ladder", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = read_checkpoint(tmp_path / "model" / CHECKPOINT)
    assert (found.step, found.steps, found.history[-1][1]) == (37, 37, 37)
    done = run("info", cwd=tmp_path)
    assert "37 of 37 steps" in done.stdout and "last   step     37" in done.stdout


def test_the_schedule_falls_over_max_steps_to_the_lowest_rate(monkeypatch):
    rates = []
    monkeypatch.setattr(AdamW, "step", lambda self, rate, part: rates.append(rate))
    text = "ab cd ef gh " * 40
    corpus = TextCorpus(text, Tokenizer.from_text(text, "char"), 8, 4)
    assert 50 > 3 * corpus.steps > 0                       # some epochs are needed
    model = SimpleLLM(Config(corpus.tokenizer.vocab_size, 8, 8, 1, 2))
    train(model, corpus, Options(max_steps=50, warmup=5, learning_rate=1.0, min_lr=0.25,
                                 workers=1), lambda moment: None)
    assert len(rates) == 50
    assert rates[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert rates[5:] == sorted(rates[5:], reverse=True)
    assert rates[27] == pytest.approx(0.25 + 0.75 * 0.5, abs=0.02)
    assert 0.25 < rates[-1] < 0.26


def test_a_run_of_max_steps_is_resumed_to_the_same_bytes(home, tmp_path):
    shape = (*TINY[:TINY.index("--epochs")], "--workers", "1", "--no-ladder",
             "--dropout", "0.1", "--corpus", str(home / "text.txt"), "--max-steps")
    assert run("train", *shape, 300, "--out", "whole", cwd=tmp_path).returncode == 0
    command = [sys.executable, "-m", "simple_llm", "train", *shape, "300"]
    process = subprocess.Popen(command, cwd=tmp_path, env=ENV, text=True,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    while "step" not in process.stdout.readline():
        pass
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=20)
    done = run("train", "--resume", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "model" / "model.safetensors").read_bytes() == (
        tmp_path / "whole" / "model.safetensors").read_bytes()
    assert run("train", "--resume", "--max-steps", 301, cwd=tmp_path).returncode == 1


def test_nanogpts_recipe_for_a_cpu_can_be_given(tmp_path):
    given = read_arguments(
        "train --corpus x.txt --layers 4 --heads 4 --width 128 --context 64 --batch-size 12 "
        "--max-steps 2000 --learning-rate 1e-3 --min-lr 1e-4 --warmup-steps 100 --beta2 0.99 "
        "--weight-decay 0.1 --grad-clip 1.0 --dropout 0".split())
    assert make_options(given) == Options(
        epochs=100, max_steps=2000, learning_rate=1e-3, min_lr=1e-4, warmup=100,
        betas=(0.9, 0.99), weight_decay=0.1, clip=1.0, workers=given.workers)
    short = read_arguments(["train", "--corpus", "x.txt", "--min-lr", "1e-4"])
    assert vars(short) == vars(given)                      # all the rest is the default


# What a model directory tells of its training


def test_info_tells_how_the_training_went(home):
    done = run("info", cwd=home)
    assert done.returncode == 0, done.stderr
    _, history = done.stdout.split("training: ")
    last = read_checkpoint(home / "model" / CHECKPOINT).history[-1]
    assert "1.0 epochs" in history and "learning rate 0.001, seed 0" in history
    assert re.search(r"[▁-█]{2,}", history) and re.search(r"\d{4}-\d\d-\d\d", history)
    rows = {line.split()[0]: line for line in history.splitlines()[3:]}
    assert list(rows) == ["first", "best", "last"]
    assert f"training {last[2]:.3f}" in rows["last"]
    assert f"held-out {last[3]:.3f}" in rows["last"]


def test_info_of_a_model_from_elsewhere(tmp_path):
    done = run("info", TRAINED, cwd=tmp_path)
    assert done.returncode == 0 and "training: nothing recorded" in done.stdout


# Help, and options that would do nothing


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_examples_and_defaults_and_fits_a_terminal(command, tmp_path):
    shown = run(command, "--help", cwd=tmp_path).stdout
    assert shown.startswith(f"usage: simple-llm {command} [OPTION]...")
    assert f"    simple-llm {command} " in shown or "    > " in shown
    assert max(map(len, shown.splitlines())) <= 79
    assert "[model]" in shown


def test_every_option_of_the_help_is_understood_and_every_default_is_true():
    parser, defaults = make_parser("train")
    assert defaults["width"] == [64, 128] and defaults["tokenizer"] == ["char"]
    stories, text = read_arguments(["train"]), read_arguments(["train", "--corpus", "x"])
    assert (stories.learning_rate, text.learning_rate) == (4e-3, 1e-3)
    assert (stories.batch_size, text.batch_size) == (64, 12)
    assert (stories.layers, text.layers, text.resume, text.start) == (2, 4, None, None)
    assert make_options(stories).steps(StoryCorpus(World(), held_out=1)) == 2000
    assert [a.dest for a in parser._actions if a.option_strings][1:] == list(defaults)


@pytest.mark.parametrize(("options", "says"), [
    (("train", "--context", 9), "--context is for a text"),
    (("train", "--tokenizer", "bpe"), "--tokenizer is for a text"),
    (("train", "--corpus", "text.txt", "--vocab-size", 300), "--tokenizer bpe"),
    (("train", "--corpus", "text.txt", "--from", "model", "--width", 16), "--from"),
    (("train", "--corpus", "text.txt", "--from", "model", "--context", 9), "--from"),
    (("train", "--epochs", 3, "--max-steps", 9), "--epochs does not go with --max-steps"),
    (("generate", "--temperature", 0, "--top-k", 3), "--top-k needs --temperature"),
    (("generate", "--temperature", 0, "--seed", 3), "--seed needs --temperature"),
    (("chat", "--top-p", "0.9"), "--top-p needs --temperature"),
    (("tokenize", "a", "b"), "unrecognized"), (("inspect",), "required: PROMPT"),
], ids=str)
def test_an_option_that_would_do_nothing_is_refused(home, options, says):
    assert_refused(run(*options, cwd=home), says)


def test_what_follows_two_dashes_is_no_option(tmp_path):
    done = run("tokenize", "--model", TRAINED, "--", "--help", cwd=tmp_path)
    assert done.returncode == 0 and "tokens" in done.stdout, done.stderr


# The held-out part stays unseen


@pytest.mark.parametrize("kind", ["char", "word", "bpe"])
def test_the_vocabulary_is_made_from_the_part_that_is_trained_on(tmp_path, kind):
    """Q is only in the last tenth."""
    (tmp_path / "text.txt").write_text(TEXT + "QQ QQ QQ QQ\n" * (len(TEXT) // 150))
    shape = TINY[:TINY.index("--epochs")]
    done = run("train", "--corpus", "text.txt", "--tokenizer", kind, "--max-steps", 2,
               *(("--vocab-size", 270) if kind == "bpe" else ()), *shape,
               "--no-ladder", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    tokens = Tokenizer.load(tmp_path / "model").tokens
    assert "QQ" not in tokens and ("Q" in tokens) == (kind == "bpe")
    assert ("of the tokens unknown" in done.stdout) == (kind != "bpe")
    told = run("eval", "--corpus", "text.txt", cwd=tmp_path).stdout
    assert ("of the tokens unknown" in told) == (kind != "bpe")


def test_what_is_unknown_is_paid_for_and_its_bytes_are_not_counted():
    text = "ab cd ef gh " * 180 + "ab xy " * 40            # the last tenth is unknown, half
    tokenizer = Tokenizer.from_text("ab cd ef gh", "word")
    with pytest.warns(UserWarning, match="'xy'"):
        corpus = TextCorpus(text, tokenizer, 8)
    tokens, known = len(corpus.validation), len(corpus.validation) // 2
    assert (tokens, known) == (80, 40)
    assert corpus.bits_per_byte(math.log(2)) == pytest.approx(tokens / (3 * known - 1))
    assert "50.0% of the tokens unknown" in corpus.price(1.0)


def test_a_text_of_which_nothing_is_known_is_measured_without_a_traceback(home):
    (home / "other.txt").write_text("日本語" * 200, encoding="utf-8")
    done = run("eval", "--corpus", "other.txt", cwd=home)
    assert done.returncode == 0 and "nan bits per byte (100.0% of" in done.stdout


# While one waits, and when one types


def test_the_ladders_smaller_model_is_announced_and_shows_its_progress(tmp_path):
    done = run("train", "--layers", 2, "--heads", 1, "--width", 4, "--batch-size", 4,
               "--max-steps", 20, "--workers", 1, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    before, after = done.stderr.split("for comparison, one layer:")
    assert "tok/s" in before and "tok/s" in after and "1 layer" in done.stdout


def test_in_a_chat_a_line_can_be_edited(tmp_path):
    pty = pytest.importorskip("pty")
    pytest.importorskip("readline")
    master, slave = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "simple_llm", "chat", "--model", str(TRAINED)],
        cwd=tmp_path, env={**ENV, "TERM": "xterm"}, stdin=slave, stdout=slave, stderr=slave)
    os.close(slave)
    shown = b""
    while b"> " not in shown:
        shown += os.read(master, 1000)
    os.write(master, b"xanna took the key .\x01\x04\n")        # Ctrl-A, Ctrl-D: x is gone
    os.write(master, b"what about anna ?\n\x04")
    try:
        while b"the key\r\n" not in shown.split(b"anna ?")[-1]:
            shown += os.read(master, 1000)
        assert process.wait(timeout=20) == 0               # the last Ctrl-D has left it
    finally:
        process.kill()
        os.close(master)
    assert b"vocabulary" not in shown                      # "xanna" would be unknown


# Installed with pip


def test_pyproject_names_the_entry_point_and_the_versions():
    tomllib = pytest.importorskip("tomllib")
    project = tomllib.loads((BUILD / "pyproject.toml").read_text())["project"]
    module, _, function = project["scripts"]["simple-llm"].partition(":")
    assert callable(getattr(importlib.import_module(module), function))
    assert project["name"] == "simple-llm"
    assert project["requires-python"] == ">=3.10"
    wanted = (BUILD.parent / "requirements.txt").read_text().split()
    assert project["dependencies"] == [line for line in wanted if line.startswith("numpy")]


def test_the_time_of_training_is_without_the_ladder(tmp_path, monkeypatch, capsys):
    """Which trains another model, for comparison."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(command_line, "climb", lambda *_: time.sleep(2) or {})
    Path("a.txt").write_text(TEXT)
    options = [word for word in TINY if word != "--no-ladder"]
    assert command_line.main(["train", "--corpus", "a.txt", *options]) == 0
    assert re.search(r"after [01] s of training", capsys.readouterr().out)
