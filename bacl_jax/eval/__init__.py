"""Zero-shot evaluation: retrieval, half-true captions, localisation of attention, reports."""
