"""The command line as a user types it. Bad input gets one sentence and no traceback."""
import importlib
import json
import math
import os
import re
import shutil
import subprocess
import sys
import time
import warnings
import xml.etree.ElementTree
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import forked
import simple_llm
from simple_llm.cli import train as command_train
from simple_llm.cli.curve import write_curve
from simple_llm.cli.main import main, make_parser
from simple_llm.cli.models import context_of
from simple_llm.cli.progress import Progress
from simple_llm.engine.resume import CHECKPOINT, read_checkpoint
from simple_llm.model import Config, SimpleLLM
from simple_llm.tokenizer import Tokenizer
from simple_llm.train import Moment, Score

COMMANDS = "train generate chat serve eval inspect info tokenize".split()
TRAINED = Path(__file__).parent / "trained"
BUILD = Path(simple_llm.__file__).parent.parent
ENV = {**os.environ, "PYTHONPATH": str(BUILD), "PYTHONIOENCODING": "utf-8"}
ENV.pop("PYTHONUNBUFFERED", None)       # its users have not set it, and it hides mistakes
TEXT = "the cat sat on the mat.\nthe dog sat on the log.\n" * 12
TINY = ("--layers", "1", "--heads", "2", "--width", "8", "--context", "8",
        "--epochs", "1", "--workers", "1", "--no-ladder")


def run(*arguments, cwd, env=ENV):
    return forked.run(*arguments, cwd=cwd, env=env)


def assert_one_sentence(done, *says):
    """Exit status 1 and a single line on stderr, which says what is wrong."""
    assert "Traceback" not in done.stderr, done.stderr
    assert done.returncode == 1, (done.returncode, done.stderr)
    lines = [x for x in done.stderr.splitlines() if x and not x.startswith("epoch")]
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("simple_llm: ")
    for word in says:
        assert word in lines[0]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A directory with a text, and a model that was trained on it."""
    home = tmp_path_factory.mktemp("home")
    (home / "text.txt").write_text(TEXT)
    done = run("train", "--corpus", "text.txt", *TINY, cwd=home)
    assert done.returncode == 0, done.stderr
    (home / "printed.txt").write_text(done.stdout, "utf-8")
    (home / "progress.txt").write_text(done.stderr, encoding="utf-8")
    return home


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A directory with a model of the small world."""
    home = tmp_path_factory.mktemp("world")
    done = run("train", "--max-steps", 20, "--layers", 2, "--heads", 1, "--width", 4,
               "--batch-size", 4, "--workers", 2, cwd=home)
    assert done.returncode == 0, done.stderr
    (home / "printed.txt").write_text(done.stdout, "utf-8")
    (home / "progress.txt").write_text(done.stderr, encoding="utf-8")
    return home


@pytest.fixture(scope="module")
def bpe(tmp_path_factory):
    """A directory with a byte-pair model of the text."""
    home = tmp_path_factory.mktemp("bpe")
    (home / "text.txt").write_text(TEXT + "né 🙂\n", encoding="utf-8")
    done = run("train", "--corpus", "text.txt", "--tokenizer", "bpe", "--vocab-size", 270,
               *TINY, cwd=home)
    assert done.returncode == 0, done.stderr
    return home


# What works


def test_the_saved_model_has_the_loss_that_was_told(home):
    done = run("eval", "--corpus", "text.txt", cwd=home)
    told, found = (re.search(r"loss (\d+\.\d+) nats", text)[1]
                   for text in ((home / "printed.txt").read_text("utf-8"), done.stdout))
    assert float(told) == pytest.approx(float(found), abs=2e-3)


def test_progress_without_a_terminal_is_plain_lines(home):
    progress = (home / "progress.txt").read_text(encoding="utf-8")
    assert "\r" not in progress and "\x1b" not in progress
    assert 1 <= len(progress.splitlines()) <= 50
    assert "tok/s" in progress and "left" in progress


