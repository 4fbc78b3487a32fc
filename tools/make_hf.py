"""Make tests/hf.zip: tokenizers and models as Hugging Face writes them, for test_hf.py.

The tests only read the file, and need neither transformers nor PyTorch. It was made once, with
tokenizers 0.22.2, transformers 4.57.6 and torch 2.13.0 (see make_fixture.py for their set-up):

    .venv-torch/bin/python tools/make_hf.py

It holds a small byte-pair tokenizer of GPT-2's form, made by Hugging Face's own trainer, in both of
its forms (tokenizer.json; vocab.json with merges.txt); the ids that it gives to odd texts; which
characters are letters, numbers and space to its engine; and one tiny GPT-2 in several layouts,
with the logits that transformers computes from each.
"""

import json
import pathlib
import random
import tempfile
import zipfile

import safetensors.torch
import tokenizers
import torch
import transformers
from tokenizers import models, pre_tokenizers, trainers

ROOT = pathlib.Path(__file__).resolve().parent.parent
END = "<|endoftext|>"
MERGES = 300
PIECES = ["the", "They", "'s", "'ll", "'T", "n't", "123", "٣", "²", "½", "Ⅷ", "一", "日本", "né", "e\u0301", "🙂",
          "👩\u200d👩", "\u00a0", "\u3000", "\x1c", "\x1f", "\x85", "\u200b", "\t", "\n", "\r\n", " ", "  ", "_", "__",
          "...", "!?", "\x00", "ʼ", "ª", "𝟘", "𐍈", "\ufeff", "\ufffd", END, "<", "|", "ring"]
SHAPE = dict(vocab_size=257 + MERGES, n_positions=16, n_embd=12, n_layer=2, n_head=3)


def training_text():
    """The book's own preface and a few lines in other scripts."""
    book = (ROOT / "simple_llm.md").read_text("utf-8")
    return book[book.index("# simple_llm"):][:20_000] + "né naïve 日本語 日本 🙂🙂 ½ ½ ²\n" * 5


def odd_texts():
    """Texts in which many cuts are doubtful."""
    rng = random.Random(15)
    yield from ["", " ", "ring", "  a  b\n\n c\n", END, f"a{END}b"]
    for _ in range(300):
        yield "".join(rng.choice(PIECES) for _ in range(rng.randrange(1, 12)))


def classes():
    """The ranges of characters that the engine takes for letters, numbers and space."""
    every = [chr(c) for c in range(0x110000) if not 0xD800 <= c < 0xE000]
    found = {}
    for name, pattern in ("letters", r"\p{L}"), ("numbers", r"\p{N}"), ("space", r"\s"):
        remove = pre_tokenizers.Split(tokenizers.Regex(pattern), "removed")
        ranges = []
        for c in every:
            if not remove.pre_tokenize_str(c):
                if ranges and ranges[-1][1] == ord(c) - 1:
                    ranges[-1][1] = ord(c)
                else:
                    ranges.append([ord(c), ord(c)])
        found[name] = ranges
    return found


def make_tokenizer(out):
    """Both forms of one vocabulary; returns ids and texts by Hugging Face."""
    engine = tokenizers.Tokenizer(models.BPE())
    engine.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(vocab_size=256 + MERGES, min_frequency=2, show_progress=False,
                                  initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()))
    text = training_text()
    engine.train_from_iterator([text], trainer)
    model = json.loads(engine.to_str())["model"]
    model["vocab"][END] = len(model["vocab"])
    two = out / "two_files"
    two.mkdir()
    (two / "vocab.json").write_text(json.dumps(model["vocab"]), "utf-8")
    merges = "".join(f"{a} {b}\n" for a, b in model["merges"])
    (two / "merges.txt").write_text("#version: 0.2\n" + merges, "utf-8")
    fast = transformers.GPT2TokenizerFast(str(two / "vocab.json"), str(two / "merges.txt"))
    fast.save_pretrained(out / "one_file")
    for name in "vocab.json", "merges.txt", "special_tokens_map.json":
        (out / "one_file" / name).unlink(missing_ok=True)
    texts = list(odd_texts())
    ids = [fast(text, split_special_tokens=True)["input_ids"] for text in texts]
    rng = random.Random(16)
    drawn = [[rng.randrange(len(model["vocab"]) - 1) for _ in range(12)] for _ in range(100)]
    return dict(training_text=text, merges=model["merges"], texts=texts, ids=ids, drawn=drawn,
                drawn_texts=[fast.decode(ids, clean_up_tokenization_spaces=False) for ids in drawn])


def make_models(out):
    """One GPT-2, written in several ways; returns ids and the logits of each way."""
    torch.manual_seed(7)
    config = transformers.GPT2Config(**SHAPE, bos_token_id=SHAPE["vocab_size"] - 1,
                                     eos_token_id=SHAPE["vocab_size"] - 1)
    model = transformers.GPT2LMHeadModel(config).eval()
    for parameter in model.parameters():
        parameter.data.add_(0.2 * torch.randn_like(parameter))
    model.save_pretrained(out / "float32")
    model.half().save_pretrained(out / "sharded_float16", max_shard_size="8KB")
    model = transformers.GPT2LMHeadModel.from_pretrained(out / "float32")
    model.bfloat16().save_pretrained(out / "bfloat16")
    bare = transformers.GPT2Model.from_pretrained(out / "float32")
    bare.save_pretrained(out / "bare")                    # no prefix, as in OpenAI's files
    tensors = safetensors.torch.load_file(out / "bare" / "model.safetensors")
    triangle = torch.ones(16, 16).tril()[None, None]
    for layer in range(SHAPE["n_layer"]):                 # and with the attention's buffers
        tensors[f"h.{layer}.attn.bias"] = triangle.clone() if layer else triangle.to(torch.uint8)
        tensors[f"h.{layer}.attn.masked_bias"] = torch.tensor(-1e4)
    safetensors.torch.save_file(tensors, out / "bare" / "model.safetensors", {"format": "pt"})
    ids = torch.randint(0, SHAPE["vocab_size"], (2, 16))
    logits, greedy = {}, {}
    for name in "float32", "sharded_float16", "bfloat16", "bare":
        model = transformers.GPT2LMHeadModel.from_pretrained(out / name, dtype=torch.float32).eval()
        with torch.no_grad():
            logits[name] = [[float(f"{x:.8g}") for x in row] for row in model(ids).logits[0, ::5]]
            greedy[name] = model.generate(ids[:1, :4], max_new_tokens=10, do_sample=False, pad_token_id=0,
                                          eos_token_id=None)[0].tolist()
        (out / name / "generation_config.json").unlink(missing_ok=True)
    return dict(model_ids=ids.tolist(), logits=logits, greedy=greedy)


def main():
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as directory:
        out = pathlib.Path(directory)
        expected = make_tokenizer(out) | make_models(out) | dict(classes=classes())
        (out / "expected.json").write_text(json.dumps(expected), "utf-8")
        with zipfile.ZipFile(ROOT / "tests/hf.zip", "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
            for path in sorted(out.rglob("*.*")):
                info = zipfile.ZipInfo(path.relative_to(out).as_posix())    # with no date: the same bytes again
                info.compress_type = zipfile.ZIP_DEFLATED
                archive.writestr(info, path.read_bytes())


if __name__ == "__main__":
    main()
