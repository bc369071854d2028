"""The admin API of what is installed: tasks and their recipes."""

from fastapi import APIRouter

from modelmill import plugins
from modelmill.control import schemas, views
from modelmill.control.api_base import PREFIX
from modelmill.tasks.base import task_named

router = APIRouter(prefix=PREFIX, tags=["catalogue"])


@router.get("/tasks")
def tasks() -> list[schemas.TaskView]:
    """What can be trained and served."""
    return [views.task_view(name) for name in plugins.names("tasks")]


@router.get("/recipes")
def recipes(task: schemas.TaskName) -> list[schemas.RecipeView]:
    """The recipes of a task, with the defaults and meaning of every setting."""
    default = task_named(task).RECIPE
    return [
        views.recipe_view(task, name, name == default)
        for name in plugins.names(plugins.recipes_of(task))
    ]
