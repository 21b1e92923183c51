"""The load client against a server whose chunks fall anywhere: in a line, in a character, several events in one."""

from __future__ import annotations

import asyncio
import json
import random
from dataclasses import dataclass, field

from harness.client import Answer, Client, drive
from harness.scenario import Load

STREAMS, EVENTS = 256, 40
WORDS = ("a", "é", "漢", "🙂", "ß\\u00e9", "data:", "")  # of one to four bytes, escaped, or like the protocol's own


def said(index: int, event: int) -> str:
    """What event ``event`` of stream ``index`` says: each its own."""
    return f"<{index}.{event}{WORDS[(index + event) % len(WORDS)]}>"


@dataclass
class Numbered:
    """Streams of numbered events, none before ``together`` requests are there; ``lost``: an event that is not sent.

    The pieces of a stream are cut without regard to what is in them, and come with pauses between them.
    """

    together: int = STREAMS
    lost: tuple[int, int] | None = None
    here: int = 0
    most_at_once: int = 0
    all_here: asyncio.Event = field(default_factory=asyncio.Event)

    def stream(self, index: int) -> bytes:
        events = [said(index, i) for i in range(EVENTS) if (index, i) != self.lost]
        choices = [json.dumps({"choices": [{"text": text}]}, ensure_ascii=False) for text in events]
        usage = json.dumps({"choices": [], "usage": {"completion_tokens": EVENTS}}, separators=(",", ":"))
        return "".join(f"data: {data}\n\n" for data in (*choices, usage, "[DONE]")).encode()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
        index = json.loads(await reader.readexactly(length))["prompt"][0]
        self.here += 1
        self.most_at_once = max(self.most_at_once, self.here)
        if self.here == self.together:
            self.all_here.set()
        await self.all_here.wait()
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
        left, rng = self.stream(index), random.Random(index)
        while left:
            size = rng.choice((1, 2, 3, 7, 50, 400))
            piece, left = left[:size], left[size:]
            writer.write(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")
            if rng.random() < 0.2:  # else several pieces are one packet
                await writer.drain()
                await asyncio.sleep(0)
        writer.write(b"0\r\n\r\n")
        self.here -= 1
        writer.close()


class Gaps(list[int]):
    """In the place of the client's distribution: every gap between events."""

    add = list.append


def answered(server: Numbered) -> tuple[list[Answer], list[int]]:
    """(answers of all streams, the gaps between their events)."""
    load = Load.model_validate(
        {"shape": "closed", "users": STREAMS, "requests": STREAMS, "prompt_tokens": 4, "output_tokens": EVENTS}
    )
    answers: list[Answer] = []
    gaps = Gaps()

    async def run() -> None:
        listening = await asyncio.start_server(server.serve, "127.0.0.1", 0, backlog=STREAMS)
        port = listening.sockets[0].getsockname()[1]
        async with listening, Client(f"http://127.0.0.1:{port}", "key", "m") as client:
            client.gaps_ns = gaps  # type: ignore[assignment]
            await drive(client, load, lambda request, _: [request.index] * 4, answers.append, keep_text=True)

    asyncio.run(run())
    return answers, gaps


def incomplete(answers: list[Answer]) -> list[int]:
    """The streams whose text is not that of all their events, in their order."""
    whole = {i: "".join(said(i, e) for e in range(EVENTS)) for i in range(STREAMS)}
    return [a.request.index for a in answers if a.text != whole[a.request.index]]


def test_256_streams_lose_no_event() -> None:
    server = Numbered()
    answers, gaps = answered(server)
    assert server.most_at_once == STREAMS
    assert sorted(a.request.index for a in answers) == list(range(STREAMS))
    assert {(a.status, a.error) for a in answers} == {("ok", "")}
    assert incomplete(answers) == []
    assert len(gaps) == STREAMS * (EVENTS - 1) and min(gaps) >= 0
    assert all(a.first_ns is not None and a.sent_ns < a.first_ns <= a.end_ns for a in answers)
    # Every event lies between its request's first and its end.
    assert sum(gaps) <= sum(a.end_ns - (a.first_ns or 0) for a in answers)


def test_one_event_lost_of_ten_thousand_would_be_seen() -> None:
    answers, gaps = answered(Numbered(lost=(99, 17)))
    assert incomplete(answers) == [99]
    assert len(gaps) == STREAMS * (EVENTS - 1) - 1
