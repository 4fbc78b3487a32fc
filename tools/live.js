/* What stands around the functions of chapter 23: the widgets of the book's page and of
   `make inspect`. No framework and no network. A widget is a function of FIGURES that fills
   its box; it is called when its place comes near. Every control is the browser's own
   (button, range, radio, textarea), so that keyboard, touch and screen readers work. */

const facts = JSON.parse(document.getElementById("facts").textContent);
const names = facts.names;

/* Elements */

let made = 0;
const fresh = prefix => `${prefix}-${++made}`;

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes))
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value === true) node.setAttribute(name, "");
    else if (value !== false && value != null) node.setAttribute(name, value);
  node.append(...children.flat());
  return node;
}

const el = (tag, attributes = {}, ...children) =>
  fill(document.createElement(tag), attributes, children);
const shape = (tag, attributes = {}, ...children) =>
  fill(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);

/** A drawing of so many units with a name for those who do not see it. */
function drawing(width, height, name) {
  const title = shape("title", {}, name);
  const root = shape("svg", { viewBox: `0 0 ${width} ${height}`, role: "img" }, title);
  return { root, say: words => { title.textContent = words; },
           draw: (...shapes) => root.replaceChildren(title, ...shapes.flat(Infinity)) };
}

const line = (points, kind) => shape("polyline", {
  points: points.map(([x, y]) => `${x.toFixed(1)},${y.toFixed(1)}`).join(" "), class: kind });
const label = (x, y, words, kind = "", anchor = "start") =>
  shape("text", { x, y, class: kind, "text-anchor": anchor }, words);

const percent = p => p >= 0.995 ? "100\u00a0%" : p >= 0.0995 ? `${Math.round(100 * p)}\u00a0%`
  : p >= 0.0005 ? `${(100 * p).toFixed(1)}\u00a0%` : p > 0 ? "<\u00a00.1\u00a0%" : "0\u00a0%";
const signed = (x, digits = 2) => x.toFixed(digits).replace("-", "−");
const visible = token => (token ?? "no token").replace(/ /g, "·").replace(/\n/g, "⏎").replace(/\t/g, "⇥")
  .replace(/[\p{C}\p{Z}]/gu, c => `\\u${c.codePointAt(0).toString(16).padStart(4, "0")}`);

/** Call `work` in the next frame, once, however often it is asked for. */
function later(work) {
  let due = false;
  return () => {
    if (due) return;
    due = true;
    requestAnimationFrame(() => { due = false; work(); });
  };
}

/** Until when there may be work in this frame: three milliseconds for all that want to. */
const frame = { at: null, end: 0 };
function end() {
  if (frame.at !== document.timeline.currentTime) {
    frame.at = document.timeline.currentTime;
    frame.end = performance.now() + 3;
  }
  return frame.end;
}

/** Call work() until it returns false, a little in each frame, then done(). A new call ends the
    one before. */
function patient() {
  let turn = 0;
  return (work, done) => {
    const mine = ++turn;
    let more = true;
    (function next() {
      if (mine !== turn) return;
      while (more) {
        more = work();
        if (performance.now() > end()) return requestAnimationFrame(next);
      }
      done();
    })();
  };
}

/* Controls */

function slider(name, { min, max, step = 1, value, show = String }, change) {
  const id = fresh("range"), out = el("output", { for: id });
  const input = el("input", { type: "range", id, min, max, step, value, oninput: () => set(+input.value) });
  function tell() {
    out.textContent = show(value);
    input.setAttribute("aria-valuetext", out.textContent);
  }
  function set(wanted) {                               // exactly: the input rounds to its steps
    value = Math.min(max, Math.max(min, wanted));
    if (+input.value !== value) input.value = value;
    tell();
    change(value);
  }
  tell();
  return { set, input, get value() { return value; },
           element: el("div", { class: "slider" }, el("label", { for: id }, name), input, out) };
}

const button = (words, press, more = {}) =>
  el("button", { type: "button", onclick: press, ...more }, words);

/** Radios that look like words, each with a bar above it: {show(words, shares), chosen}. */
function chooser(legend, change, kind = "words") {
  const name = fresh("word"), row = el("div", { class: kind });
  let bars = [], inputs = [], known = "";
  function show(words, shares = [], kinds = []) {
    const key = words.join("\n");
    if (key !== known) {
      known = key;
      const at = chooser.chosen < words.length ? chooser.chosen : words.length - 1;
      bars = words.map(() => el("span", { class: "bar", "aria-hidden": "true" }));
      inputs = words.map((word, n) => el("input", {
        type: "radio", name, value: n, onchange: () => choose(n) }));
      row.replaceChildren(...words.map((word, n) => el(
        "label", { onpointermove: event => {           // and not when the page scrolls
          if (event.pointerType === "mouse" && (event.movementX || event.movementY)) choose(n);
        } },
        bars[n], inputs[n], el("span", { class: "word" }, word), el("small", {}, ""))));
      chooser.chosen = at;
    }
    inputs.forEach((input, n) => {
      const share = shares[n] ?? 0;
      input.checked = n === chooser.chosen;
      input.parentNode.className = kinds[n] ?? "";
      bars[n].style.setProperty("--share", share);
      input.parentNode.lastChild.textContent = share >= 0.005 ? Math.round(100 * share) : "";
    });
  }
  function choose(n) {
    if (chooser.chosen === n) return;
    chooser.chosen = n;
    inputs[n].checked = true;
    change(n);
  }
  const chooser = { show, chosen: Infinity, element: el(
    "fieldset", {}, el("legend", {}, legend), row) };
  return chooser;
}

