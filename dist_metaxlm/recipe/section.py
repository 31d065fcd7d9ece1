"""The base of all recipe sections."""

from __future__ import annotations

from collections.abc import Mapping
from typing import get_args

from pydantic import BaseModel, ConfigDict, model_validator


class Section(BaseModel):
    """Base of all recipe sections: unknown keys are errors, numbers are finite, values do not change after loading."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False, serialize_by_alias=True
    )

    @model_validator(mode="before")
    @classmethod
    def _no_flag_for_a_number(cls, values: object) -> object:
        """Refuse booleans for numbers: in Python `true` equals 1, in a recipe it is a mistake."""
        fields = cls.model_fields
        for name, value in values.items() if isinstance(values, Mapping) else ():
            wanted = _types(fields[name].annotation) if isinstance(value, bool) and name in fields else set()
            if wanted & {int, float} and bool not in wanted:
                raise ValueError(f"{name} is a number, not {str(value).lower()}")
        return values


def _types(annotation: object) -> set[type]:
    """The component types of an annotation."""
    parts = get_args(annotation)
    return set().union(*map(_types, parts)) if parts else {annotation} if isinstance(annotation, type) else set()
