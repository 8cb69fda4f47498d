"""manifest.json: everything an archive says about itself.

Layout of an archive (a zip that TorchServe loads as it is; other engines unpack the same file)::

    MAR-INF/MANIFEST.json       TorchServe's own manifest: name, version, handler
    manifest.json               this
    torchserve_handler.py       entry point of TorchServe
    triton_model.py             of Triton; not in archives packed before it was an engine
    handlers/<task>.py          the task's request schema, preprocess and postprocess
    vlserve/__init__.py         frozen copy of the runtime
    vlserve/runtime/*.py
    graphs/<name>.onnx|.pt|.echo.json
    assets/*                    tokenizer files
    legacy/*                    in place of graphs and assets: all files of an archive of
                                torch-model-archiver, as they were
"""

import json
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from vlserve.runtime.clean_text import Cleaning
from vlserve.runtime.errors import ArchiveTooLarge, ManifestInvalid, wrong_fields

MANIFEST = "manifest.json"
TORCHSERVE_MANIFEST = "MAR-INF/MANIFEST.json"
HANDLER = "torchserve_handler.py"
TRITON_MODEL = "triton_model.py"
LEGACY = "legacy"
"""Folder of an adopted archive's own files."""

ModelName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]{0,62}$")]
Version = Annotated[int, Field(ge=1, le=2**31 - 1)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


MAX_MANIFEST_BYTES = 64 * 1024**2
MAX_MANIFEST_VALUES = 500_000
"""Values in manifest.json, counted by their commas before it is parsed: a small one costs a
hundred times its bytes."""
MAX_LABELS = 100_000
MAX_LABEL_CHARS = 1_000
MAX_PROBES = 100

CAPABILITIES = ("answer_log",)
"""What this runtime can do that others rely on. ``answer_log``: it logs its answers, so that a
release can compare them."""

_WITHOUT_A_LIST = {
    "answer_log": frozenset({"vlserve/runtime/answerlog.py", "vlserve/runtime/answer_log.py"}),
}
"""Capability -> the files of which an archive has one, where its manifest does not list
capabilities: it was packed before 0.1.0."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def _json_values(content: dict[str, Any]) -> dict[str, Any]:
    """Refuse infinity and no number at all: JSON has neither, so a copy would say something else.
    pydantic reads both, as NaN, Infinity and 1e999."""
    try:
        json.dumps(content, allow_nan=False)
    except ValueError:
        raise ValueError("a number in it is not finite") from None
    return content


JsonObject = Annotated[dict[str, Any], AfterValidator(_json_values)]


class TensorSpec(_Frozen):
    """One named input or output of a graph. A dim is a size, or the name of a dynamic axis."""

    name: str
    dtype: Literal["float32", "float16", "int64", "int32", "bool", "uint8"]
    dims: tuple[int | str, ...]

    @model_validator(mode="after")
    def _batch_is_dynamic(self) -> "TensorSpec":
        if not self.dims or self.dims[0] != "batch":
            raise ValueError(f"axis 0 of {self.name} must be the dynamic axis 'batch'")
        return self


class Graph(_Frozen):
    """One exported graph."""

    file: str
    format: Literal["onnx", "torchscript", "echo"]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


class ImageInput(_Frozen):
    """How an image becomes an array. Sizes in pixels; mean and std for RGB in [0, 1]."""

    height: int = Field(ge=1, le=4096)
    width: int = Field(ge=1, le=4096)
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    max_bytes: int = 20 * 1024 * 1024
    max_pixels: int = 50_000_000


class TextInput(_Frozen):
    """How text becomes ids. ``file`` is the tokenizer's file in the archive."""

    tokenizer: Literal["characters", "wordpiece"]
    file: str
    max_length: int = Field(ge=1, le=4096)
    pad_id: int = 0
    unknown_id: int = 0
    pad_to_max: bool = True
    """Pad every text to max_length (a checkpoint trained so depends on it), else to the longest."""
    too_long: Literal["cut", "refuse"] = "cut"
    """What becomes of a text of more than max_length tokens. Manifests say the second alone:
    runtimes of before 0.2 do not know it."""
    max_bytes: int = 65536
    cleaning: Cleaning | None = None
    """What is done to a text before it becomes ids; None: nothing."""


class RegionInput(_Frozen):
    """Visual features that come with the request, or from the graph ``features`` where there is
    one: float (regions, dim), of image regions or of the cells of a grid."""

    dim: int = Field(ge=1, le=65536)
    max_regions: int = Field(ge=1, le=4096)
    boxes: bool = False
    """Whether each region has a box: x1, y1, x2, y2 as fractions of width and height."""
    max_bytes: int = 20 * 1024 * 1024


class Parity(_Frozen):
    """What the exporter measured: graph against the trained network on unseen shapes."""

    cases: int
    max_abs_diff: float
    rtol: float
    atol: float


class QuantizedGraph(_Frozen):
    """How a graph became INT8. ``float``: it did not, because no other way was faster."""

    method: Literal["static", "dynamic", "mixed", "float"]
    excluded: tuple[str, ...] = ()
    """Nodes that were left in float because answers changed too much."""


class Quantization(_Frozen):
    """How an INT8 archive was made of the fp32 one, and how its answers stand to that one's."""

    graphs: dict[str, QuantizedGraph]
    calibration_sha256: Sha256
    calibrated: int
    """Items whose activations set the ranges."""
    gated: int
    """Items that were asked of both archives."""
    held_out: bool
    """Whether those are others than the calibrated ones."""
    agreement: float
    """Share of first answers that are the same."""
    metric: str
    fp32: float
    int8: float
    plans_asked: int | None = None
    """Ways of quantising that were asked of those items until one passed, this one last."""
    vnni: bool | None = None
    """Whether the processor that answered multiplies bytes by VNNI; None where it is not known. x86
    without it may clamp sums of products, and answer otherwise."""


class Probe(_Frozen):
    """A request with its expected answer. ``fields`` as in a JSON body: images are base64."""

    fields: JsonObject
    answer: JsonObject


class Adopted(_Frozen):
    """What an archive of torch-model-archiver said of itself, and how its handler is called."""

    name: str = Field(min_length=1, max_length=256)
    """Its model's name, as clients have it in their paths."""
    version: str = Field(min_length=1, max_length=256)
    """Likewise, as in "1.0"."""
    sha256: Sha256
    """Of the file; of a folder, of the names and bytes of its files."""
    handler: str = Field(min_length=1)
    """As torch-model-archiver was told: a file, ``file:function``, or one of TorchServe's own."""
    envelope: str | None = None
    """One of TorchServe's request envelopes."""
    batch_size: int = Field(default=1, ge=1, le=1024)
    """Most requests that the handler gets at once."""
    max_batch_delay_ms: int = Field(default=100, ge=0, le=10_000)
    workers: int | None = Field(default=None, ge=1, le=256)
    """None: as many as the stack gives a version."""
    response_timeout_s: int | None = Field(default=None, ge=1)
    """Most seconds for a batch; None: the stack's."""
    startup_timeout_s: int | None = Field(default=None, ge=1)
    """Seconds that its workers may take to be up, where the stack gives fewer."""
    decodes: bool = True
    """Whether JSON and text are parsed before the handler gets them."""
    limits_pixels: bool = True
    isolates: bool = True
    """Whether a batch that fails is tried again in halves."""
    joins_pieces: bool = False
    """Whether what the handler sends in pieces is one answer."""
    describes: bool = False
    """Whether the handler's code has a describe_handle of its own."""
    recorded_from: str = ""
    """The URL of the server that gave the probes' answers; empty: the handler itself."""


class Manifest(_Frozen):
    """Everything that serving one version needs to know, frozen with it."""

    format: Literal[1] = 1
    model: ModelName
    version: Version
    task: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]
    family: str
    precision: Literal["fp32", "fp16", "bf16", "int8"] = "fp32"
    graphs: dict[str, Graph]
    image: ImageInput | None = None
    text: TextInput | None = None
    regions: RegionInput | None = None
    labels: tuple[str, ...] = ()
    multi_label: bool = False
    options: JsonObject = Field(default_factory=dict)
    """Settings of the task itself, read by its handler file alone."""
    parity: Parity | None = None
    """Of an INT8 archive: that of the fp32 graphs it was made of."""
    quantization: Quantization | None = None
    checkpoint_sha256: Sha256 | None = None
    lock_sha256: Sha256 | None = None
    training: dict[str, Any] | None = None
    """What the run that trained the checkpoint says of itself: hashes of its data, options, seed,
    versions of the code, figures of every epoch. None where no run of ours did; then the manifest
    leaves it out: runtimes of before 0.2 do not know it."""
    adopted: Adopted | None = None
    """Of an archive of torch-model-archiver; None of one that was exported: then the manifest
    leaves it out, as runtimes of before 0.3 do not know it."""
    probes: tuple[Probe, ...] = ()
    capabilities: tuple[str, ...] | None = None
    """Of the frozen runtime, see CAPABILITIES; None in archives of before 0.1.0. Ask `can`."""
    files: dict[str, Sha256]
    """Every member of the archive but this file, with the sha256 of its bytes."""

    @model_validator(mode="after")
    def _names_what_it_holds(self) -> "Manifest":
        names = [graph.file for graph in self.graphs.values()]
        names += [f"handlers/{self.task}.py", HANDLER, TORCHSERVE_MANIFEST]
        names += [self.text.file] if self.text else []
        missing_names = sorted(set(names) - set(self.files))
        if missing_names:
            raise ValueError(f"files does not list {', '.join(missing_names)}")
        if not self.graphs and not self.adopted:
            raise ValueError("no graph")
        if len(set(self.labels)) != len(self.labels):
            raise ValueError("labels repeat")
        return self

    def can(self, capability: str) -> bool:
        """Tell whether the archive's frozen runtime has a capability."""
        if self.capabilities is None:
            return not _WITHOUT_A_LIST.get(capability, frozenset()).isdisjoint(self.files)
        return capability in self.capabilities


def read_manifest(raw: bytes) -> Manifest:
    """Parse manifest.json. ManifestInvalid names each wrong field, ArchiveTooLarge the limit."""
    _check_limit("bytes", len(raw), MAX_MANIFEST_BYTES)
    _check_limit("values", raw.count(b","), MAX_MANIFEST_VALUES)
    try:
        manifest = Manifest.model_validate_json(raw, strict=True)
    except ValidationError as error:
        raise ManifestInvalid(f"{MANIFEST}: {wrong_fields(error, 'manifest')}") from error
    _check_limit("labels", len(manifest.labels), MAX_LABELS)
    longest = max(map(len, manifest.labels), default=0)
    _check_limit("characters in a label", longest, MAX_LABEL_CHARS)
    _check_limit("probes", len(manifest.probes), MAX_PROBES)
    return manifest


def _check_limit(what: str, number: int, limit: int) -> None:
    if number > limit:
        raise ArchiveTooLarge(f"{MANIFEST} has {number} {what}, more than {limit}")