/** A list of bars: show([{ name, share, before, kind, note }]). */
function bars(name, kind = "") {
  const list = el("ul", { class: `bars ${kind}`, "aria-label": name });
  return { element: list, show: items => list.replaceChildren(...items.map(item => el(
    "li", { class: item.kind }, el("span", { class: "name" }, item.name),
    el("span", { class: "track", "aria-hidden": "true" },
       el("span", { class: "fill", style: `width:${100 * item.share}%` }),
       item.before == null ? [] : el("span", { class: "was", style: `left:${100 * item.before}%` })),
    el("span", { class: "share" }, item.note ?? percent(item.share))))) };
}

/* The model, and texts for it */

const theModel = (() => {
  let model;
  return () => model ??= facts.model && {
    arrays: readArrays(facts.model), layers: facts.layers, heads: facts.heads };
})();

(window.requestIdleCallback ?? setTimeout)(() => theModel());      // not in a frame

/** The ids of a text, those that it cannot read, and whether it was too long. */
function read(text) {
  const cut = facts.cut === "char" ? [...text]
    : text.match(/[\p{L}\p{N}_]+|[^\p{L}\p{N}_\s]+/gu) ?? [];
  const unknown = cut.filter(word => !names.includes(word));
  const most = theModel().arrays["wpe.weight"].length;
  const ids = [names.indexOf("<bos>"), ...cut.map(word => names.includes(word)
    ? names.indexOf(word) : names.indexOf("<unk>"))];
  return { ids: ids.slice(0, most), unknown: [...new Set(unknown)], cut: ids.length > most };
}

/** Reads texts: done is given what is known of each position. What was read before in the same
    way is not read again. */
function reader() {
  const go = patient();
  let past = [], way = "";
  return (ids, gone, done) => {
    const without = new Set(gone), now = [...without].join();
    let same = 0;
    while (now === way && same < ids.length && past[same]?.id === ids[same]) same++;
    const mine = past = past.slice(0, same);
    way = now;
    go(() => {
      if (mine.length < ids.length) readToken(theModel(), mine, ids[mine.length], without);
      return mine.length < ids.length;
    }, () => done(mine));
  };
}

/** A text to be edited; `change` is given its ids, in the next frame. */
function field(name, text, change) {
  const id = fresh("text"), help = fresh("help");
  const area = el("textarea", { id, rows: 3, spellcheck: "false", autocapitalize: "off",
                                autocomplete: "off", "aria-describedby": help, oninput: later(update) });
  const told = el("p", { id: help, class: "told", role: "status" });
  area.value = text;
  function update() {
    const { ids, unknown, cut } = read(area.value);
    told.textContent = [
      unknown.length ? `Never seen, and read as <unk>: ${unknown.join(", ")}. `
        + (names.length < 40 ? `It knows ${names.slice(4).join(" ")}` : "") : "",
      cut ? `Only the first ${ids.length - 1} words fit into its context.` : ""].join(" ").trim();
    change(ids);
  }
  return { update, set: text => { area.value = text; update(); },
           element: el("div", { class: "field" }, el("label", { for: id }, name), area, told) };
}

const best = (p, count) => Array.from(p, (_, v) => v).sort((a, b) => p[b] - p[a]).slice(0, count);
const STORIES = [
  "anna went to the attic . ben took the key . what about anna ?",
  "anna took the apple . ben went to the kitchen . cleo took the bell . what about ben ?",
  "dan took the drum . eva went to the garden . what about eva ? the garden . what about dan ?",
  "eva took the key . cleo went to the barn . anna went to the cellar . what about cleo ?"];

const FIGURES = {};

/* 1. Edit the story, and see the answer change. */

FIGURES.story = box => {
  const follow = reader();
  let asked = 0, which = 0;
  const reply = el("output", { class: "reply" }), places = bars("What else could stand there");
  const which_word = el("p", { class: "told" });
  const story = field("A story and a question: change them", STORIES[0], ids => {
    const mine = ++asked, said = [];
    function next() {                                  // a word a frame
      if (mine === asked) follow([...ids, ...said.map(word => word.v)], [], choose);
    }
    function choose(past) {
      const p = softmax(past.at(-1).logits), v = best(p, 1)[0];
      said.push({ v, p });
      if (names[v] !== "." && names[v] !== "<eos>" && said.length < 5
          && ids.length + said.length < theModel().arrays["wpe.weight"].length)
        return requestAnimationFrame(next);
      show();
    }
    function show() {
      const words = said.map(word => names[word.v]);
      const place = Math.max(0, words.length - 2);
      reply.textContent = words.join(" ");
      which_word.textContent = `Its choice where it says “${words[place]}”:`;
      places.show(best(said[place].p, 5).map((v, n) => (
        { name: names[v], share: said[place].p[v], kind: n ? "" : "first" })));
    }
    next();
  });
  box.append(story.element,
    el("div", { class: "row" }, button("Another story", () => {
      which = (which + 1) % STORIES.length;
      story.set(STORIES[which]);
    })),
    el("p", { class: "answer" }, "The model says: ", reply), which_word, places.element);
  story.update();
};

