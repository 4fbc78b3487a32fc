"""A chat model here and in transformers' own reading of the same GGUF file: make parity MODEL=smollm2.

Both compute in float32, and their rounding is measured against this book's plain layers in float64. The exit
status is 1 if an id or a greedy token differs, if a logit of either is further than 1e-4 from that (in a long
text, where their angles are coarse, of theirs with exact ones), or if a gradient is further from that
than 1e-4 of the largest in its array, or theirs than 5e-3.
"""
from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from pathlib import Path
from typing import Iterator

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "build"))
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")    # before NumPy
os.environ["TRANSFORMERS_VERBOSITY"] = "error"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TQDM_DISABLE"] = "1"

import numpy as np  # noqa: E402
import pydoc_data.topics  # noqa: E402
import tokenizers  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402
from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint  # noqa: E402

from simple_llm.cli.fetch import find  # noqa: E402
from simple_llm.cli.models import load  # noqa: E402
from simple_llm.today.chat import CHATML, Turn, Writer, recognize  # noqa: E402
from simple_llm.today.gguf import GGUF  # noqa: E402
from simple_llm.today.model import PIECE, TodayLLM  # noqa: E402

LIMIT, THEIRS = 1e-4, 5e-3                   # their gradients in float32 are coarser than ours
TOKENS = 100
TOPICS = pydoc_data.topics.topics
TEXTS = {
    "English": TOPICS["truth"][:600], "750 tokens": "\n".join(TOPICS.values())[:3600],
    "code": "def area(r):\n    return 3.14159 * r ** 2\n\n\nfor r in range(10):\n    print(r, area(r))\n",
    "digits": "1234567890 12,345.67 + 0.001 = 12345.671; 3/4 ½ 2²\n" * 3,
    "other letters": "Übung, café, Привет, 日本語, العربية, 🙂👍🏽 ñandú — “quoted”\n" * 3,
    "one token": "A", "white space": "  \n\n\t a \r\n   b    c\n",
}
PROMPTS = [
    "What is the capital of France?", "Who wrote Romeo and Juliet?", "Write a haiku about the sea.",
    "Explain photosynthesis in two sentences.", "How many days has a leap year?",
    "What is 12 plus 30?", "Give me three tips for learning Python.", "Translate 'good morning' into Spanish.",
    "Tell me a short story about a lighthouse keeper.", "What is the difference between a list and a tuple?",
    "Name five animals that live in Africa.", "Why is the sky blue?", "Hello!", "ok",
    "Summarize: The cat sat on the mat. The dog chased the cat. The cat ran away.",
    "Write a function in Python that reverses a string.", "What should I cook tonight?",
    "Who are you?", "  What does   this\n\tmean?  ", "Was heißt „Danke“ auf Englisch? 🙂"]
failed = False


def show(name: str, ids: tuple[int, int] | None = None, logits: tuple[float, float] | None = None,
         texts: tuple[int, int] | None = None, exact: tuple[float, float] | None = None,
         coarse: bool = False) -> None:
    """A line of the table; `ids` and `texts` are how many differ, and of how many.

    `exact` is how far our logits are from those in float64, and how far theirs, which count unless they are coarse.
    """
    global failed
    failed |= bool(ids and ids[0]) or bool(texts and texts[0])
    judged = exact[:1] if exact and coarse else exact or logits and logits[:1] or ()
    failed |= any(not far <= LIMIT for far in judged)
    cells = [f"{ids[0]} of {ids[1]:,}" if ids else "",
             f"{logits[0]:.1e} of {logits[1]:.1f}" if logits else "",
             f"{exact[0]:.1e}, {exact[1]:.1e}" if exact else "",
             f"{texts[0]} of {texts[1]}" if texts else ""]
    print((f"{name:38}" + "".join(f"{cell:>19}" for cell in cells)).rstrip(), flush=True)


