"""From an utterance's vector to class logits or dimensions."""

from torch import nn

HEADS = ("linear", "relu_linear", "hidden", "mlp", "mlp_deep")


def make_head(name, width, outputs, dropout=0.0):
    """A head by its name.

    - `linear`: one linear layer (FLEA).
    - `relu_linear`: ReLU, then a linear layer (V-FT, Chen & Rudnicky 2023).
    - `hidden`: dropout, hidden layer of the same width, tanh, dropout, linear (Wagner et al. 2023).
    - `mlp`: 256-64 with batch norm, ReLU and dropout; `mlp_deep`: 1024-256-64-64 (the CREMA-D report).

    Args:
        name: one of HEADS.
        width: size of the utterance vector.
        outputs: classes or dimensions.
        dropout: probability.
    """
    if name == "linear":
        return nn.Sequential(nn.Dropout(dropout), nn.Linear(width, outputs))
    if name == "relu_linear":
        return nn.Sequential(nn.ReLU(), nn.Dropout(dropout), nn.Linear(width, outputs))
    if name == "hidden":
        return nn.Sequential(nn.Dropout(dropout), nn.Linear(width, width), nn.Tanh(), nn.Dropout(dropout), nn.Linear(width, outputs))
    layers = []
    for size in {"mlp": (256, 64), "mlp_deep": (1024, 256, 64, 64)}[name]:
        layers += [nn.Linear(width, size), nn.BatchNorm1d(size), nn.ReLU(), nn.Dropout(dropout)]
        width = size
    return nn.Sequential(*layers, nn.Linear(width, outputs))