/* What a model did with a text: computed here, or in the page for a model that is not. */

function seer() {
  const model = theModel(), follow = reader();
  let once;
  if (!model) return (ids, gone, done) => done(once ??= unpacked());
  return (ids, gone, done) => follow(ids, gone, past => done({
    ids, looks: (n, h, t) => past[t].looks[n][h], p: softmax(past.at(-1).logits),
    lens: (depth, t, count) => {
      const p = softmax(head(model.arrays, past[t].streams[depth]));
      return best(p, count).map(v => [v, p[v]]);
    } }));
}

function unpacked() {
  const bytes = Uint8Array.from(atob(facts.looks), letter => letter.charCodeAt(0));
  const T = facts.ids.length, at = (n, h, t) => ((n * facts.heads + h) * T + t) * T;
  const looks = (n, h, t) => Array.from(bytes.subarray(at(n, h, t), at(n, h, t) + t + 1), b => b / 255);
  return { ids: facts.ids, looks, lens: (depth, t, count) => facts.lens[depth][t].slice(0, count) };
}

/* 2. Who looks at whom. */

function attentionOf(box, more = () => "") {
  let view, layer = 0, head = 0;
  const words = chooser("Who looks? Point at a word, or choose it. A bar stands over whom it looks at, in percent.", show);
  const sentence = el("p", { class: "told sentence", role: "status" });
  const name = fresh("head"), heads = el("div", { class: "heads" });
  const cells = [];
  for (let n = 0; n < facts.layers; n++)
    for (let h = 0; h < facts.heads; h++) {
      const input = el("input", { type: "radio", name, onchange: () => {
        [layer, head] = [n, h];
        show();
      } });
      const at = el("span", { class: "at" });
      cells.push({ n, h, input, at });
      heads.append(el("label", {}, input, el("span", {}, `layer ${n + 1}, head ${h + 1}`), at));
    }
  heads.style.setProperty("--columns", Math.min(facts.heads, 4));
  box.append(words.element, sentence,
             el("fieldset", {}, el("legend", {}, "Through which head?"), heads));
  function show() {
    const ids = view.ids, t = Math.min(words.chosen, ids.length - 1);
    const shares = view.looks(layer, head, t);
    words.show(ids.map(id => visible(names[id])), shares,
               ids.map((_, s) => s === t ? "looks" : s > t ? "ahead" : ""));
    for (const { n, h, input, at } of cells) {
      const p = view.looks(n, h, t), s = best(p, 1)[0];
      input.checked = n === layer && h === head;
      at.textContent = `${visible(names[ids[s]])} ${percent(p[s])}`;
    }
    const most = best(shares, 3).filter(s => shares[s] >= 0.05);
    sentence.textContent = `In layer ${layer + 1}, head ${head + 1}, “${visible(names[ids[t]])}” looks at `
      + most.map(s => `“${visible(names[ids[s]])}” (${percent(shares[s])})`).join(", ") + "."
      + more(layer, head);
  }
  return (fresh_view, last = false) => {
    view = fresh_view;
    if (last) {                                        // begin with the clearest look back
      const t = view.ids.length - 1;
      const back = (n, h) => Math.max(0, ...view.looks(n, h, t).slice(0, -1));
      [layer, head] = cells.map(({ n, h }) => [n, h]).filter(([n]) => n === facts.layers - 1)
        .sort(([n, h], [m, g]) => back(m, g) - back(n, h))[0];
      words.chosen = t;
    }
    words.show(view.ids.map(id => visible(names[id])));
    show();
  };
}

const LENS_STORY = `${STORIES[1]} the`;

FIGURES.attention = box => {
  let first = true;
  const place = el("div"), see = seer();
  const show = attentionOf(place);
  const story = field("Your story", LENS_STORY, ids => see(ids, [], view => {
    show(view, first);
    first = false;
  }));
  box.append(story.element, place);
  story.update();
};

/* 3. The logit lens. */

function lensOf(box) {
  let view;
  const words = chooser("After which word?", show, "words flat");
  const depths = Array.from({ length: facts.layers + 1 }, (_, n) => {
    const name = n ? `after block ${n}` : "before the first block";
    const list = bars(name);
    return { list, element: el("div", {}, el("p", { class: "depth" }, name), list.element) };
  });
  box.append(words.element, el("div", { class: "depths" }, depths.map(depth => depth.element)));
  function show() {
    const t = Math.min(words.chosen, view.ids.length - 1);
    words.show(view.ids.map(id => visible(names[id])), [], view.ids.map((_, s) => s === t ? "looks" : ""));
    depths.forEach(({ list }, n) => list.show(view.lens(n, t, 4).map(([v, p], rank) => (
      { name: visible(names[v]), share: p, kind: rank ? "" : "first" }))));
  }
  return fresh_view => { view = fresh_view; words.show(view.ids.map(id => visible(names[id]))); show(); };
}