def test_with_plain_layers_the_same_is_learned(home, tmp_path):
    """And a run of the one kind does not go on as the other."""
    done = run("train", "--corpus", home / "text.txt", "--plain", *TINY, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    plain, fast = (read_checkpoint(at / "model" / CHECKPOINT) for at in (tmp_path, home))
    assert plain.arguments["plain"] and not fast.arguments["plain"]
    for one, two in zip(plain.history, fast.history):
        assert one[3] == pytest.approx(two[3], abs=1e-4)
    done = run("train", "--resume", cwd=tmp_path)          # the option is remembered
    assert done.returncode == 0 and "had already finished" in done.stdout, done.stderr
    for name in ("model.safetensors", CHECKPOINT):
        (tmp_path / "model" / name).write_bytes((home / "model" / name).read_bytes())
    assert_one_sentence(run("train", "--resume", "--plain", cwd=tmp_path),
                        "FastLLM and is now SimpleLLM")


def test_generate_continues_the_prompt_and_repeats_itself_with_a_seed(home):
    ask = ("generate", "--prompt", "the ", "--max-new-tokens", 20, "--seed", 3)
    one, two = run(*ask, cwd=home), run(*ask, cwd=home)
    assert one.returncode == 0 and one.stderr == ""
    assert one.stdout.startswith("the ") and len(one.stdout) > 5
    assert one.stdout == two.stdout


def test_an_unknown_character_in_the_prompt_is_named(home):
    done = run("generate", "--prompt", "the é", "--max-new-tokens", 3, cwd=home)
    assert done.returncode == 0
    assert "'é'" in done.stderr and len(done.stderr.splitlines()) == 1


def test_a_prompt_from_standard_input(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "simple_llm", "generate", "--model", str(TRAINED),
         "--prompt", "-", "--temperature", "0", "--max-new-tokens", "2"],
        cwd=tmp_path, env=ENV, input="ben took the coin . what about ben ?\n",
        capture_output=True, encoding="utf-8", timeout=60)
    assert done.stdout == "ben took the coin . what about ben ? the coin\n"


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


def test_a_terminal_that_knows_only_ascii_gets_an_answer(tmp_path):
    (tmp_path / "text.txt").write_text("né là où ça été\n" * 30, encoding="utf-8")
    env = {**ENV, "PYTHONIOENCODING": "ascii"}
    for arguments in (("train", "--corpus", "text.txt", *TINY), ("generate",)):
        done = subprocess.run([sys.executable, "-m", "simple_llm", *arguments], env=env,
                              cwd=tmp_path, capture_output=True, timeout=60)
        assert (done.returncode, b"Traceback" in done.stderr) == (0, False)


def test_fine_tuning_keeps_the_sizes_and_the_vocabulary(home):
    (home / "more.txt").write_text("the dog sat on the cat.\n" * 20)
    done = run("train", "--corpus", "more.txt", "--from", "model", "--out", "tuned",
               "--epochs", 1, "--workers", 1, "--no-ladder", cwd=home)
    assert done.returncode == 0, done.stderr
    assert "bits per byte" in done.stdout
    old, new = (SimpleLLM.from_pretrained(home / name) for name in ("model", "tuned"))
    assert old.config == new.config and not np.array_equal(
        old.head.weight.data, new.head.weight.data)
    assert Tokenizer.load(home / "tuned").tokens == Tokenizer.load(home / "model").tokens


