"""Bugs planted in the text of a source file: how a kernel that an accelerator compiles, or interprets, is made wrong."""
from __future__ import annotations

import sys
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from unittest.mock import patch

from ...platforms import registry
from .plant import FAMILIES, Variant

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class SourceBug:
    """One mistake. name: the op and the mistake. file: from the package's root; `old` stands in it once, and becomes `new`."""

    name: str
    source: str
    file: str
    old: str
    new: str
    families: tuple[str, ...] = ()
    """Prefixes of the cases that concern it; without any, those of its op."""
    platform: str = "cuda:interpreted"

    @property
    def op(self) -> str:
        return self.name.partition(".")[0]

    @property
    def module(self) -> str:
        return f"{__package__.partition('.')[0]}.{self.file.removesuffix('.py').replace('/', '.')}"

    def text(self) -> str:
        """The wrong source. Raises `ValueError` where `old` is not in the file, or more than once."""
        right = (ROOT / self.file).read_text(encoding="utf-8")
        if right.count(self.old) != 1:
            raise ValueError(f"{self.name}: {self.old!r} stands {right.count(self.old)} times in {self.file}, and must once")
        return right.replace(self.old, self.new)

    def variant(self) -> Variant:
        """For the self-test."""
        return Variant(self.name, self.op, self.source, lambda: registry.named(self.platform), self.families or FAMILIES[self.op],
                       lambda: planted(self), self.platform, killers().get(self.name, ""))


@cache
def killers() -> Mapping[str, str]:
    """Bug -> the case that killed it when `killers.toml` was written."""
    found: Mapping[str, str] = tomllib.loads(Path(__file__).with_name("killers.toml").read_text(encoding="utf-8"))
    return found


@contextmanager
def planted(bug: SourceBug) -> Iterator[None]:
    """Whoever imports a function of the file, in its folder, has the wrong one meanwhile."""
    right, folder_of = import_module(bug.module), bug.module.rpartition(".")[0]
    # All of the folder now: what is imported first while the bug is there would keep it.
    for path in (ROOT / bug.file).parent.glob("[!_]*.py"):
        import_module(f"{folder_of}.{path.stem}")
    own = {name: held for name, held in vars(right).items() if getattr(held, "__module__", None) == right.__name__}
    with TemporaryDirectory() as folder, ExitStack() as patches:
        path = Path(folder, Path(bug.file).name)
        path.write_text(bug.text(), encoding="utf-8")
        wrong = _loaded(f"{right.__name__}_planted", path)
        for user in [module for name, module in sys.modules.items() if name.startswith(folder_of)]:
            for name, held in list(vars(user).items()):
                if name in own and held is own[name]:
                    patches.enter_context(patch.object(user, name, getattr(wrong, name)))
        yield


def _loaded(name: str, path: Path) -> ModuleType:
    """The module of a file that lies elsewhere than its package, whose relative imports it keeps."""
    spec = spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
