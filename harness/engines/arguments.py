"""What the server's parser knows, read from the installed vLLM's source: to import vLLM would take 15 s."""

from __future__ import annotations

import ast
import importlib.util
from functools import cache
from pathlib import Path

# Where vLLM 0.21 to 0.33 define their flags.
_FILES = ("engine/arg_utils.py", "entrypoints/openai/cli_args.py", "entrypoints/launchers/cli_args.py")


@cache
def known() -> frozenset[str] | None:
    """The names (with underscores) that the installed vLLM's server takes; None where its source can't be read."""
    spec = importlib.util.find_spec("vllm")
    places = list(spec.submodule_search_locations or ()) if spec else []
    names: set[str] = set()
    for file in (Path(place) / name for place in places for name in _FILES):
        try:
            tree = ast.parse(file.read_text(encoding="utf-8"))
        except (OSError, SyntaxError, ValueError):
            continue
        names |= _flags(tree) | _fields(tree)
    return frozenset(names) or None


def _flags(tree: ast.AST) -> set[str]:
    """Every ``--flag`` that is handed to add_argument."""
    calls = (n for n in ast.walk(tree) if isinstance(n, ast.Call) and isinstance(n.func, ast.Attribute))
    texts = (a.value for c in calls if c.func.attr == "add_argument" for a in c.args if isinstance(a, ast.Constant))  # type: ignore[attr-defined]
    return {t.removeprefix("--").replace("-", "_") for t in texts if isinstance(t, str) and t.startswith("--")}


def _fields(tree: ast.AST) -> set[str]:
    """The front end's arguments, which its parser makes of a dataclass's fields."""
    classes = (n for n in ast.walk(tree) if isinstance(n, ast.ClassDef) and n.name.endswith("FrontendArgs"))
    body = (n for c in classes for n in c.body if isinstance(n, ast.AnnAssign) and isinstance(n.target, ast.Name))
    return {n.target.id for n in body}  # type: ignore[union-attr]
