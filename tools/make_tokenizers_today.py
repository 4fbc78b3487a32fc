"""Make tests/tokenizers_today.json: what Hugging Face's `tokenizers` makes of texts, for the
tokenizers of SmolLM, Llama 3, Qwen and GPT-2; or compare its ids with ours on more of them.

    .venv-torch/bin/python tools/make_tokenizers_today.py
    .venv-torch/bin/python tools/make_tokenizers_today.py compare 100000

Each kind is a small vocabulary, learned by `tokenizers`, in files as the model's own directory has
them. The texts are drawn from a seed, here and in the test, so that the fixture holds but a hash for
each group of 1,000 of them, and the ids of the first few. The characters are those that Unicode
has had for long, for every Python knows them.
"""
from __future__ import annotations

import hashlib
import json
import random
import sys
import tempfile
from pathlib import Path
from typing import Any, Callable

ROOT = Path(__file__).resolve().parent.parent
FIXTURE = ROOT / "tests/tokenizers_today.json"
EACH, SHOWN = 1000, 5                                 # texts of a group; those kept in whole

LONG = "'s|'t|'re|'ve|'m|'ll|'d"
NEW = (rf"(?i:{LONG})|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*"
       r"|\s*[\r\n]+|\s+(?!\S)|\s+")


def span(*ends: int) -> str:
    """The characters from the first to the second, from the third to the fourth, ..."""
    return "".join(chr(c) for a, b in zip(ends[::2], ends[1::2]) for c in range(a, b + 1))


LETTERS = ("etaoinshrdlu" * 3 + "ABCXYZ" + "éèêëçñüößøåæœÅÉſKªºŉŁłǅǆĳﬁﬆĀ" + "αβγωΑΩςάΐ" + "абвяёЙЩї" + "אבגש" + "ابتمنلأإی"
           + "अआकखगनम" + "กขฃทน" + "தமிழ" + "ಕನ್ನ" + "日本語中文字漢々" + "ひらがなカタカナー" + "한국어" + span(0x1100, 0x1106, 0x1161, 0x1166, 0x11a8, 0x11ab)
           + "აბგ" + "հայ" + "አማርኛ" + "𝐀𝒷𝔠𐐀𐌰𠀀" + "ʰˇʼ")
MARKS = (span(0x300, 0x345, 0x483, 0x487, 0x591, 0x5a0, 0x5b0, 0x5b9, 0x64b, 0x655, 0x93c, 0x94d, 0xe31, 0xe31,
              0xe34, 0xe3a, 0xe47, 0xe4e, 0xbbe, 0xbc2, 0xbd7, 0xbd7, 0x3099, 0x309a, 0x20d0, 0x20d4, 0x20dd, 0x20e0)
         + "\ufe0f\ufe20\u0338\u0327\u0323\u0301\u0308")
DIGITS = "0123456789" * 3 + "٠١٢٣" + "०१२" + "０１９" + "½⅓²³¹Ⅻⅳↂ①⑳〇৴𝟗𝟘፩፪൰㊈߀๑"
BLANKS = " " * 9 + "\n\n\n\r\r\t\t" + "\x0b\x0c\x1c\x1d\x1e\x1f\x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000\u200b\ufeff" + span(0x2000, 0x200a)
SIGNS = "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~" + "–—“”‘’«»…•·¿¡§©®°±×÷€£¥₹≤≠∞√∑→⇒█░♥✓、。，！？「」〜・￥׃؟।"
CONTROL = span(0, 31, 127, 159) + "\xad\u200c\u200d\u200e\u200f\u202a\u202e\u2066\u2069\ufff9\ufffd\ufffe\U000e0001\ue000\U0010ffff"
EMOJI = [*"🙂😀🚀🎉👩👨👍💻❤☺✌🏽🏿", "\u200d", "\u200d", "\ufe0f", "\ufe0f", "👩\u200d💻", "👨\u200d👩\u200d👧\u200d👦", "❤\ufe0f",
         "👍🏽", "🇩🇪", "🇺", "1\ufe0f\u20e3", "🏴\U000e0067\U000e0062\U000e007f", "☠\ufe0f", " "]