def test_a_model_of_llamas_form_does_all_that_the_other_does(tmp_path):
    (tmp_path / "text.txt").write_text(TEXT, "utf-8")
    train = ("train", "--corpus", "text.txt", "--form", "llama", "--out", "model", *TINY, "--heads", "4")
    done = run(*train, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    config = json.loads((tmp_path / "model/config.json").read_text("utf-8"))
    assert config["architectures"] == ["LlamaForCausalLM"] and config["num_key_value_heads"] == 2
    for command in ("generate --temperature 0 --prompt the", "eval --corpus text.txt", "inspect the", "info",
                    "train --from model --corpus text.txt --out more --epochs 1 --workers 1 --no-ladder",
                    "train --from model --corpus text.txt --out plain --epochs 1 --workers 1 --no-ladder --plain"):
        done = run(*command.split(), cwd=tmp_path)
        assert done.returncode == 0, (command, done.stderr)
    again = run(*train[:-2], "--heads", "4", "--resume", cwd=tmp_path)
    assert "had already finished" in again.stdout
    refused = run("train", "--from", "model", "--form", "gpt2", "--corpus", "text.txt", cwd=tmp_path)
    assert refused.returncode == 2 and "--from brings" in refused.stderr


def test_a_text_can_be_read_in_shorter_rows_than_a_models_context(home, tmp_path):
    """Fine-tuning keeps the context and the chat template, and says what it cannot."""
    shutil.copytree(home / "model", tmp_path / "model")
    (tmp_path / "model/chat_template.jinja").write_text("{{ messages }} é", "utf-8")
    (tmp_path / "text.txt").write_text(TEXT, "utf-8")
    L = SimpleLLM.from_pretrained(tmp_path / "model").config.context_length
    tune = "train --from model --corpus text.txt --max-steps 2 --no-ladder --workers 1 --out".split()
    for command in ([*tune, "tuned", "--context", str(L - 3)], [*tune, "tuned", "--resume"],
                    ["eval", "--corpus", "text.txt", "--context", "3"]):
        done = run(*command, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    tuned = tmp_path / "tuned"
    assert SimpleLLM.from_pretrained(tuned).config.context_length == L
    assert (tuned / "chat_template.jinja").read_text("utf-8") == "{{ messages }} é"
    for command in ([*tune, "more"], ["eval", "--corpus", "text.txt"]):
        assert_one_sentence(run(*command, "--context", str(L + 1), cwd=tmp_path), f"--context {L + 1}", f"{L} tokens")
    assert not (tmp_path / "more").exists()


def test_a_long_context_is_not_filled_unless_somebody_asks():
    model = SimpleNamespace(config=SimpleNamespace(context_length=8192))
    with pytest.warns(UserWarning, match="rows of 1024 tokens, of the 8192"):
        assert context_of(model, None) == 1024
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert context_of(model, 8192) == 8192
        model.config.context_length = 1024
        assert context_of(model, None) == 1024


def test_a_tilde_is_the_home_directory_wherever_a_path_is_typed(home, tmp_path):
    shutil.copytree(home / "model", tmp_path / "mine")
    (tmp_path / "text.txt").write_text(TEXT)
    for command in ("info ~/mine", "generate --model ~/mine --temperature 0", "eval --model ~/mine --corpus ~/text.txt",
                    "inspect --model ~/mine --out ~/page.html b", "tokenize --model ~/mine b",
                    "train --from ~/mine --corpus ~/text.txt --out ~/new --max-steps 2 --no-ladder --workers 1"):
        done = run(*command.split(), cwd=home, env={**ENV, "HOME": str(tmp_path)})
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "page.html").exists() and (tmp_path / "new/model.safetensors").exists()
    assert not (home / "~").exists()


def test_max_steps_ends_after_exactly_so_many(home, tmp_path):
    shape = TINY[:TINY.index("--epochs")]
    done = run("train", "--corpus", home / "text.txt", *shape, "--max-steps", 37,
               "--workers", 1, "--no-ladder", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = read_checkpoint(tmp_path / "model" / CHECKPOINT)
    assert (found.step, found.total_steps, found.history[-1][1]) == (37, 37, 37)
    done = run("info", cwd=tmp_path)
    assert "37 of 37 steps" in done.stdout and "at step " in done.stdout


def test_the_loss_that_is_shown_is_a_running_mean_over_all_steps(capsys):
    progress, score, mean = Progress(steps_per_epoch=10), Score(1.0, None, None), 4.0
    progress.show(Moment(0, 0, 40, math.nan, 0, score))
    for step in range(1, 41):
        loss = 4 * 0.9 ** (step - 1)
        mean += 0.05 * (loss - mean)
        progress.show(Moment(1, step, 40, loss, 8, score if step == 40 else None))
    assert f"loss {mean:.3f}" in capsys.readouterr().err


def test_the_ladders_smaller_model_is_announced_and_shows_its_progress(world):
    before, after = (world / "progress.txt").read_text("utf-8").split("for comparison, one layer:")
    assert "tok/s" in before and "tok/s" in after
    assert "1 layer" in (world / "printed.txt").read_text("utf-8")


def test_the_time_of_training_is_without_the_ladder(tmp_path, monkeypatch, capsys):
    """Which trains another model, for comparison."""
    real = time.perf_counter

    def climb(*_):                                         # and takes an hour
        monkeypatch.setattr(time, "perf_counter", lambda: real() + 3600)
        return {}

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(command_train, "climb", climb)
    Path("a.txt").write_text(TEXT)
    options = [word for word in TINY if word != "--no-ladder"]
    assert main(["train", "--corpus", "a.txt", *options]) == 0
    assert re.search(r"after [01] s of training", capsys.readouterr().out)


# Bad input


@pytest.mark.parametrize(("corpus", "says"), [
    ("missing.txt", "cannot read missing.txt"), ("", "cannot read"),
    ("photos", "photos has no text"), ("text.txt", "a smaller --context"),
])
def test_a_corpus_that_cannot_be_used(tmp_path, corpus, says):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_bytes(b"\xff\xd8")
    (tmp_path / "text.txt").write_text(TEXT)
    done = run("train", "--corpus", corpus, *TINY, "--context", 5000, cwd=tmp_path)
    assert_one_sentence(done, "photos" if corpus == "photos" else "", says.split()[0])
    assert says in done.stderr.replace(str(tmp_path) + "/", "")
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize("typed", [
    "", "fly", "train --no-such-option", "train --epochs 0", "train --width -8",
    "train --epochs many", "train --tokenizer syllable", "train --learning-rate nan",
    "train --learning-rate 0", "train --dropout 1", "generate --top-k 0",
    "generate --temperature nan", "generate --top-p -1", "tokenize a b", "inspect",
    "train --context 9", "train --corpus text.txt --from model --width 16",
    "generate --temperature 0 --top-k 3", "chat --top-p 0.9", "chat --seed 0",
])
def test_a_wrong_option_or_one_that_would_mislead_exits_2(capsys, typed):
    with pytest.raises(SystemExit) as end:
        main(typed.split())
    said = capsys.readouterr()
    assert end.value.code == 2 and not said.out
    usage, error = said.err.splitlines()
    assert usage.startswith("usage: simple-llm") and " error: " in error


@pytest.mark.parametrize("rate", ["1e3", "1e9"])
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


def test_a_full_disk_gives_one_sentence(home):
    if not os.path.exists("/dev/full"):
        pytest.skip("this system has no /dev/full")
    command = [sys.executable, "-m", "simple_llm", "generate"]
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, cwd=home, env=ENV, stdout=full, encoding="utf-8",
                              stderr=subprocess.PIPE)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr and "No space left" in done.stderr


def test_a_reader_that_goes_away_causes_no_word(home):
    process = subprocess.Popen(
        [sys.executable, "-m", "simple_llm", "tokenize", "the cat " * 9000],
        cwd=home, env=ENV, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.read(1)
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait(timeout=60) == 1


@pytest.mark.parametrize(("typed", "says"), [
    ("train --from model", "use a --corpus"), ("eval", "use a --corpus"),
    ("train --corpus text.txt --heads 3 --width 8", "3 heads cannot share a width of 8"),
    ("train --corpus text.txt --tokenizer bpe --vocab-size 100", "alone are 260"),
    ("inspect the --model nowhere", "cannot read nowhere"),
    ("generate --model nowhere", "`make train` makes a model"),
    ("generate --model short", "is damaged"),
    ("inspect " + "the" * 9, "28 tokens, but the context holds 8"),
    ("train --corpus text.txt --out text.txt", "text.txt"),
])
def test_what_does_not_fit_is_said_in_one_sentence(home, world, typed, says):
    shutil.copytree(home / "model", home / "short", dirs_exist_ok=True)
    weights = home / "short" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-5])
    assert_one_sentence(run(*typed.split(), cwd=home), says)
    assert (home / "text.txt").read_text() == TEXT


