# SPDX-License-Identifier: MIT
"""What was computed, as small numbers and hashes: kept, written, read and compared."""

import hashlib
import json
import time
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

SUMMARY, ARRAYS = "goldens.json", "arrays.safetensors"
SAMPLES = 8  # elements of an array that the summary holds, evenly spaced
# A case of this name may differ: random masks are to be drawn by another generator.
INTENDED = "random masks"


def _bytes_of(tensor: torch.Tensor) -> bytes:
    return tensor.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes()


def sha256_of(tensors: dict[str, torch.Tensor]) -> str:
    """Of names, dtypes, shapes and bits, whatever the order."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(_bytes_of(tensor))
    return digest.hexdigest()


def _summary_of(tensors: dict[str, torch.Tensor]) -> dict:
    flat = torch.cat([tensor.flatten().double() for _, tensor in sorted(tensors.items())])
    places = torch.linspace(0, max(flat.numel() - 1, 0), min(SAMPLES, flat.numel()),
                            dtype=torch.float64).long()
    return {"sha256": sha256_of(tensors), "elements": flat.numel(), "sample": flat[places].tolist()}


class Goldens:
    """parts[part][case][name]: JSON values, or {"sha256", "elements", "sample"} of arrays, whole in `arrays`."""

    def __init__(self, facts: dict | None = None):
        self.facts, self.parts, self.arrays, self.seconds = facts or {}, {}, {}, {}

    def record(self, part: str, work) -> None:
        """Runs work(add); add(case, name=value, ...) keeps what a case gave: JSON, a tensor or a dict of tensors."""
        cases = self.parts.setdefault(part, {})

        def add(case: str, **values) -> None:
            for name, value in values.items():
                tensors = {"": value} if isinstance(value, torch.Tensor) else value
                if isinstance(tensors, dict) and any(isinstance(tensor, torch.Tensor) for tensor in tensors.values()):
                    value = _summary_of(tensors)
                    for key, tensor in tensors.items():
                        self.arrays[f"{part}|{case}|{name}|{key}"] = tensor.detach().clone().contiguous()
                cases.setdefault(case, {})[name] = json.loads(json.dumps(value))  # as a reader will find it

        start = time.monotonic()
        work(add)
        self.seconds[part] = round(time.monotonic() - start, 1)
        print(f"recorded {part}: {len(cases)} cases, {self.seconds[part]} s", flush=True)

    def write(self, folder: Path) -> None:
        """One line a value, so that two summaries can be read side by side."""
        folder.mkdir(parents=True, exist_ok=True)
        lines = [f' {json.dumps(key)}: {json.dumps(value)},' for key, value in self.facts.items()]
        lines.append(f' "seconds": {json.dumps(self.seconds)},')
        parts = []
        for part, cases in self.parts.items():
            rows = ",\n".join(
                f"   {json.dumps(case)}: {{\n"
                + ",\n".join(f"    {json.dumps(name)}: {json.dumps(value)}" for name, value in values.items()) + "}"
                for case, values in cases.items())
            parts.append(f"  {json.dumps(part)}: {{\n{rows}}}")
        text = "{\n" + "\n".join(lines) + '\n "parts": {\n' + ",\n".join(parts) + "}\n}\n"
        (folder / SUMMARY).write_text(text)
        save_file(self.arrays, folder / ARRAYS)

    @classmethod
    def read(cls, path: Path) -> "Goldens":
        """From a folder that `write` filled, or from the summary alone: differences of arrays are estimated then."""
        file = path / SUMMARY if path.is_dir() else path
        facts = json.loads(file.read_text())
        found = cls()
        found.seconds, found.parts = facts.pop("seconds"), facts.pop("parts")
        found.facts = facts
        arrays = file.parent / ARRAYS
        found.arrays = load_file(arrays) if arrays.is_file() else {}
        return found


def _relative(one: torch.Tensor, other: torch.Tensor) -> float:
    """The largest difference, relative to the largest magnitude."""
    size = max(one.abs().max().item(), other.abs().max().item())
    return (one - other).abs().max().item() / size if size > 0 else 0.0


def _of_arrays(key: str, old: dict, new: dict, before: Goldens, after: Goldens) -> str:
    if old["elements"] != new["elements"]:
        return f"{old['elements']} elements became {new['elements']}"
    names = [name for name in after.arrays if name.startswith(key + "|")]
    if names and all(name in before.arrays and before.arrays[name].shape == after.arrays[name].shape for name in names):
        worst = max(_relative(before.arrays[name].double(), after.arrays[name].double()) for name in names)
        return f"bits differ; largest difference {worst:.3g} of the largest magnitude"
    worst = _relative(*(torch.tensor(value["sample"], dtype=torch.float64) for value in (old, new)))
    return f"bits differ; largest difference {worst:.3g} of the largest magnitude, among {len(old['sample'])} elements"


def _leaves(value, path=""):
    if isinstance(value, (dict, list)):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _leaves(item, f"{path}.{key}" if path else str(key))
    else:
        yield path, value


def _of_values(old, new) -> tuple[str, str]:
    """What differs, and what is only new in it; empty where nothing is."""
    before, after = dict(_leaves(old)), dict(_leaves(new))
    missing = [path for path in before if path not in after]
    added = [path for path in after if path not in before]
    changed = [path for path in before if path in after and before[path] != after[path]]
    what = [f"{path} is gone" for path in missing[:3]]
    numbers = [path for path in changed if all(isinstance(values[path], (int, float)) for values in (before, after))]
    if numbers:
        def relative(path):
            return abs(before[path] - after[path]) / max(abs(before[path]), abs(after[path]))
        worst = max(numbers, key=relative)
        what.append(f"{len(numbers)} numbers differ, at most by {relative(worst):.3g} relative: {worst or 'it'} was "
                    f"{before[worst]}, is {after[worst]}")
    what += [f"{path or 'it'} was {before[path]!r}, is {after[path]!r}" for path in changed if path not in numbers][:3]
    return "; ".join(what), ", ".join(added[:3])


def _of_cases(part: str, case: str, before: Goldens, after: Goldens):
    """(name, what differs, what is new) of a case's values that are not the same."""
    old, new = (goldens.parts[part].get(case, {}) for goldens in (before, after))
    for name in old | new:
        if name not in new:
            yield name, "is gone", ""
        elif name not in old:
            yield name, "", "all of it"
        elif old[name] != new[name]:
            if all(isinstance(value, dict) and "sha256" in value for value in (old[name], new[name])):
                yield name, _of_arrays(f"{part}|{case}|{name}", old[name], new[name], before, after), ""
            else:
                yield name, *_of_values(old[name], new[name])


def compare(before: Goldens, after: Goldens) -> bool:
    """Prints what differs in the parts that both have; True where nothing does but what is to differ."""
    same = True
    for part in after.parts:
        if part not in before.parts:
            print(f"{part}: not among the goldens")
            continue
        values = sum(map(len, after.parts[part].values()))
        differing = 0
        for case in before.parts[part] | after.parts[part]:
            for name, what, new in _of_cases(part, case, before, after):
                where = f"  {part} / {case} / {name}"
                if new:
                    print(f"{where}: new: {new}")
                if what and case == INTENDED:
                    print(f"{where}: differs as intended: {what}")
                elif what:
                    differing += 1
                    print(f"{where}: {what}")
        same = same and differing == 0
        verdict = f"{differing} differ" if differing else "equal"
        print(f"{part}: {len(after.parts[part])} cases, {values} values: {verdict}")
    left = [part for part in before.parts if part not in after.parts]
    if left:
        print(f"not compared: {', '.join(left)}")
    return same
