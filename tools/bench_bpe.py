"""How long learning 1,000 merges from a megabyte takes, here and elsewhere: make bench-bpe.

The text is that of Python's own help topics, and after it Python's own library, up to a megabyte. The
naive way counts every pair of the text at each merge; its first 20 merges are timed, and all of them
with --all. Hugging Face's tokenizers are measured if they can be imported, and minbpe, with GPT-2's
pattern, if MINBPE names a copy of it. Everything is measured in this run, on one core, in seconds
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

from simple_llm.tokenizer import Tokenizer, chunk_pattern, replace  # noqa: E402

MERGES = 1000


def a_megabyte() -> str:
    """English first, then program text."""
    topics = pydoc_data.topics
    parts = [text for _, text in sorted(topics.topics.items())]
    for path in sorted(Path(topics.__file__).parent.parent.glob("*.py")):
        parts.append(path.read_text("utf-8"))
    return "\n".join(parts).encode()[:1_000_000].decode("utf-8", "ignore")


def recount(text: str, merges: int) -> None:
    """Every pair of the whole text, at each merge."""
    chunks = [list(chunk.encode()) for chunk in chunk_pattern().findall(text)]
    for new in range(256, 256 + merges):
        counts: Counter[tuple[int, int]] = Counter()
        for ids in chunks:
            counts.update(zip(ids, ids[1:]))
        pair = max(counts, key=counts.__getitem__)
        chunks = [replace(ids, pair, new) for ids in chunks]


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
    chunk_pattern()
    chunks = Counter(chunk_pattern().findall(text))
    print(f"{len(text.encode()):,} bytes, {chunks.total():,} chunks, {len(chunks):,} different\n")
    report(f"{MERGES:,} merges here", lambda: Tokenizer.from_text(text, "bpe", 260 + MERGES))
    few = MERGES if "--all" in sys.argv else 20
    report(f"{few:,} merges, counting everything again", lambda: recount(text, few))
    if home := os.environ.get("MINBPE"):
        sys.path.insert(0, home)
        sys.modules.setdefault("tiktoken", ModuleType("tiktoken"))     # only its GPT-4 part needs it
        from minbpe.regex import GPT2_SPLIT_PATTERN, RegexTokenizer
        report(f"{few:,} merges by minbpe",
               lambda: RegexTokenizer(GPT2_SPLIT_PATTERN).train(text, 256 + few))
    try:
        report(f"{MERGES:,} merges by Hugging Face's tokenizers", lambda: learn_there(text))
    except ImportError:
        print("(Hugging Face's tokenizers are not installed)")
    tokenizer = Tokenizer.from_text(text, "bpe", 260 + MERGES)
    report("encoding the megabyte here", lambda: tokenizer.encode(text))
    ids = tokenizer.encode(text)
    print(f"\n{len(text.encode()) / len(ids):.2f} bytes per token; the first and the last merges:")
    for some in tokenizer.merges[:10], tokenizer.merges[90:100], tokenizer.merges[-10:]:
        print("  " + "   ".join(a + b for a, b in some))
    return 0


if __name__ == "__main__":
    sys.exit(main())