def read_theirs(path: Path):
    """Their model and tokenizer; from_pretrained would read the same, and wants accelerate installed."""
    here = {"gguf_file": path.name, "local_files_only": True}
    config = transformers.AutoConfig.from_pretrained(path.parent, **here)
    with torch.device("meta"):
        dummy = transformers.AutoModelForCausalLM.from_config(config)
    tensors = load_gguf_checkpoint(str(path), return_tensors=True, model_to_load=dummy)["tensors"]
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    said = model.load_state_dict(tensors, strict=False)
    assert not said.unexpected_keys and {*said.missing_keys} <= {"lm_head.weight"}, said
    model.tie_weights()
    tokenizer = transformers.AutoTokenizer.from_pretrained(path.parent, **here)
    # The file says that digits are cut one by one ("smollm"), which their reading of GGUF overlooks.
    engine, cutters = tokenizer.backend_tokenizer, tokenizers.pre_tokenizers
    engine.pre_tokenizer = cutters.Sequence(
        [cutters.Digits(individual_digits=True), cutters.ByteLevel(add_prefix_space=False)])
    return model.eval(), tokenizer


def conversations() -> list[list[Turn]]:
    """The prompts alone, some behind a word to the model, and longer and longer talks."""
    found = [[Turn("user", prompt)] for prompt in PROMPTS]
    found += [[Turn("system", "Answer in one word."), *turns] for turns in found[:5]]
    talk: list[Turn] = []
    for prompt, answer in zip(PROMPTS, ("Paris.", "It was Shakespeare,\nI think.", "", " 42 ", "naïve 🙂")):
        talk = [*talk, Turn("user", prompt)]
        found.append(talk)
        talk = [*talk, Turn("assistant", answer)]
    return found


def compare_ids(writer: Writer, theirs) -> tuple[int, int]:
    """How many conversations have other ids there; and of how many ids."""
    wrong = total = 0
    for turns in conversations():
        ids = writer.write(turns)
        said = [{"role": turn.role, "content": turn.text} for turn in turns]
        total += len(ids)
        wrong += ids != theirs.apply_chat_template(said, add_generation_prompt=True)
    return wrong, total


def difference(ours: np.ndarray, theirs: np.ndarray) -> tuple[float, float]:
    """The largest difference, and the largest number."""
    assert ours.shape == theirs.shape, (ours.shape, theirs.shape)
    return float(np.abs(ours - theirs).max()), float(np.abs(theirs).max())


def compare_logits(name: str, ours: TodayLLM, theirs, ids: np.ndarray, exact: np.ndarray,
                   coarse: bool = False) -> None:
    """Of each position, by the layers for training; and of what follows, in pieces and with a cache."""
    with torch.no_grad():
        expected = theirs(torch.tensor(ids)).logits.numpy()
    for what, found, here in (("", ours.forward(ids), slice(None)),
                              (", what follows", ours.next_logits(ids, ours.make_caches()), -1)):
        show(name + what, logits=difference(found, expected[:, here]),
             exact=(difference(found, exact[:, here])[0], difference(expected[:, here], exact[:, here])[0]),
             coarse=coarse)


@contextlib.contextmanager
def exact_angles(theirs, double: TodayLLM) -> Iterator[None]:
    """Their model with the table of angles of ours: theirs are products in float32, and far out they are coarse."""
    rotary = theirs.model.rotary_emb
    cos, sin = (torch.tensor(np.concatenate([table, table], axis=1)).float()[None] for table in double.rope)
    usual, rotary.forward = rotary.forward, lambda x, position_ids: (
        cos[:, : x.shape[1]], sin[:, : x.shape[1]])
    try:
        yield
    finally:
        rotary.forward = usual


def compare_texts(ours: TodayLLM, theirs, starts: list[list[int]]) -> tuple[int, int]:
    """How many greedy continuations differ, and a line for the first difference of each."""
    wrong = 0
    theirs.generation_config.eos_token_id = None       # all of them are of the same length
    for ids in starts:
        new = list(ours.generate(ids, max_new_tokens=TOKENS, temperature=0))
        with torch.no_grad():
            made = theirs.generate(
                torch.tensor([ids]), max_new_tokens=TOKENS, do_sample=False,
                attention_mask=torch.ones(1, len(ids), dtype=torch.long))[0, len(ids):].tolist()
        assert len(new) == len(made) == TOKENS
        if new != made:
            wrong += 1
            at = next(n for n in range(TOKENS) if new[n] != made[n])
            print(f"  token {at} of the answer to prompt {starts.index(ids)}: {new[at]} and {made[at]}")
    return wrong, len(starts)


