"""From a scenario's text to plain data, and from a fault back to its line.

Nothing here knows a key of the language: the models in :mod:`harness.scenario` are handed in.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from harness.errors import Problem, ScenarioError, UsageError, nearest

MAX_FILE_BYTES = 2**20
MAX_NODES = 20_000
MAX_DEPTH = 20
MAX_OPEN = 300  # brackets at once: the scanner's time grows with their square
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")
LARGEST_NUMBER = 2**64

Place = Callable[[int], str]  # a line (from 1) -> "scenarios/a.yaml:7"


def show(value: Any) -> str:
    """``value`` as the user wrote it, on one short line of printable characters."""
    text = repr(value) if isinstance(value, float) else json.dumps(value, default=str, ensure_ascii=False)
    if not text.isprintable():
        text = json.dumps(value, default=str)
    return text if len(text) <= 60 else text[:57] + "..."


def key_text(path: Iterable[Any]) -> str:
    """``engine.max_model_len``; a step that is long or not printable is shown as JSON shows it."""
    steps = (str(step) for step in path)
    return ".".join(s if s.isprintable() and len(s) <= 60 else show(s) for s in steps)


# -- text to plain data ----------------------------------------------------------------------------


def read_yaml(raw: bytes | str, at: Place) -> Any:
    """ruamel's tree of the document in ``raw``, with lines. Raises ScenarioError."""
    if len(raw) > MAX_FILE_BYTES:
        raise _fault(at(1), "larger than 1 MiB: not a scenario")
    try:
        text = raw.decode("utf-8-sig") if isinstance(raw, bytes) else raw
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise _fault(at(line), "not UTF-8 text") from None
    digits = re.search(r"[0-9_]{1000}", text)
    if digits:
        raise _fault(at(_line_at(text, digits.start())), "a number of a thousand digits: not a scenario")
    opened = 0
    for bracket in re.finditer(r"[][{}]", text):
        opened = opened + 1 if bracket[0] in "[{" else max(opened - 1, 0)
        if opened > MAX_OPEN:
            raise _fault(at(_line_at(text, bracket.start())), "nested too deeply")
    return _load(text, at)


def _load(text: str, at: Place) -> Any:
    from ruamel.yaml import YAML
    from ruamel.yaml.constructor import DuplicateKeyError
    from ruamel.yaml.error import MarkedYAMLError, YAMLError
    from ruamel.yaml.reader import ReaderError

    try:
        return YAML(typ="rt", pure=True).load(text)
    except DuplicateKeyError as error:
        key = re.search(r'duplicate key "(.*?)" with value', str(error.problem), re.DOTALL)
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise _fault(at(line), "given twice", [key[1]] if key else []) from None
    except MarkedYAMLError as error:
        raise _fault(*_yaml_fault(error, at)) from None
    except ReaderError as error:
        code = error.character if isinstance(error.character, int) else ord(error.character[:1])
        line = _line_at(text, error.position or 0)
        raise _fault(at(line), f"not valid YAML: the character U+{code:04X} may not stand in it") from None
    except RecursionError:
        raise _fault(at(1), "nested too deeply") from None
    except (YAMLError, ValueError, TypeError, KeyError, AttributeError, IndexError, OverflowError,
            AssertionError, NotImplementedError) as error:  # fmt: skip
        # ruamel lets some malformed documents out as plain Python errors.
        raise _fault(at(1), f"not valid YAML: {_one_line(error) or type(error).__name__}") from None


def _fault(where: str, text: str, path: Iterable[Any] = ()) -> ScenarioError:
    return ScenarioError([Problem(where, key_text(path), text)])


def _yaml_fault(error: Any, at: Place) -> tuple[str, str]:
    context, problem = _one_line(error.context or ""), _one_line(error.problem or "")
    mark = error.problem_mark or error.context_mark
    if "'\\t'" in problem:
        return at(mark.line + 1), "not valid YAML: a tab; indent with spaces"
    if "end of stream" in problem or "<stream end>" in problem:
        # The end says nothing; where the thing that has no end began does.
        mark = error.context_mark or mark
    joint = ", " if problem.startswith("but ") else ": "
    what = joint.join(t for t in (context, problem) if t)
    return at(mark.line + 1 if mark else 1), f"not valid YAML: {what}"


