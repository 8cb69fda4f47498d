"""One instance of Triton's Python backend."""

import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as triton

sys.path.append(os.environ["BENCH_ANSWERING"])
from answering import Answering


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        self.answer = Answering(Path(os.environ["BENCH_ARCHIVE"]))

    def execute(self, requests: list[Any]) -> list[Any]:
        """A request may hold several items; here each holds one."""
        images = [
            triton.get_input_tensor_by_name(request, "image").as_numpy() for request in requests
        ]
        texts = [
            triton.get_input_tensor_by_name(request, "text").as_numpy() for request in requests
        ]
        items = [(image[0, 0], text[0, 0]) for image, text in zip(images, texts, strict=True)]
        return [
            triton.InferenceResponse([triton.Tensor("answer", np.array([[body]], np.object_))])
            for body in self.answer(items)
        ]
