"use strict";
// What moves beside the model: the price of chapter 6, the optimizers of
// chapter 9, the hands of chapter 16 and the merges of chapter 14, as the book has them in Python.

function crossEntropy(z, y) {
  const p = softmax(z);
  return { p, loss: -Math.log(p[y]), gradient: p.map((share, v) => share - (v === y)) };
}

const STEPS = {
  "SGD": (x, g, rate) => x - rate * g,
  "SGD, momentum 0.9": (x, g, rate, memory) => (
    memory.v = 0.9 * (memory.v ?? 0) + g, x - rate * memory.v),
  "AdamW": (x, g, rate, memory) => {
    const t = memory.t = (memory.t ?? 0) + 1;
    memory.m = 0.9 * (memory.m ?? 0) + 0.1 * g;
    memory.v = 0.99 * (memory.v ?? 0) + 0.01 * g * g;
    const mean = memory.m / (1 - 0.9 ** t), square = memory.v / (1 - 0.99 ** t);
    return x - rate * mean / (Math.sqrt(square) + 1e-8);
  },
};

/** Turn element i with i + D/2 by a position's angle. */
function turn(x, position, base) {
  const half = x.length / 2;
  return x.map((value, i) => {
    const angle = position * base ** (-(i % half) / half);
    const other = i < half ? -x[i + half] : x[i - half];
    return value * Math.cos(angle) + other * Math.sin(angle);
  });
}

/** [a, b, count] for the pairs in chunks {ids, times}, the best first. */
function countPairs(chunks) {
  const counts = {};
  for (const { ids, times } of chunks)
    for (let i = 1; i < ids.length; i++) {
      const pair = [ids[i - 1], ids[i]];
      counts[pair] = (counts[pair] ?? 0) + times;
    }
  return Object.entries(counts)
    .map(([pair, count]) => [...pair.split(",").map(Number), count])
    .sort(([a, b, n], [c, d, m]) => m - n || a - c || b - d);
}

const merge = (ids, [a, b], made) => ids.reduce((done, id) => (
  done.at(-1) === a && id === b ? [...done.slice(0, -1), made] : [...done, id]), []);
