"""DreamBench: a subject in new scenes, at several λ. Does it stay itself, and is the prompt followed?

    CP = mean over real pictures r of cos(judge(picture), judge(r))
    PF = cos(CLIP(picture), CLIP(prompt))

30 subjects × 25 prompts × 4 pictures at every λ (arXiv 2208.12242, section 4; data of google/dreambooth). A
high λ keeps the subject and forgets the prompt, so the curve over λ is the result, and no one point of it.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from imprompt.errors import DataError
from imprompt.evaluation.methods import check_method
from imprompt.evaluation.metrics import clip_t, cosine_similarity
from imprompt.evaluation.suites.data import Subject, check_share, numbered, read_dreambench, readable
from imprompt.evaluation.suites.dreambench_report import dreambench_report
from imprompt.evaluation.suites.features import features_of
from imprompt.evaluation.suites.folder import BenchmarkFolder
from imprompt.evaluation.suites.judges import Seat
from imprompt.evaluation.suites.runs import draw_and_seat
from imprompt.evaluation.suites.settings import DreamBenchSettings, load_settings
from imprompt.evaluation.suites.tasks import Task, seed_of
from imprompt.report import make_folder, write_report, write_scores
from imprompt.runtime.progress import show_progress


@dataclass(frozen=True)
class Shot:
    """A task, and what it is of.

    Attributes:
        task: what is drawn
        subject: its place in the list of subjects
        prompt: its place in the subject's prompts
        sample: k
    """

    task: Task
    subject: int
    prompt: int
    sample: int


@dataclass(frozen=True)
class SubjectScore:
    """One picture's scores by one judge; a row of scores.csv.

    `fidelity` is the mean cosine to all real pictures of the subject, `fidelity_others` to those but the
    reference; `prompt_following` the cosine to the prompt, None where the judge reads no text.
    """

    key: str
    subject: str
    prompt: str
    scale: float
    sample: int
    seed: int
    judge: str
    is_self: bool
    fidelity: float
    fidelity_others: float
    prompt_following: float | None


def evaluate_dreambench(*, output: Path, config: Path, settings: Sequence[str] = ()) -> dict[str, Any]:
    """Run the protocol for one method, or go on with it; write scores and report to `output`.

    Args, returns, raises: as `evaluate_coco`; the settings are `DreamBenchSettings`.
    """
    started = time.monotonic()
    asked = load_settings(DreamBenchSettings, config, settings)
    check_method(asked.method, asked.drawing, scales=asked.data.scales != (1.0,), text=True)
    listed = read_dreambench(Path(asked.data.folder), asked.data.subjects)
    make_folder(output)
    folder = BenchmarkFolder(output)
    subjects, bad = usable(listed, output)
    folder.note("unreadable", bad)
    shots = shots_of(subjects, asked)
    drawn = draw_and_seat(asked, "dreambench", [shot.task for shot in shots], folder)
    shots = [shot for shot in shots if shot.task.key not in drawn.failed]
    real = {seat.judge.name: real_features(seat, subjects, folder) for seat in drawn.seats}
    scores = [row for seat in drawn.seats for row in rows_of(seat, shots, subjects, real, folder)]
    write_scores(scores, output)
    report, summary = dreambench_report(asked, subjects, drawn, scores, real, len(bad), folder)
    summary = {
        "suite": "dreambench",
        "settings": asked.model_dump(mode="json"),
        "seconds": round(time.monotonic() - started, 1),
        **summary,
    }
    write_report(report, output, summary)
    return summary


def usable(listed: Sequence[Subject], output: Path) -> tuple[list[Subject], dict[str, str]]:
    """Subjects with the pictures that can be read, and what cannot.

    Raises:
        DataError: more than 1 % of the pictures cannot be read, or a subject has fewer than two left
    """
    every = [path for subject in listed for path in subject.pictures]
    with show_progress("reading references", len(every)) as advance:
        good, bad = readable(every, advance)
    check_share(bad, len(every), output / "unreadable.jsonl")
    subjects = []
    for subject in listed:
        pictures = tuple(path for path in subject.pictures if path in good)
        if len(pictures) < 2:
            raise DataError(f"{subject.name} has {len(pictures)} pictures that can be read; it needs two")
        subjects.append(Subject(subject.name, pictures, subject.prompts))
    return subjects, bad


def shots_of(subjects: Sequence[Subject], asked: DreamBenchSettings) -> list[Shot]:
    """Every picture to be drawn. The k-th picture of a prompt has the same noise at every λ."""
    return [
        Shot(
            Task(
                key=f"{subject.name}-{number}-{scale:g}-{k}",
                reference=str(subject.pictures[0]),
                text=text,
                scale=scale,
                seed=seed_of("dreambench", subject.name, number, k),
            ),
            place,
            int(number),
            k,
        )
        for place, subject in enumerate(subjects)
        for number, text in numbered(subject.prompts)
        for scale in asked.data.scales
        for k in range(asked.data.samples)
    ]


def real_features(seat: Seat, subjects: Sequence[Subject], folder: BenchmarkFolder) -> list[Tensor]:
    """What a judge sees of every subject's real pictures, as middle squares; the reference first."""
    every = [path for subject in subjects for path in subject.pictures]
    seen = features_of(seat.judge, every, "square", folder.path / "features")
    return list(seen.split([len(subject.pictures) for subject in subjects]))


def rows_of(
    seat: Seat,
    shots: Sequence[Shot],
    subjects: Sequence[Subject],
    real: dict[str, list[Tensor]],
    folder: BenchmarkFolder,
) -> list[SubjectScore]:
    """A judge's scores, picture by picture."""
    files = [folder.picture(shot.task.key) for shot in shots]
    with show_progress(f"judging by {seat.judge.name}", len(files)) as advance:
        seen = features_of(seat.judge, files, "drawn", folder.path / "features", advance)
    following = prompt_following(seat, shots, seen)
    rows = []
    for place, shot in enumerate(shots):
        cosines = cosine_similarity(seen[place][None], real[seat.judge.name][shot.subject])[0]
        rows.append(
            SubjectScore(
                key=shot.task.key,
                subject=subjects[shot.subject].name,
                prompt=shot.task.text,
                scale=float(shot.task.scale),
                sample=shot.sample,
                seed=shot.task.seed,
                judge=seat.judge.name,
                is_self=seat.is_self,
                fidelity=float(cosines.mean()),
                fidelity_others=float(cosines[1:].mean()),
                prompt_following=None if following is None else float(following[place]),
            )
        )
    return rows


def prompt_following(seat: Seat, shots: Sequence[Shot], seen: Tensor) -> Tensor | None:
    """Cosine of every picture with its prompt."""
    if not seat.judge.reads_text:
        return None
    texts = list(dict.fromkeys(shot.task.text for shot in shots))
    features = seat.judge.text_features(texts)
    place = {text: number for number, text in enumerate(texts)}
    return clip_t(seen, features[[place[shot.task.text] for shot in shots]])