# Help


@pytest.mark.parametrize("command", COMMANDS)
def test_help_fits_a_terminal_and_names_every_command(command, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    for words in ([], [command]):
        with pytest.raises(SystemExit) as end:
            main([*words, "--help"])
        shown = capsys.readouterr().out
        assert end.value.code == 0 and max(map(len, shown.splitlines())) <= 80
        assert shown.startswith(f"usage: simple-llm {' '.join(words)}".rstrip())
        assert words or (f"\n    {command} " in shown and "130" in shown)

def test_the_defaults_are_the_small_worlds_or_nanogpts():
    def complete(*words):
        return command_train.complete(make_parser().parse_args(["train", *words]))[0]

    stories, text = complete(), complete("--corpus", "x.txt")
    for name, values in {"layers": (2, 4), "heads": (4, 4), "width": (64, 128),
                         "batch_size": (64, 12), "learning_rate": (4e-3, 1e-3),
                         "context": (64, 64), "max_steps": (1000, 2000), "seed": (0, 0),
                         "dropout": (0.0, 0.0), "min_lr": (0.0, None),
                         "matrix_rate": (0.02, 0.0)}.items():
        assert (getattr(stories, name), getattr(text, name)) == values
    given = complete(*"--corpus x.txt --layers 4 --heads 4 --width 128 --context 64 "
                     "--batch-size 12 --max-steps 2000 --learning-rate 1e-3".split())
    assert given.__dict__ | {"error": 0} == text.__dict__ | {"error": 0}


# Looking inside, talking, counting


def chat(text, cwd, *options):
    return subprocess.run(
        [sys.executable, "-m", "simple_llm", "chat", "--model", str(TRAINED), *options],
        cwd=cwd, env=ENV, input=text, capture_output=True, encoding="utf-8", timeout=60,
    )


def test_chat_remembers_statements_and_answers_questions(tmp_path):
    done = chat("anna took the key . ben went to the barn .\n"
                "what about anna ?\nwhat about ben ?\nwhat about anna ?\n", tmp_path)
    assert done.returncode == 0 and done.stderr == ""
    assert done.stdout == "the key\nthe barn\nthe key\n"


def test_info_counts_parameters_and_tells_how_the_training_went(home):
    assert "word tokenizer: 106,496 parameters" in run("info", TRAINED, cwd=home).stdout
    found = read_checkpoint(home / "model" / CHECKPOINT)
    done = run("info", cwd=home)
    assert f"{found.step} of {found.step} steps" in done.stdout, done.stderr
    assert f"held-out loss {found.history[-1][3]:.3f}" in done.stdout


def test_inspect_writes_a_page(tmp_path):
    done = run("inspect", "anna took the key . what about anna ? the", "--model", TRAINED,
               "--out", "page.html", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "page.html" in done.stdout
    assert (tmp_path / "page.html").read_text().startswith("<!doctype html>")


# Byte pairs, and tokenize


def test_a_byte_pair_model_is_trained_measured_and_writes(bpe):
    tokenizer = Tokenizer.load(bpe / "model")
    assert (tokenizer.kind, tokenizer.vocab_size) == ("bpe", 270)
    done = run("eval", "--corpus", "text.txt", cwd=bpe)
    assert done.returncode == 0 and "perplexity" in done.stdout, done.stderr
    done = subprocess.run(
        [sys.executable, "-m", "simple_llm", "generate", "--prompt", "-", "--seed", "1"],
        cwd=bpe, env=ENV, input="né 🙂 the", capture_output=True, encoding="utf-8", timeout=60)
    assert done.returncode == 0 and done.stdout.startswith("né 🙂 the"), done.stderr


def test_tokenize_shows_tokens_behind_their_ids(bpe):
    text = "the mat\né\t! " + "the cat sat " * 9
    done = subprocess.run([sys.executable, "-m", "simple_llm", "tokenize"], cwd=bpe, env=ENV,
                          input=text + "\n", capture_output=True, encoding="utf-8", timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    *lines, last = done.stdout.splitlines()
    shown = "".join(line[9:] for line in lines)
    assert shown.startswith("the·mat⏎\\xc3") and "⇥!" in shown
    ids = [int(line[:8]) for line in lines]
    assert ids == Tokenizer.load(bpe / "model").encode(text)
    assert last.startswith(f"{len(ids)} tokens, {len(text)} characters, ")


def test_tokenize_shows_words_and_what_is_unknown(world):
    done = run("tokenize", "anna went mars", cwd=world)
    assert done.returncode == 0 and "<unk>" in done.stdout and "mars" in done.stderr


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


# The curve


def brightness(color):
    channels = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    r, g, b = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels)
    return 0.2126 * r + 0.7152 * g + 0.0722 * b


def contrast(color):
    return (brightness("#fffdf8") + 0.05) / (brightness(color) + 0.05)


def test_the_loss_curve_is_a_picture_that_can_be_read(world, home):
    for directory in (world, home):
        picture = (directory / "model" / "loss.svg").read_text(encoding="utf-8")
        root = xml.etree.ElementTree.fromstring(picture)
        assert root[0].tag.endswith("title") and "falls from" in root[0].text
        assert "nan" not in picture.lower()
        texts = re.findall(r'<text [^>]*fill="(#\w+)"[^>]*>([^<]+)', picture)
        assert min(contrast(color.ljust(7, color[-1])) for color, _ in texts) >= 4.5
        words = " ".join(word for _, word in texts)
        assert "epoch 0" in words and "nats per token" in words
        lines = re.findall(r'stroke="(#\w+)" stroke-width="2" ?([^/]*)/>', picture)
        assert min(contrast(color) for color, _ in lines) >= 3
        assert len({dashes for _, dashes in lines}) == len(lines)
    assert "100 %" in (world / "model" / "loss.svg").read_text(encoding="utf-8")


@pytest.mark.parametrize("losses", [(1.0, 0.0), (0.0, 0.0), (3.0, 3.0)], ids=str)
def test_a_loss_of_zero_can_be_drawn(tmp_path, losses):
    """A text of one letter is learned perfectly."""
    history = [Moment(1, step, 1, 0.0, 9, Score(loss, None, None))
               for step, loss in enumerate(losses)]
    write_curve(tmp_path, history, {"uniform": 0.0, "ours": 0.0}, None, 1)
    assert "nan" not in (tmp_path / "loss.svg").read_text(encoding="utf-8")


# What imports and installs


def test_pyproject_names_the_entry_point_and_the_versions():
    tomllib = pytest.importorskip("tomllib")
    project = tomllib.loads((BUILD / "pyproject.toml").read_text())["project"]
    module, _, function = project["scripts"]["simple-llm"].partition(":")
    assert callable(getattr(importlib.import_module(module), function))
    assert project["name"] == "simple-llm"
    assert project["requires-python"] == ">=3.10"
    wanted = (BUILD.parent / "requirements.txt").read_text().split()
    assert project["dependencies"] == [line for line in wanted if line.startswith("numpy")]