FIGURES.lens = box => {
  const place = el("div"), see = seer(), show = lensOf(place);
  const story = field("Your story", LENS_STORY, ids => see(ids, [], show));
  box.append(story.element, place);
  story.update();
};

/* 4. Take a head or a block away. */

function removalOf(box, change) {
  const gone = new Set(), boxes = [];
  const tick = (what, words) => {
    const input = el("input", { type: "checkbox", checked: true, onchange: () => {
      if (input.checked) gone.delete(what); else gone.add(what);
      change(gone);
    } });
    boxes.push(input);
    return el("label", {}, input, el("span", {}, words));
  };
  for (let n = 0; n < facts.layers; n++)
    box.append(el("fieldset", {}, el("legend", {}, `Layer ${n + 1}`), el("div", { class: "ticks" },
      Array.from({ length: facts.heads }, (_, h) => tick(`head ${n} ${h}`, `head ${h + 1}`)),
      tick(`block ${n}`, "the whole block"))));
  box.append(el("div", { class: "row" }, button("Put all back", () => {
    gone.clear();
    boxes.forEach(input => { input.checked = true; });
    change(gone);
  })));
  return gone;
}

FIGURES.removal = box => {
  let ids;
  const whole = reader(), rest = reader(), ask = patient();
  const list = bars("What comes next"), told = el("p", { class: "told" });
  const count = el("p", { class: "answer", role: "status" });
  const place = el("div"), gone = removalOf(place, show);
  const story = field("Your story", LENS_STORY, fresh_ids => { ids = fresh_ids; showStory(); });
  function showStory() {
    whole(ids, [], past => rest(ids, gone, changed => {
      const [before, p] = [past, changed].map(each => softmax(each.at(-1).logits));
      told.textContent = "The next word; a thin line marks what the whole model says.";
      const top = [...new Set([...best(before, 1), ...best(p, 4)])].slice(0, 4);
      list.show(top.map(v => ({ name: names[v], share: p[v], before: before[v],
                                kind: v === best(before, 1)[0] ? "first" : "" })));
    }));
  }
  function show() { showStory(); askAll(); }
  function askAll() {
    const without = new Set(gone);
    let asked = 0, right = 0, past = [], question = read(facts.questions[0][0]).ids;
    count.textContent = "It is asked …";
    ask(() => {                                        // a token
      readToken(theModel(), past, question[past.length], without);
      if (past.length < question.length) return true;
      right += names[best(past.at(-1).logits, 1)[0]] === facts.questions[asked++][1];
      count.textContent = `Of ${asked} questions of the world, it answers ${right}: ${percent(right / asked)}.`;
      if (asked === facts.questions.length) return false;
      question = read(facts.questions[asked][0]).ids;
      past = [];
      return true;
    }, () => {});
  }
  box.append(story.element, place, told, list.element, count);
  story.update();
  askAll();
};

/* 5. Temperature, top-k, top-p, and a die. */

FIGURES.sampling = box => {
  let logits = [], p = [], rolled = {}, total = 0, point = null, drawn = null;
  const list = bars("The next word", "noted"), strip = drawing(600, 84, "The die");
  const told = el("p", { class: "told", role: "status" });
  const again = later(() => { rolled = {}; total = 0; point = drawn = null; show(); });
  const temperature = slider("temperature", { min: 0, max: 3, step: 0.05, value: 1, show: x => x.toFixed(2) }, again);
  const k = slider("top-k", { min: 1, max: names.length, value: names.length,
                              show: x => x === names.length ? "all" : `${x}` }, again);
  const cut = slider("top-p", { min: 0.05, max: 1, step: 0.01, value: 1, show: x => x.toFixed(2) }, again);
  const follow = reader();
  const story = field("What comes next?", "anna took the apple . eva took the", ids => follow(ids, [], past => {
    logits = past.at(-1).logits;
    again();
  }));
  function throwIt(times) {
    for (let n = 0; n < times; n++) {
      point = Math.random();
      drawn = roll(p, point);
      rolled[drawn] = (rolled[drawn] ?? 0) + 1;
    }
    total += times;
    show();
  }
  function show() {
    if (!logits.length) return;
    const whole = softmax(logits), order = best(whole, names.length);
    p = chances(logits, temperature.value, k.value, cut.value);
    list.show(order.slice(0, 7).map(v => ({
      name: names[v], share: p[v], before: whole[v], kind: v === drawn ? "first" : p[v] ? "" : "cut",
      note: (p[v] ? percent(p[v]) : "cut off") + (total ? ` · ${rolled[v] ?? 0} ×` : "") })));
    let end = 0;
    const shapes = [];
    p.forEach((share, v) => {
      if (!share) return;
      const left = 600 * end;
      end += share;
      shapes.push(shape("rect", { x: left, y: 32, width: Math.max(0, 600 * share - 1), height: 26,
                                  class: v === drawn ? "area chosen" : "area" }));
      if (share > 0.07) shapes.push(label(left + 300 * share, 78, names[v], "", "middle"));
    });
    if (point != null) shapes.push(line([[600 * point, 24], [600 * point, 62]], "needle"),
      label(Math.min(560, Math.max(40, 600 * point)), 19, point.toFixed(3), "strong", "middle"));
    strip.say("The probabilities end to end, from 0 to 1; a roll is a point in it.");
    strip.draw(shapes);
    told.textContent = drawn == null ? "A thin line marks the probability before anything was changed."
      : `The die fell at ${point.toFixed(3)}, in the stretch of “${names[drawn]}”`
        + (total > 1 ? `; ${total} rolls so far.` : ".");
  }
  box.append(story.element, temperature.element, k.element, cut.element, list.element, strip.root,
    el("div", { class: "row" }, button("Roll the die", () => throwIt(1)),
       button("Roll it 100 times", () => throwIt(100))), told);
  story.update();
};

