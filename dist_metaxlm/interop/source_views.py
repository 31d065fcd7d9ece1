"""Views of tensor sources: under other names, with rows reordered, cut or appended, with further tensors.

A view reads from its source on access, so a model never has to fit in memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch

from dist_metaxlm.interop.tensor_source import TensorSource


class RenamedTensors:
    """A source under other names; tensors that `names` leaves out are not in the view."""

    def __init__(self, source: TensorSource, names: Mapping[str, str]) -> None:
        """`names`: name in the view -> name in `source`."""
        self._source, self._names = source, names

    def keys(self) -> Iterable[str]:
        """Names in the view."""
        return self._names.keys()

    def spec(self, name: str) -> torch.Tensor:
        """Shape and dtype, as a tensor on the meta device."""
        return self._source.spec(self._names[name])

    def read(self, name: str, first: int = 0, last: int | None = None) -> torch.Tensor:
        """The tensor, or its rows `first` to `last` (exclusive)."""
        return self._source.read(self._names[name], first, last)


class ExtendedTensors:
    """A source and further tensors that are held in memory."""

    def __init__(self, source: TensorSource, further: Mapping[str, torch.Tensor]) -> None:
        self._source, self._further = source, further

    def keys(self) -> Iterable[str]:
        """All names."""
        return [*self._source.keys(), *self._further]

    def spec(self, name: str) -> torch.Tensor:
        """Shape and dtype, as a tensor on the meta device."""
        return self._further[name].to("meta") if name in self._further else self._source.spec(name)

    def read(self, name: str, first: int = 0, last: int | None = None) -> torch.Tensor:
        """The tensor, or its rows `first` to `last` (exclusive)."""
        return self._further[name][first:last] if name in self._further else self._source.read(name, first, last)


class ArrangedRows:
    """A source in which some tensors have other rows; all other tensors are shown as they are.

    Row r of such a tensor is row `order.get(r, r)` of the source; rows after the source's last one come from `tail`.
    """

    def __init__(
        self,
        source: TensorSource,
        names: Iterable[str],
        rows: int,
        order: Mapping[int, int],
        tail: TensorSource | None = None,
    ) -> None:
        """
        Args:
            source: tensors as they are.
            names: tensors with other rows.
            rows: number of their rows in the view.
            order: row of the view -> row of the source, where they differ.
            tail: the rows that `source` lacks, under the same names.
        """
        self._source, self._names, self._rows = source, frozenset(names), rows
        self._order, self._tail = order, tail

    def keys(self) -> Iterable[str]:
        """Names of all tensors."""
        return self._source.keys()

    def spec(self, name: str) -> torch.Tensor:
        """Shape and dtype, as a tensor on the meta device."""
        spec = self._source.spec(name)
        return spec.new_empty((self._rows, *spec.shape[1:])) if name in self._names else spec

    def read(self, name: str, first: int = 0, last: int | None = None) -> torch.Tensor:
        """The tensor, or its rows `first` to `last` (exclusive)."""
        if name not in self._names:
            return self._source.read(name, first, last)
        last = self._rows if last is None else min(last, self._rows)
        spec = self._source.spec(name)
        own = min(self._rows, spec.shape[0])
        parts = [self._source.read(name, first, min(last, own))] if first < own else []
        if last > own:
            assert self._tail is not None, f"{name} has no rows after {own}"
            parts.append(self._tail.read(name, max(first, own) - own, last - own).to(spec.dtype))
        block = parts[0] if len(parts) == 1 else torch.cat(parts)
        elsewhere = {row: place for row, place in self._order.items() if first <= row < last}
        if elsewhere:
            block = block.clone()
        for row, place in elsewhere.items():
            block[row - first] = self._source.read(name, place, place + 1)[0]
        return block
