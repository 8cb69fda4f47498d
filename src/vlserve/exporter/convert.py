"""Turns one network into one graph file, each in a process of its own.

The ONNX exporter keeps state between exports: a recurrent network's second export in a process can
silently bake its text length in. So ``python -m vlserve.exporter.convert`` imports what an export
needs, which takes seconds, exports nothing itself, and forks for every graph.
"""

import gc
import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import traceback
import warnings
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, NoReturn, Self

import torch

from vlserve.errors import ExportError, VlserveError
from vlserve.exporter.checkpoint import open_checkpoint, put_into
from vlserve.exporter.config_sizes import check_sizes
from vlserve.exporter.float16 import DTYPES, InHalf
from vlserve.exporter.pack import write_zip
from vlserve.exporter.recipe import GraphPlan, Recipe, load_recipe
from vlserve.exporter.weights import without_prefix
from vlserve.runtime.graphs import check_onnx
from vlserve.runtime.manifest import Graph, TensorSpec

Format = Literal["onnx", "torchscript"]
SUFFIXES: Mapping[str, str] = {"onnx": ".onnx", "torchscript": ".pt"}
OPSET = 20
MAX_REASON_CHARS = 500
WARM = (
    "networkx",
    "onnxscript.function_libs.torch_lib.ops",
    "sympy.combinatorics",
    "torch._dynamo",
    "torch._functorch.aot_autograd",
    "torch.export",
    "torch.onnx",
    "torch.onnx._internal.exporter._compat",
    "vlserve.exporter.row_pruning",
)
"""What an export to ONNX would import."""
EXAMPLE_SIZES = (3, 7, 5, 11)
"""Sizes of the dynamic axes in the inputs that an export sees; 1 would be taken for a constant."""


@dataclass(frozen=True)
class Job:
    """One export, as the fresh process reads it."""

    recipe: str
    checkpoint: str
    config: Mapping[str, Any]
    graph: str
    format: Format
    output: str
    precision: str = "fp32"
    state_key: str | None = None
    """See Trained, in exporter/export.py; so with ``prefix``."""
    prefix: str = ""


def load_network(
    recipe: Recipe, state: Mapping[str, torch.Tensor], config: Mapping[str, Any]
) -> torch.nn.Module:
    """Return the trained network in eval mode. Raises CheckpointMismatch, or ExportError for a
    config that asks for sizes which the checkpoint cannot have."""
    check_sizes(config, state)
    network = recipe.build(config)
    put_into(network, recipe.adapt(state, config), recipe.spec.family)
    return network.eval().requires_grad_(False)


class Converter:
    """A process that imports the exporters once, and forks for every job. One job at a time."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "vlserve.exporter.convert"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            encoding="utf-8",
            start_new_session=True,  # so that close ends the fork that converts, too
        )

    def convert(self, job: Job) -> None:
        """Write ``job.output``. ExportError carries the last words of a process that failed."""
        assert self._process.stdin is not None and self._process.stdout is not None
        with tempfile.TemporaryDirectory(prefix="vlserve-export-") as folder:
            log = Path(folder) / "log.txt"
            try:
                self._process.stdin.write(json.dumps({"job": asdict(job), "log": str(log)}) + "\n")
                self._process.stdin.flush()
                status = self._process.stdout.readline().strip()
            except (BrokenPipeError, ValueError):  # it has ended, or was closed
                status = ""
            log_lines = (
                log.read_text(errors="replace", encoding="utf-8").splitlines()
                if log.exists()
                else []
            )
        if status != "0":
            lines = [line.strip() for line in log_lines if line.strip()]
            reason = lines[-1] if lines else f"exit code {status or 'unknown'}"
            raise ExportError(f"converting graph {job.graph} to {job.format} failed: {reason}")

    def close(self) -> None:
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.communicate()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def convert(job: Job) -> None:
    """Export in this process, which must not have exported before."""
    recipe = load_recipe(job.recipe, Path())
    plan = _plan(recipe, job)
    sizes = example_sizes(plan.inputs)
    example = recipe.example(job.graph, job.config, sizes, seed=0)
    arguments = tuple(example[tensor.name] for tensor in plan.inputs)
    if job.format == "onnx":
        to_onnx(plan, arguments, Path(job.output))
    else:
        if job.precision in DTYPES:
            whole = plan.module if plan.traced is None else plan.traced
            plan = replace(plan, traced=InHalf(whole, DTYPES[job.precision]))
        to_torchscript(plan, arguments, Path(job.output))


def _plan(recipe: Recipe, job: Job) -> GraphPlan:
    """Return the job's graph alone: the checkpoint and the network's other parts, as large as what
    is made of them, are let go."""
    weights = open_checkpoint(Path(job.checkpoint), job.state_key, mapped=True)
    network = load_network(recipe, without_prefix(weights.state, job.prefix), job.config)
    return recipe.graphs(network, job.config)[job.graph]


def example_sizes(inputs: Iterable[TensorSpec]) -> dict[str, int]:
    """Return a size for each dynamic axis, all different and none 1."""
    axes = dynamic_axes(inputs)
    return dict(zip(axes, EXAMPLE_SIZES, strict=False)) | {
        axis: EXAMPLE_SIZES[-1] + 2 * index
        for index, axis in enumerate(axes[len(EXAMPLE_SIZES) :], start=1)
    }


def graph_entry(plan: GraphPlan, file: str, format: Format) -> Graph:
    """Return how the manifest lists the graph."""
    return Graph(file=file, format=format, inputs=plan.inputs, outputs=plan.outputs)


def dynamic_axes(tensors: Iterable[TensorSpec]) -> list[str]:
    """Return names of the dynamic axes, in order of appearance."""
    return list(
        dict.fromkeys(dim for tensor in tensors for dim in tensor.dims if isinstance(dim, str))
    )


def to_onnx(plan: GraphPlan, arguments: tuple[torch.Tensor, ...], output: Path) -> None:
    """Write one ONNX file with the plan's axes; ManifestInvalid where one is baked in."""
    # here, because it imports onnx_ir, which takes a while and TorchScript does not need
    from vlserve.exporter.row_pruning import drop_unread_rows

    axes = {name: torch.export.Dim(name) for name in dynamic_axes(plan.inputs)}
    shapes = tuple(
        {index: axes[dim] for index, dim in enumerate(tensor.dims) if isinstance(dim, str)}
        for tensor in plan.inputs
    )
    program = torch.onnx.export(
        plan.module,
        arguments,
        dynamo=True,
        opset_version=OPSET,
        dynamic_shapes=shapes,
        input_names=[tensor.name for tensor in plan.inputs],
        output_names=[tensor.name for tensor in plan.outputs],
        external_data=False,
        verbose=False,
    )
    assert program is not None
    drop_unread_rows(program.model.graph)
    model = program.model_proto
    del program  # it holds all weights, as the model and the bytes do
    strip_provenance(model)
    raw = model.SerializeToString(deterministic=True)
    del model
    check_onnx(graph_entry(plan, output.name, "onnx"), [raw], members=())
    output.write_bytes(raw)


