"""Compares entries of the catalogue that only count right with litgpt's own table of published configs.

    pip install --no-deps litgpt typing_extensions
    python tools/litgpt_table.py            prints what differs
    python tools/litgpt_table.py --mark     and marks those that agree in every fact as checked: table

litgpt (https://github.com/Lightning-AI/litgpt, litgpt/config.py, Apache-2.0) states for each model what it read in the
published config.json: layers, widths, heads, vocabulary, positions, rotated dims, window, experts. Needs litgpt 0.5.13.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from harness.architecture import from_config  # noqa: E402
from tools.catalogue import CATALOGUE, write  # noqa: E402

SOURCE = "litgpt 0.5.13, litgpt/config.py (https://github.com/Lightning-AI/litgpt)"


def table() -> dict[str, Any]:
    """Hub name -> litgpt's row. Its module alone is loaded: the package would want torch."""
    spec = importlib.util.find_spec("litgpt")
    if spec is None or spec.submodule_search_locations is None:
        raise SystemExit("litgpt is not installed: pip install --no-deps litgpt")
    file = Path(next(iter(spec.submodule_search_locations))) / "config.py"
    loaded = importlib.util.spec_from_file_location("litgpt_config", file)
    assert loaded is not None and loaded.loader is not None
    module = importlib.util.module_from_spec(loaded)
    sys.modules["litgpt_config"] = module
    loaded.loader.exec_module(module)
    rows = [module.Config(**row) for row in module.configs]
    return {f"{row.hf_config['org']}/{row.hf_config['name']}".lower(): row for row in rows}


def differences(config: dict[str, Any], row: Any) -> dict[str, tuple[Any, Any]]:
    """Fact -> (ours, litgpt's) where they are not the same."""
    a = from_config(config)
    positions = config.get("max_position_embeddings", config.get("n_positions", a.max_model_len))
    windows = {kind.window: len(layers) for kind, layers in a.kv_kinds.items() if kind.window}
    sliding = sum(row.sliding_window_indices or [1] * row.n_layer) if row.sliding_window_size else 0
    pairs = {
        "layers": (a.layers, row.n_layer),
        "hidden": (a.hidden, row.n_embd),
        "heads": (a.heads, row.n_head),
        "KV heads": (a.kv_heads, row.n_query_groups),
        "head dim": (a.head_dim, row.head_size),
        "width": (a.mixture.width if a.mixture else a.intermediate, row.moe_intermediate_size or row.intermediate_size),
        "experts": (a.mixture.count if a.mixture else 0, row.n_expert),
        "experts used": (a.mixture.used if a.mixture else 0, row.n_expert_per_token),
        "positions": (positions, row.block_size),
        "rotated dims": (a.rotary_shapes[0][1] if a.rotary_shapes else 0, int(row.rotary_percentage * row.head_size)),
        "window": (windows, {row.sliding_window_size: sliding} if sliding else {}),
        "rope scaling": (bool((config.get("rope_scaling") or {}).get("factor")), bool(row.rope_adjustments)),
    }
    found = {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}
    if a.vocab not in (row.vocab_size, row.padded_vocab_size):
        found["vocabulary"] = (a.vocab, row.vocab_size)
    return found


def main() -> None:
    """Compare, and mark where asked."""
    data, rows = json.loads(CATALOGUE.read_text(encoding="utf-8")), table()
    for name, entry in data["models"].items():
        row = next((rows[n.lower()] for n in (name, *entry["aliases"]) if n.lower() in rows), None)
        if row is None or entry["checked"] != "count":
            continue
        found = differences(entry["config"], row)
        print(f"{name}: {found or 'agrees'}")
        if not found and "--mark" in sys.argv[1:]:
            entry.update(checked="table", copy=SOURCE)
    write(data)


if __name__ == "__main__":
    main()
