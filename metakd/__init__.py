"Learning with missing modalities: MetaKD and its peers. The names below are imported when they are first asked for."
from importlib import import_module

__version__ = "0.1.0"

HOMES = {  # name -> the module that has it
    "Batch": "batch",
    "Classification": "tasks.classification",
    "MetaKD": "methods.metakd",
    "MetaKDClassifier": "estimators",
    "MetaKDMultiLabel": "estimators",
    "MetaKDRecipe": "methods.metakd",
    "MetaKDRegressor": "estimators",
    "MetaKDSurvival": "estimators",
    "MetakdError": "files",
    "MetakdWarning": "files",
    "Method": "tasks.base",
    "MultiLabel": "tasks.multilabel",
    "Recipe": "tasks.base",
    "Regression": "tasks.regression",
    "Segmentation": "tasks.segmentation",
    "Supervised": "methods.supervised",
    "Survival": "tasks.survival",
    "Task": "tasks.base",
    "align": "data.tables",
    "classifier": "nn.model",
    "evaluate": "evaluation",
    "predict": "prediction",
    "read_view": "data.tables",
    "register": "methods.registry",
    "segmenter": "nn.model",
    "stratified_split": "data.tables",
    "train": "training",
}
__all__ = [*HOMES, "__version__"]


def __getattr__(name: str):
    if name not in HOMES:
        raise AttributeError(f"module 'metakd' has no attribute '{name}'")
    return getattr(import_module(f"metakd.{HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *HOMES])
