"""The judge behind a server, against a real HTTP server in a thread."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from launcher.evaluate.judges import endpoint
from launcher.evaluate.judges.endpoint import KEY, Endpoint, JudgeFailed, read_verdict
from launcher.evaluate.judges.judge import Comparison

SECRET = "key-that-nobody-may-see"


class Server(ThreadingHTTPServer):
    """Replies what `reply` returns for the request's body: a text, or (status, headers)."""

    daemon_threads = True

    def __init__(self, reply: Callable[[dict[str, Any]], Any]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.reply = reply
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.lock = threading.Lock()
        self.at_once = self.most_at_once = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            self.server.bodies.append(body)
            self.server.headers.append(dict(self.headers))
            self.server.at_once += 1
            self.server.most_at_once = max(self.server.most_at_once, self.server.at_once)
        answer = self.server.reply(body)
        with self.server.lock:
            self.server.at_once -= 1
        if answer is None:  # the connection breaks
            self.close_connection = True
            return
        status, headers = answer if isinstance(answer, tuple) else (200, {})
        usage = {"prompt_tokens": 100, "completion_tokens": 2}
        data = json.dumps({"choices": [{"message": {"content": answer}}], "usage": usage}).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args: object) -> None:
        pass


@contextmanager
def serving(reply: Callable[[dict[str, Any]], Any]) -> Iterator[Server]:
    server = Server(reply)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def shown(body: dict[str, Any]) -> tuple[str, str]:
    """The answers shown as A and as B."""
    text = body["messages"][1]["content"]
    first = text.partition("## Answer A\n")[2].partition("\n\n## Answer B\n")
    return first[0], first[2].partition("\n\n##")[0]


def longer(body: dict[str, Any]) -> str:
    first, second = shown(body)
    return "TIE" if len(first) == len(second) else "A" if len(first) > len(second) else "B"


def judge(server: Server, tmp_path, **settings: Any) -> Endpoint:
    return Endpoint(server.url, "judge-1", tmp_path / "cache", sleep=lambda seconds: None, **settings)


PAIRS = [Comparison(f"Question {number}", "long answer", "short") for number in range(6)]


def test_both_orders_are_asked(tmp_path):
    with serving(longer) as server:
        found = judge(server, tmp_path).prefer([*PAIRS, Comparison("Q", "a", "bb"), Comparison("Q", "cc", "dd")])
    assert found.values == [1.0] * 6 + [0.0, 0.5]
    assert len(server.bodies) == 16
    assert {shown(body) for body in server.bodies} >= {("long answer", "short"), ("short", "long answer")}
    assert all(body["temperature"] == 0 and body["model"] == "judge-1" for body in server.bodies)
    assert found.facts["prompt_tokens"] == 1600 and found.facts["completion_tokens"] == 32


@pytest.mark.parametrize("position", ["A", "B"])
def test_a_judge_that_prefers_a_position_ends_at_one_half(tmp_path, position):
    with serving(lambda body: position) as server:
        found = judge(server, tmp_path).prefer(PAIRS)
    assert found.values == [0.5] * 6
    assert found.facts["first_position_preferred"] == float(position == "A")


def test_a_judge_with_a_bias_still_finds_the_better_answer(tmp_path):
    """It says A unless B is much longer: half of the comparisons of a long and a short answer are won twice."""

    def reply(body: dict[str, Any]) -> str:
        first, second = shown(body)
        return "B" if len(second) > len(first) + 5 else "A"

    with serving(reply) as server:
        found = judge(server, tmp_path).prefer(
            [Comparison("Q", "a much longer answer", "b"), Comparison("Q", "c", "d")]
        )
    assert found.values == [1.0, 0.5]


def test_verdicts_are_cached(tmp_path):
    with serving(longer) as server:
        first = judge(server, tmp_path).prefer(PAIRS[:3])
        again = judge(server, tmp_path).prefer(PAIRS)
        other = Endpoint(server.url, "judge-2", tmp_path / "cache").prefer(PAIRS[:1])
    assert len(server.bodies) == 6 + 6 + 2
    assert first.values == again.values[:3] and other.values == [1.0]
    assert (first.facts["from_cache"], again.facts["from_cache"]) == (0, 6)
    assert again.facts["prompt_tokens"] == 1200  # those of cached verdicts too


def test_an_interrupted_evaluation_goes_on(tmp_path):
    """The server breaks down after five questions; the five are not asked again."""
    asked: list[int] = []

    def reply(body: dict[str, Any]) -> Any:
        asked.append(1)
        return longer(body) if len(asked) <= 5 else (400, {})

    with serving(reply) as server:
        with pytest.raises(JudgeFailed, match="refuses the request: HTTP 400"):
            judge(server, tmp_path, concurrency=1).prefer(PAIRS)
        server.reply = longer
        before = len(server.bodies)
        assert judge(server, tmp_path).prefer(PAIRS).facts["from_cache"] == 5
        assert len(server.bodies) == before + 7


def test_equal_questions_are_asked_once(tmp_path):
    with serving(longer) as server:
        found = judge(server, tmp_path).prefer([PAIRS[0], PAIRS[0], Comparison("Question 0", "short", "long answer")])
    assert found.values == [1.0, 1.0, 0.0] and len(server.bodies) == 2


