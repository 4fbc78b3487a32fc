"""Several texts in one pass, and the server that they come from: alone and in company, and whatever is sent to it."""
import http.client
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter

import http_front
import numpy as np
import pytest
from conftest import ROOT
from simple_llm.cli.main import main
from simple_llm.engine.fast import PLACES, FastLLM, product
from simple_llm.engine.fast_today import FastTodayLLM
from simple_llm.engine.serve import PIECE, Engine, Seat, decode
from simple_llm.model import Config, SimpleLLM
from simple_llm.today.chat import CHATML, Writer
from simple_llm.today.model import TodayConfig
from test_chat import TOKENIZER, make_model

TRAINED = str(ROOT / "tests/trained")
STORY = "anna went to the kitchen . ben took the drum . what about anna ?"
SIZES = 40, 2 * PIECE + 60, 32, 2, 4
MODELS = {
    "gpt2": lambda: FastLLM(Config(*SIZES), seed=1),
    "llama": lambda: FastTodayLLM(TodayConfig(*SIZES), seed=1),
    "qwen2": lambda: FastTodayLLM(TodayConfig(*SIZES, qkv_bias=True, tied=False), seed=1),
    "qwen3": lambda: FastTodayLLM(TodayConfig(*SIZES, qk_norm=True, head_dim=16), seed=1)}
PROMPTS = [[7 * i % 40 for i in range(n)] for n in (1, 2, 9, PIECE, PIECE + 1, PIECE + 2, 2 * PIECE + 3, 30)]


