"""The findings of a certificate, a file for each kind of question.

Each file registers its findings when it is imported (`register`, in certify/finding.py), and all
files of this folder are imported here: a new finding is a new file, and is named nowhere else.
"""

import importlib
import pkgutil


def load() -> None:
    """Import every file of this folder. The order of findings is that of their declared places."""
    for module in pkgutil.iter_modules(__path__):
        importlib.import_module(f"{__name__}.{module.name}")


load()
