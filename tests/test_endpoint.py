"""The judge against a server on this machine that answers, talks nonsense, fails, hangs up or is slow."""

from __future__ import annotations

import base64
import io
import json
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import pytest
from PIL import Image

from rarelift.metrics.endpoint import EndpointError, Judge, Verdict, score

PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (4, 5, 3), dtype=np.uint8))
TEXT = "a {striped} lion"


def answer(content: Any, model: str = "real-7") -> tuple[int, str]:
    return 200, json.dumps({"model": model, "choices": [{"message": {"role": "assistant", "content": content}}]})


class Server(ThreadingHTTPServer):
    """Gives its `replies` in turn, the last for ever: status and body, seconds to wait, or None to hang up."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.replies: list[Any] = []
        self.requests: list[tuple[dict[str, str], Any]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1/chat/completions"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.requests.append((dict(self.headers), json.loads(body)))
        replies = self.server.replies
        reply = replies.pop(0) if len(replies) > 1 else replies[0]
        if isinstance(reply, float):
            time.sleep(reply)
        if not isinstance(reply, tuple):
            self.close_connection = True
            return
        status, text = reply
        self.send_response(status)
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_: Any) -> None:
        pass


def judge(server: Server, **options: Any) -> Judge:
    return Judge(server.url, "asked-1", **{"timeout": 5.0, "retries": 2, "backoff": 0.01, **options})


def test_a_good_answer(server: Server) -> None:
    server.replies = [answer("The lion is there, its stripes are not.\nScore: 3")]
    asked = judge(server, key="secret", options={"temperature": 0, "seed": 5})
    (verdict,) = asked([PICTURE], [TEXT])
    assert verdict == Verdict(3.0, "The lion is there, its stripes are not.\nScore: 3", "real-7")
    ((headers, body),) = server.requests
    assert headers["Authorization"] == "Bearer secret"
    assert "secret" not in repr(asked) + repr(verdict) + json.dumps(body)
    assert (body["model"], body["temperature"], body["seed"]) == ("asked-1", 0, 5)
    words, sent = body["messages"][0]["content"]
    assert "Description: a {striped} lion\n" in words["text"]
    seen = Image.open(io.BytesIO(base64.b64decode(sent["image_url"]["url"].removeprefix("data:image/png;base64,"))))
    np.testing.assert_array_equal(np.asarray(seen), np.asarray(PICTURE))


def test_pictures_and_verdicts_keep_their_order(server: Server) -> None:
    server.replies = [answer("Score: 1"), answer("no idea"), answer("Score: 5")]
    assert [v.score for v in judge(server)([PICTURE] * 3, [TEXT] * 3)] == [1.0, None, 5.0]
    assert len(server.requests) == 3


@pytest.mark.parametrize(
    ("reply", "raw"),
    [
        (answer("I cannot grade pictures."), "I cannot grade pictures."),
        (answer(""), ""),
        (answer("Score: 9"), "Score: 9"),
        (answer(None), answer(None)[1]),
        (answer([{"type": "text"}]), answer([{"type": "text"}])[1]),
        ((200, "<html>no"), "<html>no"),
        ((200, "[]"), "[]"),
        ((200, '{"choices": []}'), '{"choices": []}'),
        ((200, ""), ""),
    ],
)
def test_nonsense_is_kept_without_a_score(server: Server, reply: tuple[int, str], raw: str) -> None:
    server.replies = [reply]
    (verdict,) = judge(server)([PICTURE], [TEXT])
    assert (verdict.score, verdict.raw, verdict.error) == (None, raw, None)
    assert len(server.requests) == 1


@pytest.mark.parametrize("trouble", [(500, "oops"), (429, "slow down"), None], ids=["500", "429", "hangs up"])
def test_trouble_that_passes(server: Server, trouble: Any) -> None:
    server.replies = [trouble, trouble, answer("Score: 4")]
    assert [v.score for v in judge(server)([PICTURE], [TEXT])] == [4.0]
    assert len(server.requests) == 3


def test_trouble_that_stays_has_no_score(server: Server) -> None:
    server.replies = [(503, "busy")]
    (verdict,) = judge(server)([PICTURE], [TEXT])
    assert verdict == Verdict(None, "", "asked-1", "HTTP 503: busy (after 3 tries)")
    assert len(server.requests) == 3


def test_a_timeout_is_tried_again(server: Server) -> None:
    server.replies = [0.6, answer("Score: 2")]
    assert [v.score for v in judge(server, timeout=0.2)([PICTURE], [TEXT])] == [2.0]
    server.replies = [0.6]
    (verdict,) = judge(server, timeout=0.2, retries=0)([PICTURE], [TEXT])
    assert verdict.score is None
    assert verdict.error is not None
    assert "imed out" in verdict.error


def test_nobody_there() -> None:
    (verdict,) = Judge("http://127.0.0.1:9/v1", "m", retries=1, backoff=0.0)([PICTURE], [TEXT])
    assert verdict.score is None
    assert "after 2 tries" in (verdict.error or "")


def test_pauses_double(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr(time, "sleep", slept.append)
    server.replies = [(500, "")]
    judge(server, retries=3, backoff=0.5)([PICTURE], [TEXT])
    assert slept == [0.5, 1.0, 2.0]


def test_a_refusal_is_an_error_at_once(server: Server) -> None:
    server.replies = [(401, "wrong key")]
    with pytest.raises(EndpointError, match="refuses model 'asked-1': HTTP 401: wrong key"):
        judge(server, key="secret")([PICTURE], [TEXT])
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("Score: 4", 4.0),
        ("score=2", 2.0),
        ("**Score:** 5", 5.0),
        ("**Score**: 5.", 5.0),
        ("Score: 4/5", 4.0),
        ("Score: 4 out of 5", 4.0),
        ("Score: 4.5", 4.5),
        ("Score: 1 would be too harsh.\nScore: 3", 3.0),
        ("4", 4.0),
        (" 3/5\n", 3.0),
        ("Score: <2>", 2.0),
        ("Score: 4/10", None),
        ("Score: 0", None),
        ("Score: -3", None),
        ("-3", None),
        ("Score: 6", None),
        ("Score: 45", None),
        ("Score: high", None),
        ("There are 4 lions", None),
        ("", None),
    ],
)
def test_grades_are_read(said: str, expected: float | None) -> None:
    assert score(said) == expected


def test_bad_input_is_refused() -> None:
    fine = Judge("http://127.0.0.1:9/v1", "m")
    with pytest.raises(ValueError, match="1 pictures but 2 texts"):
        fine([PICTURE], [TEXT, TEXT])
    with pytest.raises(ValueError, match="has no pixels"):
        fine([Image.new("RGB", (4, 0))], [TEXT])
    with pytest.raises(ValueError, match="pass the full address"):
        Judge("file:///etc/passwd", "m")
    with pytest.raises(ValueError, match="timeout 0, retries"):
        Judge("http://a", "m", timeout=0)
