"""How a table's columns become an item's fields: by name, by template, and labels by a mapping."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from vlserve.errors import DataError

FIELDS = ("id", "img", "text", "label")
"""Of an item; a column of such a name becomes the field without being asked."""
DROP = "drop"
_COLUMN = re.compile(r"\{([^{}]+)\}")


@dataclass(frozen=True)
class Template:
    """A field's value: a column's, or a text with columns' names in braces, as ``{id}.jpg``."""

    source: str

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that it reads."""
        return tuple(_COLUMN.findall(self.source)) or (self.source,)

    def fill(self, row: Mapping[str, str]) -> str:
        """Return the value for a row."""
        if _COLUMN.search(self.source):
            return _COLUMN.sub(lambda match: row[match[1]].strip(), self.source)
        return row[self.source].strip()


def templates_for(
    columns: Mapping[str, str], keep: Sequence[str], heads: Sequence[str], file: str
) -> Mapping[str, Template]:
    """Return each field's template, for a file with these columns.

    Args:
        columns: Field -> column or template.
        keep: Columns that stay under their own names.
        heads: The columns that there are.
        file: Its name, for messages.

    Raises:
        DataError: A column is not there, or two have one name, or nothing would be read.
    """
    if len(set(heads)) < len(heads):
        raise DataError(f"{file}: two columns have the same name")
    templates = {name: Template(name) for name in (*FIELDS, *keep) if name in heads or name in keep}
    templates |= {field: Template(source) for field, source in columns.items()}
    if not templates:
        raise DataError(f"{file}: name columns, as --column text=TITLE; it has {', '.join(heads)}")
    for field, template in templates.items():
        for column in template.columns:
            if column not in heads:
                raise DataError(
                    f"{file} has no column {column}, which is to be {field}; it has "
                    f"{', '.join(heads)}"
                )
    first = [name for name in FIELDS if name in templates]
    return {name: templates[name] for name in dict.fromkeys((*first, *templates))}


@dataclass(frozen=True)
class LabelMapping:
    """Label -> the label to write, or None to leave its items out. Others stay as they are."""

    to: Mapping[str, str | None]

    @classmethod
    def parse(cls, pairs: str) -> "LabelMapping":
        """Read ``neutral=drop,negative=0``. ValueError for anything else."""
        to: dict[str, str | None] = {}
        for pair in filter(None, pairs.split(",")):
            label, sign, new = (part.strip() for part in pair.partition("="))
            if not (label and sign and new):
                raise ValueError(f"{pair!r} is not LABEL=NEW, or LABEL={DROP}")
            if label in to:
                raise ValueError(f"label {label} is there twice")
            to[label] = None if new == DROP else new
        return cls(to)

    def of(self, label: str) -> str | None:
        """Return the label to write; None where the item is to be left out."""
        return self.to.get(label, label)


KEEP_LABELS = LabelMapping({})