def _one_line(text: object) -> str:
    return " ".join("".join(c if c.isprintable() else " " for c in str(text)).split())[:200]


def _line_at(text: str, position: int) -> int:
    return text.count("\n", 0, position) + 1


def plain(tree: Any, at: Place) -> Any:
    """``tree`` as plain dicts, lists and scalars. What YAML allows and a scenario doesn't is a ScenarioError."""
    walk = _Walk(at)
    data = walk.value(tree, (), 1)
    if walk.problems:
        raise ScenarioError(walk.problems)
    return data


class _Walk:
    def __init__(self, at: Place) -> None:
        self.at, self.problems, self.left = at, list[Problem](), MAX_NODES

    def fault(self, path: Sequence[Any], line: int, text: str) -> None:
        self.problems.append(Problem(self.at(line), key_text(path), text))

    def value(self, node: Any, path: tuple[Any, ...], line: int) -> Any:
        self.left -= 1
        if self.left == 0:
            self.fault(path[:1], line, f"more than {MAX_NODES:,} values: not a scenario")
        if self.left <= 0:
            return None
        if len(path) > MAX_DEPTH:
            return self.fault(path[:3], line, "nested too deeply")
        tag = getattr(getattr(node, "tag", None), "value", None)
        if tag is not None:
            name = re.sub(r"^tag:yaml\.org,2002:", "!!", str(tag))
            return self.fault(path, line, f"a scenario has no YAML tags, got {_one_line(name)[:60]}")
        if isinstance(node, dict):
            return self.mapping(node, path, line)
        if isinstance(node, (list, tuple)):
            return [self.value(v, (*path, i), _lc(node, "item", i, line)) for i, v in enumerate(node)]
        return self.scalar(node, path, line)

    def mapping(self, node: Any, path: tuple[Any, ...], line: int) -> dict[str, Any]:
        out = {}
        for key, value in node.items():
            where = _lc(node, "key", key, line)
            if isinstance(key, str) and not _CONTROL.search(key):
                out[str(key)] = self.value(value, (*path, str(key)), where)
            else:
                self.fault(path, where, f"expected a key of text, got {_foreign(key)}")
        return out

    def scalar(self, node: Any, path: tuple[Any, ...], line: int) -> Any:
        if node is None or isinstance(node, bool):
            return node
        if type(node).__name__ == "ScalarBoolean":
            return bool(node)
        if isinstance(node, int):
            if abs(node) < LARGEST_NUMBER:
                return int(node)
            return self.fault(path, line, "expected a number of at most 19 digits")
        if isinstance(node, float):
            if math.isfinite(node):
                return float(node)
            return self.fault(path, line, f"expected a finite number, got {node}")
        if isinstance(node, str):
            if not _CONTROL.search(node):
                return str(node)
            return self.fault(path, line, f"expected text without control characters, got {show(node)}")
        return self.fault(path, line, f"expected text, a number, true or false, got {_foreign(node)}")


def _foreign(node: Any) -> str:
    """A YAML value that no scenario has, with what it was taken for."""
    if node is None or isinstance(node, (bool, int, float, str, tuple)):
        return show(None if node is None else list(node) if isinstance(node, tuple) else node)
    if hasattr(node, "isoformat"):
        return f"the date {node.isoformat()} (write it in quotes)"
    return {"bytes": "binary data", "CommentedSet": "a set"}.get(type(node).__name__, "something else")


def _lc(node: Any, kind: str, key: Any, default: int) -> int:
    """The line of a key or an item of ``node``; ``default`` where ruamel doesn't tell."""
    try:
        return int(getattr(node.lc, kind)(key)[0]) + 1
    except (AttributeError, KeyError, TypeError, IndexError):
        return default


