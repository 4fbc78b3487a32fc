"""A run that was stopped goes on, and ends in the bytes of one that never was."""
import json
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

import forked
import torture
from simple_llm.checkpoint import load_safetensors
from simple_llm.cli.main import main
from simple_llm.engine import resume
from simple_llm.engine.fast import FastLLM
from simple_llm.engine.resume import CHECKPOINT, Run, read_checkpoint, write_checkpoint
from simple_llm.errors import UserError
from simple_llm.model import Config, SimpleLLM
from simple_llm.text import TextCorpus
from simple_llm.tokenizer import Tokenizer
from simple_llm.train import Options
from simple_llm.world import StoryCorpus, World
from torture import ENV, RUNS, finish, make_home, reference, result, start

SHORT = (*torture.TEXTS, "--workers", "1", "--epochs", "4")


def run(*arguments, cwd):
    return forked.run(*arguments, cwd=cwd, env=ENV)


@pytest.mark.parametrize(("name", "epochs", "ways"), [
    ("text, 1 worker", "60", ["point", "write", "point"]),
    ("stories, 2 workers", "9", ["point", "clock", "write"])])
def test_a_run_that_is_killed_again_and_again_ends_in_the_same_bytes(tmp_path, name, epochs, ways):
    arguments = (*RUNS[name], "--epochs", epochs)
    wanted = reference(tmp_path / "alone", arguments)
    assert {"model.safetensors", "loss.svg", "config.json"} <= wanted.keys()
    with tempfile.TemporaryDirectory() as disk:            # where a write can be met
        hits = torture.torture(Path(disk, "home"), arguments, wanted, ways, random.Random(1))
    assert hits["while a file was written"] + hits["elsewhere"] >= 2


def stopped(home, *arguments, sent=signal.SIGINT):
    """A training that was stopped in the middle, in home/model."""
    process = start(make_home(home), arguments)
    for line in process.stdout:
        if line.startswith("epoch"):           # an evaluation; some steps later, then
            time.sleep(0.02)
            process.send_signal(sent)
            break
    said, _ = process.communicate(timeout=60)
    return process.returncode, said


LONG = (*torture.TEXTS, "--workers", "1", "--epochs", "40")


@pytest.fixture(scope="module")
def unfinished(tmp_path_factory):
    """A home with a training that was stopped by Ctrl-C."""
    home = tmp_path_factory.mktemp("unfinished") / "home"
    status, said = stopped(home, *LONG)
    assert status == 130 and "--resume" in said
    step = read_checkpoint(home / "model" / CHECKPOINT).step
    assert f"stopped at step {step}, saved in model" in said
    return home


@pytest.fixture(scope="module")
def short(tmp_path_factory):
    """A home with the training SHORT, which nobody disturbed, and what that leaves."""
    home = tmp_path_factory.mktemp("short") / "home"
    return home, reference(home, SHORT)


@pytest.fixture
def copy(unfinished, tmp_path):
    return shutil.copytree(unfinished, tmp_path / "copy")


@pytest.fixture
def refused(copy, monkeypatch, capsys):
    """Resume in this process, with other options; what is said, in one sentence."""
    monkeypatch.chdir(copy)
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)             # main() sets it

    def refused(*options):
        before = (copy / "model" / CHECKPOINT).read_bytes()
        assert main(["train", "--resume", *map(str, (*LONG, *options))]) == 1
        [line] = [line for line in capsys.readouterr().err.splitlines() if line]
        assert line.startswith("simple_llm: ")
        assert (copy / "model" / CHECKPOINT).read_bytes() == before
        return line
    return refused


def test_ctrl_c_stops_in_the_middle_of_an_epoch_and_the_run_ends_in_the_same_bytes(
        copy, tmp_path):
    step = read_checkpoint(copy / "model" / CHECKPOINT).step
    assert 0 < step < 40 * 17                  # mostly in the middle of an epoch
    wanted = reference(tmp_path / "alone", LONG)
    said = finish(start(copy, ("--out", "model")))         # the options are known
    assert f"resumed at step {step} of " in said
    assert result(copy) == wanted


def test_a_run_goes_on_from_another_directory_and_counts_the_time_of_all_sittings(
        copy, tmp_path):
    path = copy / "model" / CHECKPOINT
    write_checkpoint(path, read_checkpoint(path)._replace(seconds=1000.0))
    done = run("train", "--resume", "--out", copy / "model", cwd=tmp_path)
    assert not done.returncode, done.stderr
    assert "resumed at step" in done.stdout and ", after 10" in done.stdout
    assert 1000 < read_checkpoint(path).seconds < 1100
    assert not (tmp_path / "model").exists()


