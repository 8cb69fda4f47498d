"""Files of which rows are made: members of a tar shard or a folder."""

from dataclasses import dataclass

from vlserve_worker.storage import AnyPath

IMAGES = ("jpg", "jpeg", "png", "webp", "bmp", "gif")
TEXTS = ("txt", "json", "cls")
FEATURES = ("npy",)


@dataclass(frozen=True)
class Member:
    """One file of a tar shard or a folder: where its bytes lie."""

    name: str
    path: AnyPath
    offset: int
    size: int

    @property
    def key(self) -> str:
        """The name up to the first dot of its last part, as webdataset groups members."""
        folder, slash, file = self.name.rpartition("/")
        return folder + slash + file.partition(".")[0]

    @property
    def ending(self) -> str:
        return self.name.rpartition("/")[2].partition(".")[2].lower()
