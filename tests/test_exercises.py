"""The exercises: each grader names the mistakes that people make, and accepts the rest."""
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from textwrap import dedent

import pytest

from exercises import chunks
from exercises.__main__ import Desk, grade, main
from exercises.chunks import Book, Wrong
from exercises.graders import GRADERS

ROOT = Path(__file__).resolve().parent.parent
BOOK = Book()
HINTS = chunks.read_hints()

# For each exercise: what to replace in the book's chunk, by what, and a part of what the
# grader must say of it. An empty `old` stands for the whole chunk.
MUTANTS = {
    "pad-the-rows": [
        ("Tokenizer.bos, row[:-1]", "row[0], row[1:]", "<bos>"),
        ("targets[b, : len(row)] = row", "targets[b, : len(row) - 1] = row[1:]", "by one"),
        ("longest), -1)", "longest), Tokenizer.pad)", "put -1"),
        ("= row\n", "= ids[b, : len(row)]\n", "copy"),
        ("max(map(len, rows))", "max(map(len, rows)) + 1", "shape"),
        ("Tokenizer.pad)", "-1)", "no token"),
        ("return Batch(ids, targets)", "Batch(ids, targets)", "return"),
        ("ids[b, 0], ids[b, 1 : len(row)]", "row.append(0); ids[b, 0], ids[b, 1 : len(row)]",
         "Line"),
    ],
    "ngram": [
        ("range(1, len(ids))", "range(len(ids))", "<bos>"),
        ("end - self.n + 1", "end - self.n", "too long"),
        ("end - self.n + 1), end + 1)", "end - self.n + 1), end)", "empty context"),
        ("(seen + shorter)", "seen", "shorter context"),
        ("[context] + 1)", "[context] or 1)", "one more"),
        ("self.probability(context[1:], token) if context else 1 / self.vocab_size",
         "1 / self.vocab_size", "itself has counts"),
        ("context[1:]", "context[:-1]", "wrong token"),
        ("self.totals[tuple(ids[start:end])] += 1", "pass", "empty"),
        ("1 / self.vocab_size", "1", "1/V belongs"),
    ],
    "numerical-gradient": [
        ("(above - below)", "(below - above)", "sign"),
        ("/ (2 * step)", "/ step", "twice"),
        ("", "def numerical_gradient(loss, x, step=1e-5):\n    out, f = 0 * x, loss()\n"
         "    for i in np.ndindex(x.shape):\n        was = x[i]\n        x[i] += step\n"
         "        out[i] = (loss() - f) / step\n        x[i] = was\n    return out",
         "from one side only"),
        ("x[i] = middle - step", "x[i] = middle", "one side"),
        ("        x[i] = middle\n", "", "put back"),
        ("step: float = 1e-5\n) -> Array:",
         "step: float = 1e-5\n) -> Array:\n    step = 1e-5", "ignores"),
        ("x[i] = middle\n        gradient", "x[i] += step\n        gradient", "put back"),
        ("return gradient", "return", "return"),
    ],
    "softmax": [
        ("z -= z.max(axis=-1, keepdims=True)\n", "\n", "overflows"),
        ("z.max(axis=-1, keepdims=True)", "z.max()", "0/0"),
        ("z.sum(axis=-1, keepdims=True)", "z.sum()", "whole array"),
        ("z.sum(axis=-1, keepdims=True)", "z.sum(axis=0)", "first axis"),
        ("z /= z.sum(axis=-1, keepdims=True)", "pass", "not divided"),
        ("z.sum(axis=-1, keepdims=True)", "z.sum(axis=-1)", "Line 5"),
        ("    return z", "", "return"),
        ("z -= z.max", "z = z - z.max", "in place"),
        ("z -= z.max", "z = z.astype(np.float64); z -= z.max", "in place|float64"),
        ("np.exp(z, out=z)", "np.exp(-z, out=z)", "sign"),
    ],
    "linear-backward": [
        ("self.weight.grad +=", "self.weight.grad[...] =", "weight.grad is overwritten"),
        ("self.bias.grad +=", "self.bias.grad =", "bias.grad is overwritten"),
        ("self.bias.grad += np.ones(len(d), d.dtype) @ d", "pass", "nothing"),
        ("np.ones(len(d), d.dtype) @ d", "d.mean(axis=0)", "number of rows N"),
        ("self.weight.grad += np.matmul", "self.weight.grad -= np.matmul", "sign"),
        ("np.matmul(self.x.T, d, out=dW)", "np.matmul(self.x.T, d, out=dW) / 2",
         "batch size B"),
        ("np.matmul(self.x.T, d, out=dW)", "np.matmul(d.T, self.x).T[::-1]", "wrong in"),
        ("dx.reshape(*dy.shape[:-1], -1)", "dx", "shape"),
        ("d, self.weight.data.T", "d, self.weight.data", "Line 7"),
        ("d = dy.reshape", "dy *= 1.5; d = dy.reshape", "changes its input dy"),
        ("self.weight.grad += np.matmul(self.x.T, d, out=dW)",
         "self.weight.grad = self.weight.grad + self.x.T @ d", "new array"),
        ("np.ones(len(d), d.dtype) @ d", "dy[-1].sum(axis=0) if dy.ndim > 2 else d.sum(0)",
         "last story"),
        ("return dx.reshape", "dx.reshape", "return"),
        ("return dx.reshape(*dy.shape[:-1], -1)",
         "return (dx * np.float64(1)).reshape(*dy.shape[:-1], -1)", "float64"),
    ],
    "embedding-backward": [
        ("", "def backward(self, dy):\n    self.weight.grad[self.ids] += "
         "dy.reshape(len(self.ids), -1)", "only its last"),
        ("", "def backward(self, dy):\n    self.weight.grad[self.ids] = "
         "dy.reshape(len(self.ids), -1)", "is overwritten"),
        ("np.add.reduceat(d, starts)", "d[starts]", "only its first"),
        ("+= np.add", "-= np.add", "sign"),
        ("+= np.add", "= np.add", "overwritten"),
        ("np.add.reduceat(d, starts)",
         "np.add.reduceat(d, starts) / np.diff(starts, append=len(d))[:, None]", "mean"),
        ("[order]                              # (N, C)", "", "same order"),
        ("self.weight.grad[ids[starts]] += np.add.reduceat(d, starts)", "pass", "nothing"),
        ("order =", "dy *= 2; order =", "changes its input dy"),
        ("np.append(0, 1 + np.flatnonzero(new))", "1 + np.flatnonzero(new)", "smallest id"),
        ("1 + np.flatnonzero(new)", "np.flatnonzero(new)", "one too early"),
    ],
    "layer-norm-backward": [
        ("dx -= mean_d[:, None]\n", "\n", "mean of d"),
        ("dx -= t\n", "\n", "variance"),
        ("dx -= mean_d[:, None]\n    dx -= t\n", "\n", "both terms"),
        ("np.multiply(d_rows, self.weight.data, out=dx)", "dx[...] = d_rows", "gain"),
        ("dx *= self.scale[:, None]", "pass", "scale"),
        ("self.weight.grad += ones @ t", "self.weight.grad += ones @ d_rows", "factor n"),
        ("self.weight.grad +=", "self.weight.grad[...] =", "overwritten"),
        ("self.bias.grad += ones @ d_rows", "self.bias.grad += d_rows.mean(axis=0)",
         "number of rows N"),
        ("self.bias.grad += ones @ d_rows", "self.bias.grad += ones @ (d_rows * "
         "self.weight.data)", "gain"),
        ("dx -= mean_d[:, None]\n    dx -= t", "dx += mean_d[:, None]\n    dx += t", "sign"),
        ("np.multiply(self.n, mean_dn[:, None], out=t)", "t[...] = mean_dn[:, None]",
         "without its factor n"),
        ("np.vecdot(dx, self.n) / dx.shape[1]", "np.vecdot(dx, self.n)", "sum where"),
        ("dx = self.scratch(\"dx\", self.n.shape, dy.dtype)", "dx = d_rows",
         "changes its input dy"),
        ("return dx.reshape(dy.shape)", "return dx", "shape"),
    ],
    "gelu-piece": [
        ("np.multiply(slope, 0.044715 * c, out=t)", "t[...] = 0", "cubic"),
        ("    t += 1\n    t *= 0.5", "    t *= 0.5", "1 in 1"),
        ("    t *= 0.5", "    pass", "one half"),
        ("np.multiply(x, t, out=y) ", "y[...] = t ", "only Φ"),
        ("slope *= 3 * 0.044715 * c", "slope *= 0.044715 * c", "lacks the 3"),
        ("slope *= 3 * 0.044715 * c", "slope *= 0", "cubic term has a slope"),
        ("slope += 1      ", "slope += 0      ", "first term"),
        ("slope *= x\n", "\n", "factor x"),
        ("np.multiply(x, t, out=y)", "y = x * t", "new array"),
        ("c = (2 / np.pi) ** 0.5", "c = 1", "√"),
        ("np.multiply(x, x, out=slope)", "x *= x; slope[...] = x", "changes its input x"),
        ("", "def gelu(x, t, y, slope):\n    return x * 0.5", "not written"),
        ("", "def gelu(x, t, y, slope):\n    s = 1 / (1 + np.exp(-1.702 * x))\n"
         "    y[...] = x * s\n    slope[...] = s + 1.702 * y * (1 - s)", "sigmoid"),
        ("    slope *= t\n", "    slope[...] = t\n", "Φ alone"),
    ],
    "cross-entropy-backward": [
        ("share[self.rows] = 1 / self.count", "share[...] = 1 / self.count", "not zero"),
        ("    dz[self.rows, self.right] -= 1 / self.count\n", "", "lacks the 1"),
        ("share[self.rows] = 1 / self.count", "share[self.rows] = 1", "undivided"),
        ("-= 1 / self.count", "-= 1", "divided by `count`, too"),
        ("self.count", "len(self.p)", "all positions"),
        ("self.count", "len(self.rows)", "not by `count`"),
        ("self.count", "self.p.shape[1]", "is divided by V"),
        ("-= 1 / self.count", "+= 1 / self.count", "taken away"),
        ("dz.reshape(self.shape)", "dz", "shape"),
        ("dz.reshape(self.shape)", "-dz.reshape(self.shape)", "sign"),
        ("1 / self.count", "1", "sum: the loss is the mean"),
    ],
    "causal-mask": [
        ("k=1", "k=0", "diagonal"),
        ("k=1", "k=2", "future"),
        ("np.triu", "np.tril", "other triangle"),
        ("", "def causal_mask(length, dtype):\n    return np.tril(np.full((length, length), "
         "-np.inf, dtype), k=-1)", "hides the past"),
        ("-np.inf", "-1e9", "where -inf belongs"),
        ("-np.inf, dtype", "-np.inf", "float64"),
        ("", "def causal_mask(length, dtype):\n    return np.tril(np.ones((length, length), "
         "dtype))", "ones and zeros"),
        ("-np.inf", "np.inf", r"\+inf"),
        ("return np", "np", "return"),
    ],
    "split-heads": [
        ("", "def split_heads(x, n_heads, parts=1):\n    B, T, width = x.shape\n    return "
         "x.reshape(parts, B, n_heads, T, width // (parts * n_heads))", "reshape"),
        ("parts, n_heads, width // (parts * n_heads))\n    return cut.transpose(2, 0, 3, 1, 4)",
         "n_heads, parts, width // (parts * n_heads))\n    return cut.transpose(3, 0, 2, 1, 4)",
         "all of q"),
        ("parts, n_heads, width // (parts * n_heads))\n    return cut.transpose(2, 0, 3, 1, 4)",
         "parts, width // (parts * n_heads), n_heads)\n    return cut.transpose(2, 0, 4, 1, 3)",
         "D neighbours"),
        ("transpose(2, 0, 3, 1, 4)", "transpose(2, 0, 1, 3, 4)", "shape"),
        ("transpose(2, 0, 3, 1, 4)", "transpose(2, 0, 3, 1, 4).copy()", "view"),
        ("transpose(2, 0, 3, 1, 4)", "transpose(2, 0, 3, 4, 1)", "shape"),
        ("parts: int = 1", "parts: int", "raises"),
        ("return cut", "cut", "return"),
    ],
    "weigh-the-positions": [
        ("p += self.mask[S - T : S, :S]", "pass", "lacks the mask"),
        ("self.mask[S - T : S, :S]", "self.mask[:T, :S]", "cache"),
        ("self.mask[S - T : S, :S]", "self.mask[:T, :T]", "cache"),
        ("self.mask[S - T : S, :S]", "self.mask.T[S - T : S, :S]", "transposed"),
        ("", "p = np.exp(q @ k.transpose(0, 1, 3, 2))\np /= p.sum(axis=-1, keepdims=True)\n"
         "p *= self.mask[S - T : S, :S] == 0", "masked after softmax"),
        ("> 60", "> 60000", "overflows"),
        ("max(p.max(), -p.min())", "p.max()", "near -1200"),
        ("p.max(axis=-1, keepdims=True)", "p.max()", "from each row"),
        ("", "p = q @ k.transpose(0, 1, 3, 2)\np -= p.max(axis=-1, keepdims=True)\n"
         "p = np.exp(p + self.mask[S - T : S, :S])\np /= p.sum(axis=-1, keepdims=True)",
         "that it may see"),
        ("np.exp(p, out=p)", "p *= self.scale; np.exp(p, out=p)", "scaled twice"),
        ("np.exp(p, out=p)", "p /= self.scale; np.exp(p, out=p)", "√D twice"),
        ("np.exp(p, out=p)", "pass", "not exponentiated"),
        ("np.exp(p, out=p)\np *= 1 / (p @ np.ones(S, p.dtype))[..., None]", "np.exp(p, out=p)",
         "not divided by the sums of its rows: each row must sum to one"),
        ("(p @ np.ones(S, p.dtype))[..., None]", "p.sum(axis=-1)", "Line 8"),
        ("(p @ np.ones(S, p.dtype))[..., None]", "p.sum(axis=-2)[..., None]",
         "each row divided by the sum of a column"),
        ("(p @ np.ones(S, p.dtype))[..., None]", "p.sum(axis=-2, keepdims=True)",
         "by the sums of its columns"),
        ("(p @ np.ones(S, p.dtype))[..., None]", "p.sum()", "one sum for all"),
        ("(p @ np.ones(S, p.dtype))[..., None]", "p.max(-1, keepdims=True)",
         "each row must sum to one"),
        ("(p @ np.ones(S, p.dtype))[..., None]", "np.linalg.norm(p, axis=-1, keepdims=True)",
         "has rows that do not sum to one"),
        ("(p @ np.ones(S, p.dtype))[..., None]", "p.sum(-1, keepdims=True)**2", "twice"),
        ("p *= 1 / (p @", "p *= (p @", "multiplied by the sums"),
        ("p *= 1 / (p @ np.ones(S, p.dtype))", "p = p / (p @ np.ones(S))", "float64"),
        ("np.matmul(q, k.transpose(0, 1, 3, 2), out=p)",
         "np.matmul(k[:, :, -T:], q.transpose(0, 1, 3, 2), out=p)", "exchanged"),
        ("np.exp(p, out=p)", "np.exp(p, out=p); q /= self.scale", "q in self.saved"),
        ("p = self", "p_ = self", "Line"),
    ],
    "blend-the-values": [
        ("np.matmul(dropped, v, out=o)", "np.matmul(dropped, k, out=o)", "keys"),
        ("np.matmul(dropped, v, out=o)", "np.matmul(dropped, q, out=o)", "queries"),
        ("np.matmul(dropped, v, out=o)", "o[...] = v", "unblended"),
        ("np.matmul(dropped, v, out=o)", "np.matmul(dropped.transpose(0, 1, 3, 2), v, out=o)",
         "p transposed"),
        ("np.matmul(dropped, v, out=o)", "np.matmul(p, v, out=o)", "dropout"),
        ("np.matmul(dropped, v, out=o)",
         "np.matmul(dropped, v, out=o); o /= dropped.sum(-1, keepdims=True)", "dropout"),
        ("dropped = self.drop_weights.forward(p)", "dropped = p", "dropout"),
        ("self.saved = q, k, v, p, dropped, o", "self.saved = q, k, v, p, o", "self.saved"),
        ("self.saved = q, k, v, p, dropped, o", "self.weighed = q, k, v, p, dropped, o",
         "self.saved"),
        ("self.saved = q, k, v, p, dropped, o", "self.saved = k, q, v, p, dropped, o",
         "q in self.saved is k"),
        ("self.saved = q, k, v, p, dropped, o", "self.saved = q, k, v, dropped, p, o",
         "With dropout, p in self.saved is dropped"),
        ("self.saved = q, k, v, p, dropped, o", "self.saved = q, k, v, p, dropped, mixed",
         "o in self.saved has the shape"),
        ("self.saved = q, k, v, p, dropped, o", "self.saved = q, k, v, p, dropped, p @ v",
         "With dropout, o in self.saved is blended by p"),
        ("", "dropped = self.drop_weights.forward(p)\no = dropped @ v\n"
         "mixed = o.reshape(B, T, C)\nself.saved = q, k, v, p, dropped, o",
         "transpose is meant"),
    ],
    "gradient-of-the-scores": [
        ("da -= np.vecdot(do, o)[..., None]", "pass", "lacks what softmax takes away"),
        ("da *= p", "pass", "factor p"),
        ("da *= p", "da *= p; da *= p", "factor p of softmax twice"),
        ("da -= np.vecdot(do, o)[..., None]", "da -= da.sum(axis=-1, keepdims=True)",
         "plain sum"),
        ("da -= np.vecdot(do, o)[..., None]", "da -= da.mean(axis=-1, keepdims=True)",
         "plain mean"),
        ("np.vecdot(do, o)", "np.vecdot(do, v)", "product of do and v"),
        ("np.vecdot(do, o)[..., None]", "(da * p).sum(axis=-2, keepdims=True)", "wrong axis"),
        ("np.vecdot(do, o)[..., None]", "np.vecdot(do, o)", "Line 2"),
        ("", "da = self.drop_weights.backward(dp)\nda *= p\n"
         "da -= np.vecdot(do, o)[..., None]", "before the factor p"),
        ("", "da = p * (1 - p) * self.drop_weights.backward(dp)", "only the diagonal"),
        ("", "da = self.drop_weights.backward(dp)", "goes past softmax"),
        ("da -=", "da +=", "sign before"),
        ("self.drop_weights.backward(dp)", "dp", "With dropout, .* self.drop_weights"),
        ("np.vecdot(do, o)[..., None]", "(dp * p).sum(axis=-1, keepdims=True)",
         "With dropout, .* before dp went back"),
        ("da *= p", "da *= dropped", "With dropout, .* `dropped` where the factor p"),
        ("da *= p", "da *= -p", "wrong sign"),
        ("da *= p", "da *= p * self.scale", "√D"),
    ],
    "attention-backward": [
        ("dq *= self.scale", "pass", "that is √D"),
        ("da.transpose(0, 1, 3, 2), q, out=dk)", "da.transpose(0, 1, 3, 2), q, out=dk); "
         "dk *= self.scale", "that is √D"),
        ("np.matmul(da.transpose(0, 1, 3, 2), q, out=dk)", "np.matmul(da, q, out=dk)",
         "da untransposed"),
        ("np.matmul(da, k, out=dq)", "np.matmul(da.transpose(0, 1, 3, 2), k, out=dq)",
         "da transposed"),
        ("np.matmul(da, k, out=dq)", "np.matmul(da, q, out=dq)", "keys belong"),
        ("np.matmul(dropped.transpose(0, 1, 3, 2), do, out=dv)",
         "np.matmul(dropped, do, out=dv)", "untransposed"),
        ("da -= np.vecdot(do, o)[..., None]", "pass", "lacks what softmax takes away"),
        ("    da *= p", "    pass", "factor p"),
        ("self.drop_output.backward(dy)", "dy", "With dropout, .* self.drop_output"),
        ("np.matmul(dropped.transpose(0, 1, 3, 2), do, out=dv)",
         "np.matmul(p.transpose(0, 1, 3, 2), do, out=dv)", "With dropout, dv has p where"),
        ("self.drop_weights.backward(dp)", "dp", "With dropout, .* self.drop_weights"),
        ("np.matmul(dropped.transpose(0, 1, 3, 2), do, out=dv)", "dv[...] = do",
         "dv is do itself"),
        ("dmixed = self.project.backward(self.drop_output.backward(dy))",
         "dmixed = dy.copy()", "self.project"),
        ("return self.qkv.backward(dqkv)", "self.qkv.backward(dqkv)", "return"),
        ("return self.qkv.backward(dqkv)", "return dqkv[:, :, :C]", "never called"),
        ("self.project.backward(self.drop_output.backward(dy))",
         "self.project.backward(self.drop_output.backward(dy)); dy *= 0",
         "changes its input dy"),
        ("np.matmul(da.transpose(0, 1, 3, 2), q, out=dk)", "dk[...] = 0", "dk is zero"),
        ("np.matmul(da.transpose(0, 1, 3, 2), q, out=dk)", "pass", "dk"),
    ],
    "block": [
        ("np.add(x, self.attention.forward(self.norm_1.forward(x), cache), out=y)",
         "y[...] = self.attention.forward(self.norm_1.forward(x), cache)",
         "residual around attention"),
        ("    y += self.feed_forward", "    y = self.feed_forward",
         "residual around feed-forward"),
        ("self.norm_2.forward(y)", "self.norm_2.forward(x)", "feeds x"),
        ("self.norm_2.forward(y)", "self.norm_1.forward(y)", "norm_1 twice"),
        ("self.norm_1.forward(x), cache", "x, cache", "first norm"),
        ("np.add(x, self.attention.forward(self.norm_1.forward(x), cache), out=y)",
         "y[...] = self.norm_1.forward(x + self.attention.forward(x, cache))", "after adding"),
        (", cache), out=y)", "), out=y)", "not given the cache"),
        ("y = self.workspace(\"y\", x.shape, x.dtype)", "y = x", "changes its input x"),
        ("dx += self.norm_2", "dx[...] = self.norm_2", "skips the feed-forward"),
        ("dx += self.norm_1", "dx = self.norm_1", "skips attention"),
        ("self.attention.backward(dx)", "self.attention.backward(dy)", "sends dy back"),
        ("self.norm_2.backward(self.feed_forward.backward(dx))",
         "self.feed_forward.backward(self.norm_2.backward(dx))", "norm_2 before"),
        ("np.copyto(dx, dy)", "dx = dy", "changes its input dy"),
        ("return dx", "return", "return"),
    ],
    "go-all-the-way-back": [
        ("table.grad += np.matmul(dlogits.T, self.h, out=dtable)", "pass",
         "comes through the output"),
        ("    self.tokens.backward(dx)", "    pass", "comes through the input"),
        ("table.grad += ", "table.grad[...] = ", "overwritten"),
        ("    self.positions.weight.grad[: dx.shape[1]] += dx.sum(axis=0)", "    pass", "wpe"),
        ("[: dx.shape[1]] += dx", "[: dx.shape[1]] = dx", "wpe.weight is overwritten"),
        ("[: dx.shape[1]] += dx", "[-dx.shape[1] :] += dx", "last rows"),
        ("weight.grad[: dx.shape[1]] += dx", "weight.grad += dx", "Line"),
        ("dx.sum(axis=0)", "dx.mean(axis=0)", "batch size B"),
        ("dx.sum(axis=0)", "dx[0]", "first story"),
        ("reversed(self.blocks)", "self.blocks", "order of `run`"),
        ("    self.ready = False\n", "", "second backward"),
        ("self.norm.backward(np.matmul(dlogits, table.data, out=dh))",
         "np.matmul(dlogits, table.data, out=dh)", "ln_f"),
        ("dx = self.drop.backward(dx)", "pass", "dropout"),
        ("dx = block.backward(dx)", "block.backward(dx)", "passed on"),
        ("dlogits = self", "self.grad[...] = 0; dlogits = self", "overwritten"),
    ],
    "sgd": [
        ("self.velocity *= self.momentum", "self.velocity[...] = 0", "ignores the momentum"),
        ("self.velocity *= self.momentum", "pass", "whole of v"),
        ("-= learning_rate", "+= learning_rate", "uphill"),
        ("-= learning_rate * self.velocity", "-= self.velocity", "lacks the learning rate"),
        ("+= self.model.grad", "+= (1 - self.momentum) * self.model.grad", "1 - μ"),
        ("+= self.model.grad\n        self.model.data -= learning_rate * self.velocity",
         "+= learning_rate * self.model.grad\n        self.model.data -= self.velocity",
         "within v"),
        ("self.model.data -= learning_rate * self.velocity",
         "self.model.data = self.model.data - learning_rate * self.velocity", "new array"),
        ("self.velocity += self.model.grad",
         "self.model.grad += self.velocity; self.velocity = self.model.grad",
         "changes its input"),
    ],
    "adamw-step-piece": [
        ("/ (1 - b1**self.steps)", "", "correction of m"),
        ("(1 - b2**self.steps) ** 0.5", "1", "correction of v"),
        ("(1 - b2**self.steps) ** 0.5", "1 - b2**self.steps", "outside of the root"),
        ("learning_rate * c /", "learning_rate /", "in the step's length"),
        ("self.steps", "(self.steps + 1)", "self.steps is 1 in the first"),
        ("    c = ", "    self.steps += 1\n    c = ", "self.steps is 6 after 3 steps"),
        ("    t += c * self.eps\n", "", "lacks ε"),
        ("t += c * self.eps", "t += self.eps", "adds ε to √v"),
        ("np.sqrt(v, out=t)                               # c √v̂\n    t += c * self.eps",
         "np.add(v, c * self.eps, out=t)\n    np.sqrt(t, out=t)", "within the root"),
        ("np.sqrt(v, out=t)                               # c √v̂\n    t += c * self.eps",
         "np.add(v, self.eps, out=t)\n    np.sqrt(t, out=t)", "within the root of v"),
        ("np.sqrt(v, out=t)                               # c √v̂\n    t += c * self.eps",
         "np.add(v / c**2, self.eps, out=t)\n    np.sqrt(t, out=t); t *= c",
         "has ε within the root;"),
        ("(b1, b2), matrices", "(b2, b1), matrices", "β₁ and β₂ exchanged"),
        ("    c = ", "    m, v, b1, b2 = v, m, b2, b1\n    c = ", "m and v exchanged"),
        ("w, g, m, v = ", "w, g, v, m = ", "self.m holds the mean of the squares"),
        ("    w -= t", "    w += t", "uphill"),
        ("np.sqrt(v, out=t) ", "t[...] = v ", "root over v"),
        ("np.sqrt(v, out=t) ", "t[...] = v / c ", "root over v"),
        ("m += np.multiply(g, 1 - b1, out=t)", "m += g", "1 - β₁ of the new"),
        ("np.multiply(g, (1 - b2) ** 0.5, out=t)", "t[...] = g", "1 - β₂ of the"),
        ("    t *= t ", "    np.abs(t, out=t); t *= (1 - b2) ** 0.5 ", "absolute value"),
        ("    w -= t", "    self.model.data[: t.size] -= t", "in several"),
        ("    t = self", "    m, v = self.m[: g.size], self.v[: g.size]\n    t = self",
         "in several"),
        ("self.scratch[: g.size]", "self.scratch", "Line"),
        ("w[: max(0, matrices - piece.start)] *= 1 - learning_rate * self.weight_decay",
         "pass", "lacks the weight decay"),
        ("w[: max(0, matrices - piece.start)]", "w", "biases and gains must not"),
        ("w[: max(0, matrices - piece.start)]", "w[max(0, matrices - piece.start) :]",
         "and not the matrices"),
        ("learning_rate * self.weight_decay", "self.weight_decay", "weight_decay alone"),
        ("learning_rate * self.weight_decay", "learning_rate", "learning rate alone"),
        ("1 - learning_rate * self.weight_decay", "1 + learning_rate * self.weight_decay",
         "grow"),
        ("1 - learning_rate * self.weight_decay", "learning_rate * self.weight_decay",
         "what should be taken away"),
        ("w[: max(0, matrices - piece.start)] *= 1 - learning_rate * self.weight_decay",
         "g = g.copy(); n = max(0, matrices - piece.start); g[:n] += self.weight_decay * w[:n]",
         "decay in the gradient"),
        ("    w -= t", "    n, rest = max(0, matrices - piece.start), 1 - learning_rate * "
         "self.weight_decay\n    w[:n] /= rest; w -= t; w[:n] *= rest", "decay after the step"),
        ("max(0, matrices - piece.start)", "matrices - piece.start", "in several"),
        ("max(0, matrices - piece.start)", "matrices", "in several"),
        ("w[: max(0, matrices - piece.start)]", "self.model.data[:matrices]", "in several"),
        ("np.multiply(g, (1 - b2) ** 0.5, out=t)", "g *= (1 - b2) ** 0.5; t[...] = g",
         "changes its input"),
        ("    w -= t", "    self.model.data = self.model.data - t", "new array"),
        ("piece = 65536", "pieces = 65536", "piece"),
    ],
    "clip-gradients": [
        ("if norm > limit", "if norm", "shorter than the limit"),
        ("*= limit / norm", "/= norm", "length 1"),
        ("*= limit / norm", "= model.grad * (limit / norm)", "new array"),
        ("model.grad *= limit / norm", "np.clip(model.grad, -limit, limit, out=model.grad)",
         "element by element"),
        ("float(np.sqrt(np.dot(model.grad, model.grad)))",
         "float(np.dot(model.grad, model.grad))", "root"),
        ("float(np.sqrt(np.dot(model.grad, model.grad)))", "float(np.abs(model.grad).max())",
         "wrong|times|largest"),
        ("    return norm", "", "returns None"),
        ("    return norm", "    return min(norm, limit)", "before"),
        ("    if norm > limit:\n        model.grad *= limit / norm",
         "    model.grad *= min(1, limit / norm)", "ZeroDivisionError|NaN"),
        ("if norm > limit", "if norm < limit", "shortened"),
    ],
    "learning-rate": [
        ("(step + 1)", "step", "step 0 is the first"),
        ("low + (peak - low)", "peak", "twentieth"),
        ("min(1.0, done)", "done", "behind the end"),
        ("0.5 * (1 + math.cos", "(1 + math.cos", "begins where"),
        ("max(1, steps - warmup)", "(steps - warmup)", "ZeroDivision"),
        ("done = (step - warmup) / max(1, steps - warmup)", "done = step / steps", "begins"),
        ("0.5 * (1 + math.cos(math.pi * min(1.0, done)))", "(1 - min(1.0, done))",
         "no straight line"),
        ("low = peak / 20", "low = 0.05", "proportion"),
        ("return peak * (step + 1) / warmup", "return peak", "first|line"),
        ("return low", "low", "return"),
    ],
    "next-token-probabilities": [
        ("z / max(temperature, 1e-300)", "z * temperature", "divide the logits"),
        ("z / max(temperature, 1e-300)", "z", "ignores the temperature"),
        ("z.argmax()", "z.argmin()", "temperature=0"),
        ("p[order[max(1, top_k) :]]", "p[order[max(1, top_k) + 1 :]]", "one token too many"),
        ("p[order[max(1, top_k) :]]", "p[order[top_k:]]", "top_k=0"),
        ("p[order[max(1, top_k) :]]", "p[max(1, top_k) :]", "of the vocabulary"),
        ("argsort(-p", "argsort(p", "least likely"),
        ("np.cumsum(p[order]) - p[order]", "np.cumsum(p[order])", "reaches top_p"),
        ("top_p * p.sum()", "top_p", "what is left"),
        ("before < top_p", "before <= top_p", "keeps a third"),
        ("return p / p.sum()", "return p", "what is left"),
        ("logits.astype(np.float64)", "logits.copy()", "float32"),
        ("logits.astype(np.float64)", "logits", "changes its input|float32"),
        ("softmax(z / max(temperature, 1e-300))", "np.exp(z / max(temperature, 1e-300))",
         "not divided by its sum"),
        ("p[order[max(1, top_k) :]] = 0.0", "p[p < p[order[min(max(1, top_k), p.size) - 1]]] = 0.0",
         "k tokens"),
        ("        keep[0] = True ", "        pass ", "NaN"),
        ("    return p / p.sum()", "", "return"),
    ],
    "kv-cache": [
        ("self.length, self.length + k.shape[2]", "0, k.shape[2]", "new"),
        ("self.length = new.stop", "pass", "length is"),
        ("= k, v", "= v, k", "exchanged"),
        ("return self.keys[:, :, : new.stop], self.values[:, :, : new.stop]",
         "return self.keys, self.values", "still empty"),
        ("return self.keys[:, :, : new.stop], self.values[:, :, : new.stop]",
         "return self.keys[:, :, new], self.values[:, :, new]", "Only the new"),
        ("return self", "self", "two arrays"),
        ("self.length = new.stop", "self.length += 1", "length is"),
        ("self.keys[:, :, : new.stop], self.values[:, :, : new.stop]",
         "self.keys[:, :, : new.stop], self.keys[:, :, : new.stop]", "exchanged"),
        ("k.shape[2])", "k.shape[1])", "Line|shape"),
    ],
    "window-start": [
        ("-(-(length - context) // half) * half", "length - context", "slides"),
        ("-(-(length - context) // half) * half", "(length - context) // half * half",
         "round up"),
        ("    if length <= context:\n        return 0\n", "", "not 0"),
        ("-(-(length - context) // half) * half",
         "math.ceil((length - context) / half) * float(half)", "NameError|whole number"),
        ("-(-(length - context) // half) * half", "((length - context) / half + 1) * half",
         "whole number"),
        ("max(1, context // 2)", "context // 2", "ZeroDivision"),
        ("context // 2", "context", "half a context|nothing"),
        ("    return -", "    -", "return"),
    ],
    "write-safetensors": [
        ('"little"', '"big"', "big-endian"),
        ('    text += b" " * (-len(text) % 8)', "    pass", "multiple of 8"),
        ("{\"__metadata__\": {\"format\": \"pt\", **more}}", "{}", "__metadata__"),
        ("np.ascontiguousarray(array, \"<f4\")", "np.ascontiguousarray(array)", "4 bytes"),
        ("4 * array.size", "array.size", "Reading"),
        ("begin, end = end, end + 4 * array.size", "begin, end = 0, 4 * array.size",
         "Reading"),
        (".tobytes()", ".tobytes(order=\"F\")", "wrong in|order"),
        ("list(array.shape)", "list(array.shape[::-1])", "shape"),
        ("len(text).to_bytes(8, \"little\") + text", "text", "begins with the header"),
        ("end = 0\n", "end = 8\n", "Reading"),
        ("np.ascontiguousarray(array, \"<f4\").tobytes()",
         "array.astype(\"<f4\").tobytes(order=\"A\")", "order of memory"),
        ("write_atomically(path,", "bytes(", "No file"),
        ("write_atomically(path,", "path.write_bytes(", "over the old file"),
    ],
}

