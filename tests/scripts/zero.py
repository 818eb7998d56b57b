"""A SpafitTrainer whose model is partitioned by DeepSpeed's ZeRO-3: zero.py MODEL OUTPUT [CHECKPOINT]."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import tiny
import torch
from transformers import BertForSequenceClassification, DataCollatorWithPadding

from spafit_hf import SpafitTrainer, SpafitTrainingArguments

model_folder, out, checkpoint = (*sys.argv[1:], "")[:3]
args = SpafitTrainingArguments(
    out,
    strategy="spafit-4-9-II",
    lora_r=4,
    max_steps=4,
    save_steps=2,
    per_device_train_batch_size=4,
    learning_rate=1e-2,
    report_to="none",
    disable_tqdm=True,
    ddp_backend="gloo",
    deepspeed={"zero_optimization": {"stage": 3}, "train_micro_batch_size_per_gpu": 4},
)
model = BertForSequenceClassification.from_pretrained(model_folder)
assert all(hasattr(parameter, "ds_id") for parameter in model.parameters())
trainer = SpafitTrainer(
    model,
    args,
    data_collator=DataCollatorWithPadding(tiny.tokenizer()),
    train_dataset=tiny.dataset(24),
    processing_class=tiny.tokenizer(),
)
trainer.train(resume_from_checkpoint=checkpoint or None)
trainer.save_model()
batch = {name: torch.as_tensor(value)[None] for name, value in tiny.dataset(1)[0].items() if name != "label"}
trainer.model_wrapped.eval()
with torch.no_grad():
    logits = trainer.model_wrapped(**batch).logits
if trainer.is_world_process_zero():
    torch.save(logits, Path(out) / "logits.pt")
sys.stdout.flush()
os._exit(0)  # as in watched.py
