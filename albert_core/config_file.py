"""From YAML and ``--set`` to a `TrainConfig`, remembering where each value came from."""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from .. import UserError
from .config import TrainConfig


@dataclass(frozen=True)
class ResolvedConfig:
    """The configuration a run really uses. `sources` maps each key to "default", "FILE:LINE" or an option."""

    config: TrainConfig
    sources: dict[str, str]
    stem: str

    def with_absolute_paths(self) -> ResolvedConfig:
        """The same with every local path that exists made absolute, so that it means the same from any folder."""
        paths = {}
        for key in ("dataset_id", "model_name", "tokenizer_name", "remote_path"):
            value = getattr(self.config, key)
            if value and "://" not in value and Path(value).expanduser().exists():
                paths[key] = str(Path(value).expanduser().absolute())
        return ResolvedConfig(self.config.model_copy(update=paths), self.sources, self.stem)

    def to_yaml(self) -> str:
        return yaml.safe_dump(self.config.model_dump(), sort_keys=False, allow_unicode=True)


def load_config(
    path: str | Path | None, sets: Iterable[str] = (), options: dict[str, Any] | None = None
) -> ResolvedConfig:
    """Reads `path` (a YAML file, or the name of a packaged one such as ``banking77``), then applies overrides.

    `sets` are ``key=value`` strings whose values are read as YAML; `options` are command-line options by key, where
    None means not given. Later wins: defaults, file, --set, options. Raises UserError naming the key at fault.
    """
    values: dict[str, Any] = {}
    sources: dict[str, str] = {}
    stem = "train"
    if path is not None:
        file = find_config(path)
        stem = file.stem
        for key, value, line in _read_yaml(file):
            values[key] = value
            sources[key] = f"{file.name}:{line}"
    for item in sets:
        key, value = _parse_set(item)
        section, dot, inner = key.partition(".")
        if dot and section in TrainConfig.sections():
            values[section] = {**_mapping(values.get(section), section), inner: value}
            sources[section] = "--set"
        else:
            values[key] = value
        sources[key] = "--set"
    for key, value in (options or {}).items():
        if value is not None:
            values[key] = value
            sources[key] = "--" + key.replace("_", "-")
            if key == "backend":
                # The command line's backend wins over the file's use_tt, by whichever name the file chose.
                values["use_tt"] = str(value).partition(":")[0] == "tt"
                sources["use_tt"] = "--backend"
    _check_keys(values, sources)
    try:
        config = TrainConfig(**values)
    except ValidationError as error:
        raise UserError(_one_line(error, sources)) from error
    origin = {key: sources.get(key, "default") for key in TrainConfig.model_fields}
    return ResolvedConfig(config, origin, stem)


def find_config(path: str | Path) -> Path:
    """The file `path`, or the packaged configuration of that name. A data set's folder may well have the name, too."""
    file = Path(path).expanduser()
    packaged = Path(__file__).resolve().parent.parent / "configs"
    if file.is_file():
        return file
    named = packaged / f"{path}.yaml"
    if file.parent == Path() and named.is_file():
        return named
    if file.is_dir():
        raise UserError(f"configuration {str(path)!r} is a folder; give a YAML file")
    names = ", ".join(sorted(entry.stem for entry in packaged.glob("*.yaml")))
    raise UserError(
        f"configuration {str(path)!r} does not exist; give a YAML file or one of the packaged ones: {names}"
    )


def config_hash(config: TrainConfig) -> str:
    """SHA-256 of the configuration as sorted JSON."""
    return hashlib.sha256(json.dumps(config.model_dump(), sort_keys=True).encode()).hexdigest()


def _read_yaml(file: Path) -> list[tuple[str, Any, int]]:
    try:
        text = file.read_text(encoding="utf-8-sig")
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        loaded = yaml.safe_load(text)
    except UnicodeDecodeError as error:
        raise UserError(f"{file}: not UTF-8 text (byte {error.start}); save it as UTF-8") from error
    except OSError as error:
        raise UserError(f"{file}: can't be read ({error.strerror}); give a readable YAML file") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f":{mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or "unreadable"
        raise UserError(f"{file}{where}: not valid YAML ({problem}); write one 'key: value' a line") from error
    if root is None:
        return []
    if not isinstance(root, yaml.MappingNode) or not isinstance(loaded, dict):
        raise UserError(f"{file}: holds no mapping; write one 'key: value' a line")
    lines: dict[str, int] = {}
    for key_node, _ in root.value:
        key, line = str(key_node.value), key_node.start_mark.line + 1
        if key in lines:
            raise UserError(
                f"{file}:{line}: key {key!r} stands there a second time (first in line {lines[key]}); keep one"
            )
        lines[key] = line
    return [(str(key), value, lines.get(str(key), 0)) for key, value in loaded.items()]


def _parse_set(item: str) -> tuple[str, Any]:
    key, separator, value = item.partition("=")
    if not separator or not key.strip():
        raise UserError(f"--set {item!r}: write key=value, e.g. --set learning_rate=1e-3")
    try:
        return key.strip(), yaml.safe_load(value) if value.strip() else ""
    except yaml.YAMLError as error:
        raise UserError(f"--set {item!r}: the value is not valid YAML; quote it") from error


def _mapping(value: Any, key: str) -> dict[str, Any]:
    if value is None or isinstance(value, dict):
        return value or {}
    raise UserError(f"{key} is {value!r}, and {key}.something sets a key of a mapping; write 'key: value' lines in it")


def _check_keys(values: dict[str, Any], sources: dict[str, str]) -> None:
    sections = TrainConfig.sections()
    known = [*TrainConfig.model_fields, *(f"{name}.{key}" for name in sections for key in sections[name].model_fields)]
    for key, value in values.items():
        inner = [f"{key}.{name}" for name in value] if key in sections and isinstance(value, dict) else []
        for name in (key, *inner):
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
                hints = [f"did you mean {near[0]!r}?"] if near else []
                if name in inner:
                    hints.append(f"allowed in {key} are {', '.join(sections[key].model_fields)}")
                elif not near:
                    hints.append("`isotrain config --keys` lists them all")
                raise UserError(f"unknown key {name!r} ({sources.get(name, sources.get(key))}); {' '.join(hints)}")


def _one_line(error: ValidationError, sources: dict[str, str]) -> str:
    parts = []
    for problem in error.errors():
        message = str(problem["msg"]).removeprefix("Value error, ")
        message = message[0].lower() + message[1:]
        if problem["loc"]:
            key = ".".join(map(str, problem["loc"]))
            source = sources.get(key, sources.get(str(problem["loc"][0]), "default"))
            parts.append(f"{key}: {problem['input']!r} {_joined(message)} ({source})")
        else:
            parts.append(message)
    return "; ".join(parts)


def _joined(message: str) -> str:
    return message if message.startswith(("is ", "can't ", "names ")) else f"is not allowed: {message}"