# For each exercise a chunk that is right, too, though it is not the book's.
OTHERS = {
    "pad-the-rows": """
        class Batch(NamedTuple):
            ids: Array
            targets: Array

        def pad_rows(rows):
            n = max(len(row) for row in rows)
            ids = [[1, *row[:-1], *[0] * (n - len(row))] for row in rows]
            targets = [[*row, *[-1] * (n - len(row))] for row in rows]
            return Batch(np.array(ids), np.array(targets))
        """,
    "ngram": """
        class NGram:
            def __init__(self, n, vocab_size):
                self.n, self.vocab_size = n, vocab_size
                self.counts, self.totals = Counter(), Counter()

            def learn(self, ids):
                for length in range(self.n):
                    for end in range(max(1, length), len(ids)):
                        context = tuple(ids[end - length : end])
                        self.counts[context + (ids[end],)] += 1
                        self.totals[context] += 1

            def probability(self, context, token):
                p = 1 / self.vocab_size
                for start in range(len(context), -1, -1):
                    part = tuple(context[start:])
                    p = (self.counts[part + (token,)] + p) / (self.totals[part] + 1)
                return p
        """,
    "numerical-gradient": """
        def numerical_gradient(loss, x, step=1e-5):
            flat, out = x.reshape(-1), []
            for i, was in enumerate(flat.tolist()):
                values = []
                for sign in (1, -1):
                    flat[i] = was + sign * step
                    values.append(loss())
                flat[i] = was
                out.append((values[0] - values[1]) / step / 2)
            return np.array(out).reshape(x.shape)
        """,
    "softmax": """
        def softmax(z):
            e = np.exp(z - z.max(axis=-1, keepdims=True))
            z[...] = e / e.sum(axis=-1, keepdims=True)
            return z
        """,
    "linear-backward": """
        def backward(self, dy):
            d = dy.reshape(-1, dy.shape[-1])
            self.bias.grad += d.sum(axis=0)
            self.weight.grad += self.x.T @ d
            return dy @ self.weight.data.T
        """,
    "embedding-backward": """
        def backward(self, dy):
            np.add.at(self.weight.grad, self.ids, dy.reshape(len(self.ids), -1))
        """,
    "layer-norm-backward": """
        def backward(self, dy):
            d_rows = dy.reshape(self.n.shape)
            self.weight.grad += (d_rows * self.n).sum(axis=0)
            self.bias.grad += d_rows.sum(axis=0)
            d = d_rows * self.weight.data
            C = d.shape[1]
            dx = C * d - d.sum(axis=1, keepdims=True)
            dx -= self.n * (d * self.n).sum(axis=1, keepdims=True)
            return (dx * self.scale[:, None] / C).reshape(dy.shape)
        """,
    "gelu-piece": """
        def gelu(x, t, y, slope):
            c = math.sqrt(2 / math.pi)
            tanh = np.tanh(c * (x + 0.044715 * x * x * x))
            y[:] = 0.5 * x * (1 + tanh)
            slope[:] = 0.5 * (1 + tanh) + 0.5 * x * (1 - tanh * tanh) * c * (
                1 + 3 * 0.044715 * x * x)
        """,
    "cross-entropy-backward": """
        def backward(self):
            dz = np.zeros_like(self.p)
            dz[self.rows] = self.p[self.rows]
            dz[self.rows, self.right] -= 1
            dz /= self.count
            return dz.reshape(self.shape)
        """,
    "causal-mask": """
        def causal_mask(length, dtype):
            i = np.arange(length)
            return np.where(i[None, :] > i[:, None], -np.inf, 0.0).astype(dtype)
        """,
    "split-heads": """
        def split_heads(x, n_heads, parts=1):
            B, T, width = x.shape
            cut = x.reshape(B, T, parts, n_heads, -1)
            return np.moveaxis(cut, 2, 0).swapaxes(2, 3)
        """,
    "weigh-the-positions": """
        scores = q @ np.swapaxes(k, 2, 3)
        scores = scores + self.mask[S - T : S, :S]
        e = np.exp(scores - scores.max(axis=-1, keepdims=True))
        p = e / e.sum(axis=-1, keepdims=True)
        """,
    "blend-the-values": """
        dropped = self.drop_weights.forward(p)
        o = np.einsum("bhts,bhsd->bhtd", dropped, v)
        mixed = o.transpose(0, 2, 1, 3).reshape(B, T, C)
        self.saved = q, k, v, p, dropped, o
        """,
    "gradient-of-the-scores": """
        back = self.drop_weights.backward(dp)
        da = p * (back - (back * p).sum(axis=-1, keepdims=True))
        """,
    "attention-backward": """
        def backward(self, dy):
            q, k, v, p, dropped, o = self.saved
            B, T, C = dy.shape
            dmixed = self.project.backward(self.drop_output.backward(dy))
            do = dmixed.reshape(B, T, self.n_heads, -1).transpose(0, 2, 1, 3)
            dv = dropped.transpose(0, 1, 3, 2) @ do
            dp = self.drop_weights.backward(do @ v.transpose(0, 1, 3, 2))
            da = p * (dp - (dp * p).sum(axis=-1, keepdims=True))
            dk = da.transpose(0, 1, 3, 2) @ q
            dq = da @ k * self.scale
            parts = [d.transpose(0, 2, 1, 3).reshape(B, T, C) for d in (dq, dk, dv)]
            return self.qkv.backward(np.concatenate(parts, axis=-1))
        """,
    "block": """
        class Block(Layer):
            def __init__(self, norm_1, attention, norm_2, feed_forward):
                self.parts = (norm_1, attention), (norm_2, feed_forward)
                self.norm_1, self.attention = norm_1, attention
                self.norm_2, self.feed_forward = norm_2, feed_forward

            def forward(self, x, cache=None):
                x = x + self.attention.forward(self.norm_1.forward(x), cache)
                return x + self.feed_forward.forward(self.norm_2.forward(x))

            def backward(self, dy):
                for norm, part in reversed(self.parts):
                    dy = dy + norm.backward(part.backward(dy))
                return dy
        """,
    "go-all-the-way-back": """
        def backward(self):
            if not self.ready:
                raise RuntimeError("call loss() first")
            d = self.cross_entropy.backward().reshape(len(self.h), -1)
            dx = self.norm.backward(d @ self.tokens.weight.data)
            dx = dx.reshape(-1, len(self.positions.ids), dx.shape[-1])
            for block in self.blocks[::-1]:
                dx = block.backward(dx)
            dx = self.drop.backward(dx)
            self.tokens.backward(dx)
            self.positions.backward(dx.sum(axis=0))
            self.tokens.weight.grad += d.T @ self.h
            self.ready = False
        """,
    "sgd": """
        class SGD:
            def __init__(self, model, momentum=0.0):
                self.model, self.momentum, self.v = model, momentum, 0

            def step(self, learning_rate):
                self.v = self.momentum * self.v + self.model.grad
                self.model.data[:] = self.model.data - learning_rate * self.v
        """,
    "adamw-step-piece": """
        piece = 65536

        def step_piece(self, piece, learning_rate):
            b1, b2 = self.betas
            g = self.model.grad[piece]
            self.m[piece] = b1 * self.m[piece] + (1 - b1) * g
            self.v[piece] = b2 * self.v[piece] + (1 - b2) * g * g
            m = self.m[piece] / (1 - b1**self.steps)
            v = self.v[piece] / (1 - b2**self.steps)
            move = m / (np.sqrt(v) + self.eps)
            decays = np.arange(piece.start, piece.start + len(g)) < self.model.matrices.stop
            move += self.weight_decay * decays * self.model.data[piece]
            self.model.data[piece] -= learning_rate * move
        """,
    "clip-gradients": """
        def clip_gradients(model, limit):
            norm = np.linalg.norm(model.grad)
            model.grad *= min(1.0, limit / max(norm, 1e-12))
            return norm
        """,
    "learning-rate": """
        def learning_rate(step, steps, peak, warmup):
            if step < warmup:
                return peak / warmup * (step + 1)
            if step >= steps > warmup:
                return 0.05 * peak
            angle = math.pi * (step - warmup) / max(1, steps - warmup)
            return peak * (0.525 + 0.475 * math.cos(angle))
        """,
    "next-token-probabilities": """
        def next_token_probabilities(logits, temperature=1.0, top_k=None, top_p=None):
            z = np.float64(logits) - np.float64(logits).max()
            if temperature <= 0:
                p = np.eye(z.size)[z.argmax()]
            else:
                p = np.exp(z / max(temperature, 1e-300))
            p = p / p.sum()
            kept, total = [], 0.0
            order = sorted(range(z.size), key=lambda token: -p[token])
            order = order[: max(1, top_k)] if top_k is not None else order
            whole = p[order].sum()
            for token in order:
                if top_p is None or not kept or total < top_p * whole:
                    kept.append(token)
                    total += p[token]
            out = np.zeros(z.size)
            out[kept] = p[kept] / p[kept].sum()
            return out
        """,
    "kv-cache": """
        class KVCache:
            def __init__(self, B, H, L, D, dtype):
                self.keys = self.values = np.empty((B, H, 0, D), dtype)
                self.length = 0

            def append(self, k, v):
                self.keys = np.concatenate([self.keys, k], axis=2)
                self.values = np.concatenate([self.values, v], axis=2)
                self.length += k.shape[2]
                return self.keys, self.values
        """,
    "window-start": """
        def window_start(length, context):
            start = 0
            while length - start > context:
                start += max(1, context // 2)
            return start
        """,
    "write-safetensors": """
        def save_safetensors(path, tensors):
            header, blob = {}, b""
            for name, array in tensors.items():
                raw = np.array(array, dtype="<f4", order="C").tobytes()
                header[name] = {"dtype": "F32", "shape": array.shape,
                                "data_offsets": (len(blob), len(blob) + len(raw))}
                blob += raw
            header["__metadata__"] = {"format": "pt"}
            text = json.dumps(header).encode()
            while len(text) % 8:
                text += b" "
            part = path.with_suffix(".part")
            part.write_bytes(len(text).to_bytes(8, "little") + text + blob)
            part.rename(path)
        """,
}


