"""What a run costs: the searches it made, the tokens it generated and the time of its devices, and their price.

The question behind it is the published one: 64,000 searches cost $586.70 of a search API and $70.80 of GPU time.
"""

import dataclasses
import re
from collections.abc import Mapping


@dataclasses.dataclass(frozen=True)
class PricesConfig:
    """Dollars; 0: no price is known. The two that are set are those of arXiv 2505.04588, table 8 and appendix D."""

    search_query: float = 0.00917  # of a search API
    a100_hour: float = 1.475
    h100_hour: float = 0.0
    h200_hour: float = 0.0
    l4_hour: float = 0.0
    t4_hour: float = 0.0
    v5e_hour: float = 0.0  # of one TPU chip
    v5p_hour: float = 0.0
    v6e_hour: float = 0.0


# the names that jax gives to devices
_DEVICES = {
    'a100': r'A100\b',
    'h100': r'H100\b',
    'h200': r'H200\b',
    'l4': r'L4\b',
    't4': r'T4\b',
    'v5e': r'TPU v5 lite',
    'v5p': r'TPU v5p?$',
    'v6e': r'TPU v6 lite',
}


def hourly_price(prices: PricesConfig, device: str) -> float:
    """The price of an hour of one device, by its kind as jax names it; 0 where none is known."""
    kind = next((kind for kind, name in _DEVICES.items() if re.search(name, device)), None)
    return getattr(prices, f'{kind}_hour') if kind else 0.0


def price(counted: Mapping[str, float], device: str, prices: PricesConfig) -> dict[str, float]:
    """Dollars of what was counted: 'device_seconds' (of all devices together) and 'queries' at a search API.

    Returns:
      'device_dollars', and 'api_dollars': what the same number of searches would cost there.
    """
    return {
        'device_dollars': counted['device_seconds'] / 3600 * hourly_price(prices, device),
        'api_dollars': counted['queries'] * prices.search_query,
    }


def cost_line(counted: Mapping[str, float], device: str, prices: PricesConfig) -> str:
    """One line for people."""
    dollars = price(counted, device, prices)
    time = f'{counted["device_seconds"] / 3600:.2f} device-hours ({device})'
    amount = f'${dollars["device_dollars"]:.2f}' if hourly_price(prices, device) else 'no price set'
    return (
        f'cost: {counted["queries"]:.0f} searches, {counted["tokens"]:.0f} tokens generated, {time}: {amount}; '
        f'so many searches at a search API: ${dollars["api_dollars"]:.2f}'
    )