def test_a_checkpoint_is_due_a_minute_after_the_last(tmp_path, monkeypatch):
    run = make_run(tmp_path)
    monkeypatch.setattr(resume.time, "perf_counter", lambda: run.saved + 61)
    assert run.is_due()
    run.save()
    monkeypatch.setattr(resume.time, "perf_counter", lambda: run.saved + 59)
    assert not run.is_due()


IMPATIENT = """
import sys
from simple_llm.cli.main import main
from simple_llm.engine import resume
saves, write = [], resume.write_checkpoint
resume.write_checkpoint = lambda *args: saves.append(write(*args))
resume.Run.is_due = lambda self: sys.argv[-1] == "always"
main(sys.argv[1:-1])
print("saves:", len(saves))
"""


def test_a_checkpoint_is_written_when_it_is_due_and_at_each_evaluation(tmp_path):
    home = make_home(tmp_path / "home")
    for due, saves in (("always", 1 + 4 * 17), ("never", 1 + 8 + 1)):
        done = subprocess.run(
            [sys.executable, "-c", IMPATIENT, "train", *SHORT, "--out", due, due],
            cwd=home, env=ENV, capture_output=True, encoding="utf-8", timeout=60)
        assert f"saves: {saves}\n" in done.stdout, done.stderr


@pytest.mark.parametrize(("options", "says"), [
    (("--epochs", 41), "epochs was 40 and is now 41"),
    (("--learning-rate", "0.5"), "learning_rate was 0.001 and is now 0.5"),
    (("--width", 16), "d_model was 8 and is now 16"),
    (("--workers", 2), "workers was 1 and is now 2"),
    (("--seed", 1), "seed was 0 and is now 1"),
    (("--batch-size", 3), "batch_size was 12 and is now 3"),
    (("--dropout", 0), "dropout was 0.1 and is now 0.0"),
    (("--context", 9), "context_length was 8 and is now 9"),
    (("--tokenizer", "word"), "the corpus was"),
    (("--plain",), "layers was FastLLM and is now SimpleLLM"),
], ids=str)
def test_a_checkpoint_of_another_configuration_is_refused_by_name(refused, options, says):
    assert says in refused(*options)


def test_a_checkpoint_of_another_text_or_of_another_version_is_refused(copy, refused):
    path, text = copy / "model" / CHECKPOINT, copy / "text.txt"
    text.write_text(text.read_text().replace("cat sat", "sat cat", 1))   # same length
    assert "the corpus was text " in refused()
    found = read_checkpoint(path)
    del found.plan["layers"]                               # as it was before this was noted
    write_checkpoint(path, found)
    assert "layers was None and is now" in refused()


def make_run(path, steps=2, habit=0.5, kind=SimpleLLM):
    corpus = StoryCorpus(World(habit=habit), 4, steps, 4)
    model = kind(Config(corpus.tokenizer.vocab_size, 8, 8, 1, 2))
    return Run(model, corpus, Options(epochs=1), path / CHECKPOINT, {})


def test_what_no_option_sets_must_be_the_same_too(tmp_path, monkeypatch):
    """Another world, another length of epoch, another number of processes."""
    run = make_run(tmp_path)
    run.save()
    found = read_checkpoint(run.path)
    run.restore(found)
    others = [(make_run(tmp_path, steps=3), "steps in an epoch was 2 and is now 3"),
              (make_run(tmp_path, habit=0.4), "the corpus was stories"),
              (make_run(tmp_path, kind=FastLLM), "layers was SimpleLLM and is now FastLLM")]
    monkeypatch.setenv("PMI_RANK", "0")
    monkeypatch.setenv("PMI_SIZE", "3")
    others.append((make_run(tmp_path), "processes of MPI was 1 and is now 3"))
    for other, says in others:
        with pytest.raises(UserError, match=says):
            other.restore(found)
    with pytest.raises(UserError, match="flavour was sweet and is now None"):
        run.restore(found._replace(plan={**found.plan, "flavour": "sweet"}))


def test_two_texts_with_the_same_ids_are_two_texts():
    """Their ids mean other characters."""
    texts = ["abab" * 50, "acac" * 50]
    marks = [resume.fingerprint(TextCorpus(text, Tokenizer.from_text(text, "char"), 8))
             for text in texts]
    assert marks[0] != marks[1]


