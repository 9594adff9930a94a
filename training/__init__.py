"""Training of the demo checkpoint: dialogues, tokenizer, network."""
