"""Make tests/sampling.npz: how transformers' own processors change the logits of a text, token by token.

    .venv-torch/bin/python tools/make_sampling.py tests/sampling.npz

Run once, with Python 3.11.7, torch 2.13.0, transformers 4.57.6 and numpy 2.4.6. A tiny GPT-2, with noise
on every parameter, continues a prompt; for each way of drawing, here are the logits as the model gave
them (T, V), what `generate` made of them (T, V) (minus infinity: never drawn), and the whole text.
"""
import sys

import numpy as np
import torch
import transformers

PROMPT = [3, 14, 15, 9, 2, 6, 5, 3, 5]
STEPS = 16
WAYS = {
    "greedy": dict(do_sample=False),
    "greedy, penalty 1.3": dict(do_sample=False, repetition_penalty=1.3),
    "greedy, penalty 2": dict(do_sample=False, repetition_penalty=2.0),
    "penalty 1.3": dict(repetition_penalty=1.3),
    "penalty 0.8": dict(repetition_penalty=0.8),
    "min_p 0.1": dict(min_p=0.1),
    "min_p 1": dict(min_p=1.0),
    "min_p 0": dict(min_p=0.0),
    "temperature, min_p": dict(temperature=1.8, min_p=0.2),
    "top_k, top_p, min_p": dict(top_k=12, top_p=0.8, min_p=0.3),
    "all": dict(temperature=1.4, top_k=14, top_p=0.85, min_p=0.25, repetition_penalty=1.2),
}


def make_model():
    """A GPT-2 with noise on every parameter: logits of both signs, some far apart."""
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(
        vocab_size=32, n_positions=32, n_embd=16, n_layer=2, n_head=2,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=None, eos_token_id=None))
    for parameter in model.parameters():
        parameter.data.add_(0.4 * torch.randn_like(parameter))
    return model.eval()


def main(path):
    torch.set_num_threads(1)
    torch.manual_seed(16)
    model, out = make_model(), {}
    prompt = torch.tensor([PROMPT])
    for name, way in WAYS.items():
        options = dict(do_sample=True, top_k=0) | way       # a top_k of 50 is their default
        if not options["do_sample"]:
            del options["top_k"]
        made = model.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=STEPS,
                              pad_token_id=0, output_logits=True, output_scores=True,
                              return_dict_in_generate=True, **options)
        out |= {f"{name}/logits": torch.cat(made.logits).numpy(),
                f"{name}/scores": torch.cat(made.scores).numpy(),
                f"{name}/text": made.sequences[0].numpy().astype(np.int16)}
        out |= {f"{name}/{key}": np.array(value) for key, value in way.items() if key != "do_sample"}
    np.savez_compressed(path, prompt=np.array(PROMPT, np.int16), **out)


if __name__ == "__main__":
    main(*sys.argv[1:])
