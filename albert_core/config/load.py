"""From YAML and ``--set`` to a `TrainConfig`, with the source of each value."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from ... import UserError
from ...backends import list_backends, options_section
from ...kernels.names import meant
from ..terminal.invocation import command
from ..terminal.text import SHORT, quoted
from .parsing import Raw, Scalar, is_unicode, read_yaml
from .schema import TrainConfig
from .training_type import follow_training_type
from .typed_values import mapping, typed
from .workload_name import IN_FILE, names_workload, short_name

Model = TypeVar("Model", bound=BaseModel)


@dataclass(frozen=True)
class ResolvedConfig:
    """The configuration that a run uses. `sources` maps each key to "default", "FILE:LINE" or an option."""

    config: TrainConfig
    sources: dict[str, str]
    stem: str

    def with_absolute_paths(self) -> ResolvedConfig:
        """The same with every existing local path made absolute, so that it is valid from any folder."""
        paths = {}
        for key in ("dataset_id", "model_name", "tokenizer_name", "remote_path"):
            value = getattr(self.config, key)
            if value and "://" not in value and Path(value).expanduser().exists():
                paths[key] = str(Path(value).expanduser().absolute())
        own = IN_FILE.fullmatch(self.config.workload or "")
        if own is not None and Path(own["place"]).is_file():
            paths["workload"] = str(Path(own["place"]).absolute()) + (f":{own['name']}" if own["name"] else "")
        return ResolvedConfig(self.config.model_copy(update=paths), self.sources, self.stem)

    def of_run(self) -> ResolvedConfig:
        """What a run's folder keeps: absolute paths, and defaults for the keys that concern only this start."""
        once = ("resume_from_checkpoint", "resume_option", "checkpoint_path", "load_from_storage", "stop_at_step")
        defaults = {key: TrainConfig.model_fields[key].default for key in once}
        kept = self.with_absolute_paths()
        # A resume, perhaps on another machine, trains on the backend that this start resolved to.
        backend = {"backend": kept.config.backend_name} if kept.config.backend or kept.config.use_tt else {}
        return ResolvedConfig(kept.config.model_copy(update={**defaults, **backend}), self.sources, self.stem)

    def to_yaml(self) -> str:
        return yaml.safe_dump(self.config.model_dump(), sort_keys=False, allow_unicode=True)


def load_config(
    path: str | Path | None, sets: Iterable[str] = (), options: dict[str, Any] | None = None, place: str = "--set"
) -> ResolvedConfig:
    """Reads a configuration and applies overrides. Later ones win: defaults, file, --set, options.

    Args:
        path: A YAML file, the name of a packaged one such as ``banking77``, or a workload (`workload_name.FORMS`).
        sets: ``key=value`` strings. A key of type text takes everything after the sign unchanged.
        options: Command-line options by key. None means not given.
        place: Where `sets` come from, for messages.

    Raises:
        UserError: A key or value can't be used. The message names the key and where it was set.
    """
    values: dict[str, Any] = {}
    sources: dict[str, str] = {}
    stem = "train"
    if path is not None and names_workload(str(path)) and str(path) not in [file.stem for file in packaged_configs()]:
        values["workload"], sources["workload"], stem = str(path), "CONFIG", short_name(str(path))
    elif path is not None:
        file = find_config(path)
        stem = file.stem
        written = read_yaml(file, "write one 'key: value' a line")
        for key, raw in written.items.items():
            _put(values, sources, key, raw, written.places[key])
    for item in sets:
        key, raw = _parse_set(item, place)
        _put(values, sources, key, raw, place)
    for key, value in (options or {}).items():
        if value is not None:
            values[key] = value
            # The option --model is for model_name.
            sources[key] = "--" + key.removesuffix("_name").replace("_", "-")
            if key == "backend":
                # A backend on the command line overrides the file's use_tt, or the other name for it in the file.
                values.pop("use_tt", None)
                sources.pop("use_tt", None)
    follow_training_type(values, sources)
    for key in values:
        section = TrainConfig.section(key)
        if section is not None:
            _checked(section, values[key], sources, key)
    config = _checked(TrainConfig, values, sources)
    origin = {key: sources.get(key, "default") for key in config.model_dump()}
    return ResolvedConfig(config, origin, stem)


def _checked(model: type[Model], values: dict[str, Any], sources: dict[str, str], *section: str) -> Model:
    try:
        return model(**values)
    except ValidationError as error:
        raise UserError(_one_line(error, sources, section)) from error


def as_set(key: str, value: Any) -> str:
    """``key=value`` in the form that ``--set`` reads."""
    return f"{key}={value if isinstance(value, str) else json.dumps(value)}"


