"""The HTTP front of `make serve`: a chat page, and OpenAI's interface. Chapter 24 has what is behind it.

Each connection has a thread; it reads one request, answers it and closes. An answer is a generator: first the kind of
its content, then its pieces. So before the first piece an error still has a status of its own, and whoever goes away
ends the generator, which frees the place. Nothing here trusts a request: its parts are checked before they are used.
"""
from __future__ import annotations

import json
import re
import signal
import sys
import time
import traceback
import uuid
from contextlib import closing, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import chain
from pathlib import Path
from socket import SHUT_RD, SHUT_WR
from threading import Semaphore, Timer
from typing import Any, Callable, Iterable, Iterator

import numpy as np

from simple_llm.cli.generate import ends_of
from simple_llm.cli.models import check_rows, ids_of, load, template_of
from simple_llm.engine.fast import PLACES
from simple_llm.engine.serve import Engine, Seat
from simple_llm.errors import UserError
from simple_llm.today.chat import Turn, make_writer

BODY, PATIENCE, WAITING, CONNECTIONS = 1 << 20, 20.0, 128, 256   # bytes, seconds, texts
SECONDS = 600.0                                                  # for an answer
PAGE = Path(__file__).with_name("chat.html")
HTML, JSON, EVENTS = "text/html; charset=utf-8", "application/json", "text/event-stream"
KINDS = {"/v1/chat/completions": "chat.completion", "/v1/completions": "text_completion"}
Said = dict[str, Any]


# The model


class Service:
    """A model, and what its readers share."""

    def __init__(self, path: str, how: Said) -> None:
        self.how, self.most, self.name = how, how.pop("max_new_tokens"), Path(path).name
        (self.model, self.tokenizer), template = load(path), template_of(path)
        self.writer = make_writer(template, self.tokenizer) if template else None
        self.begin()

    def begin(self) -> None:
        self.end = "." if self.tokenizer.kind == "word" else "\n"
        self.engine = Engine(self.model)
        self.engine.start()

    def read(self, asked: str | list[Turn]) -> tuple[list[int], set[int]]:
        """A text, or turns, to ids; and the tokens that end an answer."""
        ends = ends_of(self.model, self.tokenizer)
        if isinstance(asked, list) and not self.writer:      # lines of one text, as `make chat` makes them
            ends |= {*self.tokenizer.encode(self.end)[-1:]}
            behind = {"assistant": self.end}
            asked = "".join(turn.text + behind.get(turn.role, "\n") for turn in asked)
        if isinstance(asked, str):
            return ids_of(self.model, self.tokenizer, asked), ends
        ids = self.writer.write(asked)
        check_rows(ids, self.model, self.tokenizer)
        return ids, ends

    def write(self, ids: list[int], ends: set[int], room: int, how: Said, stops: list[str], top: int | None
              ) -> Iterator[tuple[str, Any, str]]:
        """Pieces of an answer, the odds of each one's token, and at last why it ended.

        The end of the text is held back while it may be the beginning of a stop, or half a character (U+FFFD).
        """
        seat, new, sent, text, found = Seat(self.engine), [], 0, "", []
        late, reason = time.monotonic() + SECONDS, "stop"
        for token in seat.generate(ids, room, stop=ends, **self.how | how):
            new.append(token)
            text = self.tokenizer.decode(new)
            found = [text.index(stop) for stop in stops if stop in text]
            held = max(n for stop in [*stops, "\ufffd" * 3] for n in range(len(stop) + 1) if text.endswith(stop[:n]))
            end = min(found, default=len(text) - held)
            yield text[sent:end], None if top is None else odds_of(seat.z, token, top), ""
            sent = max(sent, end)
            if found:
                break
            if len(new) == room or time.monotonic() > late:
                reason = "length"
                break
        yield text[sent:] * (not found), None, reason


def odds_of(z: np.ndarray, token: int, top: int) -> list[tuple[int, float]]:
    """A token and the likeliest ones, each with its ln p, by the model's own (V,) logits."""
    log_p = z.astype(np.float64) - z.max()
    log_p -= np.log(np.exp(log_p).sum())
    return [(int(n), float(log_p[n])) for n in (token, *np.argsort(-log_p)[:top])]


# What a request may hold


class Refused(UserError):
    """What is answered with an error object and a status."""

    def __init__(self, why: str, param: str | None = None, status: int = 400, code: str | None = None) -> None:
        super().__init__(why)
        self.param, self.status, self.code = param, status, code