/* 9. Softmax and cross-entropy. */

FIGURES.softmax = box => {
  const words = ["garden", "kitchen", "key", "ben"], start = [2, 1, 0, -1];
  let came = 0;
  const name = fresh("came"), list = bars("Softmax of the logits", "noted"), told = el("p", { class: "told", role: "status" });
  const show = later(() => {
    const { p, loss, gradient } = crossEntropy(logits.map(each => each.value), came);
    list.show(words.map((word, v) => ({
      name: word, share: p[v], kind: v === came ? "first" : "",
      note: `${percent(p[v])} · gradient ${signed(gradient[v])}` })));
    told.textContent = `“${words[came]}” came: the loss is −ln ${p[came].toPrecision(2)} = ${loss.toFixed(2)} nats.`;
  });
  const logits = words.map((word, v) => slider(`logit of “${word}”`,
    { min: -6, max: 6, step: 0.1, value: start[v], show: x => signed(x, 1) }, show));
  box.append(...logits.map(each => each.element),
    el("div", { class: "row" },
       button("Add 1 to all", () => {                     // or to none, where one would not fit
         if (logits.every(each => each.value <= 5)) logits.forEach(each => each.set(each.value + 1));
       }),
       button("A step down the gradient", () => {
         const { gradient } = crossEntropy(logits.map(each => each.value), came);
         logits.forEach((each, v) => each.set(each.value - gradient[v]));
       })),
    el("fieldset", {}, el("legend", {}, "Which word came?"), el("div", { class: "ticks" }, words.map((word, v) => el(
      "label", {}, el("input", { type: "radio", name, checked: !v, onchange: () => { came = v; show(); } }),
      el("span", {}, word))))),
    list.element, told);
  show();
};

/* 8. Three optimizers in a valley. */

const RATES = [0.001, 0.01, 0.1].flatMap(size => [1, 1.5, 2, 3, 5, 7].map(digit => +(digit * size).toPrecision(2)));

FIGURES.valley = box => {
  const STYLES = { "SGD": "ochre dotted", "SGD, momentum 0.9": "red dashed", "AdamW": "blue" };
  const BEST = { "SGD": 0.015, "SGD, momentum 0.9": 0.01, "AdamW": 0.2 };
  let timer = 0;
  const x = px => 600 * (px + 9) / 18, y = py => 130 - 86 * py;
  const chart = drawing(600, 260, "The valley from above");
  const told = el("ul", { class: "legend" });
  const show = later(() => {
    const shapes = [8, 4, 2, 1].map(level => shape("ellipse", {
      cx: x(0), cy: y(0), rx: x(level) - x(0), ry: y(0) - y(level / 10), class: "contour" }));
    told.replaceChildren();
    for (const [name, step] of Object.entries(STEPS)) {
      const rate = RATES[rates[name].value], memories = [{}, {}], way = [[startX.value, startY.value]];
      for (let n = 0; n < 300; n++) {
        const [px, py] = way.at(-1), hold = value => Math.max(-1e3, Math.min(1e3, value));
        way.push([hold(step(px, px, rate, memories[0])), hold(step(py, 100 * py, rate, memories[1]))]);
      }
      const high = way.map(([px, py]) => px * px + 100 * py * py);
      const needed = high.length - [...high].reverse().findIndex(each => each >= high[0] / 1000);
      const part = way.slice(0, steps.value + 1).map(([px, py]) => [x(px), y(py)]);
      shapes.push(line(part, `way ${STYLES[name]}`), shape("path", {      // a dot is a line of no length
        d: part.map(([px, py]) => `M${px.toFixed(1)} ${py.toFixed(1)}h0`).join(""), class: `dots ${STYLES[name]}` }));
      const [cx, cy] = part.at(-1);
      shapes.push(shape("circle", { cx, cy, r: 6, class: `ring ${STYLES[name]}` }));
      told.append(el("li", {}, key(STYLES[name]), `${name}: `, needed > 300
        ? "not there after 300 steps" : `${needed} steps to a thousandth of the height`));
    }
    shapes.push(shape("circle", { cx: x(0), cy: y(0), r: 4, class: "goal" }));
    chart.say(`The valley from above, and three ways down it after ${steps.value} steps.`);
    chart.draw(shapes);
  });
  const key = kind => shape("svg", { viewBox: "0 0 36 10", class: "key", "aria-hidden": "true" },
                            line([[1, 5], [35, 5]], `way ${kind}`));
  const steps = slider("steps", { min: 0, max: 300, value: 300 }, show);
  const startX = slider("start: along", { min: -8.5, max: 8.5, step: 0.1, value: -8, show: x => signed(x, 1) }, show);
  const startY = slider("start: across", { min: -1.4, max: 1.4, step: 0.05, value: 1, show: x => signed(x, 2) }, show);
  const rates = Object.fromEntries(Object.keys(STEPS).map(name => [name, slider(
    `rate of ${name}`, { min: 0, max: RATES.length - 1, value: RATES.indexOf(BEST[name]), show: n => `${RATES[n]}` }, show)]));
  const play = button("Play", () => {
    clearInterval(timer);
    steps.set(0);
    timer = setInterval(() => {
      steps.set(steps.value + 1);
      if (steps.value >= 120) clearInterval(timer);
    }, 50);
  });
  chart.root.addEventListener("pointerdown", event => {
    const at = chart.root.getBoundingClientRect();
    startX.set(18 * (event.clientX - at.left) / at.width - 9);
    startY.set((130 - 260 * (event.clientY - at.top) / at.height) / 86);
  });
  box.append(chart.root, told, el("p", { class: "told" }, "Tap into the valley to start there."),
    el("div", { class: "row" }, play), steps.element, ...Object.values(rates).map(each => each.element),
    startX.element, startY.element);
  show();
};

