"""The tasks a recipe may name; a new one is one file and one import here."""

from . import fill_mask as _fill_mask  # noqa: F401 - importing a task registers it
from . import image_classification as _image_classification  # noqa: F401
from . import text_classification as _text_classification  # noqa: F401
from . import text_generation as _text_generation  # noqa: F401
from .base import Task, auto_class_for, get_task, metric_key, register_task, tasks

__all__ = ["Task", "auto_class_for", "get_task", "metric_key", "register_task", "tasks"]
