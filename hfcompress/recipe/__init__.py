"""What a run is told: the typed recipe, read strictly from YAML."""

from .data import Columns, Data, Masking, Splits, Unlabelled
from .load import LoadedRecipe, load_recipe, recipe_hash, recipe_schema, resolved
from .schema import Benchmark, Engine, Evaluate, Finetune, Publish, Recipe, Stage, TeacherCache
from .shape import Shape

__all__ = [
    "Benchmark",
    "Columns",
    "Data",
    "Engine",
    "Evaluate",
    "Finetune",
    "LoadedRecipe",
    "Masking",
    "Publish",
    "Recipe",
    "Shape",
    "Splits",
    "Stage",
    "TeacherCache",
    "Unlabelled",
    "load_recipe",
    "recipe_hash",
    "recipe_schema",
    "resolved",
]
