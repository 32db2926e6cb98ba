"""A stand-in for the Hugging Face hub on the loopback address, with every name of tasks.yaml and models.yaml.

It answers what huggingface_hub, datasets and transformers ask: information, trees and paths of a repository, and files. Its
repositories have the files of the real ones: the rows of the shared folder where it has them, else made-up rows with the
documented columns, and small models of random weights.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import tempfile
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

import pyarrow
import pyarrow.parquet
import pytest
import yaml

from dpzero.language.data import hub, tasks
from dpzero.language.models import model_catalogue
from tests.language.byte_level import byte_level_bpe

ROWS = Path(os.environ.get("DPZERO_DATA_DIR") or Path(__file__).resolve().parents[2] / "shared" / "data")
CONVERTED = "refs/convert/parquet"  # the branch in which the hub keeps each data set as parquet
Files = dict[str, bytes]
Rows = list[dict[str, Any]]

# --- the server


@dataclass
class Repository:
    """Branch -> path -> content. Nobody is handed a file of one that is gated."""

    branches: dict[str, Files]
    gated: bool = False

    @property
    def revisions(self) -> dict[str, tuple[str, Files]]:
        """Branch or commit -> the commit and its files."""
        found = {}
        for branch, files in self.branches.items():
            digests = [f"{path} {hashlib.sha256(files[path]).hexdigest()}" for path in sorted(files)]
            commit = hashlib.sha1("\n".join(digests).encode()).hexdigest()
            found[branch] = found[commit] = commit, files
        return found


class Request(NamedTuple):
    method: str
    path: str
    status: int
    bytes: int  # of the body of the answer


Repositories = dict[tuple[str, str], Repository]  # ("datasets" or "models", name)


class StandInHub:
    """Serves until the `with` block ends. `requests` are those that were answered."""

    def __init__(self, repositories: Repositories) -> None:
        self.repositories, self.requests = repositories, list[Request]()
        outer = self

        class Handler(_Handler):
            hub = outer

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server.server_port}"

    def __enter__(self) -> StandInHub:
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()

    def fetched(self, name: str) -> dict[str, int]:
        """File -> bytes that were sent of it, over all requests for a repository's files."""
        sent: Counter[str] = Counter()
        for request in self.requests:
            found = re.search(rf"/{name}/resolve/[^/]+/(.+)", request.path)
            if found and request.method == "GET" and request.status < 300:
                sent[found[1]] += request.bytes
        return dict(sent)


