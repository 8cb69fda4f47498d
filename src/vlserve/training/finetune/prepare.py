"""Everything that a run from a checkpoint needs before its first step: `prepare`."""

import tempfile
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from vlserve.errors import DataError, TrainingError
from vlserve.exporter.recipe import Recipe
from vlserve.runtime.archive import file_sha256
from vlserve.runtime.manifest import ImageInput
from vlserve.runtime.text import Tokenizer, load_tokenizer
from vlserve.training.evaluators.items import AnswerItem, read_task_file
from vlserve.training.finetune.captioner import captioner_job, read_features
from vlserve.training.finetune.data import TaskData, read_data
from vlserve.training.finetune.initial_network import Start, start_from
from vlserve.training.finetune.item_augmentation import (
    ItemChanges,
    item_changes,
    refuse_changes,
    refuse_idle_synonyms,
)
from vlserve.training.finetune.jobs import AnswerJob, CaptionJob, ClassJob, Items, Words
from vlserve.training.finetune.option_use import for_objective
from vlserve.training.finetune.plan import (
    CaptionerPlan,
    FinetuneOptions,
    FinetunePlan,
    Objective,
    VisionTextPlan,
    plan_of,
)
from vlserve.training.finetune.pretrain import (
    WORD_HEAD,
    AlbefPretrainJob,
    BlipPretrainJob,
    aligned_pairs,
)
from vlserve.training.finetune.regions.prepare import region_job
from vlserve.training.finetune.retrieval import PairNetwork, RetrievalJob
from vlserve.training.finetune.vocabulary import Vocabulary
from vlserve.training.objectives.pretrain_align import BLIP_RAMP, BLIP_RULES, RULES, tie_decoder
from vlserve.training.options import parse_options, refuse
from vlserve.training.run import Job, OnProgress, Progress
from vlserve.training.tagger_learning import add_dropout

OnRead = Callable[[int, int], None]


@dataclass(frozen=True)
class Prepared:
    """What a run begins with."""

    start: Start
    options: FinetuneOptions
    facts: Mapping[str, Any]
    job: Job
    data: tuple[TaskData, TaskData]


def prepare(
    recipe: Recipe,
    checkpoint: Path,
    train_file: Path,
    val_file: Path,
    config: Path | None,
    objective: str | None,
    options: Mapping[str, Any] | None,
    seed: int,
    progress: OnProgress | None,
) -> Prepared:
    """Read checkpoint and data. Raises TrainingError (an objective that the family lacks),
    SettingsError (options), DataError, CheckpointMismatch and ExportError."""
    plan, target = plan_of(recipe, objective)
    finetune_options = read_options(recipe, plan, target, options or {})
    # a decoder writes answers, and needs no row for each
    least = 1 if isinstance(plan, VisionTextPlan) else finetune_options.least_answers
    counted: list[str] = []

    def names() -> list[str]:
        counted.extend(names_of(train_file, target, least))
        return counted

    start = start_from(recipe, plan, checkpoint, config, target, seed, names)
    finetune_options = for_objective(plan, start.objective, finetune_options)
    if not counted and "least_answers" in finetune_options.model_fields_set:
        refuse(["least_answers: config.json beside the checkpoint names the answers"])
    if _lacks_word_head(plan, start):
        start = replace(start, new=(*start.new, WORD_HEAD))

    def on_read(count: int, total: int) -> None:
        if progress:
            progress(Progress("read", count, total))

    job, data = _job_of(plan, recipe, start, finetune_options, (train_file, val_file), on_read)
    facts = {
        "objective": start.objective,
        "options": finetune_options.said(),
        "seed": seed,
        "from_sha256": start.sha256,
        "train_sha256": file_sha256(train_file),
        "val_sha256": file_sha256(val_file),
    }
    set_dropout(start.network, finetune_options.dropout)
    return Prepared(start, finetune_options, facts, job, data)


def read_options(
    recipe: Recipe, plan: FinetunePlan, objective: Objective | None, options: Mapping[str, Any]
) -> FinetuneOptions:
    """Parse options of a run of the recipe's family; of an objective, where it is known before the
    checkpoint is read. SettingsError names those that are wrong, or that are not followed."""
    finetune_options = parse_options(FinetuneOptions, options)
    if isinstance(plan, VisionTextPlan):
        refuse_idle_synonyms(finetune_options)
    else:
        refuse_changes(finetune_options, recipe.spec.family)
    return for_objective(plan, objective, finetune_options) if objective else finetune_options


def _lacks_word_head(plan: FinetunePlan, start: Start) -> bool:
    """Whether ALBEF is to be pretrained from a checkpoint without its head of masked words."""
    albef = isinstance(plan, VisionTextPlan) and plan.family == "albef"
    return albef and start.objective == "pretrain" and not start.words


def names_of(train_file: Path, objective: Objective | None, least: int) -> list[str]:
    """What the training file says of a new head's rows: its answers that are given ``least`` times
    or more, the most frequent first, or its labels in their order. DataError where there are
    none."""
    labels = (
        label for item in read_task_file(train_file, AnswerItem).items for label in item.label
    )
    counts = Counter(labels)
    if objective == "tag":
        return sorted(counts)
    answers = [answer for answer, count in counts.most_common() if count >= least]
    if not answers:
        raise DataError(
            f"{train_file} gives no answer {least} times: lower least_answers, or name answers in "
            "config.json"
        )
    return answers


def set_dropout(network: nn.Module, share: float) -> None:
    """A network that drops out by layers of its own gets their share; any other gets hooks."""
    own = [module for module in network.modules() if isinstance(module, nn.Dropout)]
    for module in own:
        module.p = share
    if not own:
        add_dropout(network, share)


