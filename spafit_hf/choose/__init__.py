"""Which strata to train, chosen from data, and what a fine-tuned model has forgotten."""