class _Handler(BaseHTTPRequestHandler):
    hub: StandInHub
    protocol_version = "HTTP/1.1"
    API = re.compile(
        r"/api/(datasets|models)/([^/]+/[^/]+)(?:/(revision|tree|paths-info)/([^/]+)(?:/(.+))?)?"
    )
    FILE = re.compile(r"/(?:(datasets)/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)")

    def do_GET(self) -> None:
        self._answer()

    do_HEAD = do_POST = do_GET

    def log_message(self, *_: object) -> None:
        pass

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
        path = urlsplit(self.path).path
        if path == "/":
            return self._send(200)
        if found := self.API.fullmatch(path):
            kind, name, what, revision, place = found.groups()
        elif found := self.FILE.fullmatch(path):
            (kind, name, revision, place), what = found.groups("models"), "resolve"
        else:
            return self._refuse(404, "", "Not found")
        repository = self.hub.repositories.get((kind, name))
        if repository is None:
            return self._refuse_unknown()
        revision = unquote(revision or "main")
        if revision not in repository.revisions:
            return self._refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        commit, files = repository.revisions[revision]
        if what == "resolve":
            self._file(repository, commit, files, unquote(place))
        elif what == "tree":
            recursive = parse_qs(urlsplit(self.path).query).get("recursive") == ["true"]
            self._json(_entries(files, unquote(place or ""), recursive))
        elif what == "paths-info":
            wanted = parse_qs(body).get("paths") or json.loads(body)["paths"]
            self._json([entry for entry in _entries(files, "", True) if entry["path"] in wanted])
        else:
            about = {"id": name, "sha": commit, "siblings": [{"rfilename": path} for path in sorted(files)]}
            self._json(
                about | {"private": False, "gated": "manual" if repository.gated else False, "tags": []}
            )

    def _file(self, repository: Repository, commit: str, files: Files, path: str) -> None:
        head = {"X-Repo-Commit": commit}
        if repository.gated:
            status = 403 if "Authorization" in self.headers else 401
            return self._refuse(status, "GatedRepo", "Access to it is restricted.", head)
        if path not in files:
            return self._refuse(404, "EntryNotFound", "Entry not found", head)
        head |= {"ETag": f'"{hashlib.sha256(files[path]).hexdigest()}"', "Accept-Ranges": "bytes"}
        content, status = files[path], 200
        if asked := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            first, last = int(asked[1]), int(asked[2] or len(content) - 1)
            head["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
            content, status = content[first : last + 1], 206
        self._send(status, content, head)

    def _refuse_unknown(self) -> None:
        """Who has not logged in is not told whether a repository is there."""
        if "Authorization" in self.headers:
            self._refuse(404, "RepoNotFound", "Repository not found")
        else:
            self._refuse(401, "", "Invalid username or password.")

    def _json(self, value: object) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _refuse(self, status: int, code: str, message: str, head: dict[str, str] | None = None) -> None:
        self._send(status, b"", {"X-Error-Code": code, "X-Error-Message": message} | (head or {}))

    def _send(self, status: int, content: bytes = b"", head: dict[str, str] | None = None) -> None:
        sent = content if self.command != "HEAD" else b""
        self.hub.requests.append(Request(self.command, unquote(self.path), status, len(sent)))
        self.send_response(status)
        for key, value in ({"Content-Length": str(len(content))} | (head or {})).items():
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(sent)


def _entries(files: Files, folder: str, recursive: bool) -> list[dict[str, Any]]:
    """Files and folders, as the hub lists them."""
    found: dict[str, dict[str, Any]] = {}
    for path, content in files.items():
        found[path] = {"type": "file", "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
        for parent in map(str, list(Path(path).parents)[:-1]):
            found[parent] = {"type": "directory", "size": 0, "oid": hashlib.sha1(parent.encode()).hexdigest()}
    entries = [{"path": path, **entry} for path, entry in sorted(found.items())]
    inside = [entry for entry in entries if not folder or entry["path"].startswith(f"{folder}/")]
    depth = folder.count("/") + 1 if folder else 0
    return [entry for entry in inside if recursive or entry["path"].count("/") == depth]


def redirect(patch: pytest.MonkeyPatch, address: str, cache_folder: Path) -> None:
    """This process asks the hub at `address`, as if HF_ENDPOINT and HF_HOME had been set before its start."""
    import datasets
    import huggingface_hub
    from huggingface_hub import constants

    for variable in ("HF_HUB_OFFLINE", "DPZERO_DATA_DIR", "DPZERO_MODEL_DIR"):
        patch.delenv(variable, raising=False)
    patch.setattr(constants, "ENDPOINT", address)
    patch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}"
    )
    patch.setattr(constants, "HF_HUB_CACHE", str(cache_folder / "hub"))
    patch.setattr(datasets.config, "HF_ENDPOINT", address)
    patch.setattr(
        datasets.config, "HUB_DATASETS_URL", address + "/datasets/{repo_id}/resolve/{revision}/{path}"
    )
    patch.setattr(datasets.config, "HF_DATASETS_CACHE", cache_folder / "datasets")
    for module in (constants, datasets.config):
        patch.setattr(module, "HF_HUB_OFFLINE", False)
    huggingface_hub.HfFileSystem.clear_instance_cache()
    forget()