def find_config(path: str | Path) -> Path:
    """The file `path`, or the packaged configuration of that name. A data set's folder may have the same name."""
    file = Path(path).expanduser()
    packaged = Path(__file__).resolve().parents[2] / "configs"
    if file.is_file():
        return file
    named = packaged / f"{path}.yaml"
    if file.parent == Path() and named.is_file():
        return named
    if file.is_dir():
        raise UserError(f"configuration {quoted(str(path))} is a folder; give a YAML file")
    names = [packed.stem for packed in packaged_configs()]
    raise UserError(
        f"configuration {quoted(str(path))} does not exist; {meant(str(path), names)}give a YAML file or one of the "
        f"packaged ones: {', '.join(names)}"
    )


def packaged_configs() -> list[Path]:
    """The configuration files that come with isotrain, by name."""
    return sorted((Path(__file__).resolve().parents[2] / "configs").glob("*.yaml"))


def _parse_set(item: str, place: str) -> tuple[str, Raw]:
    key, separator, value = item.partition("=")
    if not separator or not key.strip():
        raise UserError(f"--set {quoted(item)}: write key=value, e.g. --set learning_rate=1e-3")
    if key != key.strip():
        raise UserError(f"--set {quoted(item)}: white space stands around the key; write key=value without it")
    if "\0" in value or not is_unicode(value):
        raise UserError(f"--set {quoted(item)}: the value holds bytes that are no UTF-8 text; write it in UTF-8")
    return key, Scalar(value, place, "given")


def _put(values: dict[str, Any], sources: dict[str, str], key: str, raw: Raw, place: str) -> None:
    """Sets `key`, or ``section.key``. Raises UserError for an unknown key or a value of another type."""
    name, dot, inner = key.partition(".")
    section = TrainConfig.section(name)
    if section is None:
        field = TrainConfig.flat_keys().get(key)
        if field is None:
            raise UserError(_unknown(key, place))
        values[key] = typed(raw, field.annotation, key)
    elif not dot:
        entries = mapping(raw, key)
        values[key], sources[key] = {}, place
        for inner, item in entries.items.items():
            _put(values, sources, f"{key}.{inner}", item, entries.places[inner])
    elif inner in section.model_fields:
        values[name] = {**values.get(name, {}), inner: typed(raw, section.model_fields[inner].annotation, key)}
        sources[name] = place
    else:
        raise UserError(_unknown(key, place))
    sources[key] = place


def _unknown(key: str, place: str) -> str:
    name = key.partition(".")[0]
    section = TrainConfig.section(name)
    inner = [f"{name}.{field}" for name, section in TrainConfig.sections().items() for field in section.model_fields]
    outer = TrainConfig.flat_keys() if section is None else ()
    nearest = difflib.get_close_matches(key[:SHORT], [*outer, *inner], n=1, cutoff=0.0)
    near = difflib.get_close_matches(key[:SHORT], nearest, cutoff=0.5)
    hints = [f"did you mean {name!r}?" for name in near]
    if section is not None:
        hints.append(f"allowed in {name} are {', '.join(section.model_fields)}")
    elif name in list_backends():
        own = options_section(name)
        hints = [f"backend {name} takes {f'those of {own}, as {own}.KEY' if own else 'no options'}"]
    elif not near:
        hints = [f"the nearest is {nearest[0]!r}; `{command('config', '--keys')}` lists them all"]
    return f"unknown key {quoted(key)} ({place}); {' '.join(hints)}"


# By pydantic's error type. Its own messages name Python's types and regular expressions.
_WORDS = {
    "string_too_short": "is empty; give a value, or leave the key out for its default",
    "too_short": "is empty; name at least one, or leave the key out for its default",
    "string_pattern_mismatch": "is no name; write letters, digits, _, - and ., the first a letter, a digit or _",
}


def _one_line(error: ValidationError, sources: dict[str, str], section: tuple[str, ...]) -> str:
    parts = []
    for problem in error.errors(include_url=False):
        message = _WORDS.get(problem["type"], str(problem["msg"]).removeprefix("Value error, "))
        message = message[0].lower() + message[1:]
        if problem["type"] == "literal_error":
            message = meant(str(problem["input"]), re.findall(r"'([^']*)'", message)) + message
        if problem["loc"]:
            where = (*section, *map(str, problem["loc"]))
            key = ".".join(where)
            source = sources.get(key, sources.get(where[0], "default"))
            parts.append(f"{key}: {quoted(problem['input'])} {_joined(message)} ({source})")
        else:
            places = [f"{key}: {sources[key]}" for key in _keys_in(message) if key in sources]
            parts.append(f"{message} ({', '.join(places)})" if places else message)
    return "; ".join(parts)


def _keys_in(message: str) -> list[str]:
    """The keys that a message names, in order, each once."""
    return list(dict.fromkeys(re.findall(r"[a-z][a-z_]*(?:\.[a-z_]+)?", message)))


def _joined(message: str) -> str:
    plain = message.startswith(("is ", "can't ", "names ", "holds ", "has "))
    return message if plain else f"is not allowed: {message}"
