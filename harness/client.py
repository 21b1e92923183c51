"""Drives a load over HTTP: token ids in, exact lengths out, each request on the monotonic clock."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from itertools import groupby, islice
from typing import Any

import aiohttp
from aiohttp.http_exceptions import HttpProcessingError

from harness.engines import masks
from harness.engines.log import printable
from harness.scenario import Load
from harness.simulate.latency import Distribution
from harness.traffic import Request, stream

# How far apart requests are sent that are to queue in their order.
SEND_GAP_S = 0.005
# The prompt of a request, after what was said before in its conversation.
PromptOf = Callable[[Request, Sequence[int]], list[int]]
# Of an answer that is no stream; vLLM's own /metrics has about 100 KiB.
LONGEST_ANSWER = 16 << 20
# Of a stream: for each token of the prompt (its id, where ids are asked for) and of the answer (an event with its
# log probabilities, and the text of a tokenizer without shame).
STREAM_BYTES, PROMPT_TOKEN_BYTES, TOKEN_BYTES = 1 << 20, 16, 16 << 10


@dataclass(frozen=True)
class Answer:
    """What became of a request. Times are monotonic ns; ``tokens_out`` is the engine's own count.

    ``token_ids`` of the answer are there where they were asked for: the next turn of its conversation repeats them.
    """

    request: Request
    sent_ns: int
    first_ns: int | None
    end_ns: int
    tokens_out: int | None
    status: str  # ok, cut (fewer tokens than asked), http, connection, unfinished (given up by us)
    error: str
    text: str
    token_ids: tuple[int, ...] = ()


class Client:
    """HTTP to one server. Use as an async context manager."""

    def __init__(self, url: str, key: str, model: str, logprobs: int | None = None) -> None:
        self._url, self._key, self._model, self._logprobs = url, key, model, logprobs
        self._secrets = (key, *masks.values(os.environ))
        self._session: aiohttp.ClientSession | None = None
        self.gaps_ns = Distribution()  # between the events of all answers

    async def __aenter__(self) -> Client:
        self._session = aiohttp.ClientSession(
            self._url,
            # What is not compressed does not grow when it is read.
            headers={"Authorization": f"Bearer {self._key}", "Accept-Encoding": "identity"},
            auto_decompress=False,
            cookie_jar=aiohttp.DummyCookieJar(),
            # A server too closes a connection that is idle (vLLM after 5 s), perhaps just as it is used again.
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=1),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=10),
            read_bufsize=2**20,
            trust_env=False,
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._session:
            await self._session.close()

    @property
    def session(self) -> aiohttp.ClientSession:
        """The open session."""
        assert self._session is not None, "use 'async with Client(...)'"
        return self._session

    # A redirection is an answer like any other: to follow it would hand the load, or the key, to somebody else.
    def _get(self, path: str) -> Any:
        return self.session.get(path, timeout=aiohttp.ClientTimeout(total=2), allow_redirects=False)

    def _post(self, path: str, body: dict[str, Any] | None, timeout: aiohttp.ClientTimeout | None = None) -> Any:
        return self.session.post(path, json=body, timeout=timeout or self.session.timeout, allow_redirects=False)

    async def healthy(self) -> bool:
        """Whether /health answers 200 within two seconds."""
        try:
            async with self._get("/health") as response:
                return bool(response.status == 200)
        except (aiohttp.ClientError, TimeoutError, OSError):
            return False

    async def knows_us(self) -> bool:
        """False where the server refuses our key: another one that took the port between choosing and binding."""
        try:
            async with self._get("/v1/models") as response:
                return response.status not in (401, 403)
        except (aiohttp.ClientError, TimeoutError, OSError):
            return True

    async def metrics(self) -> str | None:
        """The text of /metrics, or None where it can't be had within two seconds."""
        try:
            async with self._get("/metrics") as response:
                return (await _text(response)) if response.status == 200 else None
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError):
            return None

    async def post(self, path: str, body: dict[str, Any] | None = None, timeout_s: float = 30) -> Any:
        """JSON of a POST (None where the answer holds none), or None where it failed."""
        try:
            limit = aiohttp.ClientTimeout(total=timeout_s)
            async with self._post(path, body, limit) as response:
                if response.status != 200:
                    return None
                text = await _text(response)
                return json.loads(text) if text.strip().startswith("{") else {}
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError, RecursionError):
            return None

    async def complete(
        self, request: Request, prompt: list[int], *, keep_text: bool, keep_ids: bool = False
    ) -> Answer:  # fmt: skip
        """Send one request and read its stream to the end; cancelled, the answer is what came until then."""
        body = {
            "model": self._model,
            "prompt": prompt,
            "max_tokens": request.output_tokens,
            "ignore_eos": True,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
            **({"return_token_ids": True} if keep_ids else {}),
            **({"priority": request.priority} if request.priority else {}),
            **({} if self._logprobs is None else {"logprobs": self._logprobs}),
        }
        sent, first, last = time.monotonic_ns(), None, 0
        pieces: list[str] = []
        ids: list[int] = []
        tokens: int | None = None
        status, error = "ok", ""
        try:
            async with self._post("/v1/completions", body) as response:
                if response.status != 200:
                    said = await response.content.read(1200)
                    status, error = "http", f"{response.status} {said.decode('utf-8', 'replace')[:300]}"
                else:
                    allowed = STREAM_BYTES + PROMPT_TOKEN_BYTES * len(prompt) + TOKEN_BYTES * request.output_tokens
                    async for event in _events(response.content, allowed):
                        now = time.monotonic_ns()
                        if first is None:
                            first = now
                        elif b'"choices":[]' not in event:  # the usage that ends the stream is no token
                            self.gaps_ns.add(now - last)
                        last = now
                        # Events are not tokens (one may carry several): the engine's count comes at the end.
                        if b'"usage":{' in event or keep_text or keep_ids or b'"error"' in event:
                            data = json.loads(event)
                            if "error" in data:
                                status, error = "http", str(data["error"])[:300]
                            count = (data.get("usage") or {}).get("completion_tokens")
                            tokens = count if type(count) is int else tokens
                            pieces += [c.get("text") or "" for c in data.get("choices") or ()] if keep_text else ()
                            for choice in data.get("choices") or () if keep_ids else ():
                                ids += choice.get("token_ids") or ()
        except asyncio.CancelledError:
            status, error = "unfinished", "still under way when the load was given up"
        except (aiohttp.ClientError, OSError) as fault:
            status, error = "connection", f"{type(fault).__name__}: {fault}"[:300]
        except (HttpProcessingError, ValueError, AttributeError, TypeError, RecursionError) as fault:
            status, error = "http", f"the stream can't be read: {fault}"[:300]
        if status == "ok" and tokens != request.output_tokens:
            status, error = "cut", f"{tokens} tokens instead of {request.output_tokens}"
        if status == "ok" and keep_ids and len(ids) != request.output_tokens:
            status, error = "cut", f"{len(ids)} token ids for {tokens} tokens"
        text, error = (masks.mask(printable(said), self._secrets) for said in ("".join(pieces), error))
        return Answer(request, sent, first, time.monotonic_ns(), tokens, status, error, text, tuple(ids))


