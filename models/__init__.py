"""What thinks: traces, model loading, forward passes, chat rendering. torch and transformers; no Ray, no environments."""
