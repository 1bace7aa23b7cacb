"""Extractive question answering: where in a text the answer to a question stands.

Rows have `question`, `context` and `answers` as SQuAD has them: {"text": [...], "answer_start":
[...]}, of which the first is trained; none at all means that the text does not answer it, and then
the answer stands at the classification token. A text that is too long becomes several rows that
overlap.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own abbreviation
from torch import nn
from transformers import AutoModelForQuestionAnswering

from llm_trainer.data.fields import FieldError, parsed, required, show, string
from llm_trainer.data.read import Problem, Row
from llm_trainer.objective import Batch, Indices, Rows, Score
from llm_trainer.options import Job
from llm_trainer.ranks import Ranks
from llm_trainer.tasks import reading
from llm_trainer.tasks.adapted import load_adapted
from llm_trainer.tasks.labelled import LabelledData, LabelledObjective, LabelledRows, Tokenised
from llm_trainer.tasks.reading import Sample
from llm_trainer.tasks.texts import fast_tokenizer, length_limit, token_types
from llm_trainer.train.setup import Parts
from peftjob.estimate import Device

COLUMNS = ("question", "context", "answers")
OVERLAP = 128
"""Tokens of a text that two of its rows share at most; a third of a row where that is less."""


def read(job: Job) -> LabelledData:
    """The dataset's rows, tokenised."""
    found = reading.read_samples(job, known=COLUMNS, check=_check)
    tokenizer = fast_tokenizer(job.model_dir)
    limit, reason = length_limit(job)
    types = token_types(job.model_dir)
    return LabelledData(
        train=_tokenise(found.train, tokenizer, limit, types=types),
        held_out=_tokenise(found.held_out, tokenizer, limit, types=types),
        tokenizer=tokenizer,
        limit=reason,
        files=found.files,
    )


def build(job: Job, data: LabelledData, ranks: Ranks, least: Device) -> Parts:
    """The model with a head for starts and ends, and its loss."""
    made = load_adapted(
        job,
        data.train.rows,
        ranks,
        least,
        model_class=AutoModelForQuestionAnswering,
        task_type="QUESTION_ANS",
        labels=2,
    )
    objective = SpanObjective.of(job, data)
    return made.parts(job, ranks, objective)


def _check(row: Row) -> Row:
    question, context = string(row, "question").strip(), string(row, "context")
    answers = parsed(required(row, "answers"), "answers", "an object")
    texts: Any = None
    starts: Any = None
    if isinstance(answers, list):
        # As some write it: an object for each answer.
        texts = [answer.get("text") for answer in answers if isinstance(answer, dict)]
        starts = [answer.get("answer_start") for answer in answers if isinstance(answer, dict)]
        if len(texts) != len(answers):
            raise FieldError("answers", f"is {show(answers)}, not a list of objects")
    elif isinstance(answers, dict):
        texts, starts = answers.get("text"), answers.get("answer_start")
    if not isinstance(texts, list) or not isinstance(starts, list) or len(texts) != len(starts):
        raise FieldError(
            "answers", f'is {show(answers)}, not {{"text": [...], "answer_start": [...]}} of a size'
        )
    if not texts:
        return {"question": question, "context": context, "answer": None}
    text, start = texts[0], starts[0]
    if not isinstance(text, str) or not text:
        raise FieldError("answers.text[0]", f"is {show(text)}, not a string with something in it")
    if isinstance(start, bool) or not isinstance(start, int):
        raise FieldError("answers.answer_start[0]", f"is {show(start)}, not a whole number")
    there = context[start : start + len(text)] if start >= 0 else ""
    if there != text:
        raise FieldError(
            "answers.answer_start[0]",
            f"is {start}, but there the context has {show(there)}, not {show(text)}",
        )
    return {"question": question, "context": context, "answer": (start, start + len(text))}


