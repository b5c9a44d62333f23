"""The teacher's logits, computed once: the same losses, no forward of the teacher, and never anything stale or torn."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from causal import WORDS, make_causal
from datasets import Dataset, Features, Image, Value
from project import text_project
from safetensors.torch import load_file
from test_data import _png
from test_fill_mask import encoded as unmasked
from test_fill_mask import make as make_mlm
from test_fill_mask import settings
from test_fill_mask import tokenizer as mlm_tokenizer
from test_run import hfcompress
from test_text_generation import StopRunError, _stop
from test_trainer import arguments
from tiny import Examples, make, tokenizer
from torch.utils.data import IterableDataset
from transformers import BertConfig, BertForQuestionAnswering, DataCollatorWithPadding, ViTConfig, ViTImageProcessorPil

from hfcompress import DistillConfig, HFCompressTrainer, MovementConfig
from hfcompress.core.errors import HFCompressError, LifecycleError, RecipeError
from hfcompress.core.progress import listening
from hfcompress.ops.losses import soft_cross_entropy
from hfcompress.recipe import Data, TeacherCache, load_recipe
from hfcompress.run import execute
from hfcompress.run.families_table import smallest
from hfcompress.train import cached_teacher
from hfcompress.train.cached_teacher import CachedTeacher, Computing
from hfcompress.train.fingerprints import example_digests
from hfcompress.train.logit_store import LogitStore, shrunk
from hfcompress.train.tasks import get_task, image_classification
from hfcompress.train.teacher import Teacher

DISTILL = [DistillConfig(logits=0.5, task=0.5)]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HFCOMPRESS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "teacher"


def files(folder: Path) -> list[Path]:
    return [p for p in folder.rglob("*") if p.is_file()]


def texts(size: int = 24) -> Dataset:
    """Texts of many lengths, with a column that the model does not take."""
    generator = torch.Generator().manual_seed(5)
    lengths = [3 + i * 7 % 12 for i in range(size)]
    ids = [torch.randint(10, 99, (n,), generator=generator).tolist() for n in lengths]
    return Dataset.from_dict({"input_ids": ids, "labels": [i % 3 for i in range(size)], "sentence": ["x"] * size})


def trainer(
    name: str = "bert",
    output: Path | str = "unused",
    cache: Any = True,
    args: dict[str, Any] | None = None,
    **more: Any,
) -> HFCompressTrainer:
    own = {"logging_strategy": "steps", "logging_steps": 1, "per_device_train_batch_size": 8, **(args or {})}
    given = {"recipe": DISTILL, "train_dataset": Examples(name), "teacher": make(name, seed=1), **more}
    model = given.pop("model", None) or make(name)
    return HFCompressTrainer(model=model, args=arguments(Path(output), **own), teacher_cache=cache, **given)


def losses(run: HFCompressTrainer) -> list[float]:
    run.train()
    return [entry["loss"] for entry in run.state.log_history if "loss" in entry]


def count_forwards(run: HFCompressTrainer) -> list[int]:
    """Return a list that grows with each forward of the teacher, by what its class does rather than by a hook."""
    seen: list[int] = []
    original = run.teacher.model.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        seen.append(len(next(iter(kwargs.values()))))
        return original(*args, **kwargs)

    run.teacher.model.forward = forward
    return seen


def padded(name: str = "bert") -> dict[str, Any]:
    return {"train_dataset": texts(), "data_collator": DataCollatorWithPadding(tokenizer(name))}


# --- the same training ----------------------------------------------------------------------------------------------


@pytest.mark.fast_cases(2)
@pytest.mark.parametrize(
    "case",
    [
        {"name": "vit"},
        {"name": "bert", **padded()},
        {"name": "roberta", **padded("roberta"), "args": {"train_sampling_strategy": "group_by_length"}},
        {"name": "bert", **padded(), "args": {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 4}},
        {"name": "bert", **padded(), "args": {"dataloader_num_workers": 2, "remove_unused_columns": True}},
    ],
    ids=["images", "dynamic padding", "grouped by length", "accumulation", "workers"],
)
def test_cached_training_is_live_training_up_to_rounding(case, tmp_path):
    live = losses(trainer(output=tmp_path, cache=False, **case))
    first = trainer(output=tmp_path, **case)
    seen = count_forwards(first)
    once = losses(first)
    assert sum(seen) == 24, "the teacher runs once on each example"
    second = trainer(output=tmp_path, **case)
    seen = count_forwards(second)
    assert losses(second) == once and not seen, "a second run finds everything"
    assert len(live) == len(once) == 6
    assert once == pytest.approx(live, rel=2e-3) and once != live


def viewed(seed: int = 0, **augment: Any) -> dict[str, Any]:
    """Return a Trainer's arguments for images that are augmented."""
    task, processor = get_task("image-classification"), ViTImageProcessorPil(size={"height": 16, "width": 16})
    data = Data(path="x", augment={"flip": 0.5, "crop": {"padding": 2}, **augment})
    pixels = np.random.default_rng(0).integers(0, 256, (24, 3, 16, 16), dtype=np.uint8)
    collators = {
        "data_collator": task.collator(processor),
        "train_collator": task.training_collator(processor, data, seed, 3),
    }
    rows = [{"pixel_values": image, "labels": i % 3} for i, image in enumerate(pixels)]
    return {"name": "vit", "train_dataset": rows, **collators}


