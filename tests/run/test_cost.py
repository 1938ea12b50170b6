"""Prices: the published comparison, and the names that jax gives to devices."""

import pytest

from zerosearch_jax.run import cost
from zerosearch_jax.run.cost import PricesConfig


def test_the_published_comparison_comes_out():
    """arXiv 2505.04588, table 8: 64,000 searches for $586.70 at SerpAPI, or 12 hours of four A100s for $70.80."""
    counted = {'queries': 64_000, 'device_seconds': 4 * 12 * 3600}
    dollars = cost.price(counted, 'NVIDIA A100-SXM4-80GB', PricesConfig())
    assert dollars['api_dollars'] == pytest.approx(586.7, abs=0.5)
    assert dollars['device_dollars'] == pytest.approx(70.8)


@pytest.mark.parametrize(
    ('device', 'field'),
    [
        ('NVIDIA A100-SXM4-80GB', 'a100_hour'),
        ('NVIDIA H100 80GB HBM3', 'h100_hour'),
        ('NVIDIA H200', 'h200_hour'),
        ('NVIDIA H20', 'h20_hour'),
        ('NVIDIA B200', 'b200_hour'),
        ('NVIDIA A10', 'a10_hour'),
        ('NVIDIA A10G', 'a10_hour'),
        ('NVIDIA L4', 'l4_hour'),
        ('Tesla T4', 't4_hour'),
        ('TPU v5 lite', 'v5e_hour'),
        ('TPU v5p', 'v5p_hour'),
        ('TPU v5', 'v5p_hour'),
        ('TPU v6 lite', 'v6e_hour'),
        ('NVIDIA L40S', None),
        ('cpu', None),
    ],
)
def test_a_device_has_the_price_of_its_kind_and_no_other(device, field):
    prices = PricesConfig(**{name: float(i) for i, name in enumerate(PricesConfig.__dataclass_fields__, start=1)})
    assert cost.hourly_price(prices, device) == (getattr(prices, field) if field else 0.0)


def test_without_a_price_it_says_so():
    line = cost.cost_line({'queries': 10, 'tokens': 5, 'device_seconds': 7200.0}, 'cpu', PricesConfig())
    assert '10 searches' in line and '2.00 device-hours (cpu): no price set' in line and '$0.09' in line