/* 10. RoPE's hands. */

FIGURES.rope = box => {
  const query = [1, 0.5, 0, 2], keys = [1, 1, 1, 0];
  const chart = drawing(600, 200, "Clocks"), told = el("p", { class: "told", role: "status" });
  const show = later(() => {
    const q = turn(query, i.value, 100), k = turn(keys, j.value, 100), shapes = [];
    [0, 1].forEach(n => {
      const cx = 150 + 300 * n, cy = 96;
      shapes.push(shape("circle", { cx, cy, r: 78, class: "contour" }), line([[cx + 70, cy], [cx + 78, cy]], "contour"),
        label(cx, 194, n ? "slow: 0.1 radian a token" : "fast: 1 radian a token", "", "middle"));
      for (const [vector, kind, name] of [[q, "blue", "q"], [k, "red dashed", "k"]]) {
        const long = Math.hypot(vector[n], vector[n + 2]), a = vector[n] / long, b = vector[n + 2] / long;
        shapes.push(line([[cx, cy], [cx + 62 * a, cy - 62 * b]], `hand ${kind}`),
          label(cx + 71 * a, cy - 71 * b + 4, name, `strong ${kind.split(" ")[0]}`, "middle"));
      }
    });
    const score = dot(q, k);
    chart.say(`Two clocks: query at ${i.value}, key at ${j.value}`);
    chart.draw(shapes);
    told.textContent = `Query at ${i.value}, key at ${j.value}: ${i.value - j.value} apart; score ${signed(score, 4)}.`;
  });
  const i = slider("position of the query", { min: 0, max: 107, value: 5 }, show);
  const j = slider("position of the key", { min: 0, max: 107, value: 3 }, show);
  const both = by => () => {
    const step = Math.max(-Math.min(i.value, j.value), Math.min(by, 107 - Math.max(i.value, j.value)));
    i.set(i.value + step);
    j.set(j.value + step);
  };
  box.append(chart.root, told, i.element, j.element, el("div", { class: "row" },
    button("Both one token back", both(-1)), button("Both one token on", both(1)), button("Both 10 on", both(10))));
  show();
};

/* 6. Byte-pair merges, step by step. */