WORDS = ["the", " the", " of", "ing", "I'm", "we'LL", "'S", "don't", " They're", "'ſ", "'d", "x_1", " 2024", "3.14", "naïve", " the cat",
         "Hello, world!", "e\u0301", "o\u0302\u0323", "Å", "한", "ᄒ", "ᅡᆫ", "U.S.A.", "http://", "a-b", "...", "!?\n", ";\r\n\r\n"]
CODE = ["def f(x):\n", "    ", "        ", "\treturn x\n", "self.", "__init__", "x += 1;", "{\n", "}\n", "});\r\n", "//", "/* ", " */", "->", "=>", "::",
        "0x1F", "1e-5", "&&", "||", " == ", "!=", "<div>", "</p>", "#include <", "\\n", "\"str\"", "'a'", "$x", "@cls", "[0]", "(", ")", ",", " = ", "\n\n", "\r\n"]
ADDED = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>", "<tool_call>", "<tool_call>>", "</tool_call>", "<tool", "<|eot_id|>",
         "<|begin_of_text|>", " ", "\n", "a", "think", "<<", "|>", "[word]", "[wor", "im_s", "e", "\u0301"]


def of(pool: Any, most: int) -> Callable[[random.Random], str]:
    """Texts of up to so many pieces."""
    return lambda rng: "".join(rng.choice(pool) for _ in range(1 + int(rng.random() * most)))


def mixed(*pools: Any) -> Callable[[random.Random], str]:
    """Texts in which each piece is of one of the pools."""
    return lambda rng: "".join(rng.choice(rng.choice(pools)) for _ in range(1 + int(rng.random() * 18)))


GROUPS: dict[str, Callable[[random.Random], str]] = {
    "letters": mixed(LETTERS, LETTERS, LETTERS, " '"), "marks": mixed(LETTERS, MARKS, MARKS, " 1"),
    "emoji": mixed(EMOJI, EMOJI, LETTERS), "digits": mixed(DIGITS, DIGITS, DIGITS, " .,-x\n"),
    "white space": mixed(BLANKS, BLANKS, "ax1.'"), "code": of(CODE, 12), "control": mixed(CONTROL, BLANKS, LETTERS),
    "added": mixed(ADDED, ADDED, WORDS), "everything": mixed(
        LETTERS, MARKS, DIGITS, BLANKS, SIGNS, CONTROL, EMOJI, WORDS, WORDS, CODE, ADDED),
}


def texts(group: str, seed: int = 0, count: int = EACH) -> list[str]:
    """Texts of a group, the same for the same seed."""
    rng = random.Random(f"{group} {seed}")
    return [GROUPS[group](rng) for _ in range(count)]


# The files of the models


def token(content: str, special: bool = True) -> dict[str, Any]:
    """An added token with its flags."""
    return {"content": content, **dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False), "special": special}


def split(pattern: str, trim: bool) -> dict[str, Any]:
    """A pattern, then bytes."""
    return {"type": "Sequence", "pretokenizers": [
        {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False},
        {**BYTES, "trim_offsets": trim, "use_regex": False}]}


BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
BEGIN = {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<|begin_of_text|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
         "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
         "special_tokens": {"<|begin_of_text|>": {"id": "<|begin_of_text|>", "ids": [-1], "tokens": ["<|begin_of_text|>"]}}}
NULLS = dict.fromkeys(("dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix"))
OFF = {"fuse_unk": False, "byte_fallback": False}
END, START, DONE = "<|endoftext|>", "<|im_start|>", "<|im_end|>"