def forget() -> None:
    """What this process knows of the hub, as if it began now."""
    for known in (hub._splits, hub.snapshot, hub._read_cache_alone_if_silent):
        known.cache_clear()


# --- data sets

MADE_UP: dict[str, Callable[[int], dict[str, Any]]] = {  # task -> row number -> row, with the columns of the real data set
    "sst2": lambda i: {"sentence": f"a film of {i} minutes", "label": i % 2, "idx": i},
    "sst5": lambda i: {"text": f"a film of {i} minutes", "label": i % 5, "label_text": "bad"},
    "trec": lambda i: {"text": f"How far is it to {i} ?", "coarse_label": i % 6, "fine_label": i % 50},
    "rte": lambda i: {"sentence1": f"It rained for {i} days.", "sentence2": "It rained.", "label": i % 2, "idx": i},
    "snli": lambda i: {"premise": f"A man has {i} dogs.", "hypothesis": "He has a dog.", "label": i % 4 - 1},
    "mnli": lambda i: {"premise": f"A man has {i} dogs.", "hypothesis": "He has a dog.", "label": i % 3, "idx": i},
    "boolq": lambda i: {"question": f"is {i} a number", "answer": i % 2 == 0, "passage": "Numbers are counted."},
    "cb": lambda i: {"premise": f"It rained for {i} days.", "hypothesis": "it rained", "idx": i, "label": i % 3},
    "wsc": lambda i: {
        "text": f"Mark told Pete {i} lies, which he wrote down.", "span1_index": 0, "span2_index": 6, "span1_text": "Mark",
        "span2_text": "He", "idx": i, "label": i % 2,
    },
    "wic": lambda i: {
        "word": "place", "sentence1": f"A place for {i}.", "sentence2": "Place it there.", "start1": 2, "start2": 0, "end1": 7,
        "end2": 5, "idx": i, "label": i % 2,
    },
    "multirc": lambda i: {
        "paragraph": f"It rained for {i} days.", "question": "How long?", "answer": f"{i} days",
        "idx": {"paragraph": i, "question": 0, "answer": 0}, "label": i % 2,
    },
    "copa": lambda i: {
        "premise": f"It rained for {i} days.", "choice1": "The street was wet.", "choice2": "The sun rose.",
        "question": ("effect", "cause")[i % 2], "idx": i, "label": i % 2,
    },
    "record": lambda i: {
        "passage": f"Ann met Bob {i} times.\n@highlight\nThey talked", "query": "@placeholder met Bob", "entities": ["Ann", "Bob"],
        "entity_spans": {"text": ["Ann", "Bob"], "start": [0, 8], "end": [3, 11]}, "answers": ["Ann"],
        "idx": {"passage": i, "query": 0},
    },
    "squad": lambda i: {
        "id": str(i), "title": "Rain", "context": f"It rained for {i} days.", "question": "How long did it rain?",
        "answers": {"text": [f"{i} days"], "answer_start": [14]},
    },
    "drop": lambda i: {
        "section_id": "a", "query_id": str(i), "passage": f"It rained for {i} days.", "question": "How many days?",
        "answers_spans": {"spans": [str(i)], "types": ["number"]},
    },
}  # fmt: skip
MADE_UP["record-question"] = MADE_UP["record"]
COUNTS = {"rte": 620, "cb": 250}  # training rows: more than MeZO's draw takes for dev
# data sets whose only config has a name other than `default`
ONE_CONFIG = {"stanfordnlp/snli": "plain_text", "rajpurkar/squad": "plain_text"}
SCRIPTS = ("CogComp/trec",)  # main is a loading script, which `datasets` does not read since version 4
JSON_LINES = ("SetFit/sst5",)


