"""From texts to token ids: tokenizers, the token store and its cache, the order of batches."""
