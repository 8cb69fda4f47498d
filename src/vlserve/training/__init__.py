"""From JSONL lines to a trained checkpoint: data, fit, evaluate."""