KINDS: dict[str, dict[str, Any]] = {
    "gpt-2": {
        "added": [token(END)], "pre_tokenizer": BYTES, "post_processor": {**BYTES, "trim_offsets": False},
        "model": {"dropout": None, "unk_token": None, "continuing_subword_prefix": "", "end_of_word_suffix": "", "fuse_unk": False},
        "config": {"tokenizer_class": "GPT2Tokenizer", "add_prefix_space": False}, "model_type": "gpt2"},
    "smollm": {
        "added": [token(END), token(START), token(DONE)], "first": True, "post_processor": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": True}, BYTES]},
        "model": {**NULLS, **OFF, "ignore_merges": False}, "model_type": "llama",
        "config": {"tokenizer_class": "GPT2Tokenizer", "add_prefix_space": False, "bos_token": START, "eos_token": DONE,
                   "unk_token": END, "pad_token": DONE, "additional_special_tokens": [START, DONE]}},
    "llama-bpe": {
        "added": [token("<|begin_of_text|>"), token("<|end_of_text|>"), token("<|eot_id|>")], "pre_tokenizer": split(NEW, True),
        "post_processor": {"type": "Sequence", "processors": [{**BYTES, "add_prefix_space": True, "trim_offsets": False}, BEGIN]},
        "model": {**NULLS, **OFF, "ignore_merges": True}, "model_type": "llama",
        "config": {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>",
                   "clean_up_tokenization_spaces": True}},
    "qwen2": {
        "added": [token(END), token(START), token(DONE), token("<tool_call>", False), token("</tool_call>", False), token("<think>", False),
                  token("</think>", False), token("<tool_call>>", False), token("[word]", False), token("a[w", False), token("im_s", False)],
        "normalizer": {"type": "NFC"}, "pre_tokenizer": split(NEW.replace("{1,3}", ""), False), "post_processor": {**BYTES, "trim_offsets": False},
        "model": {"dropout": None, "unk_token": None, "continuing_subword_prefix": "", "end_of_word_suffix": "", **OFF, "ignore_merges": False},
        "config": {"tokenizer_class": "Qwen2Tokenizer", "add_bos_token": False, "add_prefix_space": False, "bos_token": None, "eos_token": DONE,
                   "pad_token": END, "unk_token": None, "errors": "replace", "split_special_tokens": False}, "model_type": "qwen2"},
}


def files(kind: str, alphabet: list[str], merges: list[list[str]]) -> dict[str, dict[str, Any]]:
    """What stands in the small files of a directory of this kind."""
    how = KINDS[kind]
    pieces = [*alphabet, *("".join(pair) for pair in merges)]
    names = [entry["content"] for entry in how["added"]]
    ordered = [*names, *pieces] if how.get("first") else [*pieces, *names]
    ids = {name: number for number, name in enumerate(ordered)}
    vocab = ids if how.get("first") else {piece: ids[piece] for piece in pieces}
    if kind in ("llama-bpe", "qwen2"):                   # pieces that no merge makes any more
        merges = [pair for n, pair in enumerate(merges) if n % 6 != 5]
    added = [{"id": ids[entry["content"]], **entry} for entry in how["added"]]
    after = json.loads(json.dumps(how["post_processor"]).replace("[-1]", f"[{ids.get('<|begin_of_text|>')}]"))
    whole = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": added, "normalizer": how.get("normalizer"),
             "pre_tokenizer": how["pre_tokenizer"], "post_processor": after, "decoder": BYTES,
             "model": {"type": "BPE", **how["model"], "vocab": vocab, "merges": merges}}
    decoder = {str(ids[entry["content"]]): entry for entry in how["added"]}
    return {"tokenizer.json": whole, "tokenizer_config.json": {"added_tokens_decoder": decoder, **how["config"]},
            "config.json": {"model_type": how["model_type"]}}


def write(directory: Path, contents: dict[str, dict[str, Any]]) -> Path:
    """The directory with these files."""
    directory.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        (directory / name).write_text(json.dumps(content), "utf-8")
    return directory


def digest(ids: list[list[int]]) -> str:
    """A hash of the ids of many texts."""
    return hashlib.sha256(json.dumps(ids).encode()).hexdigest()[:24]


# What `tokenizers` makes of them