async def _text(response: aiohttp.ClientResponse) -> str:
    """The whole answer. Raises ValueError where it is longer than any of vLLM's, or no UTF-8."""
    raw = bytearray()
    async for piece in response.content.iter_chunked(1 << 16):
        raw += piece
        if len(raw) > LONGEST_ANSWER:
            raise ValueError(f"longer than {LONGEST_ANSWER:,} bytes")
    return raw.decode("utf-8")


async def _events(stream: aiohttp.StreamReader, allowed: int) -> AsyncIterator[bytes]:
    """The data of server-sent events, up to [DONE]. Raises ValueError beyond ``allowed`` bytes, and where one line is
    longer than twice the session's buffer."""
    left = allowed
    async for line in stream:
        left -= len(line)
        if left < 0:
            raise ValueError(f"more than {allowed:,} bytes for what was asked")
        if line.startswith(b"data:"):
            data = line[5:].strip()
            if data == b"[DONE]":
                return
            if data:
                yield data


async def drive(
    client: Client,
    load: Load,
    prompt_of: PromptOf,
    on_answer: Callable[[Answer], None],
    *,
    keep_text: bool,
    gap_s: float = 0.0,
    on_start: Callable[[], Awaitable[None]] | None = None,
    on_all_sent: Callable[[], None] | None = None,
) -> None:
    """Send ``load``: what comes at times of its own at its time, else a user's next request after the last one's end.

    Users start together, their first requests ``gap_s`` apart; ``on_start`` is awaited once those are out.
    """
    conversations = (list(turns) for _, turns in groupby(stream(load), key=lambda r: r.conversation))
    left = load.requests

    async def converse(turns: list[Request], prompt: list[int]) -> bool:
        """False where it was given up."""
        nonlocal left
        for request in turns:
            left -= 1
            if left == 0 and on_all_sent:
                on_all_sent()
            more = request is not turns[-1]
            answer = await client.complete(request, prompt, keep_text=keep_text, keep_ids=more)
            on_answer(answer)
            if answer.status == "unfinished":
                return False
            if more:
                said = [*prompt, *answer.token_ids]
                if answer.status != "ok":  # nobody goes on from half an answer
                    left -= len(turns) - request.turn - 1
                    return True
                await asyncio.sleep(load.think_s)
                prompt = prompt_of(turns[request.turn + 1], said)
        return True

    async def user(turns: list[Request] | None, prompt: list[int]) -> None:
        while turns is not None and await converse(turns, prompt):
            turns = next(conversations, None)
            if turns is not None:
                await asyncio.sleep(load.think_s)
                prompt = prompt_of(turns[0], ())

    tasks: list[asyncio.Task[Any]] = []
    try:
        if load.open:
            began = time.monotonic()
            for turns in conversations:
                prompt = prompt_of(turns[0], ())
                await asyncio.sleep(began + (turns[0].time_s or 0.0) - time.monotonic())
                tasks.append(asyncio.create_task(converse(turns, prompt)))
        else:
            first = [(turns, prompt_of(turns[0], ())) for turns in islice(conversations, load.concurrency)]
            for turns, prompt in first:
                tasks.append(asyncio.create_task(user(turns, prompt)))
                await asyncio.sleep(gap_s)
        if on_start:
            await on_start()
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.gather(*tasks, return_exceptions=True)
