"""A translator that is trained here from nothing, and ten sentences of it: `python -m
bench.translations`.
"""

from bench import accuracy
from bench.running import platform, shared, table
from modelmill import Client

DATA = "tatoeba_cmn"
TASK = "translation"
RECIPE = "transformer"
SECONDS = 1200
SENTENCES = (
    "Where is the station?",
    "She likes to drink tea.",
    "I have two younger brothers.",
    "It was raining yesterday.",
    "Can you help me?",
    "He is reading a book in his room.",
    "We are going to school tomorrow.",
    "This box is too heavy for me.",
    "How much does it cost?",
    "My mother is a teacher.",
)
"""Short ones of our own, as the data set has them."""


def measure() -> str:
    """The row of its figures, and the sentences with their translations, as Markdown tables."""
    if shared(DATA) is None:
        return f"Not measured: the data set {DATA} is not on this machine."
    with platform() as running:
        row = accuracy.case(running, DATA, TASK, RECIPE, None, SECONDS)
        name = f"{DATA}-{TASK}-{RECIPE}"
        running.run("deploy", name, "--wait")
        with Client(home=running.home) as client:
            found = client.predict(name, *SENTENCES)
    figures = table(
        accuracy.HEADS, [[*row[:-1], "`python -m bench.translations`"]]
    )
    said = [[one["input"], one["output"]["translation_text"]] for one in found]
    return f"{figures}\n\n{table(['sentence', 'its translation'], said)}"


if __name__ == "__main__":
    print(measure())
