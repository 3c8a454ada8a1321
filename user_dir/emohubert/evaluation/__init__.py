"""From a trained model to predictions, scores and figures."""