@pytest.mark.fast_cases(1)
@pytest.mark.parametrize("args", [{}, {"dataloader_num_workers": 1, "remove_unused_columns": True}])
def test_each_view_of_an_image_has_its_own_logits(args, tmp_path):
    case = {**viewed(views=2), "args": {"remove_unused_columns": False, **args}}
    live = losses(trainer(output=tmp_path, cache=False, **case))
    first = trainer(output=tmp_path, **case)
    seen = count_forwards(first)
    once = losses(first)
    assert sum(seen) == 48, "the teacher runs once on each view"
    assert once == pytest.approx(live, rel=2e-3) and once != live
    assert opened(tmp_path, **viewed(views=2, seed=5)) == 0, "for every seed"
    assert opened(tmp_path, **viewed(views=3)) == 24, "one view more"
    assert opened(tmp_path, **viewed(views=2, flip=0.4)) == 48
    assert "are augmented anew each time" in trainer(output=tmp_path, **viewed()).open_teacher_cache()


def test_a_language_model(tmp_path):
    generator = torch.Generator().manual_seed(3)
    rows = [{"input_ids": torch.randint(len(WORDS), (9,), generator=generator)} for _ in range(16)]
    data = [{**row, "labels": row["input_ids"]} for row in rows]
    case = {"model": None, "teacher": make_causal("llama", 1), "train_dataset": data}

    def run(cache: Any) -> list[float]:
        return losses(trainer(output=tmp_path, cache=cache, **{**case, "model": make_causal("llama")}))

    live = run(False)
    assert run(True) == pytest.approx(live, rel=2e-3)  # all 14 words
    assert run(TeacherCache(top_k=6)) == pytest.approx(live, rel=0.1)
    assert len(list((tmp_path / "cache" / "teacher").iterdir())) == 2


@pytest.mark.parametrize("side", ["right", "left"])
def test_tokens_meet_their_logits_however_the_batch_is_padded(side):
    generator = torch.Generator().manual_seed(2)
    data = [{"input_ids": torch.randint(3, len(WORDS), (n,), generator=generator).tolist()} for n in (4, 2, 7, 5)]
    model = smallest("distilbert", "AutoModelForMaskedLM", vocab_size=len(WORDS), initializer_range=0.2)
    teacher = Teacher(model)

    def batch(numbers: Any, longest: int = 0) -> dict[str, torch.Tensor]:
        rows = [data[i]["input_ids"] for i in numbers]
        longest = max(longest, *map(len, rows))
        pads = [[0] * (longest - len(row)) for row in rows]
        put = (lambda row, pad: row + pad) if side == "right" else (lambda row, pad: pad + row)
        mask = [put([1] * len(row), pad) for row, pad in zip(rows, pads, strict=True)]
        ids = [put(row, pad) for row, pad in zip(rows, pads, strict=True)]
        return {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}

    cached = CachedTeacher(teacher, data, 64, {})
    assert cached.fill(Computing(lambda numbers: batch(numbers), size=2)) == 4
    for numbers, longest in (([3, 0], 9), ([1, 2, 0], 0)):
        given = batch(numbers, longest)
        logits = cached(given, torch.tensor(numbers)).logits
        assert logits.shape == (*given["input_ids"].shape, len(WORDS))
        for row, mask, number in zip(logits, given["attention_mask"].bool(), numbers, strict=True):
            alone = teacher(batch([number])).logits[0]
            assert (row[~mask] == 0).all()
            if side == "right":  # with padding on the left, positions and so the teacher's answers would be others
                assert torch.allclose(row[mask], alone, atol=5e-3)


