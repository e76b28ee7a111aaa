"""What every family of recordings needs: comparing, a case, and the folder that a manifest lies in."""

import dataclasses
import functools
import lzma
import pathlib
import shutil
import tempfile
from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np

TENSOR, CONFIDENCE = 2e-4, 1e-4  # absolute, float32


class Check(list):
    """Compares, and collects in words what differs. `done` counts the comparisons: a case without any has proved nothing."""

    done = 0

    def note(self, message: str) -> None:
        self.append(message)

    def known(self, what: str, keys: Collection[str], understood: Collection[str]) -> None:
        """Everything a recording says must be understood."""
        strange = sorted(set(keys) - set(understood))
        if strange:
            self.note(f"{what} not understood: {', '.join(strange)}")

    def _shapes(self, what: str, mine: Any, gold: Any) -> tuple[np.ndarray, np.ndarray] | None:
        self.done += 1
        mine, gold = np.asarray(mine), np.asarray(gold)
        if mine.shape == gold.shape:
            return mine, gold
        self.note(f"{what}: shape {mine.shape}, expected {gold.shape}")
        return None

    def same(self, what: str, mine: Any, gold: Any, where: Any = True) -> None:
        """Equal, bit for bit, where asked."""
        pair = self._shapes(what, mine, gold)
        if pair is None:
            return
        bad = np.argwhere((pair[0] != pair[1]) & where)
        if len(bad):
            at = tuple(bad[0].tolist())
            self.note(f"{what}: {len(bad)} of {pair[1].size} differ, first at {at}: {pair[0][at]}, expected {pair[1][at]}")

    def close(self, what: str, mine: Any, gold: Any, tolerance: float, where: Any = True, relative: float = 0.0) -> None:
        """Within tolerance * (1 + relative * |expected|), where asked; infinities in the same places."""
        pair = self._shapes(what, mine, gold)
        if pair is None:
            return
        a, b = pair[0].astype(np.float64), pair[1].astype(np.float64)
        with np.errstate(invalid="ignore"):
            off = np.where((a == b) | (np.isnan(a) & np.isnan(b)), 0.0, np.abs(a - b))
        off = np.where(np.isfinite(off), off, np.inf) / (1 + relative * np.abs(np.where(np.isfinite(b), b, 0)))
        off = np.where(where, off, 0.0)
        worst = off.max(initial=0.0)
        if worst > tolerance:
            at = tuple(np.argwhere(off > tolerance)[0].tolist())
            self.note(f"{what}: off by {worst:.3g}, allowed {tolerance:.3g}; first at {at}: {a[at]:.7g}, expected {b[at]:.7g}")


@dataclasses.dataclass
class Case:
    """One recording. run(check) replays it. informational: a difference is printed, only a crash counts."""

    family: str
    name: str
    run: Callable[[Check], None]
    informational: bool = False

    def result(self) -> tuple[str, Check]:
        """("ok" | "info" | "FAIL", what differs)."""
        check = Check()
        try:
            self.run(check)
        except Exception as error:  # a crash of one case must not hide the others
            check.note(f"{type(error).__name__}: {error}")
            return "FAIL", check
        if not check and not check.done:
            check.note("nothing was compared")
            return "FAIL", check
        return ("ok" if not check else "info" if self.informational else "FAIL"), check


@dataclasses.dataclass
class Folder:
    """A manifest, the arrays beside it, and where its models may lie."""

    path: pathlib.Path
    manifest: Mapping[str, Any]
    models: pathlib.Path | None
    family: str = ""
    device: str = "cpu"

    def model_path(self, name: str) -> str:
        """Beside the cases, or under --models; a folder of the family's own name comes first: names repeat across families."""
        roots = [self.path]
        if self.models:
            roots += [self.models / self.family, self.models / self.path.name, self.models]
        for root in roots:
            for place in (root / name, root / "models" / name):
                if (place / "config.json").exists():
                    return unpacked(place)
        raise FileNotFoundError(f"no model {name} in {', '.join(str(r) for r in roots)}")

    def model(self, name: str, dtype: str = "float32") -> Any:
        """The model, loaded by dllm_fast; loaded once a path, dtype and device."""
        return load(self.model_path(name), dtype, self.device)

    @functools.cached_property
    def _files(self) -> dict[str, Any]:
        return {}

    def npz(self, name: str) -> Any:
        """The opened archive of arrays."""
        if name not in self._files:
            self._files[name] = np.load(self.path / name)
        return self._files[name]

    def arrays(self, file: str, case: str) -> dict[str, np.ndarray]:
        """The arrays of one case: keys `case/...` of the archive, without the prefix."""
        z = self.npz(file)
        return {k[len(case) + 1 :]: z[k] for k in z.files if k.startswith(case + "/")}


_unpacked: list[tempfile.TemporaryDirectory] = []  # they are removed when the program ends


@functools.cache
def unpacked(folder: pathlib.Path) -> str:
    """The folder of a model; or, if its weights are kept as model.safetensors.xz, a copy of it for as long as the program runs."""
    if not (folder / "model.safetensors.xz").exists():
        return str(folder)
    _unpacked.append(tempfile.TemporaryDirectory(prefix="dllm_fast_"))
    copy = pathlib.Path(_unpacked[-1].name) / folder.name
    shutil.copytree(folder, copy, ignore=shutil.ignore_patterns("*.xz", "cases"))
    (copy / "model.safetensors").write_bytes(lzma.decompress((folder / "model.safetensors.xz").read_bytes()))
    return str(copy)


@functools.cache
def load(path: str, dtype: str, device: str) -> Any:
    import dllm_fast

    return dllm_fast.load(path, dtype=dtype, device=device)
