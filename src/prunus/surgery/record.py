"""What surgery did to a network, as data: enough to repeat it on a fresh network of the same architecture."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias, cast

import torch
from torch import Tensor, nn

from prunus.errors import ArtifactError
from prunus.files import DamagedFile, parse_json
from prunus.graph.build import fingerprint
from prunus.surgery.replaced import ReplaceEdit, from_tree, to_tree
from prunus.version import VERSION

_MOST_INDICES = 2**24  # a record is small; a file that asks for more is damaged or hostile


@dataclass(frozen=True, eq=False)
class SliceEdit:
    """Keep only these original indices (int64) of one axis, which had ``size`` entries, of one parameter or buffer."""

    parameter: str
    axis: int
    kept: Tensor
    size: int


@dataclass(frozen=True)
class AttributeEdit:
    """Set an attribute such as ``out_channels`` of the module at this dotted path ("" is the network itself).

    ``repaired``: it is a width that the network's own Python code holds, not an attribute of a PyTorch layer.
    """

    module: str
    attribute: str
    value: int | tuple[int, ...]
    repaired: bool = False


@dataclass(frozen=True, eq=False)
class IndexEdit:
    """Replace a buffer of channel numbers by these (int64, one axis)."""

    buffer: str
    values: Tensor


@dataclass(frozen=True)
class BiasEdit:
    """Give the layer at this dotted path, which has none, a bias: one entry for every output that is left, zero at first.

    What it holds is saved with the network, like any weight.
    """

    layer: str


@dataclass(frozen=True, eq=False)
class SelectEdit:
    """Let the layer at this dotted path read only these channels of its input (int64); its weight is sliced along.

    A batch norm's selection is of all channels, and its buffer ``selected`` is sliced like any tensor.
    """

    layer: str
    values: Tensor


Edit: TypeAlias = "SliceEdit | AttributeEdit | IndexEdit | BiasEdit | SelectEdit | ReplaceEdit"


@dataclass(frozen=True, eq=False)
class SurgeryRecord:
    """The edits, in order, that turn a network with this ``fingerprint`` (names and shapes, hashed) into the small one."""

    fingerprint: str
    edits: tuple[Edit, ...]
    versions: Mapping[str, str]

    @property
    def kept(self) -> dict[str, dict[int, Tensor]]:
        """Parameter or buffer name -> axis -> original indices kept; only axes that changed."""
        table: dict[str, dict[int, Tensor]] = {}
        for edit in self.edits:
            if isinstance(edit, SliceEdit):
                axes = table.setdefault(edit.parameter, {})
                axes[edit.axis] = (
                    axes[edit.axis][edit.kept] if edit.axis in axes else edit.kept
                )  # sliced again after a replacement
        return table

    @property
    def attributes(self) -> dict[str, dict[str, int | tuple[int, ...]]]:
        """Module path -> attribute -> new value."""
        table: dict[str, dict[str, int | tuple[int, ...]]] = {}
        for edit in self.edits:
            if isinstance(edit, AttributeEdit):
                table.setdefault(edit.module, {})[edit.attribute] = edit.value
        return table

    @property
    def indices(self) -> dict[str, Tensor]:
        """Buffer of channel numbers -> its new contents."""
        return {edit.buffer: edit.values for edit in self.edits if isinstance(edit, IndexEdit)}

    @property
    def biases(self) -> tuple[str, ...]:
        """Layers that were given a bias, in order."""
        return tuple(edit.layer for edit in self.edits if isinstance(edit, BiasEdit))

    @property
    def selections(self) -> dict[str, Tensor]:
        """Layers that read some channels of their input only -> which."""
        return {edit.layer: edit.values for edit in self.edits if isinstance(edit, SelectEdit)}

    @property
    def replacements(self) -> tuple[ReplaceEdit, ...]:
        """Layers that others stand in for, in order."""
        return tuple(edit for edit in self.edits if isinstance(edit, ReplaceEdit))

    def stages(self) -> list[SurgeryRecord]:
        """The record in parts to be carried out one after another: in each, replacements come first and slices mean what is
        there then. The first part replaces nothing."""
        parts: list[list[Edit]] = [[]]
        for edit in self.edits:
            if isinstance(edit, ReplaceEdit) and not (parts[-1] and isinstance(parts[-1][-1], ReplaceEdit)):
                parts.append([])
            parts[-1].append(edit)
        return [SurgeryRecord(self.fingerprint, tuple(part), self.versions) for part in parts]

    @property
    def repaired(self) -> tuple[str, ...]:
        """What the network's own code held and was set anew: ``module.attribute`` of widths, buffers of channel numbers."""
        attributes = [f"{e.module}.{e.attribute}".lstrip(".") for e in self.edits if isinstance(e, AttributeEdit) and e.repaired]
        return (*attributes, *self.indices)

    def compose(self, later: SurgeryRecord) -> SurgeryRecord:
        """One record for this surgery followed by ``later`` (whose indices count in the network that this one left).

        A bias that this surgery added has no slices: replaying gives it the width that is left in the end.

        Raises:
            ArtifactError: ``later`` slices an axis that doesn't have the width this record leaves.
        """
        *done, last = self.stages()
        first, *rest = later.stages()
        edits = (*(e for part in done for e in part.edits), *last._then(first), *(e for part in rest for e in part.edits))
        return SurgeryRecord(self.fingerprint, edits, later.versions)

    def _then(self, later: SurgeryRecord) -> tuple[Edit, ...]:
        """The edits of one stage and of another right after it, which replaces nothing."""
        slices = {(e.parameter, e.axis): e for e in self.edits if isinstance(e, SliceEdit)}
        attributes = {(e.module, e.attribute): e for e in self.edits if isinstance(e, AttributeEdit)}
        added = {f"{layer}.bias" for layer in self.biases}
        for edit in later.edits:
            if isinstance(edit, AttributeEdit):
                attributes[edit.module, edit.attribute] = edit
                continue
            if isinstance(edit, (IndexEdit, BiasEdit, SelectEdit, ReplaceEdit)) or edit.parameter in added:
                continue
            before = slices.get((edit.parameter, edit.axis))
            if before is not None and len(before.kept) != edit.size:
                raise ArtifactError(
                    f"records don't follow one another: axis {edit.axis} of `{edit.parameter}` is left with "
                    f"{len(before.kept)} entries, "
                    f"but the later record slices {edit.size}"
                )
            kept, size = (edit.kept, edit.size) if before is None else (before.kept[edit.kept], before.size)
            slices[edit.parameter, edit.axis] = SliceEdit(edit.parameter, edit.axis, kept, size)
        # a selection that this surgery makes has no buffer yet when indices are replayed: it is made with the later ones
        selections = {layer: later.indices.get(f"{layer}.selected", values) for layer, values in self.selections.items()}
        selects = [SelectEdit(layer, values) for layer, values in (selections | later.selections).items()]
        made = {f"{edit.layer}.selected" for edit in selects}
        indices = [IndexEdit(name, values) for name, values in (self.indices | later.indices).items() if name not in made]
        biases = [BiasEdit(layer) for layer in dict.fromkeys((*self.biases, *later.biases))]
        return (*self.replacements, *slices.values(), *attributes.values(), *indices, *biases, *selects)

    @classmethod
    def nothing_removed(cls, model: nn.Module) -> SurgeryRecord:
        """The record of a network that is still whole."""
        return cls(fingerprint(model), (), current_versions())

    def to_json(self) -> str:
        """The record as JSON text."""
        edits: list[dict[str, Any]] = []
        for e in self.edits:
            if isinstance(e, SliceEdit):
                edits.append({"slice": e.parameter, "axis": e.axis, "kept": e.kept.tolist(), "size": e.size})
            elif isinstance(e, IndexEdit):
                edits.append({"index": e.buffer, "values": e.values.tolist()})
            elif isinstance(e, BiasEdit):
                edits.append({"bias": e.layer})
            elif isinstance(e, SelectEdit):
                edits.append({"select": e.layer, "values": e.values.tolist()})
            elif isinstance(e, ReplaceEdit):
                edits.append(to_tree(e))
            else:
                held = {"repaired": True} if e.repaired else {}
                edits.append({"attribute": e.attribute, "module": e.module, "value": e.value, **held})
        return json.dumps({"fingerprint": self.fingerprint, "versions": dict(self.versions), "edits": edits})

    @classmethod
    def from_json(cls, text: str) -> SurgeryRecord:
        """Read what `to_json` wrote.

        Raises:
            ArtifactError: not JSON, or not the record's form.
        """
        try:
            return cls.from_tree(parse_json(text))
        except DamagedFile as error:
            raise ArtifactError(f"this isn't a surgery record: {error}") from None

    @classmethod
    def from_tree(cls, tree: Any) -> SurgeryRecord:
        """Read what `to_json` wrote, once it is parsed; raises like `from_json`."""
        try:
            edits = tuple(_read_edit(item) for item in tree["edits"])
            versions = {str(k): str(v) for k, v in tree["versions"].items()}
            return cls(str(tree["fingerprint"]), edits, versions)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError, RuntimeError) as error:
            raise ArtifactError(f"this isn't a surgery record: {type(error).__name__}: {error}") from None