def sentence(name, answer):
    """What the grader says of an answer; nothing if it is accepted."""
    try:
        grade(BOOK, name, answer, timed=False)
        return ""
    except Wrong as wrong:
        return str(wrong)


@pytest.mark.parametrize("name", MUTANTS)
def test_a_grader_accepts_the_chunk_of_the_book(name):
    assert sentence(name, BOOK.chunk(name)) == ""


@pytest.mark.parametrize("name", MUTANTS)
def test_a_grader_accepts_another_right_formulation(name):
    assert sentence(name, dedent(OTHERS[name])) == ""


@pytest.mark.parametrize("name", MUTANTS)
def test_a_grader_asks_for_what_is_not_written_yet(name):
    assert "still to be written" in sentence(name, BOOK.starter(name))


@pytest.mark.parametrize("name, old, new, part", [
    (name, *mutant) for name, mutants in MUTANTS.items() for mutant in mutants])
def test_a_grader_names_a_usual_mistake(name, old, new, part):
    chunk = BOOK.chunk(name)
    assert old in chunk, "the book has changed: renew this mutant"
    said = sentence(name, chunk.replace(old, new) if old else new)
    assert said, "accepted"
    assert re.search(part, said), said
    assert said[-1] in ".?" and "\n" not in said


def test_each_rewrite_has_a_grader_hints_and_mutants():
    assert len(BOOK.rewrites) >= 12
    assert set(BOOK.rewrites) == set(GRADERS) == set(HINTS) == set(MUTANTS) == set(OTHERS)
    assert all(len(hints) >= 2 for _, hints in HINTS.values())
    assert all(len(mutants) >= 4 for mutants in MUTANTS.values())