@pytest.mark.parametrize("metadata", [
    None, [], "x", {}, {"sha256": 5}, {"sha256": "0", "run": 5}, "right"], ids=str)
def test_a_file_that_is_no_checkpoint_is_refused(tmp_path, metadata):
    texts = ["{}", "[]", "5", "{", "[" * 100_000, '{"step": 1, "arrays": 2}']
    for text in texts if metadata == "right" else [""]:
        if metadata == "right":
            made = {"run": text, "sha256": resume.digest(text, {})}
        else:
            made = metadata
        header = json.dumps({} if made is None else {"__metadata__": made}).encode()
        (tmp_path / "a").write_bytes(len(header).to_bytes(8, "little") + header)
        with pytest.raises(UserError, match="is damaged, or no checkpoint"):
            read_checkpoint(tmp_path / "a")


def test_with_nothing_to_resume_the_training_begins_with_a_note(tmp_path):
    done = run("train", "--resume", *SHORT, cwd=make_home(tmp_path / "home"))
    assert done.returncode == 0, done.stderr
    assert "note: nothing to resume in model" in done.stderr


def test_a_finished_or_a_damaged_checkpoint_is_no_hindrance(short, tmp_path):
    home, wanted = short
    shutil.copytree(home, tmp_path / "home")
    path = tmp_path / "home" / "model" / CHECKPOINT
    (tmp_path / "home" / "model" / "loss.svg").unlink()
    done = run("train", "--resume", cwd=tmp_path / "home")
    assert done.returncode == 0, done.stderr
    assert "had already finished" in done.stdout
    assert result(tmp_path / "home") == wanted
    for data in (path.read_bytes(), b"junk"):
        path.write_bytes(data)
        done = run("train", *SHORT, cwd=tmp_path / "home")
        assert done.returncode == 0 and "note:" not in done.stderr
        assert result(tmp_path / "home") == wanted


def test_a_run_that_is_killed_after_its_first_evaluation_tells_of_it_once(short, tmp_path):
    _, wanted = short
    home = make_home(tmp_path / "killed")
    start(home, SHORT, torture.POINTS).communicate(timeout=60)
    assert read_checkpoint(home / "model" / CHECKPOINT).step == 0
    finish(start(home, ()))
    assert result(home) == wanted


def test_an_unfinished_run_is_moved_aside_and_not_overwritten(copy):
    before = (copy / "model" / CHECKPOINT).read_bytes()
    done = run("train", *SHORT, cwd=copy)
    assert done.returncode == 0, done.stderr
    assert "note: an unfinished training was in model" in done.stderr
    [kept] = (copy / "model").glob(f"old-*-{CHECKPOINT}")
    assert kept.read_bytes() == before and str(kept.name) in done.stderr
    assert read_checkpoint(copy / "model" / CHECKPOINT).step == 4 * 17
    shutil.copy(kept, copy / "model" / CHECKPOINT)
    kept.rename(kept.with_name(f"old-1-{CHECKPOINT}"))     # names differ by the second
    assert run("train", *SHORT, cwd=copy).returncode == 0
    assert len(list((copy / "model").glob(f"old-*-{CHECKPOINT}"))) == 2


@pytest.mark.parametrize("change", [
    lambda data: data[:-1], lambda data: data[:9], lambda data: b"",
    lambda data: data + b"x", lambda data: data[:-40] + b"\1" + data[-39:],
    lambda data: data.replace(b'\\"step\\": ', b'\\"step\\":1', 1),
    lambda data: data.replace(b"sha256", b"sha257"), lambda data: b"PK" + data,
], ids=range(8))
def test_a_damaged_checkpoint_is_refused_and_left_as_it_is(copy, refused, change):
    path = copy / "model" / CHECKPOINT
    data = change(path.read_bytes())
    assert data != path.read_bytes()
    path.write_bytes(data)
    assert CHECKPOINT in refused()


def test_a_checkpoint_holds_the_model_that_was_saved_with_it(copy):
    arrays = read_checkpoint(copy / "model" / CHECKPOINT).arrays
    tensors = load_safetensors(copy / "model" / "model.safetensors")
    assert set(arrays) == {"data", "m", "v"}
    assert sum(array.size for array in tensors.values()) == arrays["data"].size
    assert sorted(arrays["data"].tolist()) == sorted(
        x for array in tensors.values() for x in array.ravel().tolist())
