"""image-classification: a picture in, labels with scores out."""

from modelmill.tasks.base import Evaluation, Items, Measured, Model
from modelmill.tasks.evaluation import classification, sample_sheet
from modelmill.tasks.evaluation.classification import Classifier
from modelmill.tasks.inputs import ImageTask
from modelmill.types import Json

WORST = 24


class ImageClassification(Classifier, ImageTask):
    """Labels with scores for a picture."""

    SUMMARY = "name what a picture shows"
    RECIPE = "cnn"
    SAMPLES = 1000

    def evaluate(self, model: Model, items: Items) -> Evaluation:
        """What all classifiers are measured by, and a sheet of the errors that the model was most
        sure of.
        """
        return metrics(self.measured(model, items))


def metrics(measured: Measured) -> Evaluation:
    """What all classifiers are measured by, and a sheet of the errors that the model was most
    sure of.
    """
    found = classification.evaluate(measured)
    guesses = [
        max(answer, key=lambda entry: entry["score"])
        for answer in measured.outputs
    ]
    wrong = [
        row
        for row, guess in enumerate(guesses)
        if guess["label"] != measured.truths[row]
    ]
    if not wrong:
        return found
    worst = sorted(wrong, key=lambda row: -guesses[row]["score"])[:WORST]
    title = f"{len(wrong)} of {len(guesses)} misclassified, the surest first"
    captions = [_caption(measured.truths[row], guesses[row]) for row in worst]
    sheet = sample_sheet.sheet(title, measured.show(worst), captions)
    pictures = {**found.pictures, "misclassified.png": sheet}
    return Evaluation(metrics=found.metrics, pictures=pictures)


def _caption(truth: str, guess: Json) -> str:
    return f"true: {truth}\nfound: {guess['label']} {guess['score']:.2f}"


TASK = ImageClassification()