FIGURES.merges = box => {
  const CHUNKS = /'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+/gu;
  const between = (low, high) => Array.from({ length: high - low + 1 }, (_, n) => low + n);
  const first = [...between(33, 126), ...between(161, 172), ...between(174, 255)];
  const alphabet = [...first, ...between(0, 255).filter(byte => !first.includes(byte))];
  const letter = byte => byte === 32 ? "␣" : byte > 32 && byte < 127 ? String.fromCharCode(byte)
    : byte.toString(16).padStart(2, "0");
  let chunks, pieces, steps;
  const id = fresh("text"), area = el("textarea", { id, rows: 2, spellcheck: "false", oninput: later(begin) });
  const rows = el("ul", { class: "chunks", "aria-label": "The chunks, cut into pieces" });
  const list = bars("The most frequent pairs"), told = el("p", { class: "told", role: "status" });
  const step = button("Merge the most frequent pair", () => { if (merge_once()) show(); }), toEnd = patient();
  const whole = button("Merge to the end", () => toEnd(merge_once, show));
  area.value = "sing singing ringing ring ring";
  function begin() {
    const found = Object.create(null);                 // has no words of its own
    for (const chunk of area.value.slice(0, 2000).match(CHUNKS) ?? []) found[chunk] = (found[chunk] ?? 0) + 1;
    chunks = Object.entries(found).map(([chunk, times]) => ({ times,
      ids: [...new TextEncoder().encode(chunk)].map(byte => alphabet.indexOf(byte)) }));
    pieces = alphabet.map(letter);
    steps = [];
    toEnd(() => false, show);                          // and no more of what went on
  }
  function merge_once() {
    const [pair] = countPairs(chunks);
    if (!pair || pair[2] < 2) return false;
    const [a, b] = pair, made = pieces.length;
    pieces.push(pieces[a] + pieces[b]);
    steps.push(`${pieces[a]} + ${pieces[b]}`);
    for (const chunk of chunks) chunk.ids = merge(chunk.ids, [a, b], made);
    return true;
  }
  function show() {
    const pairs = countPairs(chunks), most = pairs[0]?.[2] ?? 1, last = pieces.length - 1;
    rows.replaceChildren(...chunks.map(({ ids, times }) => el("li", {},
      ids.map(id => el("span", { class: id > 255 && id === last ? "piece new" : "piece" }, pieces[id])),
      times > 1 ? el("small", {}, ` ${times} times`) : [])));
    list.show(pairs.slice(0, 5).map(([a, b, count], n) => ({
      name: `${pieces[a]} + ${pieces[b]}`, share: count / most, kind: n || count < 2 ? "" : "first", note: `${count} ×` })));
    step.disabled = whole.disabled = !pairs.length || most < 2;
    told.textContent = steps.length ? `${steps.length} merge${steps.length > 1 ? "s" : ""}: ${steps.join(", ")}.`
      + (most < 2 ? " No pair is left that occurs twice." : "") : "Only bytes so far; no pair crosses from one chunk to the next.";
  }
  box.append(el("div", { class: "field" }, el("label", { for: id }, "A text"), area), rows,
    el("p", { class: "depth" }, "The most frequent pairs of neighbours"), list.element,
    el("div", { class: "row" }, step, whole, button("Back to bytes", begin)), told);
  begin();
};

/* 7. The jump: one training, checkpoint by checkpoint. */

FIGURES.jump = box => {
  const { story, answer, points } = facts.jump, last = points.at(-1);
  const chart = drawing(600, 256, "The training"), list = bars("What it answers");
  const told = el("p", { class: "told", role: "status" }), looks = bars("Where it looks", "named");
  const x = epoch => 84 + 486 * Math.sqrt(epoch / last.epoch), y = share => 200 - 180 * share;
  const curve = (get, kind) => line(points.map(point => [x(point.epoch), y(get(point))]), `way ${kind}`);
  const loss = point => point.loss / points[0].loss;
  const show = later(() => {
    const point = points[at.value];
    chart.say(`Loss and answers by epoch; at epoch ${point.epoch}, loss ${point.loss} and ${percent(point.unusual)} against habit.`);
    chart.draw([0, 0.5, 1].map(share => [line([[84, y(share)], [570, y(share)]], "contour"),
        label(76, y(share) + 4, percent(share), "", "end")]),
      [0, 5, 10, 20, 50, 100].filter(epoch => epoch <= last.epoch).map(epoch => label(x(epoch), 220, `${epoch}`, "", "middle")),
      label(328, 250, "epoch", "", "middle"),
      curve(loss, "ochre dotted"), curve(p => p.answers, "red dashed"), curve(p => p.unusual, "blue"),
      line([[x(point.epoch), 12], [x(point.epoch), 200]], "needle"),
      [["ochre", loss], ["red", p => p.answers], ["blue", p => p.unusual]].map(([kind, get]) => shape(
        "circle", { cx: x(point.epoch), cy: y(get(point)), r: 5, class: `ring ${kind}` })));
    told.textContent = `After epoch ${point.epoch}: loss ${point.loss.toFixed(3)}; answered ${percent(point.answers)}, against habit ${percent(point.unusual)}.`;
    list.show(point.said.map(([word, p]) => ({ name: word, share: p, kind: word === answer ? "first" : "" })));
    looks.show(point.looks.map(([name, share]) => ({ name, share })));
  });
  const key = (kind, words) => el("li", {}, shape("svg", { viewBox: "0 0 36 10", class: "key", "aria-hidden": "true" },
    line([[1, 5], [35, 5]], `way ${kind}`)), words);
  const at = slider("checkpoint", { min: 0, max: points.length - 1, value: points.length - 1,
                                    show: n => `epoch ${points[n].epoch}` }, show);
  let timer = 0;
  box.append(at.element, el("div", { class: "row" }, button("Play", () => {
    clearInterval(timer);
    at.set(0);
    timer = setInterval(() => { at.set(at.value + 1); if (at.value >= points.length - 1) clearInterval(timer); }, 500);
  })), chart.root, el("ul", { class: "legend" }, key("blue", "answered against habit"), key("red dashed", "answered"),
    key("ochre dotted", "held-out loss, of that at the start")), told,
    el("p", { class: "depth" }, `After “${story}” it would say`), list.element,
    el("p", { class: "depth" }, "and its two looks, each by its best head"), looks.element);
  show();
};