def test_the_largest_logits_stand_for_all():
    logits = torch.randn(5, 40, generator=torch.Generator().manual_seed(0)) * 4
    whole, few = shrunk(logits, 40, per_token=True), shrunk(logits, 8, per_token=True)
    assert torch.allclose(whole.dense(), logits, atol=0.01) and whole.indices is None
    assert torch.allclose(few.dense().logsumexp(-1), logits.logsumexp(-1), atol=0.01)
    largest = logits.topk(8).indices
    assert torch.allclose(few.dense().gather(1, largest), logits.gather(1, largest), atol=0.01)
    assert soft_cross_entropy(few.dense(), logits, 1.0) < 0.05 < soft_cross_entropy(logits * 0, logits, 1.0)
    assert shrunk(logits, 8, per_token=False).values.shape == (5, 40)  # a classifier keeps all
    assert shrunk(logits * 1e6, 40, per_token=True).values.isfinite().all()


def test_resuming_with_a_cache_ends_the_same(tmp_path):
    whole = trainer(output=tmp_path / "whole", **padded())
    whole.train()
    half = {"save_strategy": "steps", "save_steps": 2}
    trainer(output=tmp_path / "half", args=half, **padded()).train()
    resumed = trainer(output=tmp_path / "half", **padded())
    resumed.train(resume_from_checkpoint=str(tmp_path / "half" / "checkpoint-4"))
    ours, theirs = whole.model.state_dict(), resumed.model.state_dict()
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)


# --- what is kept, and when it no longer holds ----------------------------------------------------------------------


def opened(output: Path, **more: Any) -> int:
    """Return how many examples the teacher had to run on."""
    run = trainer(output=output, **more)
    note = run.open_teacher_cache()
    assert note is not None and note.startswith("teacher_cache: ")
    return int(note.split("ran on ")[1].split()[0])


def test_only_what_was_never_seen_is_computed(tmp_path, folder):
    data = texts()
    case = {**padded(), "train_dataset": data}
    assert opened(tmp_path, **case) == 24
    assert opened(tmp_path, **{**case, "train_dataset": data.shuffle(seed=3).select(range(10))}) == 0  # another seed
    relabelled = data.remove_columns("labels").add_column("labels", [0] * 24)
    assert opened(tmp_path, **{**case, "train_dataset": relabelled}) == 0
    assert opened(tmp_path, **{**case, "train_dataset": texts(30)}) == 6
    rows = data.to_dict()
    rows["input_ids"][2][0] += 1
    assert opened(tmp_path, **{**case, "train_dataset": Dataset.from_dict(rows)}) == 1
    for path in files(folder):
        stored = load_file(path)
        assert stored["values"].dtype == torch.float16 and stored["values"].shape[1] == 3


def test_any_change_of_teacher_or_processing_computes_anew(tmp_path):
    case = padded()
    assert opened(tmp_path, **case) == 24
    moved = make("bert", seed=1)
    with torch.no_grad():
        moved.bert.encoder.layer[0].output.dense.bias[3] += 1e-3
    assert opened(tmp_path, **case, teacher=moved) == 24
    other = make("bert", seed=1)
    other.config.layer_norm_eps = 1e-3
    assert opened(tmp_path, **case, teacher=other) == 24
    assert opened(tmp_path, **case, processing_class=tokenizer("bert")) == 24
    assert opened(tmp_path, **case, cache=TeacherCache(top_k=3)) == 24
    cut = DataCollatorWithPadding(tokenizer("bert"))
    assert (
        opened(
            tmp_path,
            **{**case, "data_collator": lambda rows: {k: v[:, :4] if v.ndim > 1 else v for k, v in cut(rows).items()}},
        )
        == 24
    )
    assert opened(tmp_path, **case) == 0


