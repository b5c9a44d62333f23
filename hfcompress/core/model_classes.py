"""The class of transformers that a checkpoint was saved from, and what it takes; imports transformers when asked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .errors import CheckpointError
from .foreign_internals import model_classes


def class_of(name: str, config: Any) -> type[Any]:
    """Return the model class that the class or Auto class called `name` loads for a config.

    Raises CheckpointError where transformers has no such class, or none for a model of this type.
    """
    import transformers

    found = getattr(transformers, name, None)
    if found is None:
        raise CheckpointError(f"transformers has no class {name}")
    if not hasattr(found, "from_config"):
        return found
    try:
        known = model_classes(name)[type(config)]
    except KeyError as error:
        raise CheckpointError(f"{name} knows no model of the type {config.model_type!r}") from error
    return known[0] if isinstance(known, tuple) else known


def saved_class(config: Any, source: str) -> str:
    """Return the name of the class a checkpoint was saved from, "AutoModel" for one without a head.

    Raises CheckpointError where its config names none, or none that transformers has.
    """
    import transformers
    from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

    names: Sequence[str] = config.architectures or ()
    if not names:
        raise CheckpointError(
            f"the config.json of {source} names no class under `architectures`, so whether the model has a head is not "
            'known: write it there, such as ["BertForSequenceClassification"], or save the model anew'
        )
    found = next((name for name in names if hasattr(transformers, name)), None)
    if found is None:
        raise CheckpointError(
            f"the config.json of {source} names the class {names[0]} under `architectures`, which transformers does "
            "not have: install the version that has it, or name the class there that the weights are of"
        )
    bases = (name for entry in MODEL_MAPPING_NAMES.values() for name in ((entry,) if isinstance(entry, str) else entry))
    return "AutoModel" if found in bases else found


def takes_images(model_class: type[Any]) -> bool:
    """Say whether a model class reads pixels."""
    return getattr(model_class, "main_input_name", "") == "pixel_values"


def is_multiple_choice(model_class: type[Any]) -> bool:
    """Say whether a model class reads several texts for each example, (batch, choices, length), and picks one."""
    return model_class.__name__.endswith("ForMultipleChoice")
