"""A small batch that a model takes, made from its config and signature: text, images, sound, or several of these."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

Batch = dict[str, Any]
EXAMPLES, TOKENS, DECODED = 2, 9, 5
_CHOICES = 2  # of a model that chooses between several texts
_FRAMES = 8  # of a video, where the config does not say
_SAMPLES = (4000, 16000)  # of sound
_SECTIONS = (  # where a config holds those of a model's parts
    "text_config",
    "vision_config",
    "audio_config",
    "speech_config",
    "language_config",
    "encoder_config",
    "backbone_config",
    "encoder",
    "decoder",
)


@torch.no_grad()
def synthetic_batch(model: nn.Module) -> tuple[Batch | None, Exception | None]:
    """Return a batch that the model, in evaluation mode, takes; None, and what the likeliest one met, if none is found.

    The random state stays as it was.
    """
    first: Exception | None = None
    for batch in _candidates(model):
        try:
            run(model, batch)
        except Exception as error:  # whatever a model raises at inputs that are not its own
            first = first or error
        else:
            return batch, None
    return None, first


@torch.no_grad()
def run(model: nn.Module, batch: Any) -> Any:
    """Return what the model gives for a batch in evaluation mode; it is left as it was found.

    Its config too, in which a model notes what its labels are when it first sees some.
    """
    training = [module for module in model.modules() if module.training]
    parameter = next(model.parameters(), torch.empty(0))
    cuda = [parameter.device] if parameter.device.type == "cuda" else []
    config = getattr(model, "config", None)
    noted = getattr(config, "problem_type", None)
    model.eval()
    try:
        with torch.random.fork_rng(cuda):
            return model(**{key: _like(value, parameter) for key, value in batch.items()})
    finally:
        for module in training:
            module.training = True
        if getattr(config, "problem_type", None) != noted:
            setattr(config, "problem_type", noted)  # noqa: B010 - a config of any kind


def _like(value: Any, parameter: Tensor) -> Any:
    if not isinstance(value, Tensor):
        return value
    return value.to(parameter.device)


def _candidates(model: nn.Module) -> Iterator[Batch]:
    """Yield batches to try, the likeliest first."""
    config: Any = getattr(model, "config", None)
    if config is None:
        return
    taken = inspect.signature(model.forward).parameters
    main = str(getattr(model, "main_input_name", "input_ids"))
    random = torch.Generator().manual_seed(0)
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point() and p.numel()), torch.float32)
    text = _text(config, taken, random) if "input_ids" in taken else {}
    decoder = {"decoder_input_ids": _ids(config, DECODED, random)} if _decodes(config, taken) else {}
    for other in _not_text(config, main, taken, random):
        other = {name: value.to(dtype) if value.is_floating_point() else value for name, value in other.items()}
        yield {**other, **decoder}
        if text:
            yield {**text, **other, **decoder}
    if text:
        yield {**text, **decoder}
        yield {"input_ids": text["input_ids"], **decoder}
        yield {"input_ids": text["input_ids"]}
        yield {name: value.unsqueeze(1).repeat(1, _CHOICES, *[1] * (value.dim() - 1)) for name, value in text.items()}
    if text and "pixel_values" in taken and main != "pixel_values":
        for other in _not_text(config, "pixel_values", taken, random):
            yield {**text, **{name: value.to(dtype) for name, value in other.items()}, **decoder}


def _decodes(config: Any, taken: Any) -> bool:
    return "decoder_input_ids" in taken and bool(getattr(config, "is_encoder_decoder", False))


def _text(config: Any, taken: Any, random: torch.Generator) -> Batch:
    ids = _ids(config, TOKENS, random)
    end = getattr(config, "eos_token_id", None)
    if getattr(config, "is_encoder_decoder", False) and isinstance(end, int):
        ids[:, -1] = end  # where BART's classifier looks
    batch: Batch = {"input_ids": ids}
    if "attention_mask" in taken:
        batch["attention_mask"] = torch.ones_like(ids)
    if "bbox" in taken:
        batch["bbox"] = torch.zeros(*ids.shape, 4, dtype=torch.long)
    return batch


def _ids(config: Any, length: int, random: torch.Generator) -> Tensor:
    """Return ids of ordinary tokens: special ones stand for padding, images or the end."""
    size = _find(config, "vocab_size") or 2
    special: set[Any] = set()
    for each in _sections(config):
        for key, value in vars(each).items():
            if key.endswith(("_id", "_index")):
                special |= set(value) if isinstance(value, list | tuple) else {value}
    usual = [id for id in range(min(int(size), 1000)) if id not in special] or [0]
    return torch.tensor(usual)[torch.randint(len(usual), (EXAMPLES, length), generator=random)]


def _not_text(config: Any, main: str, taken: Any, random: torch.Generator) -> Iterator[dict[str, Tensor]]:
    def noise(*shape: int) -> Tensor:
        return torch.randn(EXAMPLES, *shape, generator=random)

    if main == "pixel_values" or ("pixel_values" in taken and "input_ids" not in taken):
        channels = int(_find(config, "num_channels") or 3)
        for high, wide in _image_sizes(config):
            yield {"pixel_values": noise(channels, high, wide)}
        frames = int(_find(config, "num_frames") or _FRAMES)
        yield {"pixel_values": noise(frames, channels, *next(_image_sizes(config)))}
    elif main == "pixel_values_videos":
        frames = int(_find(config, "num_frames") or _FRAMES)
        yield {main: noise(frames, int(_find(config, "num_channels") or 3), *next(_image_sizes(config)))}
    elif main == "input_features":
        bins = int(_find(config, "num_mel_bins") or _find(config, "feature_size") or 80)
        positions = _find(config, "max_source_positions")
        for length in ([2 * int(positions)] if positions else []) + [64, 128]:
            yield {main: noise(bins, length)}
            yield {main: noise(length, bins)}
        yield {main: noise(64, int(_find(config, "feature_projection_input_dim") or 160))}
    elif main == "input_values":
        for samples in _SAMPLES:
            yield {main: noise(samples)}
            yield {main: noise(1, samples)}
        yield {main: noise(int(_find(config, "max_length") or 1024), int(_find(config, "num_mel_bins") or 128))}
    elif main in ("inputs_embeds", "hidden_states") and "input_ids" not in taken:
        yield {main: noise(TOKENS, int(_find(config, "hidden_size") or 0))}


def _image_sizes(config: Any) -> Iterator[tuple[int, int]]:
    found = _find(config, "image_size")
    if isinstance(found, dict):
        found = list(found.values())[:2]
    for size in (found, 64, 224):
        if size:
            high, wide, *_ = [size, size] if isinstance(size, int) else [*size, size[0]]
            yield int(high), int(wide)


def _sections(config: Any) -> list[Any]:
    """Return a config and those it is made of."""
    inner = [getattr(config, name, None) for name in _SECTIONS]
    return [config, *(each for each in inner if hasattr(each, "to_dict"))]


def _find(config: Any, name: str) -> Any:
    """Return what a config, or one it is made of, says under `name`."""
    return next((v for each in _sections(config) if (v := getattr(each, name, None)) is not None), None)