def strip_provenance(model: Any) -> None:
    """Remove what the exporter notes about this machine and run: paths, stack traces, names."""
    holders = [model, model.graph, *model.graph.node, *model.graph.initializer]
    holders += [*model.graph.input, *model.graph.output, *model.graph.value_info, *model.functions]
    for holder in holders:
        holder.ClearField("doc_string")
        holder.ClearField("metadata_props")


def to_torchscript(plan: GraphPlan, arguments: tuple[torch.Tensor, ...], output: Path) -> None:
    """Write one TorchScript file, traced."""
    module = plan.module if plan.traced is None else plan.traced
    with warnings.catch_warnings():
        for function in ("trace", "save"):
            warnings.filterwarnings(
                "ignore", rf"`torch\.jit\.{function}\w*` is deprecated", DeprecationWarning
            )
        graph = torch.jit.trace(  # type: ignore[no-untyped-call]
            module, arguments, check_trace=False
        )
        with tempfile.TemporaryDirectory(prefix="vlserve-trace-") as folder:
            raw = Path(folder) / "model.pt"  # the file's name is written into it
            torch.jit.save(graph, str(raw))
            write_zip(output, _without_debug_records(raw))


def _without_debug_records(path: Path) -> dict[str, bytes]:
    """Remove debug records, which hold the paths of source files on this machine; nothing needs
    them."""
    with zipfile.ZipFile(path) as archive:
        names = [name for name in archive.namelist() if not name.endswith(".debug_pkl")]
        return {name: archive.read(name) for name in names}


def main() -> None:
    """Read jobs from standard input, one a line, and answer each with its exit code."""
    gc.disable()  # imports stay, a fork ends soon, and torch collects where much can be let go
    for line in sys.stdin:
        request = json.loads(line)
        job = Job(**request["job"])
        for module in WARM if job.format == "onnx" else ():
            importlib.import_module(module)
        gc.freeze()  # so that the collections of torch look through none of it
        child = os.fork()
        if child == 0:
            _run(job, Path(request["log"]))
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


def _run(job: Job, log: Path) -> NoReturn:
    """Convert and end this process; the last line of the log says why it failed."""
    status = 1
    with log.open("w", encoding="utf-8") as file:
        os.dup2(file.fileno(), sys.stdout.fileno())
        os.dup2(file.fileno(), sys.stderr.fileno())
        try:
            convert(job)
            status = 0
        except VlserveError as error:
            print(" ".join(str(error).split()), flush=True)
        except Exception as error:
            traceback.print_exc()
            message = " ".join(str(error).split())[:MAX_REASON_CHARS]
            print(f"{type(error).__name__}: {message}", flush=True)
        finally:
            sys.stderr.flush()
            os._exit(status)  # what the parent has registered for its own end is not ours to run


if __name__ == "__main__":
    main()