def _tokenise(samples: Sequence[Sample], tokenizer: Any, limit: int, *, types: bool) -> Tokenised:
    ids, spans, origins = [], [], []
    of_texts: list[list[int]] = []
    problems, divided = [], 0
    for sample in samples:
        try:
            windows = list(_windows(sample, tokenizer, limit, types=types))
        except FieldError as err:
            problems.append(Problem(err.what, err.field, sample.where))
            continue
        divided += len(windows) > 1
        for row, span, of_row in windows:
            ids.append(row)
            spans.append(span)
            of_texts += [] if of_row is None else [of_row]
            origins.append(sample.where)
    reading.raise_problems(problems, len(samples) - len(problems))
    rows = LabelledRows(
        ids=ids,
        labels=spans,
        origins=origins,
        targets=np.ones(len(ids), np.int64),
        types=of_texts or None,
    )
    return Tokenised(rows, divided=divided)


def _windows(
    sample: Sample, tokenizer: Any, limit: int, *, types: bool
) -> Iterator[tuple[list[int], tuple[int, int], list[int] | None]]:
    """Tokens, the first and last token of the answer, and token types, of each row it becomes."""
    question, context = sample.fields["question"], sample.fields["context"]
    taken = len(tokenizer(question, "", verbose=False)["input_ids"])
    room = limit - taken
    if room < 3:
        raise FieldError(
            "question", f"has {taken} tokens, which leaves no room for the context in {limit}"
        )
    made = tokenizer(
        question,
        context,
        truncation="only_second",
        max_length=limit,
        stride=min(OVERLAP, room // 3),
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
        return_token_type_ids=types,
    )
    for i, row in enumerate(made["input_ids"]):
        of_context = [number == 1 for number in made.sequence_ids(i)]
        span = _span(made["offset_mapping"][i], of_context, sample.fields["answer"])
        if span is None:
            token = tokenizer.cls_token_id
            at = row.index(token) if token in row else 0
            span = (at, at)
        yield row, span, made["token_type_ids"][i] if types else None


def _span(
    offsets: Sequence[tuple[int, int]], of_context: Sequence[bool], answer: tuple[int, int] | None
) -> tuple[int, int] | None:
    """The tokens that hold the whole answer, or None where it is not in this part of the text."""
    if answer is None:
        return None
    start, stop = answer
    inside = [
        i for i, (a, b) in enumerate(offsets) if of_context[i] and a < stop and b > start and b > a
    ]
    if not inside or offsets[inside[0]][0] > start or offsets[inside[-1]][1] < stop:
        return None
    return inside[0], inside[-1]


class SpanObjective(LabelledObjective):
    """The mean of the cross entropies of an answer's first and last token."""

    def batch(self, rows: Rows, indices: Indices) -> Batch:
        """Padded rows, and (rows, 2) places of tokens."""
        assert isinstance(rows, LabelledRows)
        spans = [rows.labels[int(i)] for i in indices]
        places = torch.tensor(spans, dtype=torch.int64).reshape(-1, 2)
        return {**rows.padded(indices, self.pad_id), "labels": places}

    def score(self, model: nn.Module, batch: Batch, *, accuracy: bool = False) -> Score:
        """Summed over the rows; an answer is right if both its ends are."""
        inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
        places = batch["labels"]
        output = model(**inputs)
        loss = torch.zeros((), device=places.device)
        right = torch.ones(len(places), dtype=torch.bool, device=places.device)
        # No answer is at what only fills up.
        real = inputs["attention_mask"][: len(places)] > 0
        for logits, wanted in zip((output.start_logits, output.end_logits), places.T, strict=True):
            logits = logits[: len(places)].float().masked_fill(~real, -torch.inf)
            logs = F.log_softmax(logits, dim=-1)
            loss = loss - (1 - self.label_smoothing) * logs.gather(1, wanted[:, None]).sum()
            if self.label_smoothing:
                means = logs.masked_fill(~real, 0).sum(-1) / real.sum(-1)
                loss = loss - self.label_smoothing * means.sum()
            right &= logits.argmax(-1) == wanted
        return Score(loss / 2, right.sum() if accuracy else None)
