"""The model in one of MLServer's workers."""

import os
import sys
from pathlib import Path

from mlserver import MLModel
from mlserver.codecs import Base64Codec, StringCodec
from mlserver.types import InferenceRequest, InferenceResponse

sys.path.append(os.environ["BENCH_ANSWERING"])
from answering import Answering


class Tagger(MLModel):
    async def load(self) -> bool:
        self.answer = Answering(Path(os.environ["BENCH_ARCHIVE"]))
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        inputs = {tensor.name: tensor for tensor in payload.inputs}
        images = Base64Codec.decode_input(inputs["image"])
        texts = StringCodec.decode_input(inputs["text"])
        items = [(image, text.encode()) for image, text in zip(images, texts, strict=True)]
        bodies = [answer.decode() for answer in self.answer(items)]
        output = StringCodec.encode_output("answer", bodies)
        return InferenceResponse(model_name=self.name, outputs=[output])
