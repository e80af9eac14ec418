"""DreamBench: a subject in new scenes, at several λ. Is the subject preserved, and is the prompt followed?

    CP = mean over real pictures r of cos(judge(picture), judge(r))
    PF = cos(CLIP(picture), CLIP(prompt))

30 subjects × 25 prompts × 4 images at every λ (arXiv 2208.12242, section 4; data of google/dreambooth). A
high λ preserves the subject and loses the prompt, so the result is the curve over λ and not one of its
points.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from imprompt.errors import DataError
from imprompt.evaluation.judges import LoadedJudge
from imprompt.evaluation.methods import check_method
from imprompt.evaluation.metrics import clip_t, cosine_similarity
from imprompt.evaluation.settings import DreamBenchSettings, load_settings
from imprompt.evaluation.suites.data import (
    DreamBenchSubject,
    check_readable_share,
    find_readable,
    number_items,
    read_dreambench,
)
from imprompt.evaluation.suites.dreambench_report import DreamBenchResult, build_report, build_result
from imprompt.evaluation.suites.features import compute_features
from imprompt.evaluation.suites.folder import BenchmarkFolder
from imprompt.evaluation.suites.runs import generate_images_and_load_judges, write_results
from imprompt.evaluation.suites.tasks import Task, derive_seed
from imprompt.runtime.output import make_folder
from imprompt.runtime.progress import show_progress


@dataclass(frozen=True)
class Shot:
    """A task with its place in the benchmark.

    Attributes:
        task: the image to be generated
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
    """One image's scores by one judge; a row of scores.csv.

    `fidelity` is the mean cosine to all real pictures of the subject, `fidelity_others` to those that are not
    the reference. `prompt_following` is the cosine to the prompt, None where the judge reads no text.
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


def evaluate_dreambench(*, output: Path, config: Path, settings: Sequence[str] = ()) -> DreamBenchResult:
    """Run the protocol for one method, or resume it; write scores and report to `output`.

    Args, returns, raises: as `evaluate_coco`; the settings are `DreamBenchSettings`.
    """
    started = time.monotonic()
    options = load_settings(DreamBenchSettings, config, settings)
    check_method(options.method, options.drawing, scales=options.data.scales != (1.0,), text=True)
    everyone = read_dreambench(Path(options.data.folder), options.data.subjects)
    make_folder(output)
    folder = BenchmarkFolder(output)
    subjects, bad = select_readable(everyone, output)
    folder.write_faults("unreadable", bad)
    shots = list_shots(subjects, options)
    run = generate_images_and_load_judges(options, "dreambench", [shot.task for shot in shots], folder)
    shots = [shot for shot in shots if shot.task.key not in run.failed]
    real = {judge.name: compute_real_features(judge, subjects, folder) for judge in run.judges}
    scores = [
        row for judge in run.judges for row in score_shots(judge, shots, subjects, real[judge.name], folder)
    ]
    result = build_result(options, [subject.name for subject in subjects], run, scores, real, len(bad))
    report = build_report(options, subjects, run, result, folder)
    write_results("dreambench", options, scores, result, report, output, time.monotonic() - started)
    return result


def select_readable(
    everyone: Sequence[DreamBenchSubject], output: Path
) -> tuple[list[DreamBenchSubject], dict[str, str]]:
    """Return the subjects with the pictures that can be read, and the others with their faults.

    Raises:
        DataError: more than 1 % of the pictures cannot be read, or a subject has fewer than two left
    """
    every = [path for subject in everyone for path in subject.pictures]
    with show_progress("reading references", len(every)) as advance:
        good, bad = find_readable(every, advance)
    check_readable_share(bad, len(every), output / "unreadable.jsonl")
    subjects = []
    for subject in everyone:
        pictures = tuple(path for path in subject.pictures if path in good)
        if len(pictures) < 2:
            raise DataError(f"{subject.name} has {len(pictures)} pictures that can be read; it needs two")
        subjects.append(DreamBenchSubject(subject.name, pictures, subject.prompts))
    return subjects, bad


def list_shots(subjects: Sequence[DreamBenchSubject], options: DreamBenchSettings) -> list[Shot]:
    """List the images to be generated. The k-th image of a prompt has the same noise at every λ."""
    return [
        Shot(
            Task(
                key=f"{subject.name}-{number}-{scale:g}-{k}",
                reference=str(subject.pictures[0]),
                text=text,
                scale=scale,
                seed=derive_seed("dreambench", subject.name, number, k),
            ),
            place,
            int(number),
            k,
        )
        for place, subject in enumerate(subjects)
        for number, text in number_items(subject.prompts)
        for scale in options.data.scales
        for k in range(options.data.samples)
    ]


def compute_real_features(
    judge: LoadedJudge, subjects: Sequence[DreamBenchSubject], folder: BenchmarkFolder
) -> list[Tensor]:
    """Compute a judge's features of every subject's real pictures as middle squares, the reference first."""
    every = [path for subject in subjects for path in subject.pictures]
    features = compute_features(judge.model, every, "square", folder.path / "features")
    return list(features.split([len(subject.pictures) for subject in subjects]))


def score_shots(
    judge: LoadedJudge,
    shots: Sequence[Shot],
    subjects: Sequence[DreamBenchSubject],
    real: Sequence[Tensor],
    folder: BenchmarkFolder,
) -> list[SubjectScore]:
    """Return a judge's score of every image."""
    files = [folder.picture_path(shot.task.key) for shot in shots]
    with show_progress(f"judging by {judge.name}", len(files)) as advance:
        features = compute_features(judge.model, files, "drawn", folder.path / "features", advance)
    following = measure_prompt_following(judge, shots, features)
    rows = []
    for place, shot in enumerate(shots):
        cosines = cosine_similarity(features[place][None], real[shot.subject])[0]
        rows.append(
            SubjectScore(
                key=shot.task.key,
                subject=subjects[shot.subject].name,
                prompt=shot.task.text,
                scale=float(shot.task.scale),
                sample=shot.sample,
                seed=shot.task.seed,
                judge=judge.name,
                is_self=judge.is_self,
                fidelity=float(cosines.mean()),
                fidelity_others=float(cosines[1:].mean()),
                prompt_following=None if following is None else float(following[place]),
            )
        )
    return rows


def measure_prompt_following(judge: LoadedJudge, shots: Sequence[Shot], features: Tensor) -> Tensor | None:
    """Return the cosine of every image with its prompt; None if the judge reads no text."""
    if not judge.reads_text:
        return None
    texts = list(dict.fromkeys(shot.task.text for shot in shots))
    text_features = judge.model.text_features(texts)
    place = {text: number for number, text in enumerate(texts)}
    return clip_t(features, text_features[[place[shot.task.text] for shot in shots]])