def test_every_exercise_is_marked_with_kind_difficulty_and_time():
    bullets = re.findall(r"(?m)^- \*(\d+\.\d+)\*", BOOK.text)
    marked = {exercise.number for exercise in BOOK.exercises}
    assert not [number for number in bullets if number not in marked], \
        "mark them as (paper, ★, 10 minutes), (rewrite, ...) or (project, ★★★, 2 hours)"
    assert len(bullets) == len(set(bullets)) >= 30
    assert set(Counter(e.kind for e in BOOK.exercises)) == {"paper", "rewrite", "project"}
    assert all(e.name for e in BOOK.exercises if e.kind == "rewrite")


def test_exercises_are_numbered_from_1_in_the_chapter_where_they_stand():
    for chapter in re.split(r"(?m)^## ", BOOK.text)[1:]:
        number = re.match(r"(\d+)\. ", chapter)
        found = [e.number for e in chunks.read_exercises(chapter)]
        assert found == [f"{number[1]}.{i + 1}" for i in range(len(found))] if number else True
        assert found or not number, f"no exercise in {chapter[:30]!r}"


def test_every_exercise_on_paper_has_a_solution():
    solutions = BOOK.text[BOOK.text.index("\n## Appendix B. Solutions"):]
    solved = set(re.findall(r"\*\*(\d+\.\d+)\*\*", solutions))
    assert {e.number for e in BOOK.exercises if e.kind == "paper"} <= solved
    assert solved <= {e.number for e in BOOK.exercises if e.kind != "rewrite"}


