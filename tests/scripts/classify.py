"""A classification script as people have them for `transformers.Trainer`, with its two imports swapped for ours.

Used by the tests as a whole program: on its own, under torchrun, under `accelerate launch`.
"""

import logging
import os
import sys
from dataclasses import dataclass, field
from typing import Optional

import numpy as np
import transformers
from datasets import load_dataset
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    EvalPrediction,
    HfArgumentParser,
    set_seed,
)
from transformers.trainer_utils import get_last_checkpoint

from spafit_hf import SpafitTrainer as Trainer
from spafit_hf import SpafitTrainingArguments as TrainingArguments

logger = logging.getLogger(__name__)


@dataclass
class ModelArguments:
    model_name_or_path: str = field(metadata={"help": "A model's folder or its name on the Hub."})
    config_name: Optional[str] = field(default=None, metadata={"help": "Another configuration."})  # noqa: UP045
    cache_dir: Optional[str] = field(default=None, metadata={"help": "Where downloads go."})  # noqa: UP045


@dataclass
class DataTrainingArguments:
    train_file: Optional[str] = field(default=None, metadata={"help": "JSON lines with text and label."})  # noqa: UP045
    validation_file: Optional[str] = field(default=None, metadata={"help": "JSON lines to evaluate."})  # noqa: UP045
    test_file: Optional[str] = field(default=None, metadata={"help": "JSON lines to predict."})  # noqa: UP045
    max_seq_length: int = field(default=32, metadata={"help": "Longer texts are cut."})
    max_train_samples: Optional[int] = field(default=None, metadata={"help": "Use so many."})  # noqa: UP045


def main() -> None:
    parser = HfArgumentParser((ModelArguments, DataTrainingArguments, TrainingArguments))
    if len(sys.argv) == 2 and sys.argv[1].endswith(".json"):
        model_args, data_args, training_args = parser.parse_json_file(json_file=os.path.abspath(sys.argv[1]))
    else:
        model_args, data_args, training_args = parser.parse_args_into_dataclasses()

    logging.basicConfig(format="%(levelname)s|%(name)s| %(message)s", handlers=[logging.StreamHandler(sys.stdout)])
    if training_args.should_log:
        transformers.utils.logging.set_verbosity_info()
    logger.setLevel(training_args.get_process_log_level())
    transformers.utils.logging.set_verbosity(training_args.get_process_log_level())

    last_checkpoint = None
    if os.path.isdir(training_args.output_dir) and training_args.do_train:
        last_checkpoint = get_last_checkpoint(training_args.output_dir)
        if last_checkpoint is not None and training_args.resume_from_checkpoint is None:
            logger.info(f"Found {last_checkpoint}; resuming from it.")

    set_seed(training_args.seed)

    files = {"train": data_args.train_file, "validation": data_args.validation_file, "test": data_args.test_file}
    files = {split: file for split, file in files.items() if file is not None}
    raw_datasets = load_dataset("json", data_files=files, cache_dir=model_args.cache_dir)
    label_list = sorted(raw_datasets["train"].unique("label"))

    config = AutoConfig.from_pretrained(
        model_args.config_name or model_args.model_name_or_path,
        num_labels=len(label_list),
        finetuning_task="text-classification",
    )
    config.label2id = {f"label {value}": index for index, value in enumerate(label_list)}
    config.id2label = {index: name for name, index in config.label2id.items()}
    tokenizer = AutoTokenizer.from_pretrained(model_args.model_name_or_path)
    model = AutoModelForSequenceClassification.from_pretrained(model_args.model_name_or_path, config=config)

    def preprocess_function(examples):
        result = tokenizer(examples["text"], max_length=data_args.max_seq_length, truncation=True)
        result["label"] = [label_list.index(value) for value in examples["label"]]
        return result

    with training_args.main_process_first(desc="tokenizing"):
        raw_datasets = raw_datasets.map(preprocess_function, batched=True, load_from_cache_file=False)

    train_dataset = raw_datasets["train"]
    if data_args.max_train_samples is not None:
        train_dataset = train_dataset.select(range(data_args.max_train_samples))

    def compute_metrics(p: EvalPrediction):
        preds = np.argmax(p.predictions[0] if isinstance(p.predictions, tuple) else p.predictions, axis=1)
        return {"accuracy": float((preds == p.label_ids).mean())}

    trainer = Trainer(
        model=model,
        args=training_args,
        train_dataset=train_dataset if training_args.do_train else None,
        eval_dataset=raw_datasets["validation"] if training_args.do_eval else None,
        compute_metrics=compute_metrics,
        processing_class=tokenizer,
        data_collator=DataCollatorWithPadding(tokenizer),
    )

    if training_args.do_train:
        checkpoint = training_args.resume_from_checkpoint or last_checkpoint
        train_result = trainer.train(resume_from_checkpoint=checkpoint)
        metrics = {**train_result.metrics, "train_samples": len(train_dataset)}
        trainer.save_model()
        trainer.log_metrics("train", metrics)
        trainer.save_metrics("train", metrics)
        trainer.save_state()

    if training_args.do_eval:
        metrics = trainer.evaluate(eval_dataset=raw_datasets["validation"])
        trainer.log_metrics("eval", metrics)
        trainer.save_metrics("eval", metrics)

    if training_args.do_predict:
        predict_dataset = raw_datasets["test"].remove_columns("label")
        predictions = np.argmax(trainer.predict(predict_dataset, metric_key_prefix="predict").predictions, axis=1)
        if trainer.is_world_process_zero():
            with open(os.path.join(training_args.output_dir, "predict_results.txt"), "w") as writer:
                writer.write("index\tprediction\n")
                for index, item in enumerate(predictions):
                    writer.write(f"{index}\t{label_list[item]}\n")

    kwargs = {"finetuned_from": model_args.model_name_or_path, "tasks": "text-classification"}
    if training_args.push_to_hub:
        trainer.push_to_hub(**kwargs)
    else:
        trainer.create_model_card(**kwargs)


if __name__ == "__main__":
    main()