def test_an_image_pipeline_that_scales_otherwise_is_another(tmp_path):
    def collate(factor: float) -> Any:
        return lambda rows: {
            "pixel_values": torch.stack([r["pixel_values"] * factor for r in rows]),
            "labels": torch.tensor([int(r["labels"]) for r in rows]),
        }

    assert opened(tmp_path, name="vit", data_collator=collate(1.0)) == 24
    assert opened(tmp_path, name="vit", data_collator=collate(0.5)) == 24
    assert opened(tmp_path, name="vit", data_collator=collate(1.0)) == 0


def test_equal_examples_are_computed_once(tmp_path):
    twice = texts().select([*range(24), *range(24)])
    assert opened(tmp_path, **{**padded(), "train_dataset": twice}) == 24


# --- when it is off -------------------------------------------------------------------------------------------------


class Augmented(Examples):
    def __getitem__(self, index: int) -> dict[str, Any]:
        example = super().__getitem__(index)
        return {**example, self.key: example[self.key] + torch.rand(()) * 0.1}


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Any:
        examples = Examples("bert")
        return (examples[i] for i in range(len(examples)))


def noisy(rows: list[Any]) -> dict[str, torch.Tensor]:
    pixels = torch.stack([r["pixel_values"] for r in rows])
    return {"pixel_values": pixels + torch.randn_like(pixels), "labels": torch.tensor([int(r["labels"]) for r in rows])}