def between(low: float, high: float, *kinds: type) -> tuple[Callable[[Any], bool], str]:
    return lambda found: type(found) in kinds and low <= found <= high, f"from {low} to {high}"


def is_text(found: Any) -> bool:
    """One that can be encoded: JSON's escapes can spell half of a surrogate pair."""
    return type(found) is str and not re.search("[\ud800-\udfff]", found)


def is_turn(found: Any) -> bool:
    return (type(found) is dict and found.get("role") in ("system", "developer", "user", "assistant")
            and is_text(text_of(found)))


def text_of(turn: Said) -> Any:
    """A turn's text; some clients send it in parts."""
    said = turn.get("content")
    if type(said) is list and all(type(part) is dict and part.get("type") == "text" and is_text(part.get("text"))
                                  for part in said):
        return "".join(part["text"] for part in said)
    return said


def are_stops(found: Any) -> bool:
    return type(found) is list and len(found) <= 4 and all(is_text(one) and 0 < len(one) < 100 for one in found)


COUNT = between(1, 2**63, int)
BOTH = {
    "temperature": between(0, 2, int, float), "top_p": between(0, 1, int, float), "seed": between(0, 2**63, int),
    "max_tokens": COUNT, "stop": (are_stops, "up to 4 texts of 1 to 99 characters"),
    "stream": between(False, True, bool), "stream_options": (lambda found: type(found) is dict, "an object"),
    "n": between(1, 1, int), "user": (is_text, "a text")}
CHAT = BOTH | {
    "max_completion_tokens": COUNT, "logprobs": between(False, True, bool), "top_logprobs": between(0, 20, int),
    "messages": (lambda found: type(found) is list and len(found) > 0 and all(map(is_turn, found)),
                 "a list of messages, each with a role (system, user, assistant) and a text as its content")}
PLAIN = BOTH | {"logprobs": between(0, 20, int), "prompt": (is_text, "a text"), "best_of": between(1, 1, int)}


def understand(said: Any, chat: bool, name: str) -> Said:
    """The parameters of a request; null, and what is off, is as if it were not there."""
    if type(said) is not dict:
        raise Refused("the body must be a JSON object")
    said = {key: value for key, value in said.items() if value is not None}
    if said.pop("model", name) != name:
        raise Refused(f"the model here is {name}", "model", 404, "model_not_found")
    if type(said.get("stop")) is str:
        said["stop"] = [said["stop"]]
    known = CHAT if chat else PLAIN
    for key, value in list(said.items()):
        if key not in known:
            if value not in (0, "", [], {}):                 # such as frequency_penalty 0, or echo false
                raise Refused(f"{key:.60} is not known here", key)
            del said[key]
        elif not known[key][0](value):
            raise Refused(f"{key} must be {known[key][1]}, not {value!r:.100}", key)
    if (needed := "messages" if chat else "prompt") not in said:
        raise Refused(f"{needed} must be given", needed)
    return said


# What an answer holds


def event(said: Said) -> str:
    return f"data: {json.dumps(said)}\n\n"


def tell_odds(show: Callable[[int], str], odds: list[Any], chat: bool) -> Said | None:
    """The odds of some tokens, in the words of the interface."""
    if not odds:
        return None
    if chat:
        tell = [[{"token": show(n), "logprob": p, "bytes": None} for n, p in each] for each in odds]
        return {"content": [one | {"top_logprobs": best} for one, *best in tell]}
    return {"tokens": [show(n) for (n, _), *_ in odds], "token_logprobs": [p for (_, p), *_ in odds],
            "top_logprobs": [{show(n): p for n, p in best} for _, *best in odds]}


def tell(error: Exception) -> tuple[int, str, list[str]]:
    """What Handler.say says of an error."""
    status = getattr(error, "status", 400 if isinstance(error, UserError) else 500)
    if status == 500 and not isinstance(error, (RuntimeError, MemoryError)):
        traceback.print_exception(error)                     # a bug
    return status, JSON, [json.dumps({"error": {
        "message": str(error) or type(error).__name__, "param": getattr(error, "param", None),
        "type": "invalid_request_error" if status < 500 else "server_error", "code": getattr(error, "code", None)}})]


