"""How it learns: one short file per method, made of pure credit and loss functions."""