def line_of(tree: Any, path: Sequence[Any]) -> int:
    """The line (from 1) of the deepest node of ``path`` that the document has."""
    line, node = 1, tree
    for step in path:
        if isinstance(node, dict) and step in node:
            line = _lc(node, "key", step, line)
        elif isinstance(node, list) and isinstance(step, int) and step < len(node):
            line = _lc(node, "item", step, line)
        else:
            break
        node = node[step]
    return line


# -- overrides -------------------------------------------------------------------------------------


def apply_overrides(data: dict[str, Any], overrides: Iterable[str]) -> dict[tuple[str, ...], str]:
    """``engine.max_model_len=4096`` written into ``data``; each path that was made -> the key that made it."""
    made: dict[tuple[str, ...], str] = {}
    for text in overrides:
        key, equals, value = text.partition("=")
        key = key.strip()
        if not equals or not re.fullmatch(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*", key):
            raise UsageError(f"--set {key_text([text])}: expected KEY=VALUE, such as engine.max_model_len=4096")
        where = f"--set {key_text([key])}"

        def at(line: int, where: str = where) -> str:
            return where

        *parents, last = path = tuple(key.split("."))
        if len(path) > MAX_DEPTH:
            raise _fault(where, "nested too deeply")
        # A version is text: a shell has eaten the quotes that would say so.
        new = value.strip().strip("'\"") if key == "engine.vllm" else plain(read_yaml(value, at), at)
        target = data
        for n, parent in enumerate(parents, 1):
            child = target.get(parent)
            if isinstance(child, str):  # a model by name, say
                raise _fault(where, f"{'.'.join(path[:n])} is {show(child)} and has no keys")
            if not isinstance(child, dict):
                child = target[parent] = {}
                made[path[:n]] = where
            target = child
        target[last] = new
        made[path] = where
    return made


def place(made: dict[tuple[str, ...], str], path: Sequence[Any]) -> str | None:
    """``"--set KEY"`` of the override that made what stands at ``path``, or None."""
    steps = tuple(map(str, path))
    return next((made[steps[:n]] for n in range(len(steps), 0, -1) if steps[:n] in made), None)


# -- explaining ------------------------------------------------------------------------------------

_KINDS = {
    "string_type": "text",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "model_type": "a mapping",
    "dict_type": "a mapping",
    "list_type": "a list",
}
_BOUNDS = {
    "greater_than": ("above", "gt"),
    "greater_than_equal": ("at least", "ge"),
    "less_than": ("below", "lt"),
    "less_than_equal": ("at most", "le"),
}


def explain(
    error: ValidationError,
    model: type[BaseModel],
    tags: dict[str, dict[str, type[BaseModel] | None]],
    locate: Callable[[Sequence[Any]], str],
) -> list[Problem]:
    """Every fault that pydantic found, in the order of the lines.

    ``tags``: a key whose value may have several forms -> the name that pydantic gives each form in a
    location, and its model.
    """
    problems = []
    for fault in error.errors(include_url=False):
        path, models = _resolve(fault["loc"], model, tags)
        if fault["type"].startswith("union_tag"):
            path = (*path, "distribution")
        named = path[:-1] if path and path[-1] == "[key]" else path
        problems.append(Problem(locate(path), key_text(named), _words(fault, path, models, tags)))
    return in_order(problems)


def in_order(problems: Iterable[Problem]) -> list[Problem]:
    """Each problem once, by line and key."""
    return sorted(dict.fromkeys(problems), key=lambda p: (_split(p.where), p.key))


def _split(where: str) -> tuple[str, int]:
    file, _, line = where.rpartition(":")
    return (file, int(line)) if line.isdigit() else (where, 0)


def _resolve(
    loc: Sequence[Any], model: type[BaseModel], tags: dict[str, dict[str, type[BaseModel] | None]]
) -> tuple[tuple[Any, ...], list[type[BaseModel]]]:
    """(the keys of ``loc`` without the names of forms, the models of the mapping that holds the last key)."""
    path: list[Any] = []
    models, holders = [model], [model]
    for i, step in enumerate(loc):
        forms = tags.get(str(loc[i - 1]), {}) if i else {}
        if step in forms:
            form = forms[step]
            models = [form] if form else []
            continue
        path.append(step)
        holders = models
        models = [m for h in holders if str(step) in h.model_fields for m in _models_in(h, str(step))]
    return tuple(path), holders


def _models_in(holder: type[BaseModel], key: str) -> Iterator[type[BaseModel]]:
    info = holder.model_fields[key]
    for annotation in (info.annotation, *info.metadata):
        yield from _nested(annotation)


def _nested(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for arg in get_args(annotation):
        yield from _nested(arg)


def _words(fault: Any, path: tuple[Any, ...], models: list[type[BaseModel]], tags: dict[str, Any]) -> str:
    kind, value, context = fault["type"], fault.get("input"), fault.get("ctx", {})
    fields = {k: v for m in models for k, v in m.model_fields.items()}
    info = fields.get(str(path[-1])) if path else None
    describe = f": {info.description}" if info is not None and info.description else ""
    if kind == "missing":
        return f"missing{describe}"
    if kind == "extra_forbidden":
        near = nearest(str(path[-1]), fields)
        return f"unknown key{near or '; known here: ' + ', '.join(sorted(fields))}"
    if kind == "union_tag_not_found" or kind == "union_tag_invalid":
        options = re.findall(r"'([^']*)'", str(context.get("expected_tags", ""))) or list(tags[str(path[-2])])
        options = [o for o in options if o != "fixed"]
        given = value.get("distribution") if isinstance(value, dict) else None
        if given is None:
            return f"missing: {_or(options)}"
        return f"expected {_or(options)}, got {show(given)}{nearest(str(given), options)}"
    if kind == "literal_error":
        expected = context.get("expected", "")
        options = re.findall(r"'([^']*)'", expected) or re.split(", | or ", expected)
        near = nearest(value, options) if isinstance(value, str) else ""
        return f"expected {_or(options)}, got {show(value)}{near}"
    if kind in _KINDS:
        return _wrong_kind(_KINDS[kind], value, describe, str(path[-1]) in tags)
    if kind in _BOUNDS:
        word, name = _BOUNDS[kind]
        bound = context[name]
        bound = int(bound) if float(bound).is_integer() else bound
        return f"expected {word} {bound:,}, got {show(value)}"
    if kind == "string_too_long":
        return f"expected at most {context['max_length']:,} characters, got {len(value):,}"
    if kind in ("too_short", "too_long"):
        least = kind == "too_short"
        bound = context["min_length" if least else "max_length"]
        return f"expected {'at least' if least else 'at most'} {bound:,} in the list, got {context['actual_length']:,}"
    if path and path[-1] == "[key]":
        return f"expected a name of small letters, digits and '_', got {show(value)}"
    if kind in ("string_too_short", "string_pattern_mismatch"):
        return f"expected{describe.removeprefix(':')}, got {show(value)}"
    if kind == "value_error":
        reason = str(context.get("error", fault["msg"]))
        return f"expected {reason}, got {show(value)}" if reason.startswith("a size") else reason
    return f"{_one_line(fault['msg']).lower()}, got {show(value)}"


def _wrong_kind(expected: str, value: Any, describe: str, several_forms: bool) -> str:
    if several_forms:
        expected = describe.removeprefix(": ") or expected
    elif expected == "a mapping" and describe:
        expected += describe.replace(": ", ", ", 1)
    text = f"expected {expected}, got {show(value)}"
    return text + " (write it in quotes)" if expected == "text" and isinstance(value, float) else text


def _or(options: Sequence[str]) -> str:
    return f"{', '.join(options[:-1])} or {options[-1]}" if len(options) > 1 else options[0]