def together(work, cases):
    """What some calls return that are made at the same time."""
    found = [None] * len(cases)

    def put(n):
        found[n] = work(cases[n])

    threads = [threading.Thread(target=put, args=(n,)) for n in range(len(cases))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return found


# One pass for all


@pytest.mark.parametrize(("i", "o"), [(16, 24), (64, 192), (600, 130), (576, 1001), (40000, 3)])
@pytest.mark.parametrize("order", "CF")
def test_tiles_multiply_as_a_matrix_does_and_no_row_depends_on_the_others_or_on_its_place(i, o, order):
    rng = np.random.default_rng(0)
    w = np.asarray(rng.normal(size=(i, o)), np.float32, order=order)
    x = rng.normal(size=(PLACES, i)).astype(np.float32)
    y = product(x, w)
    exact = x.astype(np.float64) @ w
    assert abs(y - exact).max() < 1e-5 * abs(exact).max() and y.flags.c_contiguous
    for row in range(PLACES):
        for company in (0, rng.normal(size=x.shape)):
            other = np.asarray(company + np.zeros_like(x), np.float32)
            other[PLACES - 1 - row] = x[row]
            assert (product(other, w)[PLACES - 1 - row] == y[row]).all()


@pytest.mark.parametrize("form", MODELS)
def test_one_pass_gives_the_logits_that_each_text_gets_by_itself(form):
    model = MODELS[form]()
    model.eval()
    plain = type(model).__mro__[1](model.config, seed=1)     # the layers of part I, or chapter 16's
    caches, expected = [], []
    for ids in PROMPTS[1:]:
        caches.append(model.make_caches())
        model.next_logits(np.array([ids[:-1]]), caches[-1])
        expected.append(plain.forward(np.array([ids]))[0, -1])
    found = decode(model, [np.array([ids[-1:]]) for ids in PROMPTS[1:]], caches)
    np.testing.assert_allclose(found, expected, atol=2e-5)
    assert [mine[0].length for mine in caches] == [len(ids) for ids in PROMPTS[1:]]


@pytest.mark.parametrize("form", MODELS)
def test_a_text_is_the_same_to_the_last_bit_alone_and_in_company_and_its_tokens_are_those_of_generate(form):
    model = MODELS[form]()
    engine = Engine(model)
    engine.start()

    def write(case):
        (ids, seed), seat = case, Seat(engine)
        how = {"temperature": 0.9, "top_p": 0.9, "seed": seed} if seed else {"temperature": 0}
        return [(token, seat.z.tobytes()) for token in seat.generate(ids, 7, **how)]

    for seed in (0, 5):
        cases = [(ids, seed) for ids in PROMPTS]
        alone = [write(case) for case in cases]
        assert together(write, cases) == alone
        for (ids, _), said in zip(cases, alone):
            how = {"temperature": 0.9, "top_p": 0.9, "seed": seed} if seed else {"temperature": 0}
            assert [token for token, _ in said] == list(model.generate(ids, 7, **how))


class Slow(FastLLM):
    """It writes down what it reads, and takes its time."""

    def next_logits(self, ids, caches):
        self.log.append(ids.shape[1])
        time.sleep(0.02)
        return super().next_logits(ids, caches)


def test_while_a_long_prompt_is_read_others_speak_and_a_short_prompt_need_not_wait_for_its_end():
    model = Slow(Config(40, 8 * PIECE, 16, 1, 2), seed=1)
    model.log, order = [], []
    engine = Engine(model)
    engine.start()

    def write(case):
        name, n, wait = case
        time.sleep(wait)
        for _ in Seat(engine).generate([1] * n, 4, temperature=0):
            order.append(name)

    together(write, [("speaker", 1, 0.0), ("long", 7 * PIECE, 0.03), ("short", 20, 0.06)])
    assert order.index("long") > max(n for n, name in enumerate(order) if name != "long")
    assert model.log[-1] == PIECE and 20 in model.log[:4]    # the short one came between two pieces
    assert Counter(model.log)[PIECE] == 7


def test_what_breaks_a_pass_is_told_to_those_in_it_and_the_engine_goes_on():
    model = MODELS["llama"]()
    engine = Engine(model)
    engine.start()
    good = list(Seat(engine).generate([1, 2], 3, temperature=0))
    kept, model.tokens.weight.data = model.tokens.weight.data, None
    with pytest.raises(RuntimeError, match="the model failed"):
        list(Seat(engine).generate([1, 2], 3))
    model.tokens.weight.data = kept
    assert list(Seat(engine).generate([1, 2], 3, temperature=0)) == good


# The server


class Client:
    """A server in this process, and requests to it."""

    def __init__(self, service):
        self.server = http_front.Server(service, "127.0.0.1", 0)
        self.service, self.port = service, self.server.server_port
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def ask(self, method, path, said=None, **headers):
        """The status, and the body."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        body = said if said is None or isinstance(said, bytes) else json.dumps(said).encode()
        connection.request(method, path, body, headers)
        answer = connection.getresponse()
        text = answer.read().decode()
        connection.close()
        return answer.status, text

    def post(self, path, **said):
        status, text = self.ask("POST", f"/v1/{path}", said)
        return status, (text if said.get("stream") and status == 200 else json.loads(text))

    def chat(self, text, **said):
        return self.post("chat/completions", messages=[{"role": "user", "content": text}], **said)

    def send(self, data, end=True):
        """What comes back when these bytes are sent, and nothing more."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=30) as s:
            try:
                s.sendall(data)
                if end:
                    s.shutdown(socket.SHUT_WR)
                return b"".join(iter(lambda: s.recv(1 << 16), b""))
            except ConnectionError:
                return b""

    def is_free(self):
        """Does everybody leave, within a second?"""
        for _ in range(100):
            if self.server.places._value == PLACES and self.server.waiting._value == PLACES + http_front.WAITING:
                return True
            time.sleep(0.01)
        return False


def events(text):
    parts = text.split("\n\n")
    assert parts[-2:] == ["data: [DONE]", ""] and all(part.startswith("data: ") for part in parts[:-1])
    return [json.loads(part[6:]) for part in parts[:-2]]


@pytest.fixture(scope="module")
def world():
    client = Client(http_front.Service(TRAINED, {"temperature": 1, "max_new_tokens": 50}))
    yield client
    client.server.shutdown()
    client.server.server_close()


@pytest.fixture(scope="module")
def chat():
    """A random model with a chat template, in a context of 4,096 tokens."""
    service = http_front.Service.__new__(http_front.Service)
    model = make_model(FastTodayLLM, context=4096, dtype=np.float32)
    service.how, service.most, service.name = {"temperature": 0}, 4000, "tiny"
    service.model, service.tokenizer, service.writer = model, TOKENIZER, Writer(CHATML, TOKENIZER)
    service.begin()
    client = Client(service)
    yield client
    client.server.shutdown()
    client.server.server_close()


def test_the_small_world_answers_a_question_and_says_why_it_ended_and_what_it_counted(world):
    status, said = world.chat(STORY, temperature=0)
    assert status == 200 and said["object"] == "chat.completion" and said["model"] == "trained"
    choice = said["choices"][0]
    assert choice["message"] == {"role": "assistant", "content": "the kitchen"}
    assert choice["finish_reason"] == "stop" and choice["index"] == 0 and len(said["choices"]) == 1
    n = 1 + len(STORY.split())                               # and <bos>
    assert said["usage"] == {"prompt_tokens": n, "completion_tokens": 2, "total_tokens": n + 2}


def test_turns_without_a_template_are_lines_of_one_text_in_which_an_answer_is_a_sentence(world):
    turns = [("system", "anna went to the barn ."), ("user", "what about anna ?"), ("assistant", "the barn"),
             ("user", "ben took the drum .")]
    ids, ends = world.service.read([http_front.Turn(*turn) for turn in turns])
    text = "anna went to the barn . what about anna ? the barn . ben took the drum ."
    tokenizer = world.service.tokenizer
    assert ids == [tokenizer.bos, *tokenizer.encode(text)]
    assert ends == {tokenizer.eos, tokenizer.ids["."]}


def test_a_completion_is_what_generate_writes_with_the_same_seed(world):
    model, tokenizer = SimpleLLM.from_pretrained(TRAINED), world.service.tokenizer
    for seed in range(3):
        status, said = world.post("completions", prompt="anna went to", max_tokens=12, seed=seed, top_p=0.9)
        ids = [tokenizer.bos, *tokenizer.encode("anna went to")]
        expected = list(model.generate(ids, 12, seed=seed, top_p=0.9, stop=tokenizer.eos))
        assert status == 200 and said["choices"][0]["text"] == tokenizer.decode(expected)


@pytest.mark.parametrize("path", ["completions", "chat/completions"])
def test_a_stream_brings_the_same_as_the_whole(world, path):
    said = {"prompt": STORY} if path == "completions" else {"messages": [{"role": "user", "content": STORY}]}
    said |= {"seed": 4, "max_tokens": 20, "logprobs": 2 if path == "completions" else True}
    whole = world.post(path, **said)[1]
    parts = events(world.post(path, stream=True, stream_options={"include_usage": True}, **said)[1])
    usage = parts.pop()
    assert usage["choices"] == [] and usage["usage"] == whole["usage"]
    choices = [part["choices"][0] for part in parts]
    assert [one["finish_reason"] for one in choices[:-1]] == [None] * (len(choices) - 1)
    assert choices[-1]["finish_reason"] == whole["choices"][0]["finish_reason"]
    if path == "completions":
        assert "".join(one["text"] for one in choices) == whole["choices"][0]["text"]
    else:
        assert "".join(one["delta"]["content"] for one in choices) == whole["choices"][0]["message"]["content"]
        assert [one["delta"].get("role") for one in choices] == ["assistant"] + [None] * (len(choices) - 1)
        told = [token for one in choices if one["logprobs"] for token in one["logprobs"]["content"]]
        assert told == whole["choices"][0]["logprobs"]["content"] and len(told) == usage["usage"]["completion_tokens"]


def test_log_probabilities_are_the_models_own_whatever_the_temperature(world):
    tokenizer, model = world.service.tokenizer, SimpleLLM.from_pretrained(TRAINED, dtype=np.float64)
    said = world.post("completions", prompt=STORY, max_tokens=4, temperature=1.7, seed=1, logprobs=3)[1]["choices"][0]
    ids = [tokenizer.bos, *tokenizer.encode(STORY)]
    for token, told, likely in zip(*(said["logprobs"][key] for key in ("tokens", "token_logprobs", "top_logprobs"))):
        z = model.forward(np.array([ids]))[0, -1]
        log_p = z - np.log(np.exp(z).sum())
        best = np.argsort(-log_p)[:3]
        assert abs(told - log_p[tokenizer.ids[token]]) < 1e-4
        assert likely == pytest.approx({tokenizer.tokens[n]: log_p[n] for n in best}, abs=1e-4)
        ids.append(tokenizer.ids[token])


def test_an_answer_ends_before_the_first_stop_even_if_it_comes_in_several_tokens_and_nothing_behind_it_was_sent(chat):
    free = chat.chat("hi", max_tokens=60)[1]["choices"][0]["message"]["content"]
    assert len(free) > 40
    for stop in (free[20:27], [free[30:33], free[18:24]]):
        expected = free[: min(free.index(one) for one in ([stop] if isinstance(stop, str) else stop))]
        said = chat.chat("hi", max_tokens=60, stop=stop)[1]["choices"][0]
        assert (said["message"]["content"], said["finish_reason"]) == (expected, "stop")
        parts = events(chat.chat("hi", max_tokens=60, stop=stop, stream=True)[1])
        assert "".join(part["choices"][0]["delta"]["content"] for part in parts) == expected
    almost = chat.chat("hi", max_tokens=60, stop=free[10:20] + "\x00")[1]["choices"][0]
    assert almost["message"]["content"] == free and almost["finish_reason"] == "length"


def test_half_a_character_is_never_sent(chat, monkeypatch):
    ids = TOKENIZER.encode("né 🙂 ½ end")
    assert len(ids) > len("né 🙂 ½ end")                       # some characters are several tokens

    class Scripted(Seat):
        def generate(self, *_, **__):
            self.z = np.zeros(TOKENIZER.vocab_size)
            yield from ids

    monkeypatch.setattr("http_front.Seat", Scripted)
    parts = events(chat.chat("hi", stream=True)[1])
    pieces = [part["choices"][0]["delta"]["content"] for part in parts]
    assert "".join(pieces) == "né 🙂 ½ end" and len(pieces) == len(ids) + 1


def test_the_template_writes_the_turns_and_a_context_that_is_full_ends_or_refuses(chat):
    turns = [{"role": "developer", "content": "Be brief."}, {"role": "user", "content": [{"type": "text", "text": "hi"}]}]
    said = chat.post("chat/completions", messages=turns, max_completion_tokens=3)[1]
    ids = Writer(CHATML, TOKENIZER).write([http_front.Turn("system", "Be brief."), http_front.Turn("user", "hi")])
    assert said["usage"] == {"prompt_tokens": len(ids), "completion_tokens": 3, "total_tokens": len(ids) + 3}
    status, said = chat.chat("1 " * 3000)
    assert status == 400 and said["error"]["code"] == "context_length_exceeded"


MISTAKES = {
    "no JSON": (b"{", 400), "a list": (b"[]", 400), "nothing": (b"", 400), "not UTF-8": (b'{"prompt": "\xff"}', 400),
    "half a pair": (b'{"prompt": "\\ud800"}', 400), "deep": (b"[" * 100_000, 400), "no prompt": (b"{}", 400),
    "a number": (b'{"prompt": 1}', 400), "another model": (b'{"model": "gpt-5", "prompt": ""}', 404),
    "NaN": (b'{"prompt": "", "temperature": NaN}', 400), "hot": (b'{"prompt": "", "temperature": 3}', 400),
    "a text": (b'{"prompt": "", "temperature": "1"}', 400), "true": (b'{"prompt": "", "max_tokens": true}', 400),
    "no tokens": (b'{"prompt": "", "max_tokens": 0}', 400), "many digits": (b'{"seed": ' + b"9" * 5000 + b"}", 400),
    "an unknown wish": (b'{"prompt": "", "frequency_penalty": 1}', 400), "n": (b'{"prompt": "", "n": 2}', 400),
    "an empty stop": (b'{"prompt": "", "stop": [""]}', 400), "stops": (b'{"prompt": "", "stop": {"a": 1}}', 400)}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_in_a_body_is_answered_by_an_error_object(world, mistake):
    body, expected = MISTAKES[mistake]
    status, text = world.ask("POST", "/v1/completions", body)
    error = json.loads(text)["error"]
    assert status == expected and error["message"] and set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"


def test_what_changes_nothing_is_accepted(world):
    status, _ = world.post("completions", prompt=STORY, max_tokens=1, frequency_penalty=0, user="me", n=1, echo=False,
                           logit_bias=None, suffix=None, stop=None)
    assert status == 200


@pytest.mark.parametrize(("headers", "status"), [
    ({"Host": "evil.example"}, 403), ({"Host": "evil.example:80"}, 403), ({"Host": ""}, 403),
    ({"Host": "localhost.evil.example"}, 403), ({"Origin": "http://evil.example"}, 403), ({"Origin": "null"}, 403),
    ({"Host": "localhost:1", "Origin": "http://127.0.0.1:1"}, 403), ({"Host": "localhost:1"}, 200),
    ({"Host": "localhost:1", "Origin": "http://localhost:1"}, 200), ({"Host": "127.0.0.1"}, 200)])
def test_only_pages_from_this_server_and_only_under_its_own_name_are_answered(world, headers, status):
    for method, path, said in (("GET", "/v1/models", None), ("POST", "/v1/completions", {"prompt": "", "max_tokens": 1}),
                               ("GET", "/", None)):
        assert world.ask(method, path, said, **headers)[0] == status


@pytest.mark.parametrize(("data", "status"), [
    (b"\r\n", b""), (b"nonsense\r\n\r\n", b"400"), (b"GET / HTTP/9.9\r\n\r\n", b"505"),
    (b"BREW / HTTP/1.1\r\nHost: localhost\r\n\r\n", b"501"), (b"GET /" + b"x" * 70_000 + b" HTTP/1.1\r\n\r\n", b"414"),
    (b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 200 + b"\r\n", b"431"),
    (b"GET / HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n", b"403"),
    (b"GET /nowhere HTTP/1.1\r\nHost: localhost\r\n\r\n", b"404"),
    (b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n\r\n", b"411"),
    (b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", b"411"),
    (b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n", b"411"),
    (b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n{}", b"408")])
def test_a_request_that_is_none_gets_its_status_and_an_error_object(world, data, status):
    said = world.send(data)
    assert said.startswith(b"HTTP/1.0 " + status) if status else not said
    if status:
        assert json.loads(said.partition(b"\r\n\r\n")[2])["error"]["message"]


def test_whoever_sends_too_much_is_heard_out_and_reads_why_it_was_refused(world):
    head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 30000000\r\n\r\n"
    assert world.send(head + bytes(30_000_000)).startswith(b"HTTP/1.0 413")


def test_whoever_sends_too_slowly_is_cut_off_and_half_a_connection_is_enough_for_an_answer(world, monkeypatch):
    body = json.dumps({"prompt": STORY, "max_tokens": 3}).encode()
    head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(body)
    assert json.loads(world.send(head + body).partition(b"\r\n\r\n")[2])["usage"]["completion_tokens"] == 3
    monkeypatch.setattr(http_front, "PATIENCE", 0.2)
    start = time.monotonic()
    assert world.send(head + body[:-1], end=False).startswith(b"HTTP/1.0 408")
    assert world.send(head[:30], end=False).startswith(b"HTTP/1.0 4")
    assert world.send(b"", end=False) == b"" and time.monotonic() - start < 4


@pytest.mark.parametrize("stream", [True, False])
def test_a_reader_who_goes_away_frees_the_place(chat, stream, monkeypatch):
    monkeypatch.setattr("simple_llm.engine.serve.decode", lambda *given: time.sleep(0.005) or decode(*given))
    said = json.dumps({"messages": [{"role": "user", "content": "hi"}], "stream": stream, "temperature": 1.5}).encode()
    for _ in range(PLACES + 2):
        with socket.create_connection(("127.0.0.1", chat.port), timeout=30) as s:
            s.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(said))
            s.sendall(said)
            assert s.recv(20)                                # it has begun, and has 4,000 tokens to go, 20 seconds
    assert chat.is_free()


def test_a_model_that_breaks_is_an_error_of_the_server_and_the_next_request_is_answered(world):
    table = world.service.model.tokens.weight
    kept, table.data = table.data, table.data * np.float32("nan")
    try:
        status, said = world.chat(STORY)
        assert status == 500 and said["error"]["type"] == "server_error" and "not finite" in said["error"]["message"]
    finally:
        table.data = kept
    assert world.chat(STORY, temperature=0)[0] == 200


def test_of_a_hundred_connections_at_once_none_is_lost(world):
    def ask(seed):
        return world.chat(STORY, seed=seed % 5, max_tokens=4)

    found = together(ask, range(100))
    assert all(status == 200 for status, _ in found)
    for seed in range(5):                                    # and company made no difference
        assert len({said["choices"][0]["message"]["content"] for _, said in found[seed::5]}) == 1
    assert world.is_free()


def test_beyond_the_line_a_request_is_told_to_come_back_later(world, monkeypatch):
    monkeypatch.setattr(world.server, "waiting", threading.Semaphore(0))
    status, said = world.chat(STORY)
    assert status == 503 and said["error"]["type"] == "server_error"


SEEDS = [
    b'POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 131\r\n\r\n{"messages": [{"role": "user", '
    b'"content": "what about anna ?"}], "max_tokens": 2, "stream": true, "stop": ["x"], "temperature": 0.5 }',
    b'POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 96 \r\n\r\n{"prompt": "anna went to", '
    b'"max_tokens": 2, "seed": 3, "logprobs": 2, "top_p": 0.5, "n": 1     }',
    b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\nOrigin: http://localhost\r\nAccept: */*\r\n\r\n",
    b"GET / HTTP/1.0\r\nHost: 127.0.0.1\r\n\r\n"]
PIECES = [b"", b"\x00", b"\xff", b"\r\n", b"{", b"}", b"[", b'"', b"null", b"-1", b"1e999", b"99999999999999999999",
          b"true", b"\\ud800", b"NaN", b" ", b"HTTP/1.1", b"Content-Length: 5\r\n", b"Host: evil\r\n", b":", b"/"]


def mutate(rng):
    data = bytearray(rng.choice(SEEDS))
    for _ in range(rng.choice((1, 1, 2, 3, 6))):
        at, end = sorted(rng.randrange(len(data) + 1) for _ in range(2))
        what = rng.randrange(4)
        if what == 0:
            data[at:at + rng.randrange(4)] = rng.choice(PIECES)
        elif what == 1:
            del data[at:min(end, at + 12)]
        elif what == 2:
            data[at:at] = data[at:min(end, at + 40)]
        elif data:
            data[min(at, len(data) - 1)] = rng.randrange(256)
    return bytes(data)


def resident():
    """Megabytes of this process."""
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def test_two_thousand_mutated_requests_are_each_answered_in_form_and_leave_nothing_behind(world, capfd):
    rng = random.Random(0)
    requests = [mutate(rng) for _ in range(2000)]
    before = resident() if sys.platform == "linux" else 0
    statuses = Counter()

    def ask(part):
        for data in part:
            said = world.send(data)
            head, _, body = said.partition(b"\r\n\r\n") if said.startswith(b"HTTP") else (b"HTTP/1.0 000 ", b"", said)
            status = int(head.split()[1])
            assert said or not data.partition(b"\n")[0].strip(), data           # an empty line is no request
            statuses[status] += 1
            if status >= 400 or status == 0 and body:
                assert set(json.loads(body)["error"]) == {"message", "type", "param", "code"}, (data, said)
        return True

    assert together(ask, [requests[n::4] for n in range(4)]) == [True] * 4
    assert sum(statuses.values()) == 2000 and statuses[200] > 50 and statuses[400] > 300 and not statuses[500]
    assert world.is_free() and world.chat(STORY, temperature=0)[1]["choices"][0]["message"]["content"] == "the kitchen"
    assert "Traceback" not in capfd.readouterr().err
    if sys.platform == "linux":
        assert resident() - before < 50


# The command, and clients that nobody here wrote


def start(*options):
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "tools/run.py"), str(ROOT / "build"), "simple_llm", "serve", "--model", TRAINED,
         "--port", "0", *options], text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    line = process.stdout.readline()
    return process, int(re.search(r"http://127\.0\.0\.1:(\d+)/", line)[1])


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_lets_what_is_being_said_be_finished(how):
    process, port = start()
    body = json.dumps({"prompt": "", "max_tokens": 60, "stream": True, "seed": 1}).encode()
    with socket.create_connection(("127.0.0.1", port), timeout=30) as s:
        s.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        said = s.recv(100)
        process.send_signal(how)
        said += b"".join(iter(lambda: s.recv(1 << 16), b""))
    assert said.endswith(b"data: [DONE]\n\n") and process.wait(20) == 130
    errors = process.stderr.read()
    assert "finishing what is being said" in errors and "Traceback" not in errors


def test_a_port_that_is_taken_and_a_package_without_its_front_are_said_in_a_sentence(world, tmp_path, capsys):
    assert main(["serve", f"--model={TRAINED}", f"--port={world.port}"]) == 1
    assert f"cannot listen at 127.0.0.1:{world.port}: Address already in use" in capsys.readouterr().err
    shutil.copytree(ROOT / "build/simple_llm", tmp_path / "simple_llm")
    done = subprocess.run([sys.executable, "-m", "simple_llm", "serve"], cwd=tmp_path, text=True, capture_output=True)
    assert done.returncode == 1 and "tools/http_front.py" in done.stderr and "Traceback" not in done.stderr


def test_the_limits_are_those_that_the_book_names():
    limits = http_front.BODY, http_front.PATIENCE, http_front.CONNECTIONS, http_front.SECONDS
    assert limits == (2**20, 20, 256, 600)


def test_more_connections_than_there_may_be_wait_and_are_answered_later(world, monkeypatch):
    monkeypatch.setattr(world.server, "open", threading.Semaphore(2))
    assert together(lambda seed: world.chat(STORY, seed=seed)[0], range(12)) == [200] * 12


OPENAI = ROOT / ".venv-openai/bin/python"
SPEAK = """
import sys, openai
client = openai.OpenAI(base_url=f"http://127.0.0.1:{sys.argv[1]}/v1", api_key="none", max_retries=0)
story = {"role": "user", "content": sys.argv[2]}
model = client.models.list().data[0].id
assert client.models.retrieve(model).id == model
one = client.chat.completions.create(model=model, messages=[story], temperature=0, logprobs=True, top_logprobs=2)
assert one.choices[0].message.content == "the kitchen" and one.choices[0].finish_reason == "stop", one
assert one.usage.completion_tokens == 2 and len(one.choices[0].logprobs.content[0].top_logprobs) == 2
parts = list(client.chat.completions.create(
    model=model, messages=[story], temperature=0, stream=True, stream_options={"include_usage": True}))
assert "".join(part.choices[0].delta.content or "" for part in parts if part.choices) == "the kitchen"
assert parts[-1].usage.total_tokens == one.usage.total_tokens
with client.chat.completions.stream(model=model, messages=[story], temperature=0) as stream:
    assert stream.get_final_completion().choices[0].message.content == "the kitchen"
two = [client.completions.create(model=model, prompt="anna went to", max_tokens=9, seed=3, stop=["took"], logprobs=1)
       for _ in range(2)]
assert two[0].choices[0].text == two[1].choices[0].text and two[0].choices[0].logprobs.tokens
for wrong, kind in (({"model": "gpt-5"}, openai.NotFoundError), ({"temperature": 9}, openai.BadRequestError)):
    try:
        client.chat.completions.create(**{"model": model, "messages": [story]} | wrong)
    except kind as error:
        assert error.body["message"] and error.param in ("model", "temperature")
    else:
        raise AssertionError(wrong)
print("ok")
"""


@pytest.mark.skipif(not OPENAI.exists(), reason="the package openai is not installed: make test-openai")
def test_the_client_of_openai_gets_what_it_asks_for(world):
    done = subprocess.run([OPENAI, "-c", SPEAK, str(world.port), STORY], capture_output=True, text=True)
    assert (done.stdout, done.returncode) == ("ok\n", 0), done.stderr
