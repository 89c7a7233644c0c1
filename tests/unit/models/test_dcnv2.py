import torch

from headrace.models.dcnv2 import CrossNetwork
from headrace.models.layers import seeded


def test_cross_layers_follow_the_formula() -> None:
    cross = CrossNetwork(6, 2, None, seeded(0))
    x0 = torch.randn(3, 6, generator=seeded(1))
    x = x0
    for layer in cross.layers:
        x = x0 * (x @ layer.weight.T + layer.bias) + x
    torch.testing.assert_close(cross(x0), x)


def test_low_rank_cross_layers_are_full_ones_with_the_product_of_two_matrices() -> None:
    low, full = CrossNetwork(6, 1, 2, seeded(0)), CrossNetwork(6, 1, None, seeded(0))
    down, up = low.layers[0]
    assert down.weight.shape == (2, 6)
    with torch.no_grad():
        full.layers[0].weight.copy_(up.weight @ down.weight)
        full.layers[0].bias.copy_(up.bias)
    x0 = torch.randn(3, 6, generator=seeded(1))
    torch.testing.assert_close(low(x0), full(x0))
