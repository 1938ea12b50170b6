"""The cost of a run: its searches, generated tokens and device time, and their price.

It is for comparison with the paper, in which 64,000 searches cost $586.70 at a search API and $70.80 of GPU time.
"""

import dataclasses
import re
from collections.abc import Mapping


@dataclasses.dataclass(frozen=True)
class PricesConfig:
    """Dollars; 0: no price is known. The two prices that are set are from arXiv 2505.04588, table 8 and appendix D."""

    search_query: float = 0.00917  # a query to a search API
    a100_hour: float = 1.475  # an hour of one GPU, as for the others
    h100_hour: float = 0.0
    h200_hour: float = 0.0
    h20_hour: float = 0.0
    b200_hour: float = 0.0
    a10_hour: float = 0.0
    l4_hour: float = 0.0
    t4_hour: float = 0.0
    v5e_hour: float = 0.0  # an hour of one TPU chip
    v5p_hour: float = 0.0
    v6e_hour: float = 0.0


# the names that jax gives to devices
_DEVICES = {
    'a100': r'A100\b',
    'h100': r'H100\b',
    'h200': r'H200\b',
    'h20': r'H20\b',
    'b200': r'B200\b',
    'a10': r'A10G?\b',
    'l4': r'L4\b',
    't4': r'T4\b',
    'v5e': r'TPU v5 lite',
    'v5p': r'TPU v5p?$',
    'v6e': r'TPU v6 lite',
}


def hourly_price(prices: PricesConfig, device: str) -> float:
    """The price of an hour of one device, by its kind as jax names it; 0 if none is known."""
    kind = next((kind for kind, name in _DEVICES.items() if re.search(name, device)), None)
    return getattr(prices, f'{kind}_hour') if kind else 0.0


def price(counted: Mapping[str, float], device: str, prices: PricesConfig) -> dict[str, float]:
    """The price of 'device_seconds' (summed over devices) and of as many 'queries' at a search API.

    Returns:
      'device_dollars', and 'api_dollars': the price of as many searches at a search API.
    """
    return {
        'device_dollars': counted['device_seconds'] / 3600 * hourly_price(prices, device),
        'api_dollars': counted['queries'] * prices.search_query,
    }


def cost_line(counted: Mapping[str, float], device: str, prices: PricesConfig) -> str:
    """The cost as one line of text."""
    dollars = price(counted, device, prices)
    time = f'{counted["device_seconds"] / 3600:.2f} device-hours ({device})'
    amount = f'${dollars["device_dollars"]:.2f}' if hourly_price(prices, device) else 'no price set'
    return (
        f'cost: {counted["queries"]:.0f} searches, {counted["tokens"]:.0f} tokens generated, {time}: {amount}; '
        f'as many searches at a search API: ${dollars["api_dollars"]:.2f}'
    )
