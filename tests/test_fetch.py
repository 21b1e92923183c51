"""``bench fetch`` against a small hub of our own on localhost, and where there is none."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from conftest import bench

pytest.importorskip("huggingface_hub")
CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 1024, "hidden_size": 256,
    "intermediate_size": 512, "num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 2,
    "max_position_embeddings": 512, "tie_word_embeddings": False, "torch_dtype": "bfloat16",
}  # fmt: skip
MATRICES = {
    "self_attn.q_proj": (256, 256), "self_attn.k_proj": (128, 256), "self_attn.v_proj": (128, 256),
    "self_attn.o_proj": (256, 256), "mlp.gate_proj": (512, 256), "mlp.up_proj": (512, 256), "mlp.down_proj": (256, 512),
}  # fmt: skip


def header() -> bytes:
    rows: dict[str, Any] = {}
    end = 0
    for name, (outputs, inputs) in MATRICES.items():
        for suffix, dtype, shape in (("weight", "F8_E4M3", [outputs, inputs]), ("weight_scale", "F32", [outputs, 1])):
            size = shape[0] * shape[1] * (4 if dtype == "F32" else 1)
            row = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + size]}
            rows[f"model.layers.0.{name}.{suffix}"] = row
            end += size
    text = json.dumps(rows).encode()
    return len(text).to_bytes(8, "little") + text


class Hub(BaseHTTPRequestHandler):
    """Answers what the hub's client asks about files: HEAD and GET of /ORG/NAME/resolve/main/FILE."""

    def __init__(self, files: dict[str, bytes], *arguments: Any) -> None:
        self.files = files
        super().__init__(*arguments)

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, body: bool) -> None:
        content = self.files.get(self.path.rsplit("/", 1)[-1]) if "/org/tiny/resolve/" in self.path else None
        self.send_response(200 if content is not None else 404)
        if content is None:
            self.send_header("X-Error-Code", "EntryNotFound" if "/org/tiny/" in self.path else "RepoNotFound")
        self.send_header("ETag", '"0123456789abcdef0123456789abcdef01234567"')
        self.send_header("X-Repo-Commit", "0123456789abcdef0123456789abcdef01234567")
        self.send_header("Content-Length", str(len(content or b"")))
        self.end_headers()
        if body and content is not None:
            self.wfile.write(content)

    def log_message(self, *arguments: Any) -> None:
        pass


@pytest.fixture
def hub() -> Iterator[str]:
    files = {"config.json": json.dumps(CONFIG).encode(), "model.safetensors": header()}
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Hub, files)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def fetched(hub: str, tmp_path: Path, *arguments: str) -> Any:
    return bench("fetch", *arguments, HF_ENDPOINT=hub, HF_HOME=str(tmp_path / "cache"), HF_HUB_DISABLE_XET="1")


def test_headers_without_weights_are_a_model(hub: str, tmp_path: Path) -> None:
    folder = tmp_path / "tiny"
    done = fetched(hub, tmp_path, "org/tiny", "--out", str(folder))
    assert done.code == 0, done.err
    assert "config.json and the headers of 14 tensors" in done.out
    shown = bench("models", "--config", folder, "--json").document
    assert (shown["format"], shown["source"]) == ("fp8", "closed formulas, safetensors headers")
    again = fetched(hub, tmp_path, "org/tiny", "--out", str(folder))
    assert again.code == 2 and "exists already" in again.err


@pytest.mark.parametrize(
    ("name", "code", "said"),
    [
        ("tiny", 2, "expected ORG/NAME"),
        ("größe/x", 2, "expected ORG/NAME"),
        ("org/none", 3, "the hub has no answer for org/none: RepositoryNotFoundError"),
    ],
)
def test_what_is_not_there_is_one_line(hub: str, tmp_path: Path, name: str, code: int, said: str) -> None:
    done = fetched(hub, tmp_path, name, "--out", str(tmp_path / "x"))
    assert done.code == code and said in done.err and len(done.err.splitlines()) == 1
    assert not (tmp_path / "x").exists()


def test_offline_it_says_so(tmp_path: Path) -> None:
    done = bench("fetch", "org/tiny", "--out", tmp_path / "x", HF_HUB_OFFLINE="1", HF_HOME=str(tmp_path / "cache"))
    assert done.code == 3 and "the hub has no answer for org/tiny" in done.err and len(done.err.splitlines()) == 1
