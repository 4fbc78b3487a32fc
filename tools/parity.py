"""Our directories opened in transformers, and theirs opened here: make parity.

For each direction the same ids, logits and greedy texts are asked of both programs. The exit status
is 1 if an id or a text differs, or a logit by more than 1e-5.
"""
from __future__ import annotations

import contextlib
import io
import json
import os
import random
import sys
import tempfile
import unicodedata
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "build"))
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")    # before NumPy
os.environ["TRANSFORMERS_VERBOSITY"] = "error"
os.environ["HF_HUB_OFFLINE"] = "1"

import numpy as np  # noqa: E402
import pydoc_data.topics  # noqa: E402
import safetensors.torch  # noqa: E402
import tokenizers  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402

from simple_llm.cli.main import main as simple_llm_main  # noqa: E402
from simple_llm.cli.models import load  # noqa: E402
from simple_llm.engine.fast import FastLLM  # noqa: E402
from simple_llm.engine.fast_today import FastTodayLLM  # noqa: E402
from simple_llm.today.assistant import TEMPLATE, TaleCorpus, hold_talk  # noqa: E402
from simple_llm.today.chat import SMALL, Writer  # noqa: E402
from simple_llm.tokenizer import Tokenizer  # noqa: E402
from simple_llm.world import World  # noqa: E402

END = "<|endoftext|>"
TOPICS = "\n".join(text for _, text in sorted(pydoc_data.topics.topics.items()))
failed = False


def show(name: str, ids: tuple[int, int] | None, logits: tuple[float, float] | None,
         texts: tuple[int, int] | None) -> None:
    """A line of the table; `ids` and `texts` are how many differ, and of how many."""
    global failed
    failed |= bool(ids and ids[0]) or bool(texts and texts[0]) or bool(logits and logits[0] > 1e-5)
    cells = [f"{ids[0]} of {ids[1]:,}" if ids else "",
             f"{logits[0]:.1e} of {logits[1]:.1f}" if logits else "",
             f"{texts[0]} of {texts[1]}" if texts else ""]
    print((f"{name:38}" + "".join(f"{cell:>18}" for cell in cells)).rstrip(), flush=True)


def every_known_character(step: int = 1) -> list[str]:
    """Texts in which each character that this Python knows, or every nth, stands beside others."""
    known = [c for c in map(chr, range(0x110000)) if unicodedata.category(c) not in ("Cn", "Cs", "Co")]
    return ["".join(f"{c}a{c}1{c}. {c}  {c}\n" for c in known[at : at + 500 : step])
            for at in range(0, len(known), 500)]


def odd_texts() -> list[str]:
    """Windows of real text, and texts of doubtful pieces."""
    rng = random.Random(0)
    pieces = ["the", "'s", "'LL", "12", "½", "日本", "né", "🙂", "\x1c", "\u00a0", "\t", "\n", " ", "  ",
              "_", "...", END, "<eos>", "<bos>", "<pad>", "<unk>", "\u200d", "ring"]
    at = [rng.randrange(len(TOPICS) - 400) for _ in range(200)]
    return [TOPICS[i : i + 400] for i in at] + [
        "".join(rng.choices(pieces, k=rng.randrange(15))) for _ in range(1000)]