@pytest.mark.parametrize("answer, part", [
    ("def softmax(z:", "Python cannot read line 1"),
    ("# nothing", "no code"),
    ("def soft_max(z):\n    return z", "does not define `softmax`"),
    ("def softmax(z):\n    return zz", "Line 2, `return zz`, raises NameError"),
    ("def softmax(z):\n    raise SystemExit", "Line 2"),
    ("def softmax():\n    return 1", "raises TypeError"),
    ("def softmax(z):\n    return [1]", "is a list"),
    ("x = 1 / 0\ndef softmax(z):\n    return z", "raises ZeroDivisionError"),
    ("def softmax(z):\n    <<nowhere>>\n    return z", "Python cannot read line 2"),
    ("def softmax(z):\n    return softmax(z)", "RecursionError"),
])
def test_whatever_an_answer_does_gets_a_sentence(answer, part):
    assert part in sentence("softmax", answer)


def desk(tmp_path, *words, seconds=60):
    environment = {"PYTHONPATH": f"{ROOT / 'build'}", "PATH": "", "PYTHONUTF8": "1"}
    return subprocess.run(
        [sys.executable, "-m", "exercises", "--answers", str(tmp_path), *words], cwd=ROOT,
        env=environment, capture_output=True, text=True, timeout=seconds)