def data_sets() -> Repositories:
    """All of tasks.yaml, with the branch main as it is and the converted branch."""
    configs: dict[str, dict[str, dict[str, Rows]]] = {}
    for task in MADE_UP:
        source = tasks.CATALOGUE.built_in[task]["hub"]
        config = source.get("config") or ONE_CONFIG.get(source["name"], "default")
        configs.setdefault(source["name"], {})[config] = _rows_of(task, source)
    return {("datasets", name): Repository(_branches(name, splits)) for name, splits in configs.items()}


def _rows_of(task: str, source: dict[str, Any]) -> dict[str, Rows]:
    count = COUNTS.get(task, 40)
    splits = {
        "train": [MADE_UP[task](i) for i in range(count)],
        source["test"]: [MADE_UP[task](i) for i in range(count, count + 20)],
    }
    files = tasks.CATALOGUE.built_in[task]["files"]
    for split, name in (("train", "train"), (source["test"], "test")):
        if (file := ROWS / files[name]).is_file():
            with file.open(encoding="utf-8") as lines:
                splits[split] = [
                    row | json.loads(line) for row, line in zip(splits[split], lines, strict=False)
                ]
            for row in splits[split]:
                if "values" in source:  # the files have our order of the labels
                    row["coarse_label"] = source["values"][row["coarse_label"]]
    return splits


def _branches(name: str, configs: dict[str, dict[str, Rows]]) -> dict[str, Files]:
    pairs = [(config, split, rows) for config, splits in configs.items() for split, rows in splits.items()]
    converted = {f"{config}/{split}/0000.parquet": _parquet(rows) for config, split, rows in pairs}
    common = {".gitattributes": b""}
    card: dict[str, Any] = {"license": "other"}
    if name in SCRIPTS:
        main = {f"{name.rpartition('/')[2]}.py": b"import datasets\n"}
    elif name in JSON_LINES:
        main = {
            f"{split}.jsonl": "".join(json.dumps(row) + "\n" for row in rows).encode()
            for _, split, rows in pairs
        }
    else:
        folder = {config: "data" if config == "default" else config for config in configs}
        main = {
            f"{folder[config]}/{split}-00000-of-00001.parquet": _parquet(rows)
            for config, split, rows in pairs
        }
        card["configs"] = [
            {
                "config_name": config,
                "data_files": [{"split": s, "path": f"{folder[config]}/{s}-*"} for s in splits],
            }
            for config, splits in configs.items()
        ]
    readme = f"---\n{yaml.safe_dump(card)}---\n# {name}\n".encode()
    return {"main": common | main | {"README.md": readme}, CONVERTED: common | converted}


def _parquet(rows: Rows) -> bytes:
    file = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), file)
    return file.getvalue()


# --- models

SIZES = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
# the first part of a model's name -> its configuration in small
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "roberta": {"model_type": "roberta", "max_position_embeddings": 514, "type_vocab_size": 1},
    "opt": {"model_type": "opt", "ffn_dim": 16, "word_embed_proj_dim": 16, "max_position_embeddings": 2048},
    "smollm2": {"model_type": "llama", "num_key_value_heads": 1, "tie_word_embeddings": True},
    "llama": {"model_type": "llama", "num_key_value_heads": 1, "tie_word_embeddings": True},
    "qwen3": {"model_type": "qwen3", "num_key_value_heads": 1, "head_dim": 8, "tie_word_embeddings": True},
    "gemma": {"model_type": "gemma3_text", "num_key_value_heads": 1, "head_dim": 8},
}
SHARDED = ("opt-6.7b", "opt-13b", "opt-30b", "opt-66b")
SAFETENSORS, BIN, BOTH = ("safetensors",), ("bin",), ("safetensors", "bin")


def formats_of(name: str) -> tuple[str, ...]:
    """Those in which the real hub has the weights of a model."""
    return {"roberta": BOTH, "opt": BIN}.get(name.partition("-")[0], SAFETENSORS)


