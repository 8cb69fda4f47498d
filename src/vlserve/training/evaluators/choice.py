"""Tasks entail and reason: one of a few labels."""

from collections.abc import Sequence

from vlserve.training.evaluators.items import EntailItem, ReasonItem
from vlserve.training.evaluators.job import Job, Result
from vlserve.training.json_lines import BadLine
from vlserve.training.metrics.confidence import means


def evaluate_entail(job: Job) -> Result:
    """Evaluate; items with a label that the model does not know are left out."""
    file, labels = job.read(EntailItem), job.manifest.labels
    unknown = {
        line: f"unknown label {item.label}: the model knows {', '.join(labels)}"
        for line, item in file.by_line.items()
        if item.label not in labels
    }
    file = job.leave_out(file, unknown)
    requests = [{**job.look(item.look), "text": item.text} for item in file.items]
    file, answers = job.answered(file, requests)
    true = [item.label for item in file.items]
    return _result(true, [answer["label"] for answer in answers], file.bad_lines)


def evaluate_reason(job: Job) -> Result:
    file = job.read(ReasonItem)
    requests = [
        {**job.look(item.look), **job.look(item.look2, "2"), "text": item.text}
        for item in file.items
    ]
    file, answers = job.answered(file, requests)
    true = [item.label for item in file.items]
    return _result(true, [answer["answer"] for answer in answers], file.bad_lines)


def _result(
    true: Sequence[str | bool], answers: Sequence[str | bool], bad_lines: tuple[BadLine, ...]
) -> Result:
    """Return ``accuracy``, and ``macro_f1`` over the labels that are true or given somewhere."""
    from sklearn.metrics import f1_score

    right = [expected == answer for expected, answer in zip(true, answers, strict=True)]
    macro_f1 = float(f1_score(true, answers, average="macro", zero_division=0.0))
    figures = {"items": len(true), "macro_f1": macro_f1, **means({"accuracy": right})}
    return Result(figures, bad_lines)
