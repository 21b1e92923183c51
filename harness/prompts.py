"""What the prompts say: token ids for a stand-in, real text for a real model."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files
from typing import TYPE_CHECKING

from harness.errors import EngineError
from harness.traffic import Request, prompt_ids

if TYPE_CHECKING:
    from harness.client import Client, PromptOf

QUESTIONS = (
    "The capital of France is",
    "The chemical symbol of water is",
    "The largest planet of the solar system is",
    "One week has seven",
    "The opposite of hot is",
    "The author of Romeo and Juliet is",
)


def made_up(seed: int, vocab_size: int, common_tokens: int) -> PromptOf:
    """Random token ids; no two prompts share a block but for what the load has them share."""
    return lambda request, said: prompt_ids(request, seed, vocab_size, common_tokens, said)


async def real_text(client: Client, common_tokens: int) -> PromptOf:
    """A piece of our own prose that begins at another place for each request, then a question.

    All of it follows the same ``common_tokens`` tokens of that prose, and the pieces that the request shares with some.

    The server's own tokenizer makes the ids. Raises EngineError where it has none.
    """
    prose = await _tokenize(client, files("harness.catalog").joinpath("prose.txt").read_text(encoding="utf-8"))

    def from_place(start: int, count: int) -> list[int]:
        return (prose[start % len(prose) :] + prose * (count // len(prose) + 1))[:count]

    questions = [await _tokenize(client, "\n\n" + q) for q in QUESTIONS]

    def prompt_of(request: Request, said: Sequence[int]) -> list[int]:
        begin = list(said) or from_place(0, common_tokens)
        for piece, count in () if said else request.pieces:
            begin += from_place(53 * (piece + 1), count)
        own = request.prompt_tokens - len(begin)
        question = questions[request.index % len(questions)][-own:]
        return begin + from_place(37 * request.index, own - len(question)) + question

    return prompt_of


async def _tokenize(client: Client, text: str) -> list[int]:
    answer = await client.post("/tokenize", {"model": "loadfit", "prompt": text, "add_special_tokens": False})
    ids = (answer or {}).get("tokens")
    if not ids:
        raise EngineError("the engine does not tokenize: a real model needs its tokenizer beside its weights")
    return list(ids)