def models() -> Repositories:
    """All of models.yaml, in the formats of the real ones, and with their files for other libraries."""
    stanzas = model_catalogue.CATALOGUE.built_in
    named = {name: stanza["hub"] for name, stanza in stanzas.items() if "hub" in stanza}
    return {
        ("models", place): Repository({"main": model(name, formats_of(name))})
        for name, place in named.items()
    }


@cache
def model(name: str, formats: tuple[str, ...]) -> Files:
    """The files of a small model of the architecture that this model of models.yaml has."""
    files = _saved_model(name.partition("-")[0]) | {".gitattributes": b"", "README.md": b"# A model\n"}
    safe = files.pop("model.safetensors")
    if "safetensors" in formats:
        files["model.safetensors"] = safe
    if "bin" in formats:
        files |= _pickles(safe, sharded=name in SHARDED)
        files |= dict.fromkeys(("flax_model.msgpack", "tf_model.h5", "rust_model.ot"), bytes(1000))
    else:
        files["original/consolidated.00.pth"] = bytes(1000)
    others = ("onnx/model.onnx", "consolidated.safetensors", "training_args.bin")
    return files | dict.fromkeys(others, bytes(1000))


@cache
def _saved_model(kind: str) -> Files:
    """What save_pretrained writes of model and tokenizer."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM, PreTrainedTokenizerFast

    torch.manual_seed(0)
    architecture = SIZES | {"vocab_size": 700} | ARCHITECTURES[kind]
    auto_class = AutoModelForMaskedLM if kind == "roberta" else AutoModelForCausalLM
    words = byte_level_bpe(_words())
    special = dict.fromkeys(("bos_token", "cls_token"), "<s>") | dict.fromkeys(
        ("eos_token", "sep_token"), "</s>"
    )
    special |= {"unk_token": "<unk>", "mask_token": "<mask>", "pad_token": "<pad>"}
    with tempfile.TemporaryDirectory() as folder:
        auto_class.from_config(AutoConfig.for_model(**architecture)).save_pretrained(folder)
        PreTrainedTokenizerFast(tokenizer_object=words, **special).save_pretrained(folder)
        files = {path.name: path.read_bytes() for path in Path(folder).iterdir()}
    if kind == "opt":  # whose tokenizers on the hub have the older files
        parts = json.loads(files.pop("tokenizer.json"))["model"]
        files["vocab.json"] = json.dumps(parts["vocab"]).encode()
        files["merges.txt"] = "\n".join(["#version: 0.2", *map(" ".join, parts["merges"]), ""]).encode()
        own = special | {"bos_token": "</s>", "add_bos_token": True, "tokenizer_class": "GPT2Tokenizer"}
        files["tokenizer_config.json"] = json.dumps(own).encode()
    return files


def _words() -> list[str]:
    """Those that are one token each: labels' words at the mask, and answers of one word."""
    found: dict[str, None] = {}
    for stanza in tasks.CATALOGUE.built_in.values():
        answers = stanza.get("causal", {}).get("answers", []) + stanza.get("masked", {}).get("words", [])
        found |= dict.fromkeys(answer.strip() for answer in answers)
    return list(found)


def _pickles(safe: bytes, sharded: bool) -> Files:
    """The weights as torch.save writes them, in one file, or in two with their index."""
    from safetensors.torch import load

    weights = load(safe)
    keys = sorted(weights)
    if not sharded:
        return {"pytorch_model.bin": _pickle(weights)}
    files, index = {}, {}
    for number, part in enumerate((keys[::2], keys[1::2]), start=1):
        name = f"pytorch_model-{number:05}-of-00002.bin"
        files[name] = _pickle({key: weights[key] for key in part})
        index |= dict.fromkeys(part, name)
    return files | {
        "pytorch_model.bin.index.json": json.dumps({"metadata": {}, "weight_map": index}).encode()
    }


def _pickle(weights: dict[str, Any]) -> bytes:
    import torch

    file = io.BytesIO()
    torch.save(weights, file)
    return file.getvalue()