SMALL = {"vocab_size": 99, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
LATER = {"weight": 0.5, "schedule": {"shape": "linear", "start": 0.3, "end": 0.4}}
OFF = {
    "hidden": ({"recipe": [DistillConfig(hidden=0.5)]}, "a method learns from its hidden states"),
    "cosine later": ({"recipe": [DistillConfig(cosine=LATER)]}, "a method learns from its hidden states"),
    "maps later": ({"recipe": [DistillConfig(maps=LATER)]}, "a method learns from its hidden states"),
    "augmented": ({"name": "vit", "train_dataset": Augmented("vit")}, "the data set gives other inputs each time"),
    "noisy": ({"name": "vit", "data_collator": noisy}, "the data collator gives other inputs each time"),
    "stream": ({"train_dataset": Stream()}, "the training data is a stream"),
}


@pytest.mark.parametrize("case", OFF)
def test_off_with_the_reason_and_the_teacher_runs(case, tmp_path, folder, caplog):
    settings, reason = OFF[case]
    run = trainer(output=tmp_path, args={"max_steps": 2}, **settings)
    seen = count_forwards(run)
    run.train()
    assert len(seen) == 2 and not files(folder)
    assert "teacher_cache is off, the teacher runs on every batch" in caplog.text and reason in caplog.text


def test_off_where_masks_are_drawn(tmp_path, caplog):
    mask = get_task("fill-mask").collator(mlm_tokenizer(), settings(), 1)
    case = {"model": make_mlm(), "teacher": make_mlm(1), "train_dataset": unmasked(24), "data_collator": mask}
    losses(trainer(output=tmp_path, args={"max_steps": 2, "remove_unused_columns": False}, **case))
    assert "the data collator masks other tokens each time" in caplog.text


def test_off_where_there_are_two_rows_of_logits(tmp_path, caplog):
    """Question answering: where the answer begins, and where it ends."""
    models = [BertForQuestionAnswering(BertConfig(**SMALL)) for _ in range(2)]
    rows = [{"input_ids": torch.arange(9) + i, "start_positions": 1, "end_positions": i % 3 + 1} for i in range(8)]
    run = trainer(output=tmp_path, model=models[0], teacher=models[1], train_dataset=rows, args={"max_steps": 2})
    assert all(loss > 0 for loss in losses(run))
    assert "logits of several kinds" in caplog.text


def test_off_where_a_method_looks_inside(tmp_path):
    run = trainer(output=tmp_path)
    run.teacher.model.bert.encoder.layer[0].register_forward_hook(lambda *_: None)
    assert "a method reads what goes on inside it" in run.open_teacher_cache()


def test_finding_out_draws_no_random_numbers(tmp_path):
    run = trainer(name="vit", output=tmp_path, train_dataset=Augmented("vit"))
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    run.open_teacher_cache()
    assert torch.equal(torch.get_rng_state(), before[0]) and (np.random.get_state()[1] == before[1]).all()


def test_without_a_teacher_it_is_a_mistake(tmp_path):
    with pytest.raises(LifecycleError, match="teacher_cache: no method of this stage learns from a teacher"):
        HFCompressTrainer(make("bert"), arguments(tmp_path), recipe=[MovementConfig(ffn=0.5)], teacher_cache=True)
    stage = {"methods": {"quantize_weights": {}}}
    recipe = {"model": "x", "task": "text-classification", "data": {"path": "x"}, "stages": [stage]}
    with pytest.raises(RecipeError, match="teacher_cache: no stage that trains has a method with a teacher"):
        load_recipe({**recipe, "teacher_cache": True})
    assert load_recipe({**recipe, "teacher_cache": False}).recipe.teacher_cache is False


# --- files ----------------------------------------------------------------------------------------------------------


def test_an_interruption_leaves_whole_files_only(tmp_path, folder, monkeypatch):
    monkeypatch.setattr(cached_teacher, "FILE_BYTES", 30)  # 8 examples of 3 numbers a file
    run = trainer(output=tmp_path, **padded())
    original, calls = run.teacher.model.forward, []

    def forward(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return original(*args, **kwargs)

    run.teacher.model.forward = forward
    with pytest.raises(KeyboardInterrupt):
        run.train()
    assert len(files(folder)) == 2 and all(len(load_file(p)["hashes"]) == 8 for p in files(folder))
    assert opened(tmp_path, **padded()) == 8


def test_two_runs_that_write_at_once(tmp_path, folder):
    one, two = (trainer(output=tmp_path, **padded()) for _ in range(2))
    ready: list[str | None] = []
    seen = count_forwards(two)
    original = one.teacher.model.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        if not ready:  # while the first is computing, the second computes and writes it all
            ready.append(two.open_teacher_cache())
        return original(*args, **kwargs)

    one.teacher.model.forward = forward
    assert losses(one) == losses(two) and sum(seen) == 24
    assert len(files(folder)) == 1 and opened(tmp_path, **padded()) == 0


def test_a_torn_file_counts_as_missing(tmp_path, folder):
    assert opened(tmp_path, **padded()) == 24
    (path,) = files(folder)
    path.write_bytes(path.read_bytes()[:100])
    assert opened(tmp_path, **padded()) == 24
    assert opened(tmp_path, **padded()) == 0


def test_a_folder_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("HFCOMPRESS_CACHE", str(tmp_path / "file"))
    with pytest.raises(HFCompressError, match="cannot write"):
        opened(tmp_path, **padded())


def test_the_store_finds_what_several_files_hold(tmp_path):
    store, generator = LogitStore(tmp_path), torch.Generator().manual_seed(1)
    hashes = np.array([bytes([i]) * 15 + b"x" for i in range(9)], dtype="S16")
    rows = [torch.randn(1 + i % 3, 7, generator=generator) for i in range(9)]
    for part in (slice(0, 4), slice(4, 9)):
        store.write(hashes[part], [shrunk(r, 3, per_token=True) for r in rows[part]])
    where = store.find(hashes[::-1])
    assert len({tuple(w) for w in where.tolist()}) == 9
    for found, row in zip(where, rows[::-1], strict=True):
        assert torch.equal(store.read(found).dense(), shrunk(row, 3, per_token=True).dense())
    assert (store.find(np.array([b"y" * 16])) == -1).all()


# --- processes and runs ---------------------------------------------------------------------------------------------

DISTRIBUTED = """
import os, sys
sys.path.insert(0, {tests!r})
import torch
from test_teacher_cache import count_forwards, padded, trainer
from pathlib import Path

run = trainer(output={folder!r}, args={{"per_device_train_batch_size": 4}}, **padded())
seen = count_forwards(run)
run.train()
mine = torch.cat([p.detach().float().flatten() for p in run.model.parameters()])
others = run.accelerator.gather(mine[None])
assert len(others) == 2 and torch.equal(others[0], others[1]), "the ranks ended with different models"
assert sum(seen) == 12, seen
if run.is_world_process_zero():
    print("each ran on half")
torch.distributed.destroy_process_group()
sys.stdout.flush()
os._exit(0)  # gloo's threads may abort an interpreter that shuts down around them
"""


@pytest.mark.slow
def test_two_processes_share_the_work(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(DISTRIBUTED.format(tests=str(Path(__file__).parent), folder=str(tmp_path / "run")))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(script)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=400)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "each ran on half" in done.stdout


@pytest.mark.slow
def test_runs_of_other_seeds_share_it(tmp_path, monkeypatch):
    train = {"num_train_epochs": 1, "per_device_train_batch_size": 16, "eval_strategy": "epoch"}
    stages = [
        {"methods": {"distill": {}}, "train": train},
        {"methods": {"distill": {"hidden": 1.0}}, "train": train},
        {"methods": {"movement": {"ffn": 0.5, "round_to": 4}}, "train": train},
    ]
    path = text_project(tmp_path, stages=stages, teacher_cache=True, evaluate={"control": True})
    monkeypatch.setattr(execute, "measure", _stop)

    def notes(seed: int) -> list[str]:
        out = tmp_path / str(seed)
        with pytest.raises(StopRunError):
            execute.run_recipe(load_recipe(path, [f"seed={seed}"]), out)
        log = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
        return [entry["note"] for entry in log if "note" in entry]

    first, second, control, control_hidden = notes(1)
    assert "teacher ran on 3 now" in first  # the 43 texts are three different ones
    assert "off" in second and "hidden states" in second and "off" in control_hidden
    assert "teacher ran on 0 now" in control and "teacher ran on 0 now" in notes(2)[0]


def test_filling_it_shows_progress(tmp_path, capsys):
    shown: list[tuple[str, float]] = []
    with listening(lambda text, fraction: shown.append((text, fraction))):
        opened(tmp_path, **padded())
    assert shown[0] == ("running the teacher once", 0.0) and shown[-1][1] == 1.0 and len(shown) > 2
    assert "teacher:" not in capsys.readouterr().err  # disable_tqdm
    opened(tmp_path, **padded(), args={"disable_tqdm": False}, cache=TeacherCache(top_k=2))
    assert "teacher: 100%" in capsys.readouterr().err


def test_images_are_told_apart_without_decoding_them(tmp_path, monkeypatch):
    images, task = [{"bytes": _png(i), "path": None} for i in (1, 2, 1)], get_task("image-classification")
    (tmp_path / "four.png").write_bytes(_png(4))
    rows = {"image": [*images, {"bytes": None, "path": str(tmp_path / "four.png")}], "label": [0, 1, 0, 1]}
    features = Features(image=Image(), label=Value("int64"))
    monkeypatch.setattr(image_classification, "EAGER_BYTES", 0)
    processor = task.load_processor(None, ViTConfig(image_size=8), Data(path="x"))
    lazy = task.encode(Dataset.from_dict(rows, features=features), processor, Data(path="x"))
    monkeypatch.setattr(image_classification, "_pixels", None)
    first, sizes = example_digests(lazy)
    assert first[0] == first[2] and len(set(first.tolist())) == 3 and len(sizes) == 4
    (tmp_path / "four.png").write_bytes(_png(5))
    assert (example_digests(lazy)[0] != first).tolist() == [False, False, False, True]


@pytest.mark.slow
def test_bench_times_a_step_that_looks_the_teacher_up(tmp_path, monkeypatch, capsys):
    path = text_project(tmp_path, teacher_cache=True)
    status, printed, errors = hfcompress(monkeypatch, capsys, "bench", "--training", path, "--rounds", "1")
    assert status == 0, errors
    assert "HFCompressTrainer / (stock + teacher)" in printed and "teacher cached / stock" in printed
    hidden = ["--set", "stages.0.methods.distill.hidden=1"]
    status, _, errors = hfcompress(monkeypatch, capsys, "bench", "--training", path, "--rounds", "1", *hidden)
    assert status == 2 and "teacher_cache is off" in errors
