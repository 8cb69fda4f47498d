"""What the driver of an offline job tells a worker to do. Knows nothing of vlserve."""

from dataclasses import dataclass

ROW_MARK = b"\t"
"""What a spooled line begins with that the driver has written. The input's own lines are stripped
of blanks, so none of them begins so, whatever is in it."""


@dataclass(frozen=True)
class Order:
    """A part. ``folder``: where relative paths begin, when that is not beside ``input``. ``spool``:
    the file of its lines; empty: Parquet. ``fate``: how the last worker that
    ran it carefully ended, as code and message; empty: there was none. ``redo``: only the rows that
    have an error in the part's file."""

    number: int
    first_row: int
    input: str
    spool: str = ""
    row_group: int = 0
    start: int = 0
    count: int = 0
    careful: bool = False
    fate: tuple[str, ...] = ()
    redo: bool = False
    folder: str = ""
