"""image-classification: a picture in, labels with scores out."""

from modelmill.tasks.base import Evaluation, Items, Measured, Model
from modelmill.tasks.evaluation import classification, sample_sheet
from modelmill.tasks.evaluation.classification import Classifier
from modelmill.tasks.inputs import ImageTask

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
        max(answer, key=lambda entry: entry["score"]) for answer in measured.outputs
    ]
    wrong = [
        row
        for row, guess in enumerate(guesses)
        if guess["label"] != measured.truths[row]
    ]
    wrong.sort(key=lambda row: -guesses[row]["score"])
    if not (worst := wrong[:WORST]):
        return found
    captions = [
        f"true: {measured.truths[row]}\nfound: {guesses[row]['label']} {guesses[row]['score']:.2f}"
        for row in worst
    ]
    title = f"{len(wrong)} of {len(guesses)} misclassified, the surest first"
    pictures = {
        "misclassified.png": sample_sheet.sheet(title, measured.show(worst), captions)
    }
    return Evaluation(metrics=found.metrics, pictures=found.pictures | pictures)


TASK = ImageClassification()
