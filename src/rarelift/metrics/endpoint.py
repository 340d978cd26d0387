"""A judge behind an OpenAI-compatible chat endpoint that the user names: how well a picture fits its text, 1 to 5.

A grade by a large model, after R2F's RareBench (Park et al. 2025, arXiv 2410.22376), with an instruction of our own:
the numbers compare among themselves, not with those of the paper. What was answered is kept as it came.
"""

from __future__ import annotations

import base64
import http.client
import io
import json
import re
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from . import _checks

if TYPE_CHECKING:
    from PIL import Image

LOW, HIGH = 1.0, 5.0
INSTRUCTION = """\
You check a picture against the description it was made from.

Description: {text}

List what the description asks for: things, how many, what they look like, how they relate. Say of each whether the \
picture has it. An unusual combination has to be there as described; its usual counterpart does not count.
Then grade the picture as a whole:
5 - everything asked for is there
4 - one detail is off
3 - the main things are there, a described property is missing or on the wrong thing
2 - a main thing is missing or turned into something else
1 - the picture shows something else
Do not grade beauty. End with one line of this form, and nothing after it:
Score: <1, 2, 3, 4 or 5>"""
RETRIED = {408, 409, 425, 429, 500, 502, 503, 504}
_NUMBER = r"(-?\d+(?:\.\d+)?)(?:\s*(?:/|out of)\s*(\d+(?:\.\d+)?))?"
_LINE = re.compile(rf"score\W*?[:=]\W*?{_NUMBER}", re.IGNORECASE)
_ALONE = re.compile(rf"\W*?{_NUMBER}\W*")


class EndpointError(RuntimeError):
    """The endpoint refused: a key, a model or an address is wrong, and asking again would not help."""


@dataclass(frozen=True)
class Verdict:
    """What was said of one picture.

    Attributes:
        score: 1 to 5, None if the answer holds no grade or none came.
        raw: the answer as it came; the body of the response where that held no answer.
        model: the model that the endpoint says it was, else the one asked for.
        error: why no answer came, None if one did.
    """

    score: float | None
    raw: str
    model: str
    error: str | None = None


@dataclass(frozen=True)
class Reply:
    """What came back.

    Attributes:
        answer: what was said; None where the response held no text, or none came.
        raw: the answer as it came; the body of the response where that held no answer.
        model: the model that the endpoint says it was, else the one asked for.
        error: why no response came, None if one did.
    """

    answer: str | None
    raw: str
    model: str
    error: str | None = None


@dataclass(frozen=True)
class Chat:
    """Asks the endpoint at `url`, the full address, .../v1/chat/completions.

    Args:
        url: http or https.
        model: its name there.
        key: sent as a bearer token, kept out of the repr and of every reply.
        timeout: seconds without an answer before one try is given up.
        retries: tries after the first, on timeouts, broken connections and the states in `RETRIED`.
        backoff: seconds before the second try; each further pause is twice as long.
        options: more fields of the request.

    Raises:
        ValueError: the address is not http, or a number is out of range.
    """

    url: str
    model: str
    key: str | None = field(default=None, repr=False)
    timeout: float = 60.0
    retries: int = 3
    backoff: float = 1.0
    options: Mapping[str, object] = field(default_factory=lambda: {"temperature": 0})

    def __post_init__(self) -> None:
        if not self.url.startswith(("http://", "https://")):
            raise ValueError(f"url is {self.url!r}; pass the full address, https://.../v1/chat/completions")
        if not (self.timeout > 0 and self.retries >= 0 and self.backoff >= 0):
            raise ValueError(
                f"timeout {self.timeout}, retries {self.retries}, backoff {self.backoff}; "
                "the timeout has to be above 0, the others 0 or more"
            )

    def ask(self, content: str | Sequence[Mapping[str, object]]) -> Reply:
        """What the model says to one message, a text or a list of parts.

        Raises:
            EndpointError: the endpoint refuses every request of this kind (401, 404, ...).
        """
        request = self._request(content)
        error = ""
        for attempt in range(self.retries + 1):
            if attempt:
                time.sleep(self.backoff * 2 ** (attempt - 1))
            try:
                with urllib.request.urlopen(request, timeout=self.timeout) as response:
                    body = response.read().decode("utf-8", errors="replace")
                return _reply(body, self.model)
            except urllib.error.HTTPError as refusal:
                said = refusal.read().decode("utf-8", errors="replace")[:500]
                error = f"HTTP {refusal.code}: {said}"
                if refusal.code not in RETRIED:
                    raise EndpointError(f"{self.url} refuses model {self.model!r}: {error}") from None
            except (OSError, http.client.HTTPException) as failure:  # timeouts and URLError are OSErrors
                error = f"{type(failure).__name__}: {failure}"
        return Reply(None, "", self.model, f"{error} (after {self.retries + 1} tries)")

    def _request(self, content: str | Sequence[Mapping[str, object]]) -> urllib.request.Request:
        body = {**self.options, "model": self.model, "messages": [{"role": "user", "content": content}]}
        headers = {"Content-Type": "application/json"}
        if self.key is not None:
            headers["Authorization"] = f"Bearer {self.key}"
        return urllib.request.Request(self.url, json.dumps(body).encode(), headers, method="POST")


def _reply(body: str, asked: str) -> Reply:
    """The answer in a response. Anything else than a response is kept whole."""
    try:
        response = json.loads(body)
        answer = response["choices"][0]["message"]["content"]
        model = response.get("model")
    except (ValueError, KeyError, IndexError, TypeError, AttributeError):
        return Reply(None, body, asked)
    if not isinstance(answer, str):  # a refusal, or a list of parts
        return Reply(None, body, asked)
    return Reply(answer, answer, model if isinstance(model, str) else asked)


@dataclass(frozen=True)
class Judge(Chat):
    """Grades pictures by asking; see `Chat` for the arguments."""

    def __call__(self, images: Sequence[Image.Image], texts: Sequence[str]) -> list[Verdict]:
        """One verdict a picture, its score in 1..5 or None; higher is better.

        Raises:
            ValueError: the two have different lengths, nothing to score, or a picture that is empty or not RGB.
            EndpointError: the endpoint refuses every request of this kind (401, 404, ...).
        """
        pictures, words = _checks.pictures(images), _checks.texts(texts)
        _checks.same_length(pictures, words, "texts")
        return [self._judge(image, text) for image, text in zip(pictures, words, strict=True)]

    def _judge(self, image: Image.Image, text: str) -> Verdict:
        png = io.BytesIO()
        image.save(png, "PNG")
        address = "data:image/png;base64," + base64.b64encode(png.getvalue()).decode()
        reply = self.ask(
            [
                {"type": "text", "text": INSTRUCTION.format(text=text)},
                {"type": "image_url", "image_url": {"url": address}},
            ]
        )
        return Verdict(None if reply.answer is None else score(reply.answer), reply.raw, reply.model, reply.error)


def score(answer: str) -> float | None:
    """The grade in an answer: that of its last "Score: n", or the answer if it is a number alone. In 1..5, or None.

    "4/5" and "4 out of 5" are 4; a grade on another scale, or out of range, is None.
    """
    found = _LINE.findall(answer) or [match.groups() for match in [_ALONE.fullmatch(answer)] if match]
    if not found:
        return None
    value, scale = found[-1]
    if scale and float(scale) != HIGH:
        return None
    return float(value) if LOW <= float(value) <= HIGH else None
