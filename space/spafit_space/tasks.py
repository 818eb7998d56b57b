"""The nine tasks in words that a visitor understands, with examples. No example is a row of a data set."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TaskWords:
    """How the page speaks of a task."""

    title: str
    """Short, for a button."""
    question: str
    """What is decided."""
    boxes: tuple[str, ...]
    """What the texts are called, one or two."""
    labels: dict[str, str]
    """The data set's label -> words; {} for a score."""
    does: str
    """A sentence on what the model can do."""
    does_not: str
    """A sentence on what it cannot."""
    examples: tuple[tuple[str, ...], ...]


TASK_WORDS: dict[str, TaskWords] = {
    "sst2": TaskWords(
        title="Sentiment",
        question="Is this praise or complaint?",
        boxes=("Text",),
        labels={"negative": "negative", "positive": "positive"},
        does="It tells praise from complaint in a sentence or two in the manner of movie reviews.",
        does_not="It has no neutral: a plain fact gets one of the two as well, and irony or another subject than film "
        "can mislead it.",
        examples=(
            ("A warm, funny film that trusts its actors and never outstays its welcome.",),
            ("Ninety minutes of shouting in search of a story.",),
            ("The songs are lovely, but the plot falls apart long before the end.",),
        ),
    ),
    "cola": TaskWords(
        title="Grammar",
        question="Is this sentence acceptable English?",
        boxes=("Sentence",),
        labels={"unacceptable": "not acceptable", "acceptable": "acceptable"},
        does="It judges whether a short English sentence is well formed, as linguists judge textbook examples.",
        does_not="It does not say what is wrong or correct it, and it knows nothing of spelling, style or truth.",
        examples=(
            ("The gardener who my sister hired plants roses every spring.",),
            ("The gardener who my sister hired plant rose every springs.",),
            ("Which book did you forget where you put?",),
        ),
    ),
    "mrpc": TaskWords(
        title="Paraphrase",
        question="Do these two sentences say the same?",
        boxes=("First sentence", "Second sentence"),
        labels={"not_equivalent": "different", "equivalent": "same meaning"},
        does="It judges whether two sentences of news report the same thing in other words.",
        does_not="Sentences that share most of their words often count as the same for it, even where a number or a "
        "name differs.",
        examples=(
            (
                "The city council approved the new tram line on Monday after a long debate.",
                "After lengthy discussion, councillors on Monday gave the go-ahead for the tram line.",
            ),
            (
                "The airline cancelled forty flights because of the storm.",
                "The airline hired forty pilots before the summer season.",
            ),
            (
                "Shares in the bakery chain rose 4 percent to 31 euros.",
                "Shares in the bakery chain fell 9 percent to 22 euros.",
            ),
        ),
    ),
    "qqp": TaskWords(
        title="Same question",
        question="Do these two questions ask the same?",
        boxes=("First question", "Second question"),
        labels={"not_duplicate": "different questions", "duplicate": "same question"},
        does="It judges whether one answer would serve two questions, as on a forum.",
        does_not="Its training labels are noisy, and questions that differ in one decisive word can pass as the same.",
        examples=(
            ("How do I keep basil alive indoors?", "What is the best way to grow basil in an apartment?"),
            ("How long should I boil an egg?", "How long can boiled eggs be kept in the fridge?"),
            ("Is it safe to travel alone in Iceland?", "Can I visit Iceland on my own safely?"),
        ),
    ),
    "stsb": TaskWords(
        title="Similarity",
        question="How alike are these two sentences in meaning, from 0 to 5?",
        boxes=("First sentence", "Second sentence"),
        labels={},
        does="It scores how close two sentences are in meaning: 0 is unrelated, 5 is the same.",
        does_not="Nothing keeps its score inside 0 to 5, and it can rate opposites as close because they share a "
        "subject.",
        examples=(
            ("A child is feeding ducks by the pond.", "A kid gives bread to the ducks at a pond."),
            ("A woman is slicing tomatoes.", "A woman is cooking in the kitchen."),
            ("Two dogs chase a ball on the beach.", "The bank raised its interest rate again."),
        ),
    ),
    "mnli": TaskWords(
        title="Inference",
        question="Given the premise, is the hypothesis true, open or false?",
        boxes=("Premise", "Hypothesis"),
        labels={"entailment": "follows", "neutral": "may or may not be", "contradiction": "contradicts"},
        does="It judges whether a statement follows from a premise, contradicts it, or is left open by it.",
        does_not="It does not check facts about the world, and a “not” or shared words can sway it more than they "
        "should.",
        examples=(
            (
                "The museum is closed on Mondays, so we went to the lake instead.",
                "We did not visit the museum that day.",
            ),
            ("She plays the cello in two orchestras.", "She has never touched an instrument."),
            ("The train to Lyon left ten minutes late.", "The driver had overslept."),
        ),
    ),
    "qnli": TaskWords(
        title="Answer in text",
        question="Does the sentence hold the answer to the question?",
        boxes=("Question", "Sentence"),
        labels={"entailment": "holds the answer", "not_entailment": "no answer in it"},
        does="It judges whether a sentence in the manner of Wikipedia answers a question.",
        does_not="It does not give the answer, and a sentence that only repeats the question's words can fool it.",
        examples=(
            (
                "When was the lighthouse built?",
                "The lighthouse was completed in 1874 after three years of work on the reef.",
            ),
            ("When was the lighthouse built?", "The lighthouse stands on a reef four miles off the coast."),
            ("What do the caterpillars of this moth eat?", "The larvae feed on the leaves of oak and birch."),
        ),
    ),
    "rte": TaskWords(
        title="Entailment",
        question="Does the second text follow from the first?",
        boxes=("Text", "Statement"),
        labels={"entailment": "follows", "not_entailment": "does not follow"},
        does="It judges whether a statement follows from a short passage of news or an encyclopedia.",
        does_not="It was trained on 2,490 pairs only and is wrong often; “does not follow” does not mean false.",
        examples=(
            (
                "The novelist Mara Lindqvist, born in Uppsala in 1951, published her last book in 1998.",
                "Mara Lindqvist was born in Uppsala.",
            ),
            (
                "The novelist Mara Lindqvist, born in Uppsala in 1951, published her last book in 1998.",
                "Mara Lindqvist won a prize in 1998.",
            ),
            ("Heavy rain flooded the cellar of the town hall on Friday night.", "The town hall has a cellar."),
        ),
    ),
    "wnli": TaskWords(
        title="Pronouns",
        question="Does the second sentence name what the pronoun stands for?",
        boxes=("Sentence with a pronoun", "The pronoun resolved"),
        labels={"not_entailment": "does not follow", "entailment": "follows"},
        does="It is asked whether a sentence with its pronoun filled in follows from the original.",
        does_not="Expect guesses: its validation set was built against its 635 training rows, and the paper's .56 is "
        "what always giving one answer scores.",
        examples=(
            (
                "Nadia lent Priya her umbrella because she had two of them.",
                "Nadia had two umbrellas.",
            ),
            (
                "The ladder would not fit into the van because it was too short.",
                "The ladder was too short.",
            ),
            ("The soup burned while Tom talked to his uncle, so he threw it away.", "Tom threw the soup away."),
        ),
    ),
}
"""By the task's name in GLUE, in the order of the page: one text first, then pairs."""

UNKNOWN_TASK = TaskWords(
    title="Other",
    question="What does this adapter say?",
    boxes=("Text", "Second text, for pairs"),
    labels={},
    does="Its folder does not name a task that this page knows; it answers with its own labels.",
    does_not="What it was trained on, and how well, is for its card to say.",
    examples=(),
)


def words_of(task: str | None) -> TaskWords:
    """The words for a task; general ones where it is not of GLUE."""
    return TASK_WORDS.get(task or "", UNKNOWN_TASK)


def label_words(task: str | None, label: str) -> str:
    """A label as a person reads it: the task's words, else the label with its underscores as blanks."""
    return words_of(task).labels.get(label, label.replace("_", " "))
