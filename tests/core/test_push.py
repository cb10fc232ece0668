"""Runs sent to a stand-in of the Hub, which keeps what it gets."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
import yaml
from isotrain import RunError, UserError, register_models
from isotrain.albert_core.inference.export import Exported
from isotrain.albert_core.inference.model_card import model_card
from isotrain.albert_core.inference.push import push_run
from isotrain.albert_core.loop.train import TrainResult
from support.command import Invoke
from support.results import parity as parity_result
from support.small_job import settings

Run = Callable[..., TrainResult]
TOKEN = "hf_" + "a" * 34


@dataclass
class Hub:
    """What the stand-in was asked for and holds."""

    address: str = ""
    public: bool = False
    status: int = 200
    created: dict[str, Any] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    tokens: set[str | None] = field(default_factory=set)


def handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def answer(self, document: Any, status: int = 200) -> None:
            body = json.dumps(document).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def do_HEAD(self) -> None:
            self.answer({})

        def do_GET(self) -> None:
            self.answer({"id": "me/intents", "private": not hub.public, "sha": "0" * 40, "siblings": []})

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            hub.tokens.add(self.headers["Authorization"])
            if hub.status != 200:
                self.answer({"error": "no"}, hub.status)
            elif self.path == "/api/repos/create":
                hub.created = json.loads(body)
                self.answer({"url": f"{hub.address}/me/intents"})
            elif self.path == "/api/validate-yaml":
                self.answer({"errors": [], "warnings": []})
            elif "/preupload/" in self.path:
                names = [file["path"] for file in json.loads(body)["files"]]
                self.answer({"files": [{"path": n, "uploadMode": "regular", "shouldIgnore": False} for n in names]})
            elif "/commit/" in self.path:
                for line in map(json.loads, body.splitlines()):
                    if line["key"] == "file":
                        hub.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
                self.answer({"commitUrl": f"{hub.address}/me/intents/commit/{'0' * 40}", "commitOid": "0" * 40})
            else:
                self.answer({}, 404)

        def log_message(self, *_: object) -> None:
            pass

    return Handler


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler(hub))
    hub.address = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", hub.address)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    huggingface_hub.close_session()
    yield hub
    server.shutdown()
    server.server_close()
    huggingface_hub.close_session()


def test_what_the_hub_gets_is_a_model_with_its_card(
    run: Run, hub: Hub, tmp_path: Path, invoke: Invoke, small_data: Path
) -> None:
    from transformers import AutoModelForSequenceClassification

    trained = run(threads=1, max_grad_norm=1.5)
    code, shown, _ = invoke("push", str(trained.run.path), "me/intents", "--dry-run")
    assert code == 0
    assert "nothing was sent" in shown
    assert not hub.created
    code, said, errors = invoke("push", str(trained.run.path), "me/intents")
    assert code == 0, errors
    assert f"{hub.address}/me/intents (private)" in said
    assert hub.created["name"] == "intents"
    # Releases of the client say it by one key or the other.
    assert hub.created.get("visibility") == "private" or hub.created["private"]
    assert hub.tokens == {f"Bearer {TOKEN}"}
    card = hub.files["README.md"].decode()
    assert card.strip() in shown.replace("\r", "")
    for name, content in hub.files.items():
        assert f"  {name}  {len(content):,} bytes" in shown
        for secret in (TOKEN, str(tmp_path), str(small_data.parent)):
            assert secret.encode() not in content, name
    head = yaml.safe_load(card.split("---")[1])
    assert head["tags"] == ["isotrain", "random-weights"]
    assert "base_model" not in head
    summary = trained.run.ended()
    for fact in (
        "**random weights**",
        "intents",
        "compute float32",
        'REPO = "me/intents"',
        "| max_grad_norm | 1.5 |",
        f"| eval/accuracy | {summary['eval/accuracy']:.6g}",
    ):
        assert fact in card
    assert "| no_decay |" not in card, "it has its usual value"
    assert "isotrain.register_models()" in card

    folder = tmp_path / "fetched"
    folder.mkdir()
    for name, content in hub.files.items():
        (folder / name).write_bytes(content)
    register_models()
    logits = AutoModelForSequenceClassification.from_pretrained(folder)(torch.ones(1, 3, dtype=torch.long)).logits
    assert logits.shape == (1, 6)


def test_the_card_has_the_parity_verdicts_of_the_same_model_and_data(run: Run, tmp_path: Path, invoke: Invoke) -> None:
    folder = run(threads=1).run
    origin = json.loads(folder.origin.read_text())
    document = parity_result()
    document["reference"] |= {"model": origin["model"], "dataset": origin["dataset"]}
    file = tmp_path / "parity.json"
    arguments = ("push", str(folder.path), "me/intents", "--dry-run", "--parity", str(file))
    file.write_text(json.dumps(document))
    code, shown, errors = invoke(*arguments)
    assert code == 0, errors
    (candidate, *_) = document["candidates"]
    assert f": {candidate['verdict']}, over {document['steps']} steps by isotrain parity" in shown
    for change, message in (
        ({"reference": document["reference"] | {"dataset": "others"}}, "compared devices on dataset"),
        ({"steps": "many"}, "is no result of parity"),
    ):
        file.write_text(json.dumps(document | change))
        code, shown, errors = invoke(*arguments)
        assert (code, shown) == (2, "")
        assert message in errors


@pytest.mark.parametrize("task", ["classification", "question_answering"])
def test_a_card_says_what_is_not_real_and_tells_nothing_of_this_machine(
    configure: Callable[..., Any], tmp_path: Path, task: str
) -> None:
    local = tmp_path / "encoder"
    local.mkdir()
    origin = {
        "dataset": f"/home/someone/a|b<script> {TOKEN}",
        "random_weights": False,
        "device": {"name": "wormhole", "backend": "tt-emulated", "emulated": True},
        "cast_policy": {"param": "bfloat16", "compute": "bfloat16", "accumulate": "float32", "reason": ""},
    }
    summary = {"step": 7, "total_steps": 9, "eval/loss": 0.5, "eval/f1": "high"}
    exported = Exported(tmp_path, "", "float32", "transformers 5", 0.0, 1e-7)
    for name, base in ((str(local), None), ("albert/albert-base-v2", "albert/albert-base-v2")):
        head = {} if task == "question_answering" else {"head": "pooler_linear"}
        job = configure(task=task, model_name=name, **head).config
        card = model_card(job, origin, summary, exported, [], "model")
        assert yaml.safe_load(card.split("---")[1]).get("base_model") == base
        for fact in (
            "**emulated**",
            "not a real device's",
            "param bfloat16",
            "| steps | 7 of 9 |",
            "| eval/loss | 0.5 |",
            'REPO = "OWNER/model"',
        ):
            assert fact in card
        for hidden in (
            TOKEN,
            "/home",
            str(tmp_path),
            "<script>",
            "a|b",
            "random weights",
            "eval/f1",
            "register_models",
        ):
            assert hidden not in card
        assert ("AutoModelForQuestionAnswering" in card) == (task == "question_answering")


def test_what_is_not_sent_is_said_in_a_line(
    run: Run, hub: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = run(threads=1).run
    with pytest.raises(UserError, match="'a/b/c' is no name on the Hub; give OWNER/NAME"):
        push_run(folder, "a/b/c")
    hub.public = True
    with pytest.raises(UserError, match="exists and is public; pass --public"):
        push_run(folder, "me/intents")
    hub.public = False
    for status, error, message in ((403, UserError, "may write there"), (500, RunError, "failed")):
        hub.status = status
        with pytest.raises(error, match=message):
            push_run(folder, "me/intents")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(RunError, match="HF_HUB_OFFLINE"):
        push_run(folder, "me/intents")
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    with pytest.raises(UserError, match="no token for the Hub; log in by `hf auth login` or set HF_TOKEN"):
        push_run(folder, "me/intents")
    folder.summary.write_text("{}")
    with pytest.raises(UserError, match="no usable"):
        push_run(folder, "me/intents", dry_run=True)
    assert not hub.files


def test_a_finished_run_is_sent_where_its_configuration_says(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, small_data: Path, invoke: Invoke
) -> None:
    def train(repo: str, *options: str) -> tuple[int, str, str]:
        sets = settings(small_data, tmp_path, push_to_hub=repo, max_steps=2, threads=1)
        return invoke("train", "quickstart", *(part for item in sets for part in ("--set", item)), *options)

    code, said, errors = train("me/intents")
    assert code == 0, errors
    assert f"sent to {hub.address}/me/intents (private)" in said
    assert "model.safetensors" in hub.files
    hub.status = 500
    code, said, errors = train("me/intents", "--json")
    assert code == 1
    assert json.loads(said)["status"] == "completed"
    (last,) = (line for line in errors.splitlines() if line.startswith("isotrain: error"))
    assert "and is kept" in last
    assert last.endswith(f"isotrain push {json.loads(said)['run']} me/intents")
    # Before anything is trained.
    runs = set((tmp_path / "runs").iterdir())
    assert train("a/b/c")[0] == 2
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    code, said, errors = train("me/intents")
    assert (code, said) == (2, "")
    assert "no token for the Hub" in errors
    assert set((tmp_path / "runs").iterdir()) == runs