def learn(kind: str, size: int = 620) -> list[list[str]]:
    """Merges that `tokenizers` learns of English and of such texts, cut in this way."""
    import pydoc_data.topics
    import tokenizers
    whole = files(kind, bytes_in_order(), [])["tokenizer.json"]
    engine = tokenizers.Tokenizer.from_str(json.dumps({**whole, "added_tokens": [], "post_processor": None}))
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=size, initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
    english = [pydoc_data.topics.topics["assert"], pydoc_data.topics.topics["if"]] * 2
    engine.train_from_iterator([*english, *WORDS * 20, *(t for group in GROUPS for t in texts(group, 1, 400))], trainer)
    return [[*pair] for pair in json.loads(engine.to_str())["model"]["merges"]]


def bytes_in_order() -> list[str]:
    """The letters that stand for the 256 bytes."""
    import tokenizers
    return sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())


def theirs(path: Path) -> Any:
    """Their tokenizer, for which a special token in a text is text."""
    import tokenizers
    engine = tokenizers.Tokenizer.from_file(str(path / "tokenizer.json"))
    engine.encode_special_tokens = True
    return engine


def ids_of(engine: Any, many: list[str]) -> list[list[int]]:
    return [entry.ids for entry in engine.encode_batch(many, add_special_tokens=False)]


def main() -> None:
    import transformers
    found: dict[str, Any] = {"alphabet": "".join(bytes_in_order()), "kinds": {}}
    with tempfile.TemporaryDirectory() as home:
        for kind in KINDS:
            merges = learn(kind)
            path = write(Path(home, kind), files(kind, bytes_in_order(), merges))
            engine = theirs(path)
            ids = {group: ids_of(engine, texts(group)) for group in GROUPS}
            auto = transformers.AutoTokenizer.from_pretrained(path)
            first = auto("some text")["input_ids"][0]
            found["kinds"][kind] = {
                "merges": [" ".join(pair) for pair in merges], "hashes": {group: digest(each) for group, each in ids.items()},
                "shown": {group: each[:SHOWN] for group, each in ids.items()},
                "bos": auto.bos_token_id, "eos": auto.eos_token_id, "begins": first == auto.bos_token_id}
            print(kind, len(merges), "merges;", *(found["kinds"][kind][key] for key in ("bos", "eos", "begins")))
    FIXTURE.write_text(json.dumps(found, ensure_ascii=False, separators=(",", ":")), "utf-8")


def compare(count: int) -> int:
    """How many texts have other ids here; of each group about as many, from a seed of its own."""
    sys.path.insert(0, str(ROOT / "build"))
    from simple_llm.tokenizer import Tokenizer
    found = json.loads(FIXTURE.read_text("utf-8"))
    different = 0
    with tempfile.TemporaryDirectory() as home:
        for kind, known in found["kinds"].items():
            merges = [pair.split(" ") for pair in known["merges"]]
            path = write(Path(home, kind), files(kind, list(found["alphabet"]), merges))
            ours = Tokenizer.load(path)
            ours.save(Path(home, "saved"))
            wrong = odd = total = tokens = 0
            for group in GROUPS:
                many = texts(group, 2, count // len(GROUPS) + 1)
                expected = ids_of(theirs(path), many)
                saved = ids_of(theirs(Path(home, "saved")), many)
                for text, ids in zip(many, expected):
                    if ours.encode(text) != ids:
                        wrong += 1
                        if wrong < 6:
                            print(f"{text!r}\n  {ours.encode(text)}\n  {ids}")
                total, tokens = total + len(many), tokens + sum(map(len, expected))
                odd += sum(a != b for a, b in zip(expected, saved))
            print(f"{kind:10} {wrong} of {total:,} texts differ, of {tokens:,} tokens; saved here, {odd} differ there", flush=True)
            different += wrong + odd
    return different


if __name__ == "__main__":
    if sys.argv[1:2] == ["compare"]:
        sys.exit(compare(int(sys.argv[2])) > 0)
    main()
