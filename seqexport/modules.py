"""A module of a class of the user's own, made with its arguments and with a checkpoint's weights in it."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from seqexport.archives import read_content
from seqexport.errors import CheckpointError, InputError, SeqExportError
from seqexport.inference import find_weights
from seqexport.sources import first_line, line_of_error


@dataclass(frozen=True)
class UserModule:
    """A module, with where it and its weights come from. notes, unused: as in a checkpoint."""

    module: nn.Module
    source: str
    checkpoint_sha256: str | None = None
    notes: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()


def load_module(where: str, init: Mapping[str, Any] | None = None, checkpoint: str | Path | None = None) -> UserModule:
    """The class at `package.module:Class` or `path/file.py:Class`, made with `init`, with the checkpoint's weights.

    This runs the user's own code, as importing it does. Raises InputError where there is no such class or it can't be
    made, and CheckpointError where the weights are not the module's.
    """
    made = _make(_class(where), where, init or {}).eval()
    if checkpoint is None:
        return UserModule(made, where)
    content = read_content(checkpoint)
    tensors = find_weights(content.path, content.tree, recurrent=False).tensors
    unused = _load_weights(made, tensors, content.path, where)
    return UserModule(made, f"{where} with {checkpoint}", content.sha256, content.notes, unused)


def _class(where: str) -> type[nn.Module]:
    place, colon, name = where.rpartition(":")
    if not colon or not place or not name.isidentifier():
        raise InputError(f"The module {where!r} is not of the form package.module:Class or path/file.py:Class.")
    try:
        module = _from_file(Path(place)) if place.endswith(".py") else importlib.import_module(place)
    except SeqExportError:
        raise
    except (Exception, SystemExit) as error:  # whatever the user's code does when it is imported
        raise InputError(
            f"{place} could not be imported ({type(error).__name__}: {first_line(error)}){_at(error)}: "
            "expected a file or package that can be imported here."
        ) from error
    found = getattr(module, name, None)
    if not (isinstance(found, type) and issubclass(found, nn.Module)):
        classes = [
            key for key, value in vars(module).items() if isinstance(value, type) and issubclass(value, nn.Module)
        ]
        what = f"is a {type(found).__name__}" if found is not None else "is not there"
        raise InputError(
            f"{place} has no torch.nn.Module called {name!r} (it {what}); "
            f"expected one of {', '.join(classes) or 'none, for it has none'}."
        )
    return found


def _from_file(path: Path) -> Any:
    """The file as a module; what lies beside it can be imported by it."""
    if not path.is_file():
        raise InputError(f"There is no file {path}: give the file that has the module's class, as path/file.py:Class.")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules.setdefault(path.stem, module)  # dataclasses look their module up there
    sys.path.insert(0, str(path.parent.resolve()))
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(path.parent.resolve()))
    return module


def _make(made_from: type[nn.Module], where: str, init: Mapping[str, Any]) -> nn.Module:
    try:
        return made_from(**init)
    except Exception as error:  # whatever the user's constructor raises
        signature = str(inspect.signature(made_from))
        raise InputError(
            f"{where} could not be made with {dict(init)} ({type(error).__name__}: {first_line(error)})"
            f"{_at(error)}: give what its constructor {signature[:200]} takes with --init, as JSON."
        ) from error


def _load_weights(module: nn.Module, tensors: Mapping[str, Tensor], path: Path, where: str) -> tuple[str, ...]:
    """Put the weights in, under whatever prefixes wrappers gave them; gives the names that the module does not use."""
    expected = module.state_dict()
    plain = {name.replace("_orig_mod.", ""): tensor for name, tensor in tensors.items()}
    prefixes = {name[: -len(key)] for name in plain for key in [next(iter(expected), "")] if key and name.endswith(key)}
    fits = max(sorted({"", *prefixes}, key=len), key=lambda prefix: sum(prefix + key in plain for key in expected))
    given = {key: plain[fits + key] for key in expected if fits + key in plain}
    unused = tuple(name for name in plain if not (name.startswith(fits) and name[len(fits) :] in expected))
    if missing := [key for key in expected if key not in given]:
        raise CheckpointError(
            f"{path} lacks {len(missing)} of the {len(expected)} weights of {where} ({', '.join(missing[:3])}); "
            f"it has {', '.join(list(plain)[:3]) or 'none'}: give its own checkpoint, or the --init it was made with."
        )
    for key, tensor in given.items():
        if tensor.shape != expected[key].shape:
            raise CheckpointError(
                f"{path}: {fits}{key} has the shape {list(tensor.shape)}, but {where} has {list(expected[key].shape)}: "
                "give the --init that it was made with."
            )
        if tensor.is_floating_point() and not tensor.isfinite().all():
            count = int((~tensor.isfinite()).sum())
            raise CheckpointError(f"{path}: {fits}{key} holds {count} values that are NaN or infinite.")
    module.load_state_dict(given, strict=False)
    return unused


def _at(error: BaseException) -> str:
    line = line_of_error(error)
    return f" at {line}" if line else ""