/* All that fits, for the model and the text of `make inspect`. */

FIGURES.inside = box => {
  const model = theModel(), note = [], parts = ["attention", "lens", "next"].map(() => el("section"));
  note.push(`This model has ${facts.parameters.toLocaleString("en")} numbers. `
    + (model ? "They are in this page, in half precision, and it runs here."
      : "It is too large for a page, or not of GPT-2's form, and so it is not in this one: "
        + "what you see was computed for this text, and cannot be changed."));
  if (model && !["word", "char"].includes(facts.cut)) note.push(" Its text is cut into byte pairs, "
    + "which this page does not do: so the text stays as it is.");
  const scores = (n, h) => ` Its induction score is ${percent(facts.induction[n][h])}`
    + (facts.answered ? `; without it, ${percent(facts.answered[n][h])} of the questions are answered.` : ".");
  const see = seer();
  let gone = new Set(), ids = facts.ids, first = true;
  const show = () => see(ids, gone, view => {
    attention(view, first);
    first = false;
    depths(view);
    if (model) next.show(best(view.p, 6).map((v, n) => (
      { name: visible(names[v]), share: view.p[v], kind: n ? "" : "first" })));
  });
  const attention = attentionOf(parts[0], scores), depths = lensOf(parts[1]), next = bars("What comes next");
  parts[0].prepend(el("h2", {}, "Who looks at whom"));
  parts[1].prepend(el("h2", {}, "What it believes, layer by layer"));
  box.append(el("p", {}, note.join("")));
  if (model && ["word", "char"].includes(facts.cut)) {
    const text = facts.ids.slice(facts.ids[0] === names.indexOf("<bos>") ? 1 : 0).map(id => names[id]).join(facts.cut === "char" ? "" : " ");
    const story = field("The text", text, found => { ids = found; show(); });
    box.append(story.element);
  }
  box.append(parts[0], parts[1]);
  if (model) {
    parts[2].append(el("h2", {}, "What comes next"), next.element, el("h2", {}, "Take something away"));
    removalOf(parts[2], found => { gone = found; show(); });
    box.append(parts[2]);
  }
  show();
};

/* Each is brought to life when its place comes near. */

function enliven(place) {
  const title = place.dataset.title, stage = el("div", { class: "stage", role: "group", "aria-label": title });
  if (title) stage.append(el("p", { class: "tag", "aria-hidden": "true" }, `Live: ${title[0].toLowerCase()}${title.slice(1)}`));
  place.append(stage);
  FIGURES[place.dataset.live](stage);
  place.classList.add("on");
}

const near = new IntersectionObserver(entries => entries.forEach(entry => {
  if (!entry.isIntersecting) return;
  near.unobserve(entry.target);
  enliven(entry.target);
}), { rootMargin: "600px" });
document.querySelectorAll(".live").forEach(place => near.observe(place));

/* What can be scrolled sideways can be reached by keyboard. (Chapters that are far have not been
   laid out, and are left alone.) */

const laidOut = new Set();
const wide = section => section.querySelectorAll(".formula, .code, pre, table").forEach(box => {
  if (box.closest(".code") !== box && box.closest(".code")) return;
  if (box.scrollWidth > box.clientWidth) box.tabIndex = 0;
  else box.removeAttribute("tabindex");
});
const again = later(() => laidOut.forEach(wide));
addEventListener("resize", again);
document.addEventListener("toggle", again, true);
document.addEventListener("contentvisibilityautostatechange", ({ skipped, target }) => {
  if (skipped) return laidOut.delete(target);
  laidOut.add(target);
  wide(target);
}, true);
if (!CSS.supports("content-visibility", "auto"))       // then all are laid out
  document.querySelectorAll("section").forEach(section => { laidOut.add(section); wide(section); });

/* On a phone the contents are folded; and lines of code are, so that the comments at their
   ends are within reach: each goes on below, farther right than it began. */

const contents = document.querySelector("#contents > details");
if (contents && matchMedia("(max-width: 62rem)").matches) contents.open = false;

function foldLines(pre) {
  const spans = [];                                    // those that go on in the next line
  pre.innerHTML = pre.innerHTML.replace(/^\n|\n$/g, "").split("\n").map(line => {
    const before = spans.join(""), spaces = line.match(/^ */)[0].length;
    for (const tag of line.match(/<span[^>]*>|<\/span>/g) ?? [])
      if (tag === "</span>") spans.pop(); else spans.push(tag);
    const shown = `${"\u00a0".repeat(spaces)}${line.slice(spaces)}` || "<br>";
    return `<span class="line" style="--in:${spaces}ch">${before}${shown}${"</span>".repeat(spans.length)}</span>`;
  }).join("");
  pre.classList.add("folded");
}

if (matchMedia("(max-width: 40rem)").matches) {
  const close = new IntersectionObserver(entries => entries.forEach(({ isIntersecting, target }) => {
    if (!isIntersecting) return;
    close.unobserve(target);
    if (target.textContent.trim()) foldLines(target);
  }), { rootMargin: "1000px" });
  document.querySelectorAll(".code pre").forEach(pre => close.observe(pre));
}
