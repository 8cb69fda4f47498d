"""Task tag: vlserve.training.evaluate, which training uses too."""

from vlserve.training.evaluate import evaluate_archive
from vlserve.training.evaluators.job import Job, Result


def evaluate(job: Job) -> Result:
    evaluation = evaluate_archive(
        job.archive,
        job.data,
        batch_size=job.batch_size,
        strict=job.strict,
        progress=job.progress,
    )
    return Result(evaluation.metrics.to_json(), evaluation.bad_lines)