def test_an_exercise_from_the_beginning_to_the_end(tmp_path):
    answer = tmp_path / "softmax.py"
    done = desk(tmp_path, "exercise", "softmax")
    assert done.returncode == 0 and "simple_llm.md:" in done.stdout
    assert Desk(tmp_path).state("softmax") == "laid out"
    done = desk(tmp_path, "grade", "softmax")
    assert done.returncode == 1 and "still to be written" in done.stderr
    answer.write_text("print('hello')\n" + BOOK.chunk("softmax"))
    assert Desk(tmp_path).state("softmax") == "begun"
    done = desk(tmp_path, "grade", "softmax")
    assert done.returncode == 0 and "hello" in done.stdout and "Right" in done.stdout
    assert done.stderr == ""
    assert Desk(tmp_path).state("softmax") == "done"
    layers = (tmp_path / "package/simple_llm/layers.py").read_text()
    assert "\nprint('hello')\n" in layers


def test_an_answer_that_does_not_end_is_stopped(tmp_path):
    (tmp_path / "softmax.py").write_text("def softmax(z):\n    while True: pass\n")
    done = desk(tmp_path, "grade", "softmax", "--limit", "1")
    assert done.returncode == 1 and "it did not end within" in " ".join(done.stderr.split())


def test_an_answer_that_breaks_python_down_gets_a_sentence(tmp_path):
    (tmp_path / "softmax.py").write_text(
        "import os\ndef softmax(z):\n    os._exit(7)\n")
    done = desk(tmp_path, "grade", "softmax")
    assert done.returncode == 1 and "exit status 7" in done.stderr


