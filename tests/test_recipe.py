"""The recipe: what is accepted, what each mistake is told, overrides, hash and JSON Schema."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml

from hfcompress.core.errors import RecipeError
from hfcompress.core.registry import list_methods
from hfcompress.recipe import Recipe, load_recipe, recipe_schema, resolved
from hfcompress.recipe.yaml12 import parse_yaml

RECIPES = sorted((Path(__file__).parent.parent / "recipes").glob("*.yaml"))
BASE: dict[str, Any] = {
    "model": "some/model",
    "task": "text-classification",
    "data": {"path": "data/sst2"},
    "stages": [
        {"methods": {"movement": {"heads": 0.5}, "distill": {}}, "train": {"max_steps": 3}},
        {"methods": {"quantize_weights": None}},
    ],
}


def _with(path: str, value: Any) -> dict[str, Any]:
    """Return BASE with the value at a dotted path replaced."""
    recipe = copy.deepcopy(BASE)
    *parents, last = path.split(".")
    inner: Any = recipe
    for part in parents:
        inner = inner[int(part)] if isinstance(inner, list) else inner.setdefault(part, {})
    inner[last] = value
    return recipe


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_shipped_recipes_load(path: Path) -> None:
    loaded = load_recipe(path)
    assert loaded.text == path.read_text(encoding="utf-8")
    assert loaded.recipe.stages and loaded.recipe.benchmark is not None
    assert all(stage.methods for stage in loaded.recipe.stages)


def test_there_are_shipped_recipes() -> None:
    assert {"quickstart", "bert-sst2", "dinov2-cifar10"} <= {p.stem for p in RECIPES}


@pytest.mark.parametrize(
    ("path", "value", "parts"),
    [
        ("stagse", 1, ["stagse: unknown key", "Did you mean 'stages'"]),
        ("data.columsn", {}, ["data.columsn: unknown key", "'columns'"]),
        ("data.columns.txt", "a", ["data.columns.txt: unknown key", "'text'"]),
        ("stages.0.trian", {}, ["stages.0.trian: unknown key", "'train'"]),
        ("stages.0.train.load_best_model_at_end", True, ["stages.0.train: load_best_model_at_end", "eval_strategy"]),
        ("stages.0.train.eval_on_start", True, ["stages.0.train: eval_on_start", "eval_strategy"]),
        ("stages.0.train.save_strategy", "best", ["stages.0.train: save_strategy: best", "eval_strategy"]),
        ("stages.0.methods.movement.haeds", 0.5, ["stages.0.methods.movement.haeds: unknown key", "'heads'"]),
        (
            "stages.0.methods.movement.schedule",
            {"strat": 0.1},
            ["stages.0.methods.movement.schedule.strat: unknown key", "'start'"],
        ),
        ("stages.0.methods.movment", {}, ["stages.0.methods: no method is called 'movment'.", "'movement'"]),
        ("stages.0.methods.movement.heads", "half", ["stages.0.methods.movement.heads: ", "number", "'half'"]),
        ("stages.0.train.num_train_epoch", 1, ["stages.0.train.num_train_epoch: ", "got 1", "'num_train_epochs'"]),
        ("stages.0.train.learning_rate", "fast", ["stages.0.train.learning_rate: expected a number (got 'fast')"]),
        ("stages.0.train.max_steps", True, ["stages.0.train.max_steps: expected a whole number (got True)"]),
        ("stages.0.train.eval_strategy", "epochs", ["no such choice (got 'epochs')", "'epoch'"]),
        ("stages.0.train.output_dir", "x", ["stages.0.train.output_dir: not set here (got 'x')", "--output"]),
        ("stages.0.train.seed", 1, ["stages.0.train.seed: not set here", "top-level 'seed'"]),
        ("stages.0.train.hub_token", "hf_x", ["stages.0.train.hub_token: not set here", "publish"]),
        ("finetune.train.optm", "x", ["finetune.train.optm: ", "'optim'"]),
        ("seed", "abc", ["seed: ", "integer", "'abc'"]),
        ("stages", [], ["stages: ", "at least 1"]),
        ("stages.0.methods", {}, ["stages.0.methods: ", "at least 1"]),
        ("data.dataset", "a/b", ["data: give exactly one of 'dataset'", "'path'"]),
        ("data.validation_fraction", 1.5, ["data.validation_fraction: ", "1.5"]),
        ("benchmark.engines", ["tensorrt"], ["benchmark.engines.0: ", "'onnxruntime'", "'tensorrt'"]),
        ("benchmark.shapes", [{"length": 8, "image_size": 8}], ["benchmark.shapes.0: ", "not both"]),
        ("require.size_ratio", 8, ["require.size_ratio: ", "'>=8'", "got 8"]),
        ("require.size_ratio", "=8", ["require.size_ratio: ", "'=8'"]),
        ("publish.repo_id", "a b", ["publish.repo_id: ", "'a b'"]),
        ("model", 3, ["model: ", "model_type", "got 3"]),
        ("model", {"model_type": "vti"}, ["model: ", "'vti'", "'vit'"]),
        ("model", {"model_type": "vit", "hiden_size": 8}, ["model: ", "'hiden_size'", "'hidden_size'"]),
        ("model", {"model_type": "vit", "num_labels": 8}, ["model: ", "'num_labels' comes from the data"]),
    ],
)
def test_mistakes_name_path_value_and_nearest(path: str, value: Any, parts: list[str]) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe(_with(path, value))
    for part in parts:
        assert part in str(caught.value)


def test_all_mistakes_of_the_stages_are_told_at_once() -> None:
    recipe = _with("stages.0.train.num_train_epoch", 1)
    recipe["stages"][1]["methods"] = {"quantise_weights": {}}
    with pytest.raises(RecipeError, match=r"(?s)stages\.0\.train.*stages\.1\.methods"):
        load_recipe(recipe)


def test_a_missing_key_is_named() -> None:
    with pytest.raises(RecipeError, match="task: this key is required"):
        load_recipe({k: v for k, v in BASE.items() if k != "task"})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model: a\nmodel: b\n", r"r\.yaml, line 2, column 1: .*'model' occurs twice"),
        ("data:\n  path: a\n  path: b\n", r"line 3, column 3: .*'path' occurs twice"),
        ("stages: [\n", r"r\.yaml, line 2, column 1: not valid YAML"),
        ("~: a\n", r"line 1, column 1: .*key None is not text"),
        ("1: a\n", "1: unknown key"),
        ("", "this is empty"),
        ("- a\n", "this is a list"),
        ("a: !!python/object:os.system x\n", "not valid YAML"),
    ],
)
def test_bad_yaml(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "r.yaml").write_text(text)
    with pytest.raises(RecipeError, match=message):
        load_recipe(tmp_path / "r.yaml")


def test_a_missing_file_names_its_neighbour(tmp_path: Path) -> None:
    (tmp_path / "quickstart.yaml").write_text("a: 1")
    with pytest.raises(RecipeError, match=r"cannot read the recipe .*Did you mean .*quickstart\.yaml"):
        load_recipe(tmp_path / "quikstart.yaml")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("5e-5", 5e-5),
        ("1.5e-4", 1.5e-4),
        ("-3", -3),
        ("0.5", 0.5),
        ("no", "no"),
        ("true", True),
        ("null", None),
        ("[1, a]", [1, "a"]),
        ("012", 12),
        ("2026-01-01", "2026-01-01"),
    ],
)
def test_yaml_values_mean_what_they_say(text: str, value: Any) -> None:
    found = parse_yaml(text, "here")
    assert found == value and type(found) is type(value)


def test_yaml_merge_keys_work() -> None:
    assert parse_yaml("a: &a {x: 1, y: 2}\nb: {<<: *a, y: 3}", "here")["b"] == {"x": 1, "y": 3}


def test_overrides_are_typed_reach_into_lists_and_change_the_hash() -> None:
    plain = load_recipe(BASE)
    items = ["stages.0.methods.movement.heads=0.25", "data.max_train=10", "stages.0.train.learning_rate=1e-3"]
    changed = load_recipe(BASE, items)
    assert changed.recipe.stages[0].methods["movement"]["heads"] == 0.25
    assert changed.recipe.data.max_train == 10
    assert changed.recipe.stages[0].train == {"max_steps": 3, "learning_rate": 1e-3}
    assert changed.overrides == tuple(items)
    bounds = load_recipe(BASE, ["require.size_ratio=>=4", "require.accuracy_drop= < 0.5"]).recipe
    assert bounds.require == {"size_ratio": ">=4", "accuracy_drop": "< 0.5"}
    assert changed.hash != plain.hash and load_recipe(BASE).hash == plain.hash
    assert BASE["stages"][0]["methods"]["movement"] == {"heads": 0.5}  # the source is not touched


def test_overriding_one_data_source_drops_the_other() -> None:
    hub = _with("data", {"dataset": "a/b", "config": "c", "max_length": 9})
    data = load_recipe(hub, ["data.path=here"]).recipe.data
    assert (data.path, data.dataset, data.config, data.max_length) == ("here", None, None, 9)
    with_more = {**hub, "data": {**hub["data"], "unlabelled": {"dataset": "a/b", "split": "extra"}}}
    with_more["stages"] = [{"methods": {"distill": {}}, "train": {}}]
    more = load_recipe(with_more, ["data.unlabelled.path=there"]).recipe.data
    assert (more.unlabelled.path, more.unlabelled.dataset, more.unlabelled.split) == ("there", None, "extra")
    assert more.dataset == hub["data"]["dataset"]
    assert load_recipe(BASE, ["data.dataset=a/b", "data.config=c"]).recipe.data.config == "c"
    with pytest.raises(RecipeError, match="exactly one"):
        load_recipe(BASE, ["data.dataset=a/b", "data.path=here"])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("stages.0.methods.movement.haeds=0.5", r"stages\.0\.methods\.movement\.haeds: unknown key.*'heads'"),
        ("benchmrk.rounds=3", r"benchmrk: unknown key.*'benchmark'"),
        ("stages.7.train=null", r"--set stages\.7: '7' is not an index of stages\. Known: 0, 1"),
        ("stages.first.train=null", r"--set stages\.first: 'first' is not an index"),
        ("seed.value=3", r"seed"),
        ("model.name.x=3", r"--set model\.name: model is 'some/model', which has no keys"),
        ("seed", "write it as dotted.key=value"),
        ("=3", "write it as dotted.key=value"),
        ("seed=[1", "--set seed, line 1"),
    ],
)
def test_bad_overrides(override: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        load_recipe(BASE, [override])


def test_a_recipe_object_and_its_yaml_are_the_same_recipe(tmp_path: Path) -> None:
    recipe = load_recipe(BASE).recipe
    again = load_recipe(recipe)
    (tmp_path / "r.yaml").write_text(again.text)
    assert again.hash == load_recipe(tmp_path / "r.yaml").hash == load_recipe(BASE).hash
    assert load_recipe(recipe, ["seed=7"]).recipe.seed == 7 and recipe.seed == 42


def test_resolved_writes_out_every_default_and_loads_again() -> None:
    recipe = load_recipe(BASE).recipe
    values = resolved(recipe)
    assert values["seed"] == 42 and values["evaluate"]["batch_size"] == 32
    assert "score_learning_rate" in values["stages"][0]["methods"]["movement"]
    assert resolved(Recipe.model_validate(yaml.safe_load(yaml.safe_dump(values)))) == values


def test_writing_a_default_out_does_not_change_the_hash() -> None:
    assert load_recipe(_with("seed", 42)).hash == load_recipe(BASE).hash


def test_schema_lists_every_key_and_every_method() -> None:
    schema = recipe_schema()
    stage = schema["$defs"]["Stage"]["properties"]
    assert set(stage["methods"]["properties"]) == set(list_methods())
    assert stage["methods"]["additionalProperties"] is False
    assert set(schema["properties"]) == set(Recipe.model_fields)
    for name, definition in schema["$defs"].items():
        if definition.get("type") == "object":
            assert definition["additionalProperties"] is False, name
            assert all(p.get("description") for p in definition["properties"].values()), name
    assert schema["additionalProperties"] is False
    assert "output_dir" not in schema["$defs"]["TrainingArguments"]["properties"]


def test_schema_references_resolve() -> None:
    schema = recipe_schema()

    def walk(node: Any) -> None:
        if isinstance(node, dict):
            if "$ref" in node:
                assert node["$ref"].removeprefix("#/$defs/") in schema["$defs"]
            for value in node.values():
                walk(value)
        elif isinstance(node, list):
            for value in node:
                walk(value)

    walk(schema)


@pytest.fixture(scope="module")
def validator():
    """Return a validator of recipes: making one checks the schema itself, which takes seconds."""
    jsonschema = pytest.importorskip("jsonschema")
    jsonschema.Draft202012Validator.check_schema(recipe_schema())
    return jsonschema.Draft202012Validator(recipe_schema())


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_schema_accepts_shipped_recipes_and_refuses_a_misspelling(path: Path, validator) -> None:
    values = parse_yaml(path.read_text(encoding="utf-8"), str(path))
    assert validator.is_valid(values), list(validator.iter_errors(values))
    name, settings = next(iter(values["stages"][0]["methods"].items()))
    values["stages"][0]["methods"][name] = {**(settings or {}), "haeds": 1}
    assert not validator.is_valid(values)