class Answer:
    """One answer of a service, as a whole or as a stream of events."""

    def __init__(self, service: Service, said: Said, kind: str) -> None:
        self.service, self.chat, self.stream = service, kind == "chat.completion", said.get("stream", False)
        self.how = {key: said[key] for key in ("temperature", "top_p", "seed") if key in said}
        self.stops, self.top = said.get("stop", []), said.get("logprobs")
        if self.chat:
            self.top = said.get("top_logprobs", 0) if self.top else None
        asked = said.get("prompt", "") if not self.chat else [
            Turn(turn["role"].replace("developer", "system"), text_of(turn)) for turn in said["messages"]]
        self.ids, self.ends = service.read(asked)
        left = service.model.config.context_length - len(self.ids)
        if left < 1:
            raise Refused(f"{len(self.ids)} tokens leave no room in a context of {len(self.ids) + left}",
                          "messages" if self.chat else "prompt", code="context_length_exceeded")
        self.room = min(left, service.most, *(said.get(key, left) for key in ("max_tokens", "max_completion_tokens")))
        self.with_usage = said.get("stream_options", {}).get("include_usage") is True
        self.head = {"id": f"{kind[:4]}-{uuid.uuid4().hex}", "created": int(time.time()), "model": service.name,
                     "object": kind + ".chunk" * (self.stream and self.chat)}

    def pieces(self) -> Iterator[str]:
        """The kind of the content, and its pieces: events, or spaces (JSON may begin with white space, and so it is
        noticed in both ways if the reader has gone) and at last the whole."""
        yield EVENTS if self.stream else JSON
        text, odds, n, role = "", [], 0, {"role": "assistant"}
        for piece, told, reason in self.service.write(
                self.ids, self.ends, self.room, self.how, self.stops, self.top):
            n += not reason
            more = [told] if told else []
            if self.stream:
                yield event(self.pack(piece, more, reason, role))
                role = {}
            else:
                text, odds = text + piece, odds + more
                yield " "
        usage = {"prompt_tokens": len(self.ids), "completion_tokens": n, "total_tokens": len(self.ids) + n}
        if not self.stream:
            yield json.dumps(self.pack(text, odds, reason, role) | {"usage": usage})
            return
        if self.with_usage:
            yield event(self.head | {"choices": [], "usage": usage})
        yield "data: [DONE]\n\n"

    def pack(self, text: str, odds: list[Any], reason: str, role: Said) -> Said:
        words = {"text": text}
        if self.chat:
            words = {"delta" if self.stream else "message": role | {"content": text}}
        told = tell_odds(self.service.tokenizer.show, odds, self.chat)
        return self.head | {"choices": [{"index": 0, **words, "logprobs": told, "finish_reason": reason or None}]}


# HTTP


