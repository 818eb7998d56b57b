"""A tiny run for a client process: a random BERT, a few sentences, a trainer that pushes.

from hub.runs import tiny_base, tiny_trainer
tiny_base(folder)                                  a base to put on the Hub
trainer = tiny_trainer("tiny/bert", out, ...)      a trainer on it
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertModel,
    BertTokenizer,
    DataCollatorWithPadding,
    GPT2Config,
    GPT2LMHeadModel,
    T5Config,
    T5ForConditionalGeneration,
    Trainer,
    TrainingArguments,
)

from spafit_hf import SpafitTrainer, SpafitTrainingArguments, Strategy, get_spafit_model, save_adapter
from spafit_hf.card import facts_of_folder, glue_data, write_card
from spafit_hf.hub import Patience, cached_revision, push_adapter
from spafit_hf.trainer.hub import HubPushMixin

WORDS = ["the", "a", "museum", "opened", "building", "new", "in", "spring", "may", "good", "bad", "film", "was", "not"]
LABELS = {1: ["score"], 2: ["bad", "good"], 3: ["no", "maybe", "yes"]}

#: SpafitTrainer, and the mixin in front of it until it has it of its own.
Pushing: type[Any] = (
    SpafitTrainer if issubclass(SpafitTrainer, HubPushMixin) else type("Pushing", (HubPushMixin, SpafitTrainer), {})
)


class PlainPushing(HubPushMixin, Trainer):
    """What somebody has who does not want strata."""


def tiny_base(folder: str | Path, seed: int = 0) -> Path:
    """A base as it lies on the Hub: weights, configuration, tokenizer, license."""
    torch.manual_seed(seed)
    place = Path(folder)
    place.mkdir(parents=True, exist_ok=True)
    (place / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]))
    config = BertConfig(
        vocab_size=5 + len(WORDS),
        hidden_size=16,
        num_hidden_layers=4,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=32,
    )
    model = BertModel(config)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.1)
    model.save_pretrained(place)
    BertTokenizer(str(place / "vocab.txt")).save_pretrained(place)
    (place / "README.md").write_text("---\nlicense: mit\n---\n# tiny\n")
    return place


def tiny_rows(labels: int, count: int = 24) -> Dataset:
    texts = [" ".join(WORDS[(index * step) % len(WORDS)] for step in range(1, 6)) for index in range(count)]
    values: list[Any] = (
        [index / count for index in range(count)] if labels == 1 else [i % labels for i in range(count)]
    )
    return Dataset.from_dict({"text": texts, "label": values})


def tiny_trainer(
    base: str,
    output: str | Path,
    *,
    labels: int = 2,
    strategy: str = "spafit-4-9-II",
    plain: bool = False,
    **options: Any,
) -> Any:
    """A trainer for three epochs of 24 sentences; `options` are training arguments."""
    names = dict(enumerate(LABELS[labels]))
    torch.manual_seed(1)
    model = AutoModelForSequenceClassification.from_pretrained(
        base, num_labels=labels, id2label=names, label2id={name: index for index, name in names.items()}
    )
    tokenizer = AutoTokenizer.from_pretrained(base)
    rows = tiny_rows(labels).map(lambda row: tokenizer(row["text"], truncation=True, max_length=16))
    defaults = {
        "output_dir": str(output),
        "num_train_epochs": 3,
        "per_device_train_batch_size": 8,
        "learning_rate": 1e-2,
        "logging_steps": 1,
        "eval_strategy": "epoch",
        "save_strategy": "epoch",
        "use_cpu": True,
        "disable_tqdm": True,
    }
    if plain:
        from peft import LoraConfig, get_peft_model

        model = get_peft_model(model, LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query"]))
        args: Any = TrainingArguments(**{**defaults, **options})
        kind = PlainPushing
    else:
        args = SpafitTrainingArguments(**{**defaults, "strategy": strategy, "lora_r": 4, **options})
        kind = Pushing
    kind.hub_patience = Patience(tries=3, first=0.05)
    return kind(
        model=model,
        args=args,
        train_dataset=rows,
        eval_dataset=rows,
        data_collator=DataCollatorWithPadding(tokenizer),
        processing_class=tokenizer,
        compute_metrics=None if labels == 1 else accuracy,
    )


def accuracy(prediction: Any) -> dict[str, float]:
    return {"accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}


def logits(model: Any, folder_or_repo: str) -> list[list[float]]:
    """What a model says of four sentences, with the tokenizer of a folder or repo."""
    tokenizer = AutoTokenizer.from_pretrained(folder_or_repo)
    inputs = tokenizer(list(tiny_rows(2, 4)["text"]), padding=True, return_tensors="pt")
    with torch.no_grad():
        return model.eval()(**inputs).logits.tolist()


#: kind of model -> (base on the test Hub, its class, PEFT's task type)
KINDS: dict[str, tuple[str, Any, str]] = {
    "classifier": ("tiny/bert", AutoModelForSequenceClassification, "SEQ_CLS"),
    "writer": ("tiny/gpt2", AutoModelForCausalLM, "CAUSAL_LM"),
    "rewriter": ("tiny/t5", AutoModelForSeq2SeqLM, "SEQ_2_SEQ_LM"),
}


def tiny_language_models(folder: str | Path) -> list[Path]:
    """A decoder and an encoder-decoder with the tokenizer of `tiny_base`, as they would lie on the Hub."""
    torch.manual_seed(0)
    size = 5 + len(WORDS)
    gpt2 = GPT2Config(vocab_size=size, n_embd=16, n_layer=4, n_head=2, n_positions=32, bos_token_id=2, eos_token_id=3)
    t5 = T5Config(vocab_size=size, d_model=16, d_kv=8, d_ff=32, num_layers=4, num_heads=2, decoder_start_token_id=0)
    found = []
    for name, model in (("gpt2", GPT2LMHeadModel(gpt2)), ("t5", T5ForConditionalGeneration(t5))):
        place = tiny_base(Path(folder) / name)
        model.save_pretrained(place)  # in place of the encoder
        # as their own tokenizers: no token_type_ids
        names = ["input_ids", "attention_mask"]
        BertTokenizer(str(place / "vocab.txt"), model_input_names=names).save_pretrained(place)
        found.append(place)
    return found


def publish(
    folder: str | Path, repo: str, token: str, *, kind: str = "classifier", method: str = "spafit-4-9-II", **facts: Any
) -> str:
    """Push an adapter (or model) with random weights, as if it had been trained, and its card.

    Returns:
        The card.
    """
    place = Path(folder)
    base, auto, task_type = KINDS[kind]
    labels, problem = tuple(facts.get("labels", ())), facts.get("problem_type")
    names = dict(enumerate(labels or ["score"]))
    head = {"id2label": names, "label2id": {name: i for i, name in names.items()}, "problem_type": problem}
    torch.manual_seed(2)
    model = auto.from_pretrained(base, **(head if kind == "classifier" else {}))
    if method == "full":
        model.save_pretrained(place)
    else:
        adapted = get_spafit_model(model, Strategy.from_name(method, r=2))
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                torch.nn.init.normal_(parameter, std=0.1)
        save_adapter(adapted, place)
    AutoTokenizer.from_pretrained(base).save_pretrained(place)
    known = facts_of_folder(place)
    revision = cached_revision(base)
    assert revision is not None
    origin = dataclasses.replace(known.base, id=base, revision=revision, model_class=type(model).__name__)
    if "glue" in facts:
        facts["data"] = glue_data(facts.pop("glue"))
    facts = {key: tuple(value) if isinstance(value, list) else value for key, value in facts.items()}
    known = dataclasses.replace(known, base=origin, task_type=task_type, repo_id=repo, **facts)
    card = write_card(place, known).read_text()
    push_adapter(place, repo, token=token)
    return card
