"""tt-blacksmith's keys `training_type` and `training_model_type`, and what they ask for in isotrain's own keys."""

from __future__ import annotations

from typing import Any

from .keys import Keys

NAMES = ("training_type", "training_model_type")


def follow_training_type(values: dict[str, Any], sources: dict[str, str]) -> None:
    """Sets freeze_encoder in `values` and `sources` to what a training type asks for, if it isn't given."""
    for name in NAMES:
        asked = values.get(name)
        whole = asked == "full" or (asked == "lora" and values.get("lora", {}).get("rank"))
        if whole and "freeze_encoder" not in values:
            values["freeze_encoder"], sources["freeze_encoder"] = False, sources[name]


def check_training_type(config: Keys) -> None:
    """Raises ValueError if a training type asks for something else than freeze_encoder and lora.rank."""
    frozen, rank = config.freeze_encoder, config.lora.rank
    whole = not (frozen or rank)
    for name in NAMES:
        asked = getattr(config, name)
        if (asked == "adapters" and not frozen) or (asked == "full" and not whole) or (asked == "lora" and whole):
            raise ValueError(
                f"{name}: {asked} contradicts freeze_encoder: {str(frozen).lower()} with lora.rank: {rank}; drop {name}"
            )


def training_type_note(config: Keys) -> str:
    """What a training type means here if that isn't what its name says, or ""."""
    named = [name for name in NAMES if getattr(config, name) == "lora" and not config.lora.rank]
    if not named:
        return ""
    return (
        f"{' and '.join(named)}: lora without lora.rank trains the head alone, as the published experiment does, which "
        "doesn't read this key; set lora.rank for adapters"
    )
