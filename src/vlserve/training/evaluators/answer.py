"""Task answer: is the best answer one of those that people gave?"""

from vlserve.training.evaluators.items import AnswerItem
from vlserve.training.evaluators.job import Job, Result
from vlserve.training.metrics.confidence import means
from vlserve.training.metrics.vqa import annotations_of, is_any_of, vqa_accuracy

ANNOTATORS = 10
"""Items with so many answers count for VQA accuracy."""


def evaluate(job: Job) -> Result:
    """Return ``accuracy``: any answer of the list counts, all normalised; ``vqa_accuracy`` over the
    ``vqa_items`` with ten answers."""
    file = job.read(AnswerItem)
    requests = [{**job.look(item.look), "text": item.text, "top_k": 1} for item in file.items]
    file, answers = job.answered(file, requests)
    predictions = [answer["answers"][0]["answer"] for answer in answers]
    pairs = list(zip(predictions, file.items, strict=True))
    values = {"accuracy": [is_any_of(text, item.label) for text, item in pairs]}
    official = [
        vqa_accuracy(text, annotations_of(item.label))
        for text, item in pairs
        if len(item.label) == ANNOTATORS
    ]
    figures = means(values | ({"vqa_accuracy": official} if official else {}))
    return Result({"items": len(file.items), "vqa_items": len(official), **figures}, file.bad_lines)