def compare_gradients(ours: TodayLLM, double: TodayLLM, theirs, ids: list[int]) -> None:
    """Of all parameters, each relative to the largest number of its own gradient; and the loss."""
    expected = theirs(torch.tensor([ids]), labels=torch.tensor([ids])).loss
    expected.backward()
    loss, _ = [model.loss(np.array([ids[:-1]]), np.array([ids[1:]])) for model in (ours, double)]
    ours.backward()
    double.backward()
    them, worst = dict(theirs.named_parameters()), np.zeros(3)
    for (name, p), q in zip(ours.named_parameters(), double.parameters()):
        grad = them[name].grad.numpy()
        grad = grad.T if name.endswith("_proj.weight") else grad
        pairs = (p.grad, grad), (p.grad, q.grad), (grad, q.grad)
        worst = np.maximum(worst, [difference(*pair)[0] / np.abs(q.grad).max() for pair in pairs])
    expected = float(expected.detach())
    show(f"loss of {len(ids)} tokens", logits=(abs(loss - expected), expected))
    show("its gradients, relative", logits=(worst[0], 1.0), exact=(worst[1], worst[2]), coarse=worst[2] < THEIRS)


def main() -> int:
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(2)
    path = Path(find(sys.argv[1] if sys.argv[1:] else "smollm2"))
    print(f"{path.name}; transformers {transformers.__version__}, tokenizers {tokenizers.__version__}, "
          f"torch {torch.__version__}\n\n{'':38}{'ids that differ':>19}{'logits differ by':>19}"
          f"{'from float64':>19}{'texts that differ':>19}")
    theirs, their_tokenizer = read_theirs(path)
    ours, tokenizer = load(path)
    template = str(GGUF.open(path).said["tokenizer.chat_template"])
    writer = Writer(recognize(template) or CHATML, tokenizer)

    wrong = sum(tokenizer.encode(text) != their_tokenizer(text, add_special_tokens=False)["input_ids"]
                for text in TEXTS.values())
    show("texts, cut into tokens", (wrong, sum(len(tokenizer.encode(text)) for text in TEXTS.values())))
    show("conversations, written as ids", compare_ids(writer, their_tokenizer))
    double = TodayLLM(ours.config, None, np.float64)
    for p, q in zip(double.parameters(), ours.parameters()):
        p.data[...] = q.data
    for name, text in TEXTS.items():
        ids = np.array([tokenizer.encode(text)])
        exact = double.forward(ids)
        compare_logits(name, ours, theirs, ids, exact, coarse=ids.shape[1] > PIECE)
        if ids.shape[1] > PIECE:
            with exact_angles(theirs, double):
                compare_logits("the same, their angles exact", ours, theirs, ids, exact)
    starts = [writer.write([Turn("user", prompt)]) for prompt in PROMPTS]
    show(f"answers of {TOKENS} greedy tokens", texts=compare_texts(ours, theirs, starts))
    text = tokenizer.encode(TOPICS["truth"])[:256]
    compare_gradients(ours, double, theirs, text)
    del double
    with torch.no_grad():
        expected = theirs(torch.tensor([text])).logits.numpy()
    with tempfile.TemporaryDirectory() as directory:
        ours.save_pretrained(directory)
        tokenizer.save(directory)
        theirs = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
        their_tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
        with torch.no_grad():
            again = theirs(torch.tensor([text])).logits
        wrong = sum(tokenizer.encode(text) != their_tokenizer(text, add_special_tokens=False)["input_ids"]
                    for text in TEXTS.values())
        show("saved here, opened there", (wrong, len(TEXTS)), difference(again.numpy(), expected))
        opened = load(directory)[0].next_logits(np.array([text]), ours.make_caches())
        show("saved here, opened here", logits=difference(opened, expected[:, -1]))
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
