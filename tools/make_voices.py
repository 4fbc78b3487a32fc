"""Make tests/voices.json: what transformers does with directories whose files disagree.

The tests only read the file. It was made once, with transformers 5.24.0, tokenizers 0.23.3 and
torch 2.13.0:

    make parity TRANSFORMERS=5.24.0                # sets the environment up
    .venv-torch-5.24.0/bin/python tools/make_voices.py

VARIANTS says how each directory differs from a sound one, the tokenizer and the model in
tests/hf.zip: by file and key (a dot goes into an object), with None for a file that is absent.
For each, voices.json has the ids of some texts, the text of each id (or where it differs), what
begins and ends a text, what ends a generation, and some logits.
"""
from __future__ import annotations

import copy
import json
import os
import shutil
import tempfile
import zipfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
TEXTS = ["The ferry: it's late.", " a  b\n\ncé 12", "zTéT <|done|> % the", "ring", ""]
IDS = [0, 20, 30, 299, 5]
END, DONE, STORY = "<|endoftext|>", "<|done|>", "<|story|>"
TOKENIZER, CONFIG, MAP = "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"
GENERATION, MODEL, ADDED = "generation_config.json", "config.json", "added_tokens.json"
GPT2 = {"tokenizer_class": "GPT2Tokenizer"}
GENERAL = {"tokenizer_class": "PreTrainedTokenizerFast"}
Edits = dict[str, Any]


def special(content: str, number: int | None = None, special: bool = True) -> dict[str, Any]:
    """An entry of added_tokens, or of added_tokens_decoder."""
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {**flags, "content": content, "special": special} | ({"id": number} if number else {})


def flagged(content: str) -> dict[str, Any]:
    """A token as tokenizer_config.json may write it."""
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"__type": "AddedToken", "content": content, **flags}


def behind(*tokens: str) -> dict[str, Any]:
    """A post-processor that puts these tokens around a text, "A"."""
    single = [{"Sequence": {"id": "A", "type_id": 0}} if token == "A" else
              {"SpecialToken": {"id": token, "type_id": 0}} for token in tokens]
    ids = {token: {"id": token, "ids": [556], "tokens": [token]} for token in tokens if token != "A"}
    pair = [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}]
    return {"type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": ids}


BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
WRITTEN_OUT = {"type": "Sequence", "pretokenizers": [
    {"type": "Split", "behavior": "Isolated", "invert": False, "pattern": {
        "Regex": r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"}},
    {**BYTES, "use_regex": False}]}
TWO_MORE = {TOKENIZER: {"added_tokens": [special(END, 556), special(STORY, 557), special(DONE, 558)]}}

VARIANTS: dict[str, Edits] = {
    "as it was": {},
    # roles
    "roles declared": {**TWO_MORE, CONFIG: {**GENERAL, "bos_token": STORY, "eos_token": DONE}},
    "roles declared with their flags": {
        **TWO_MORE, CONFIG: {**GENERAL, "bos_token": flagged(STORY), "eos_token": flagged(DONE)}},
    "the map has the last word": {
        **TWO_MORE, CONFIG: {**GENERAL, "added_tokens_decoder": "-", "bos_token": STORY, "eos_token": END},
        MAP: {"bos_token": DONE, "eos_token": STORY}},
    "the map is not heard beside added_tokens_decoder": {
        **TWO_MORE, CONFIG: {**GENERAL, "bos_token": STORY, "eos_token": END, "added_tokens_decoder": {
            "556": special(END), "557": special(STORY), "558": special(DONE)}},
        MAP: {"bos_token": DONE, "eos_token": STORY}},
    "the map alone": {CONFIG: None, MAP: {"eos_token": "the", "pad_token": END}},
    "the map takes a role away": {CONFIG: {**GENERAL, "added_tokens_decoder": "-"}, MAP: {"bos_token": None}},
    "no role declared, class of GPT-2": {CONFIG: {**GPT2, "bos_token": "-", "eos_token": "-", "unk_token": "-"}},
    "an ordinary piece ends a text": {CONFIG: {**GENERAL, "eos_token": "the"}},
    "a role for a new token": {CONFIG: {**GENERAL, "eos_token": "<|new|>"}},
    "pad declared": {CONFIG: {**GENERAL, "pad_token": "[PAD]"},
                     TOKENIZER: {"added_tokens": [special(END, 556), special("[PAD]", 557)]}},
    "more special tokens": {CONFIG: {**GENERAL, "additional_special_tokens": ["%"], "extra_special_tokens": {}}},
    "no tokenizer_config.json": {CONFIG: None},
    # added tokens
    "added, and special": {ADDED: {DONE: 557}, CONFIG: {**GENERAL, "added_tokens_decoder": "-", "eos_token": DONE}},
    "added by the decoder": {CONFIG: {**GENERAL, "added_tokens_decoder": {"556": special(END), "557": special(DONE)}}},
    "added, and a word": {TOKENIZER: {"added_tokens": [special(END, 556), special("ferry", 557, False)]}},
    "added in added_tokens.json, and a word": {ADDED: {"ferry": 557}, CONFIG: {**GENERAL, "added_tokens_decoder": "-"}},
    # a space before the text
    "prefix space in tokenizer.json": {CONFIG: GENERAL, TOKENIZER: {"pre_tokenizer.add_prefix_space": True}},
    "prefix space in tokenizer.json, class of GPT-2": {
        CONFIG: {**GPT2, "add_prefix_space": "-"}, TOKENIZER: {"pre_tokenizer.add_prefix_space": True}},
    "prefix space in tokenizer_config.json": {CONFIG: {**GENERAL, "add_prefix_space": True}},
    "prefix space in tokenizer_config.json, class of GPT-2": {CONFIG: {**GPT2, "add_prefix_space": True}},
    "prefix space and no class": {CONFIG: {"tokenizer_class": "-", "add_prefix_space": True}},
    # forms that mean the same, and others
    "a sequence of one": {CONFIG: GENERAL, TOKENIZER: {
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [BYTES]},
        "decoder": {"type": "Sequence", "decoders": [BYTES]},
        "normalizer": {"type": "Sequence", "normalizers": []}}},
    "the pattern written out": {CONFIG: GENERAL, TOKENIZER: {"pre_tokenizer": WRITTEN_OUT}},
    "no post-processor": {TOKENIZER: {"post_processor": None}},
    "begins with its special token": {TOKENIZER: {"post_processor": behind(END, "A")}},
    "ends with a special token": {CONFIG: GENERAL, TOKENIZER: {"post_processor": behind("A", END)}},
    "small letters": {CONFIG: GENERAL, TOKENIZER: {"normalizer": {"type": "Lowercase"}}},
    "another decoder": {CONFIG: GENERAL, TOKENIZER: {"decoder": {"type": "Fuse"}}},
    "another way of cutting": {CONFIG: GENERAL, TOKENIZER: {"pre_tokenizer": {"type": "Whitespace"}}},
    "merges ignored": {CONFIG: GENERAL, TOKENIZER: {"model.ignore_merges": True}},
    "a class of its own": {CONFIG: {"tokenizer_class": "BertTokenizer"}},
    "fewer merges": {TOKENIZER: {"model.merges": 250}},
    "merges as strings": {TOKENIZER: {"model.merges": "strings"}},
    # bytes that are missing
    "bytes left out": {CONFIG: GENERAL, TOKENIZER: {"model.without": "z%8"}},
    "bytes left out, class of GPT-2": {CONFIG: GPT2, TOKENIZER: {"model.without": "z%8"}},
    "bytes left out, with an unknown token": {CONFIG: GENERAL, TOKENIZER: {"model.without": "z%8", "model.unk_token": END}},
    # where a generation ends
    "several ends": {GENERATION: {"bos_token_id": 556, "eos_token_id": [17, 26]}},
    "ends in config.json": {MODEL: {"eos_token_id": 17}},
    "ends in both": {MODEL: {"eos_token_id": 17}, GENERATION: {"bos_token_id": 556, "eos_token_id": 26}},
    "no end": {GENERATION: {"bos_token_id": 556, "eos_token_id": None}},
    # heads
    "a head of its own, not declared": {"lm_head": -1},
    "a head of its own": {"lm_head": -1, MODEL: {"tie_word_embeddings": False}},
    "the table listed again": {"lm_head": 1},
    "the table listed again, as a head of its own": {"lm_head": 1, MODEL: {"tie_word_embeddings": False}},
    # rows
    "rows to spare": {"rows": 640, MODEL: {"vocab_size": 640}},
}


def edit(whole: dict[str, Any], edits: Edits) -> dict[str, Any]:
    """The object with some of its values replaced; "-" removes a key."""
    whole = copy.deepcopy(whole)
    for key, value in edits.items():
        *path, last = key.split(".")
        here = whole
        for name in path:
            here = here[name]
        if last == "without":
            names = [name for name in here["vocab"] if name not in [*value]]
            here["vocab"] = {name: here["vocab"][name] for name in names}
            here["merges"] = [pair for pair in here["merges"] if {*pair, "".join(pair)} <= {*names}]
        elif key == "model.merges":
            merges = here["merges"]
            here["merges"] = [" ".join(p) for p in merges] if value == "strings" else merges[:value]
        elif value == "-":
            here.pop(last, None)
        else:
            here[last] = value
    return whole


def unpack(home: Path) -> Path:
    """The sound directory that all the others are made from."""
    with zipfile.ZipFile(ROOT / "tests/hf.zip") as archive:
        archive.extractall(home)
    sound = home / "sound"
    shutil.copytree(home / "float32", sound)
    for name in TOKENIZER, CONFIG:
        shutil.copy(home / "one_file" / name, sound / name)
    return sound


def build(edits: Edits, sound: Path, out: Path, read: Any, save: Any) -> Path:
    """A directory with these differences, written with somebody's functions for weights."""
    shutil.copytree(sound, out)
    for name, change in edits.items():
        path = out / name
        if name.endswith(".json"):
            whole = json.loads(path.read_text("utf-8")) if path.exists() else {}
            if change is None:
                path.unlink()
            else:
                path.write_text(json.dumps(edit(whole, change)), "utf-8")
    if "lm_head" in edits or "rows" in edits:
        tensors = dict(read(out / "model.safetensors"))
        table = tensors["transformer.wte.weight"]
        if "lm_head" in edits:
            tensors["lm_head.weight"] = edits["lm_head"] * table
        for row in range(len(table), edits.get("rows", 0)):
            tensors["transformer.wte.weight"] = type_of(table)(
                [*tensors["transformer.wte.weight"], table[row % 100] * 0.5])
        save(tensors, out / "model.safetensors")
    return out


def type_of(table: Any) -> Any:
    """What makes an array of rows like this table."""
    if type(table).__module__ == "numpy":
        import numpy
        return numpy.array
    import torch
    return torch.stack


def answers(directory: Path) -> dict[str, Any]:
    """What transformers makes of a directory; {} for what it refuses."""
    import torch
    import transformers
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
        model = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    except Exception:
        return {}
    ends = model.generation_config.eos_token_id
    with torch.no_grad():
        logits = model.eval()(torch.tensor([IDS])).logits[0, -1, :40:8].tolist()
    return {
        "ids": [tokenizer(text, split_special_tokens=True, add_special_tokens=False)["input_ids"]
                for text in TEXTS],
        "spoken": [tokenizer.decode([i], skip_special_tokens=True) for i in range(len(tokenizer))],
        "bos": tokenizer.bos_token_id, "eos": tokenizer.eos_token_id,
        "ends": ends if isinstance(ends, list) else [ends] * (ends is not None),
        "logits": [float(f"{x:.7g}") for x in logits],
    }


def main() -> None:
    os.environ["TRANSFORMERS_VERBOSITY"], os.environ["HF_HUB_OFFLINE"] = "error", "1"
    import safetensors.torch
    import transformers
    transformers.utils.logging.disable_progress_bar()
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as directory:
        home = Path(directory)
        sound = unpack(home)
        for n, (name, edits) in enumerate(VARIANTS.items()):
            out = build(edits, sound, home / str(n), safetensors.torch.load_file,
                        lambda tensors, path: safetensors.torch.save_file(
                            {key: value.contiguous() for key, value in tensors.items()}, path,
                            {"format": "pt"}))
            found[name] = answers(out)
            print(name, [found[name].get(key) for key in ("bos", "eos", "ends", "logits")])
    usual = found["as it was"]["spoken"]
    for answer in [*found.values()][1:]:                   # most ids say the same everywhere
        spoken = answer.pop("spoken", [])
        answer["spoken otherwise"] = {n: text for n, text in enumerate(spoken)
                                      if n >= len(usual) or text != usual[n]}
    (ROOT / "tests/voices.json").write_text(json.dumps(found, ensure_ascii=False, separators=(",", ":")), "utf-8")


if __name__ == "__main__":
    main()