def compare_ids(ours: Tokenizer, theirs, texts: list[str]) -> tuple[int, int]:
    """How many texts have other ids there, or do not come back the same; and of how many ids."""
    wrong = total = 0
    for text in texts:
        ids = ours.encode(text)
        total += len(ids)
        wrong += ids != theirs(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        spoken = [id for id in ids if id != ours.unk]      # transformers drops <unk>, we show it
        wrong += ours.decode(spoken) != theirs.decode(spoken, skip_special_tokens=True)
    return wrong, total


def conversations_there(home: Path) -> None:
    """What chapter 18's assistant is given, written there by its template, and its answers."""
    corpus, rng = TaleCorpus(held_out=1), random.Random(0)
    model, tokenizer = FastLLM(corpus.config, seed=1), corpus.tokenizer
    tokenizer.save(home)
    (home / "chat_template.jinja").write_text(TEMPLATE, "utf-8")
    model.save_pretrained(home)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(home).eval()
    their_tokenizer = transformers.AutoTokenizer.from_pretrained(home)
    wrong, total, differ, ends = 0, 0, 0, {tokenizer.eos, tokenizer.ids["<end>"]}
    for _ in range(100):
        turns = hold_talk(corpus.world, rng, 0.2)[:-1]
        ids = Writer(SMALL, tokenizer).write(turns)
        found = their_tokenizer.apply_chat_template(
            [{"role": role, "content": text} for role, text, _ in turns], add_generation_prompt=True)
        wrong += ids != (found if isinstance(found, list) else found["input_ids"])
        total += len(ids)
        with torch.no_grad():
            made = theirs.generate(torch.tensor([ids]), max_new_tokens=8, do_sample=False,
                                   attention_mask=torch.ones(1, len(ids), dtype=torch.long))[0].tolist()
        answer = list(model.generate(ids, max_new_tokens=8, temperature=0, stop=ends))
        differ += [token for token in made[len(ids):] if token not in ends] != answer
    show("conversations, ours opened there", (wrong, total), None, (differ, 100))


def compare_logits(ours: FastLLM, theirs, length: int) -> tuple[float, float]:
    """The largest difference on random ids, and the largest logit."""
    ids = np.random.default_rng(0).integers(ours.config.vocab_size, size=(8, length))
    with torch.no_grad():
        expected = theirs(torch.tensor(ids)).logits.numpy()
    return float(np.abs(ours.forward(ids) - expected).max()), float(np.abs(expected).max())


def compare_texts(ours: FastLLM, theirs, tokenizer: Tokenizer, their_tokenizer,
                  prompts: list[str]) -> tuple[int, int]:
    """How many greedy continuations differ."""
    wrong = 0
    for prompt in prompts:
        ids = [tokenizer.bos, *tokenizer.encode(prompt)]
        room = ours.config.context_length - len(ids)
        new = list(ours.generate(ids, max_new_tokens=room, temperature=0, stop=tokenizer.eos))
        with torch.no_grad():
            made = theirs.generate(torch.tensor([ids]), max_new_tokens=room, do_sample=False,
                                   attention_mask=torch.ones(1, len(ids), dtype=torch.long))[0].tolist()
        wrong += tokenizer.decode(ids + new) != their_tokenizer.decode(
            made, skip_special_tokens=True)
    return wrong, len(prompts)


def ours_there(home: Path) -> None:
    """Train a model with each kind of tokenizer, and open it in transformers."""
    rng = random.Random(1)
    stories = [" ".join(World().tell(rng).words[:-1]) for _ in range(200)]
    (home / "topics.txt").write_text(TOPICS[:100_000], "utf-8")
    words = ["--epochs", "8", "--workers", "1"]
    text = ["--corpus", str(home / "topics.txt"), "--layers", "2", "--width", "32", "--epochs", "1",
            "--workers", "1"]
    for kind, options in (("word", words), ("char", [*text, "--tokenizer", "char"]),
                          ("bpe", [*text, "--tokenizer", "bpe", "--vocab-size", "1000"]),
                          ("llama", [*words, "--form", "llama"])):
        out = home / kind
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            status = simple_llm_main(["train", "--out", str(out), "--no-ladder", *options])
        assert status == 0, kind
        ours, tokenizer = load(out)
        theirs = transformers.AutoModelForCausalLM.from_pretrained(out).eval()
        their_tokenizer = transformers.AutoTokenizer.from_pretrained(out)
        texts = stories if kind in ("word", "llama") else []
        prompts = [" ".join(text.split()[:6]) for text in (texts or odd_texts())[:20]]
        every = every_known_character(1 if kind == "bpe" else 5)
        show(f"{kind}, ours opened there",
             compare_ids(tokenizer, their_tokenizer, texts + odd_texts() + every),
             compare_logits(ours, theirs, ours.config.context_length),
             compare_texts(ours, theirs, tokenizer, their_tokenizer, prompts))


def their_tokenizers(home: Path) -> Tokenizer:
    """A vocabulary of GPT-2's form from their trainer; and our own merges beside it."""
    ByteLevel = tokenizers.pre_tokenizers.ByteLevel
    engine = tokenizers.Tokenizer(tokenizers.models.BPE())
    engine.pre_tokenizer = ByteLevel(add_prefix_space=False)
    engine.train_from_iterator([TOPICS], tokenizers.trainers.BpeTrainer(
        vocab_size=8000, min_frequency=2, initial_alphabet=ByteLevel.alphabet(), show_progress=False))
    model = json.loads(engine.to_str())["model"]
    learned = Tokenizer.from_text(TOPICS, "bpe", vocab_size=8004)
    different = sum(a != tuple(b) for a, b in zip(learned.merges, model["merges"]))
    different += abs(len(learned.merges) - len(model["merges"]))
    show("merges, learned here and there", (different, len(model["merges"])), None, None)
    two, one = home / "two", home / "one"
    two.mkdir()
    model["vocab"][END] = len(model["vocab"])
    (two / "vocab.json").write_text(json.dumps(model["vocab"]), "utf-8")
    merges = "".join(f"{a} {b}\n" for a, b in model["merges"])
    (two / "merges.txt").write_text("#version: 0.2\n" + merges, "utf-8")
    (two / "config.json").write_text('{"model_type": "gpt2"}')
    theirs = transformers.AutoTokenizer.from_pretrained(two)
    theirs.save_pretrained(one)
    texts = odd_texts()
    show("tokenizer.json, theirs here", compare_ids(Tokenizer.load(one), theirs, texts + every_known_character(3)),
         None, None)
    return Tokenizer.load(one), theirs


def their_models(home: Path, tokenizer: Tokenizer, their_tokenizer) -> None:
    """One GPT-2, as transformers writes it, in every layout."""
    torch.manual_seed(0)
    end, L = tokenizer.eos, 64
    config = transformers.GPT2Config(vocab_size=tokenizer.vocab_size, n_positions=L, n_embd=64, n_layer=3,
                                     n_head=4, bos_token_id=end, eos_token_id=end)
    model = transformers.GPT2LMHeadModel(config)
    for parameter in model.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(home / "float32")
    for name, dtype in (("float16", torch.float16), ("bfloat16", torch.bfloat16)):
        half = transformers.GPT2LMHeadModel.from_pretrained(home / "float32", dtype=dtype)
        half.save_pretrained(home / name)
        half.save_pretrained(home / f"{name} in shards", max_shard_size="300KB")
    model.save_pretrained(home / "float32 in shards", max_shard_size="300KB")
    bare = home / "float32, no prefix, masks"
    transformers.GPT2Model.from_pretrained(home / "float32").save_pretrained(bare)
    tensors = safetensors.torch.load_file(bare / "model.safetensors")
    for layer in range(config.n_layer):
        tensors[f"h.{layer}.attn.bias"] = torch.ones(L, L).tril()[None, None].clone()
        tensors[f"h.{layer}.attn.masked_bias"] = torch.tensor(-1e4)
    safetensors.torch.save_file(tensors, bare / "model.safetensors", {"format": "pt"})
    for path in sorted(path for path in home.iterdir() if (path / "config.json").exists()):
        theirs = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
        theirs.generation_config.pad_token_id = end
        ours = FastLLM.from_pretrained(path)
        show(f"{path.name}, theirs here", None, compare_logits(ours, theirs, L),
             compare_texts(ours, theirs, tokenizer, their_tokenizer,
                           [text[:40] for text in odd_texts()[:20]]))


def todays_models(home: Path, tokenizer: Tokenizer, their_tokenizer) -> None:
    """Llama 3 and Qwen from transformers, opened here; and saved here, opened there once more."""
    scaling = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
               "original_max_position_embeddings": 32}
    end = tokenizer.eos
    for name, kind, more in (("llama 3", "Llama", {"rope_scaling": scaling, "rope_theta": 5e5}),
                             ("qwen 2", "Qwen2", {}), ("qwen 3", "Qwen3", {"head_dim": 32})):
        config = getattr(transformers, f"{kind}Config")(
            vocab_size=tokenizer.vocab_size, max_position_embeddings=64, hidden_size=64, num_hidden_layers=3,
            num_attention_heads=4, num_key_value_heads=2, intermediate_size=128, tie_word_embeddings=True,
            bos_token_id=end, eos_token_id=end, pad_token_id=end, **more)
        model = getattr(transformers, f"{kind}ForCausalLM")(config)
        for parameter in model.parameters():
            parameter.data.add_(0.1 * torch.randn_like(parameter))
        model.save_pretrained(home / name)
        ours = FastTodayLLM.from_pretrained(home / name)
        ours.save_pretrained(home / f"{name}, back")
        for path, way in ((home / name, "theirs here"), (home / f"{name}, back", "and back")):
            theirs = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
            show(f"{name}, {way}", None, compare_logits(ours, theirs, 64),
                 compare_texts(ours, theirs, tokenizer, their_tokenizer,
                               [text[:40] for text in odd_texts()[:20]]))


def main() -> int:
    import warnings
    warnings.simplefilter("ignore")                # unknown words, by the hundred
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(2)
    with tempfile.TemporaryDirectory() as directory:
        home = Path(directory)
        for name in ("ours", "talks", "tokenizers", "models", "today"):
            (home / name).mkdir()
        print(f"transformers {transformers.__version__}, tokenizers {tokenizers.__version__}, "
              f"torch {torch.__version__}; Unicode {unicodedata.unidata_version}\n\n{'':38}"
              f"{'ids that differ':>18}{'logits differ by':>18}{'texts that differ':>18}")
        ours_there(home / "ours")
        conversations_there(home / "talks")
        pair = their_tokenizers(home / "tokenizers")
        their_models(home / "models", *pair)
        todays_models(home / "today", *pair)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
