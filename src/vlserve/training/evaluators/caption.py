"""Task caption: how near is the sentence to those that people wrote?"""

from vlserve.training.evaluators.items import CaptionItem
from vlserve.training.evaluators.job import Job, Result
from vlserve.training.metrics.captions import score_captions


def evaluate(job: Job) -> Result:
    """Return BLEU, METEOR, ROUGE-L and CIDEr-D over all items together."""
    file = job.read(CaptionItem)
    file, answers = job.answered(file, [job.look(item.look) for item in file.items])
    scores = score_captions(
        [answer["caption"] for answer in answers], [item.captions for item in file.items]
    )
    return Result({"items": len(file.items), **scores.corpus}, file.bad_lines)