def _job_of(
    plan: FinetunePlan,
    recipe: Recipe,
    start: Start,
    options: FinetuneOptions,
    files: tuple[Path, Path],
    on_read: OnRead,
) -> tuple[Job, tuple[TaskData, TaskData]]:
    if isinstance(plan, CaptionerPlan):
        data = _feature_files(files, start)
        arguments = (plan, recipe, start.network, start.config, start.objective, data, options)
        return captioner_job(*arguments), data
    if isinstance(plan, VisionTextPlan):
        image, text, labels = _serving(recipe, start.config)
        data = _image_files(files, start, image, text, labels, on_read)
        changes = item_changes(options, start.objective, image)
        return _pair_or_text_job(plan, start, options, data, text, labels, changes), data
    return region_job(plan, start, options, files, on_read)


def _feature_files(files: tuple[Path, Path], start: Start) -> tuple[TaskData, TaskData]:
    data = read_features(files[0], start.config)
    train_ids = frozenset(item.id for item in data.file.items)
    return data, read_features(files[1], start.config, without=train_ids)


def _image_files(
    files: tuple[Path, Path],
    start: Start,
    image: ImageInput,
    text: Tokenizer | None,
    labels: tuple[str, ...],
    on_read: OnRead,
) -> tuple[TaskData, TaskData]:
    """Both files. TrainingError where the network reads no text that the objective needs."""
    if text is None and start.objective != "caption":
        raise TrainingError(f"{start.objective}: the checkpoint reads no text")
    arguments = (start.objective, image, text)
    classes = labels if start.objective == "entail" else ()
    data = read_data(files[0], *arguments, labels=classes, on_read=on_read)
    train_ids = frozenset(item.id for item in data.file.items)
    validation = read_data(files[1], *arguments, labels=classes, without=train_ids, on_read=on_read)
    return data, validation


def _pair_or_text_job(
    plan: VisionTextPlan,
    start: Start,
    options: FinetuneOptions,
    data: tuple[TaskData, TaskData],
    text: Tokenizer | None,
    labels: tuple[str, ...],
    changes: ItemChanges | None,
) -> Job:
    network, config, objective = start.network, start.config, start.objective
    items = Items(*data, options.batch_size, changes)
    if objective == "caption":
        words = Words(plan.tokenizer(config), plan.start)
        rest = (config["prompt"], plan.caption, options.label_smoothing, config["max_length"])
        return CaptionJob(network, items, words, *rest)
    assert text is not None
    if objective == "retrieve":
        return _retrieval(plan, start, options, data, text, changes)
    if objective == "pretrain":
        return _pretraining(plan, start, options, data, text, changes)
    if objective == "answer":
        tokenizer = plan.tokenizer(config)
        begin = tokenizer.token_to_id("[ENC]") if plan.family == "blip" else None
        words = Words(tokenizer, plan.start)
        return AnswerJob(network, items, text, words, options.label_smoothing, begin)
    classes = (False, True) if objective == "reason" else labels
    return ClassJob(network, items, text, classes, options.label_smoothing)


def _retrieval(
    plan: VisionTextPlan,
    start: Start,
    options: FinetuneOptions,
    data: tuple[TaskData, TaskData],
    text: Tokenizer,
    changes: ItemChanges | None,
) -> RetrievalJob:
    pair = PairNetwork(start.network, options.queue_size, start.temperature)
    encoders = partial(plan.encoders, config=start.config)
    rules = options.rules(plan.rules)
    return RetrievalJob(pair, encoders, *data, text, rules, options, changes)


def _pretraining(
    plan: VisionTextPlan,
    start: Start,
    options: FinetuneOptions,
    data: tuple[TaskData, TaskData],
    text: Tokenizer,
    changes: ItemChanges | None,
) -> AlbefPretrainJob | BlipPretrainJob:
    encoders = partial(plan.encoders, config=start.config)
    if plan.family == "albef":
        pairs = aligned_pairs(start.network, start.config, start.words, options.queue_size)
        job = RetrievalJob(*(pairs, encoders, *data, text, options.rules(RULES), options, changes))
        own = Vocabulary.of(start.config["vocabulary"])
        return AlbefPretrainJob(pairs, job, own.special[:2], own.mask_id, own.words)
    if not hasattr(start.network, "text_decoder"):
        raise TrainingError("pretrain: the checkpoint has no text_decoder, which learns along")
    tie_decoder(start.network)
    pair = PairNetwork(start.network, options.queue_size, start.temperature)
    rules = options.rules(BLIP_RULES)
    pair_job = RetrievalJob(pair, encoders, *data, text, rules, options, changes, BLIP_RAMP)
    dec_id: Any = plan.tokenizer(start.config).token_to_id(plan.start)
    return BlipPretrainJob(pair, pair_job, dec_id, options.label_smoothing)


def _serving(
    recipe: Recipe, config: Mapping[str, Any]
) -> tuple[ImageInput, Tokenizer | None, tuple[str, ...]]:
    """Image size, tokenizer and labels that an archive of this config serves with."""
    with tempfile.TemporaryDirectory() as folder:
        assets = Path(folder) / "assets"
        assets.mkdir()
        interface = recipe.serve(config, assets)
        if interface.image is None:
            raise TrainingError(f"{recipe.spec.family} takes no image")
        text = load_tokenizer(interface.text, Path(folder)) if interface.text else None
        return interface.image, text, tuple(interface.labels)