class Handler(BaseHTTPRequestHandler):
    """One request, in a thread of its own."""

    timeout, disable_nagle_algorithm = 30, True              # seconds for a reader who does not read
    default_request_version = "HTTP/1.0"                     # of a line that is no request: it is answered in form, too
    server: Server

    def setup(self) -> None:
        super().setup()
        self.clock = Timer(PATIENCE, self.hurry)
        self.clock.daemon = True
        self.clock.start()

    def hurry(self) -> None:
        """Whoever has not sent a request by now has sent it."""
        with suppress(OSError):
            self.connection.shutdown(SHUT_RD)

    def finish(self) -> None:
        """Say that this is all, and hear the client out: what is unread when we close would destroy what we said."""
        self.clock.cancel()
        end = time.monotonic() + 2
        with suppress(OSError):
            self.connection.shutdown(SHUT_WR)
            self.connection.settimeout(1)
            while self.connection.recv(BODY) and time.monotonic() < end:
                pass
        self.rfile.close()                                   # or the connection stays open until it is collected

    def do_GET(self) -> None:
        with closing(self.answer()) as pieces:               # closed when the reader has gone, too
            try:
                kind, first = next(pieces), next(pieces)
            except OSError:
                return                                       # nobody is there
            except Exception as error:
                return self.say(*tell(error))
            self.say(200, kind, chain([first], pieces))

    do_POST = do_GET

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """What http.server itself refuses."""
        self.say(*tell(Refused(message or "this is no request", status=code)))

    def log_message(self, *_: Any) -> None:
        pass

    def say(self, status: int, kind: str, pieces: Iterable[str]) -> None:
        try:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Cache-Control", "no-store")
            self.end_headers()
            for piece in pieces:
                self.wfile.write(piece.encode())
        except OSError:
            pass                                             # nobody is there any more
        except Exception as error:                           # too late for a status
            why = tell(error)[2][0]
            with suppress(OSError):
                self.wfile.write((f"data: {why}\n\n" if kind == EVENTS else why).encode())

    def answer(self) -> Iterator[str]:
        """The kind of the content, and then its pieces."""
        self.check_who_asks()
        path, service = self.path.partition("?")[0], self.server.service
        if self.command == "POST" and path in KINDS:
            said = understand(self.read(), path == "/v1/chat/completions", service.name)
            yield from self.server.seat(Answer(service, said, KINDS[path]))
        elif self.command == "GET" and path == "/":
            yield from (HTML, PAGE.read_text(encoding="utf-8"))
        elif self.command == "GET" and path in ("/v1/models", f"/v1/models/{service.name}"):
            one = {"id": service.name, "object": "model", "created": self.server.since, "owned_by": "you"}
            yield from (JSON, json.dumps(one if path != "/v1/models" else {"object": "list", "data": [one]}))
        else:
            raise Refused(f"there is no {self.command} {path!r:.60}: see /v1/models, {', '.join(KINDS)}", status=404)

    def check_who_asks(self) -> None:
        """A browser says which page asks, and under which name it looked for us: both must be ours."""
        hosts, page = self.headers.get_all("Host", []), self.headers.get("Origin")
        ours = "localhost", self.server.host, self.connection.getsockname()[0]
        if len(hosts) != 1 or re.sub(r":\d*$", "", hosts[0]) not in ours:
            raise Refused(f"the Host {', '.join(hosts)!r:.60} is not this machine", status=403)
        if page not in (None, f"http://{hosts[0]}"):
            raise Refused(f"the page {page!r:.60} may not ask", status=403)

    def read(self) -> Any:
        """The JSON that was sent."""
        size = self.headers.get("Content-Length", "")
        if not re.fullmatch("[0-9]{1,15}", size) or "Transfer-Encoding" in self.headers:
            raise Refused("a request needs a body and its Content-Length", status=411)
        if int(size) > BODY:
            raise Refused(f"a body of {size} bytes is longer than {BODY}", status=413)
        data = self.rfile.read(int(size))
        self.clock.cancel()
        if len(data) < int(size):
            raise Refused(f"of {size} bytes {len(data)} came within {PATIENCE:g} seconds", status=408)
        try:
            return json.loads(data)
        except (ValueError, RecursionError) as error:
            raise Refused(f"the body is not JSON: {error}") from None


class Server(ThreadingHTTPServer):
    """Who has a place, and who waits for one."""

    request_queue_size = 128

    def __init__(self, service: Service, host: str, port: int) -> None:
        self.service, self.host, self.since = service, host, int(time.time())
        self.places, self.waiting, self.open = map(Semaphore, (PLACES, PLACES + WAITING, CONNECTIONS))
        super().__init__((host, port), Handler)

    def verify_request(self, request: Any, address: Any) -> bool:
        """When there are too many connections, the next ones wait in the system's line."""
        return self.open.acquire()

    def process_request(self, request: Any, address: Any) -> None:
        try:
            super().process_request(request, address)
        except BaseException:                                # no thread could be started
            self.open.release()
            raise

    def process_request_thread(self, request: Any, address: Any) -> None:
        try:
            super().process_request_thread(request, address)
        finally:
            self.open.release()

    def handle_error(self, request: Any, address: Any) -> None:
        if not isinstance(sys.exc_info()[1], OSError):       # somebody has hung up
            super().handle_error(request, address)

    def seat(self, answer: Answer) -> Iterator[str]:
        """The pieces of an answer, as soon as there is a place."""
        if not self.waiting.acquire(blocking=False):
            raise Refused(f"{WAITING} wait already: try again later", status=503)
        try:
            with self.places:
                yield from answer.pieces()
        except UserError as error:                           # such as weights that are not finite: not the client's fault
            raise RuntimeError(str(error)) from None
        finally:
            self.waiting.release()


def serve(args: Any, how: Said) -> None:
    """Serve until Ctrl-C, and then finish what is being said."""
    service = Service(args.model, how)
    try:
        server = Server(service, args.host, args.port)
    except OSError as error:
        raise UserError(f"cannot listen at {args.host}:{args.port}: {error.strerror}") from None
    signal.signal(signal.SIGTERM, signal.default_int_handler)            # the same as Ctrl-C
    print(f"{service.name}: http://{args.host}:{server.server_port}/  (Ctrl-C ends)", flush=True)
    try:
        server.serve_forever()
    finally:
        print("finishing what is being said; Ctrl-C again: at once", file=sys.stderr, flush=True)
        server.socket.close()
        for _ in range(PLACES + WAITING):
            server.waiting.acquire()
