"""The YAML at the top of a card: what the Hub reads to file, filter and link a repo."""

from __future__ import annotations

from huggingface_hub import EvalResult, ModelCardData

from spafit_hf.card.facts import CardFacts, Score
from spafit_hf.names import is_hub_id
from spafit_hf.words import METRIC_IDS, figure_name, is_spread

#: PEFT's task type -> the Hub's task, where one follows from the other.
PIPELINE_TAGS = {
    "SEQ_CLS": "text-classification",
    "TOKEN_CLS": "token-classification",
    "QUESTION_ANS": "question-answering",
    "CAUSAL_LM": "text-generation",
    "FEATURE_EXTRACTION": "feature-extraction",
}
#: What a model's results are filed under where the Hub has no task of its own for it.
RESULT_TASKS = {"SEQ_2_SEQ_LM": "text2text-generation"}


def pipeline_tag(facts: CardFacts) -> str | None:
    if facts.pipeline_tag is not None:
        return facts.pipeline_tag
    if (facts.base.model_class or "").endswith("ForImageClassification"):
        return "image-classification"
    return PIPELINE_TAGS.get(facts.task_type or "")


def card_data(facts: CardFacts, name: str) -> ModelCardData:
    """The metadata of a card, without what is not known or not on the Hub; results are filed under the repository's
    name."""
    base = facts.base.id if is_hub_id(facts.base.id) else None
    adapter = facts.kind == "adapter"
    results = [result for score in facts.scores for result in _results(facts, score)]
    return ModelCardData(
        language=facts.language[0] if len(facts.language) == 1 else list(facts.language) or None,
        license=facts.license or facts.base.license,
        library_name="peft" if adapter and facts.form != "native" else "spafit-hf" if adapter else "transformers",
        tags=_tags(facts, base),
        base_model=base,
        # Not a field of its own in huggingface_hub, which passes what it does not know through.
        **({"base_model_relation": "adapter" if adapter else "finetune"} if base else {}),  # type: ignore[arg-type]
        pipeline_tag=pipeline_tag(facts),
        datasets=[facts.data.id] if is_hub_id(facts.data.id) and facts.data.id else None,
        metrics=list(dict.fromkeys(METRIC_IDS.get(key, key) for score in facts.scores for key in _kept(score)))
        or None,
        **({"widget": widget} if (widget := _widget(facts)) else {}),  # type: ignore[arg-type]
        model_name=name if results else None,
        eval_results=results or None,
    )


def _tags(facts: CardFacts, base: str | None) -> list[str]:
    method = facts.method.lower()
    family = "spafit" if method.startswith("spafit") else "lora" if method.startswith("lora") else method
    tags = [method, family]
    tags += ["bottleneck-adapter"] if any(band.bottlenecks for band in facts.layers) else []
    if facts.kind == "adapter":
        tags += ["lora"] if any(band.lora for band in facts.layers) else []
        tags += ["peft"] if facts.form != "native" else []
        tags += [f"base_model:adapter:{base}"] if base else []
    tags += ["glue"] if facts.data.glue else []
    return list(dict.fromkeys([*tags, *facts.tags]))


def _kept(score: Score) -> list[str]:
    """The figures of a score that are metrics: a loss is none, nor the error of another."""
    return [name for name in score.figures if name not in ("loss", "eval_loss") and not is_spread(name)]


def _results(facts: CardFacts, score: Score) -> list[EvalResult]:
    task = pipeline_tag(facts) or RESULT_TASKS.get(facts.task_type or "")
    if task is None or facts.data.id is None or not is_hub_id(facts.data.id):
        return []
    url = f"https://huggingface.co/{facts.repo_id}" if facts.repo_id else None
    return [
        EvalResult(
            task_type=task,
            task_name=task.replace("-", " ").capitalize(),
            dataset_type=facts.data.id,
            dataset_name=facts.data.name or facts.data.id,
            dataset_config=facts.data.config,
            dataset_split=score.split,
            dataset_revision=facts.data.revision,
            metric_type=METRIC_IDS.get(name, name),
            metric_value=round(score.figures[name], 6),
            metric_name=figure_name(name),
            source_name="measured by the author of this repository" if url else None,
            source_url=url,
        )
        for name in _kept(score)
    ]


def _widget(facts: CardFacts) -> list[dict[str, str]] | None:
    """Texts to try on the repo's page, which takes one text at a time."""
    if facts.task_type not in ("SEQ_CLS", "CAUSAL_LM"):
        return None
    return [{"text": example[0]} for example in facts.examples if len(example) == 1] or None