def _read_edit(item: Mapping[str, Any]) -> Edit:
    if "slice" in item:
        size, axis, kept = item["size"], item["axis"], cast("list[Any]", item["kept"])
        integers = all(type(n) is int for n in (size, axis, *kept))
        if not (integers and 0 <= axis < 8 and len(kept) <= size and 0 < size <= _MOST_INDICES):
            raise ValueError(f"slice of {str(item['slice'])!r} is malformed")
        if any(b <= a for a, b in zip([-1, *kept], kept, strict=False)) or (kept and kept[-1] >= size):
            raise ValueError(f"indices of {str(item['slice'])!r} are not ascending within 0..{size - 1}")
        return SliceEdit(str(item["slice"]), axis, torch.tensor(kept, dtype=torch.int64), size)
    if "index" in item:
        return IndexEdit(str(item["index"]), _read_numbers(item, "index"))
    if "select" in item:
        return SelectEdit(str(item["select"]), _read_numbers(item, "select"))
    if "bias" in item:
        return BiasEdit(str(item["bias"]))
    if "replace" in item:
        return from_tree(item)
    value = item["value"]
    numbers = cast("list[Any]", value if isinstance(value, list) else [value])
    least = -1 if isinstance(value, list) else 0  # a sequence may hold more than widths: (-1, 64)
    if not all(type(n) is int and least <= n <= _MOST_INDICES for n in numbers):
        raise ValueError(f"attribute {str(item['attribute'])!r} has the value {str(value)[:80]!r}")
    new = tuple(numbers) if isinstance(value, list) else numbers[0]
    return AttributeEdit(str(item["module"]), str(item["attribute"]), new, item.get("repaired") is True)


def _read_numbers(item: Mapping[str, Any], what: str) -> Tensor:
    values = cast("list[Any]", item["values"])
    if not (values and all(type(n) is int and 0 <= n < _MOST_INDICES for n in values)):
        raise ValueError(f"channel numbers of {str(item[what])!r} are malformed")
    return torch.tensor(values, dtype=torch.int64)


def current_versions() -> dict[str, str]:
    """Versions of Prunus and PyTorch, for the record."""
    return {"prunus": VERSION, "torch": str(torch.__version__)}
