"""How the demo checkpoint is made: its dialogues, its tokenizer, its training."""