def run(capsys, tmp_path, *words):
    status = main(["--answers", str(tmp_path), *words])
    out, err = capsys.readouterr()
    return status, out, err


def test_work_in_progress_is_not_overwritten_unless_forced(capsys, tmp_path):
    answer = tmp_path / "softmax.py"
    assert run(capsys, tmp_path, "exercise", "softmax")[0] == 0
    assert run(capsys, tmp_path, "exercise", "softmax")[0] == 0    # nothing is lost
    answer.write_text("my work")
    status, _, err = run(capsys, tmp_path, "exercise", "softmax")
    assert status == 1 and "--force" in err and answer.read_text() == "my work"
    assert run(capsys, tmp_path, "exercise", "softmax", "--force")[0] == 0
    assert (tmp_path / "softmax.py.old").read_text() == "my work"


def test_hints_come_one_by_one_and_by_number(capsys, tmp_path):
    said = [run(capsys, tmp_path, "hint", "softmax")[1] for _ in range(4)]
    assert [s[:11] for s in said] == ["Hint 1 of 3", "Hint 2 of 3", *["Hint 3 of 3"] * 2]
    assert run(capsys, tmp_path, "hint", "softmax", "2")[1] == said[1]
    assert run(capsys, tmp_path, "hint", "softmax", "4")[::2] == (
        1, "softmax has 3 hints.\n")


def test_the_solution_is_the_chunk_of_the_book(capsys, tmp_path):
    status, out, _ = run(capsys, tmp_path, "solution", "attention-backward")
    assert status == 0 and out.endswith(BOOK.chunk("attention-backward"))
    assert "Backwards through attention" in out and "<<" not in out


def test_without_a_name_the_exercises_are_listed(capsys, tmp_path):
    run(capsys, tmp_path, "exercise", "softmax")
    status, out, _ = run(capsys, tmp_path)
    assert status == 0 and all(name in out for name in BOOK.rewrites)
    assert re.search(r"softmax +laid out", out)


def test_an_unknown_exercise_is_a_sentence(capsys, tmp_path):
    assert run(capsys, tmp_path, "grade", "nowhere")[::2] == (
        1, "There is no exercise nowhere; `make exercise` lists them.\n")
    status, _, err = run(capsys, tmp_path, "grade", "softmax")
    assert status == 1 and "make exercise EX=softmax" in err


def test_the_starter_of_a_class_keeps_its_constructor():
    starter = BOOK.starter("kv-cache")
    assert "self.length = 0" in starter and "new.stop" not in starter
    assert starter.count("NotImplementedError") == 1