@pytest.mark.parametrize("accident", [(503, {}), (429, {"Retry-After": "7"}), None])
def test_a_busy_server_is_asked_again(tmp_path, accident):
    asked: list[int] = []
    waits: list[float] = []

    def reply(body: dict[str, Any]) -> Any:
        asked.append(1)
        return accident if len(asked) <= 2 else "A"

    with serving(reply) as server:
        one = Endpoint(server.url, "m", tmp_path / "c", concurrency=1, sleep=waits.append)
        assert one.prefer(PAIRS[:1]).values == [0.5]
    assert len(waits) == 2 and len(asked) == 4
    assert waits == [7, 7] if accident == (429, {"Retry-After": "7"}) else all(0 < it <= 4 for it in waits)


def test_it_gives_up_after_some_tries(tmp_path):
    with serving(lambda body: (502, {})) as server:
        with pytest.raises(JudgeFailed, match="has not answered in 3 tries; the last: HTTP 502"):
            judge(server, tmp_path, tries=3, concurrency=1).prefer(PAIRS[:1])
        assert 3 <= len(server.bodies) <= 6


def test_nobody_listens(tmp_path):
    with serving(longer) as server:
        url = server.url
    with pytest.raises(JudgeFailed, match="has not answered in 2 tries"):
        Endpoint(url, "m", tmp_path / "c", tries=2, sleep=lambda seconds: None).prefer(PAIRS[:1])


def test_no_more_requests_at_once_than_allowed(tmp_path):
    barrier = threading.Event()

    def reply(body: dict[str, Any]) -> str:
        barrier.wait(0.05)
        return "A"

    with serving(reply) as server:
        judge(server, tmp_path, concurrency=3).prefer(PAIRS)
    assert 1 < server.most_at_once <= 3


def test_the_key_is_sent_and_shown_nowhere(tmp_path, monkeypatch):
    monkeypatch.setenv(KEY, SECRET)
    with serving(longer) as server:
        one = judge(server, tmp_path)
        found = one.prefer(PAIRS[:1])
        assert server.headers[0]["Authorization"] == f"Bearer {SECRET}"
        server.reply = lambda body: (401, {})
        with pytest.raises(JudgeFailed, match=f"{KEY}, which is set") as caught:
            one.prefer(PAIRS)
    kept = "".join(path.read_text() for path in (tmp_path / "cache").rglob("*.json"))
    assert SECRET not in kept + repr(one) + repr(found) + str(caught.value) and '"value"' in kept


def test_without_a_key_none_is_sent(tmp_path, monkeypatch):
    monkeypatch.delenv(KEY, raising=False)
    with serving(longer) as server:
        judge(server, tmp_path).prefer(PAIRS[:1])
    assert "Authorization" not in server.headers[0]


def test_no_redirect_is_followed(tmp_path, monkeypatch):
    monkeypatch.setenv(KEY, SECRET)
    with serving(longer) as other, serving(lambda body: (307, {"Location": other.url})) as server:
        with pytest.raises(JudgeFailed, match="redirect"):
            judge(server, tmp_path).prefer(PAIRS[:1])
        assert other.bodies == []


def test_a_reply_without_a_verdict_is_none_and_not_kept(tmp_path):
    with serving(lambda body: "Both have merits.") as server:
        found = judge(server, tmp_path).prefer(PAIRS[:2])
    assert found.values == [None, None] and found.facts["no_verdict"] == 2
    assert not list((tmp_path / "cache").rglob("*.json"))


def test_a_judge_without_any_verdict_is_unusable_and_told_why(tmp_path):
    with serving(lambda body: "<think>A is longer, but") as server:
        found = Endpoint(server.url, "m", tmp_path, longest_reply=7).prefer(PAIRS[:1])
    assert server.bodies[0]["max_tokens"] == 7
    assert "no verdict on any of 1 comparisons in 7 tokens" in found.unusable and "longest_reply" in found.unusable


def test_a_reply_of_another_form_is_none(tmp_path):
    assert endpoint._content({"choices": []}) == endpoint._content({}) == endpoint._content({"choices": [1]}) == ""


@pytest.mark.parametrize(
    ("reply", "value"),
    [
        ("A", 1.0), (" B.", 0.0), ("TIE", 0.5), ("**A**", 1.0), ("[[B]]", 0.0), ("Answer A", 1.0), ("tie", 0.5),
        ("<think>A or B?</think>\nB", 0.0), ("<think>A is", None), ("", None), ("A or B", None), ("Apples", None),
    ],
)  # fmt: skip
def test_verdicts_are_read(reply, value):
    assert read_verdict(reply) == value


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://host/v1", "host:8000/v1", ""])
def test_other_addresses_are_refused(tmp_path, url):
    with pytest.raises(ValueError, match="no http or https address"):
        Endpoint(url, "m", tmp_path)


@pytest.mark.parametrize("url", ["http://user:word@host/v1", "https://host/v1?key=abc"])
def test_a_secret_in_the_address_is_refused_and_not_repeated(tmp_path, url):
    with pytest.raises(ValueError, match=KEY) as caught:
        Endpoint(url, "m", tmp_path)
    assert "word" not in str(caught.value) and "abc" not in str(caught.value)
