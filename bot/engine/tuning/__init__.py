"""P-Tuning v2: train a prefix on a frozen model, evaluate it, save it for `engine.ptuning`."""
