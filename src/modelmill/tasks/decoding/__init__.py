"""Raw inputs to arrays: decoders and tokenizers that several tasks share."""
