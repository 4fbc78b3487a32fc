"""How long learning 1,000 merges from a megabyte takes, here and elsewhere: make bench-bpe.

The text is that of Python's own help topics, and after it Python's own library, up to a megabyte. The
naive way counts every pair of every different chunk at each merge. Hugging Face's tokenizers are measured if they can be imported, and minbpe, with GPT-2's
pattern, if MINBPE names a copy of it (20 merges of it, for want of patience). Everything is measured in this run, on one core, in seconds
of processor time.
"""
from __future__ import annotations

import os
import sys
import time
from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import Callable

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "build"))
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")    # before NumPy
os.environ["RAYON_NUM_THREADS"] = "1"

import pydoc_data.topics  # noqa: E402

from simple_llm.tokenizer import BytePairTokenizer, cut_into_chunks, learn_merges_slowly  # noqa: E402

MERGES = 1000
SIZES = [260, 300, 500, 1260, 5000]
SENTENCE = "The interpreter multiplies unpredictably."


def a_megabyte() -> str:
    """English first, then program text."""
    topics = pydoc_data.topics
    parts = [text for _, text in sorted(topics.topics.items())]
    for path in sorted(Path(topics.__file__).parent.parent.glob("*.py")):
        parts.append(path.read_text("utf-8"))
    return "\n".join(parts).encode()[:1_000_000].decode("utf-8", "ignore")


def learn_there(text: str) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    engine = Tokenizer(models.BPE())
    engine.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    engine.train_from_iterator([text], trainers.BpeTrainer(
        vocab_size=256 + MERGES, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False))


def report(name: str, work: Callable[[], object]) -> None:
    """Time a piece of work, and print its line."""
    start = time.process_time()
    work()
    print(f"{name:44}{time.process_time() - start:9.2f} s", flush=True)


def main() -> int:
    text = a_megabyte()
    chunks = Counter(cut_into_chunks(text))
    print(f"{len(text.encode()):,} bytes, {chunks.total():,} chunks, {len(chunks):,} different\n")
    report(f"{MERGES:,} merges here", lambda: BytePairTokenizer.learn(text, 260 + MERGES))
    report(f"{MERGES:,} merges, counting everything again",
           lambda: list(learn_merges_slowly(chunks, MERGES)))
    if home := os.environ.get("MINBPE"):
        sys.path.insert(0, home)
        sys.modules.setdefault("tiktoken", ModuleType("tiktoken"))     # only its GPT-4 part needs it
        from minbpe.regex import GPT2_SPLIT_PATTERN, RegexTokenizer
        report("20 merges by minbpe",
               lambda: RegexTokenizer(GPT2_SPLIT_PATTERN).train(text, 276))
    try:
        report(f"{MERGES:,} merges by Hugging Face's tokenizers", lambda: learn_there(text))
    except ImportError:
        print("(Hugging Face's tokenizers are not installed)")
    tokenizer = BytePairTokenizer.learn(text, 260 + MERGES)
    report("encoding the megabyte here", lambda: tokenizer.encode(text))
    print("\nthe first of the merges, and the last:")
    for some in tokenizer.merges[:10], tokenizer.merges[-10:]:
        print("  " + "   ".join(a + b for a, b in some))
    print("\ntokens   bytes per token")
    for size in SIZES:
        tokenizer = BytePairTokenizer.learn(text, size)
        length = len(text.encode()) / len(tokenizer.encode(text))
        cut = "|".join(map(tokenizer.show, tokenizer.encode(SENTENCE)))
        print(f"{size:6,} {length:5.2f}   {cut}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
