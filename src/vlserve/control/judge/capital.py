"""Betting capital: how every gate but the counts adds up its evidence.

A gate starts with capital 1 and bets against "the candidate is no worse". Each bet is fair or worse
than fair while that is true, so the capital is an e-process, and by Ville's inequality it ever
reaches 1/alpha with probability at most alpha, however often and whenever one looks (Ville 1939;
Shafer 2021, "Testing by betting"; Ramdas, Grünwald, Vovk & Shafer 2023, "Game-theoretic statistics
and safe anytime-valid inference").

The capital is spread over one purse of cash and a few bets of fixed size. After every block each
purse pays a small share into a common pot that is dealt out evenly: fixed share, Herbster & Warmuth
1998, "Tracking the best expert". The sum stays what it was, so the guarantee does too, and no bet
dies out: a candidate that turns bad after hours is found nearly as fast as one that was always bad.

Capitals are natural logarithms. The last axis is the purse, cash first; leading axes are releases,
so that the simulation runs thousands through the code that production runs one through.
"""

from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import PlainSerializer, PlainValidator

Array = NDArray[np.float64]


def _to_list(array: Array) -> object:
    plain: object = array.tolist()
    return plain


def _to_array(value: object) -> Array:
    array: Array = np.asarray(value, dtype=np.float64)
    return array


JsonArray = Annotated[Array, PlainValidator(_to_array), PlainSerializer(_to_list)]
"""An array of floats that pydantic writes to JSON as nested lists, and reads back."""

CASH = 0.5
"""Share of the capital that starts as cash."""

SHARE = 1 / 2000
"""What each purse pays into the pot per block."""


def start(bets: int, releases: tuple[int, ...] = ()) -> Array:
    """Log capital of each purse, (*releases, 1 + bets): half cash, the bets alike."""
    purses = np.full((*releases, 1 + bets), np.log((1 - CASH) / bets))
    purses[..., 0] = np.log(CASH)
    return purses


def settle(purses: Array, log_returns: Array) -> Array:
    """Pay out one block. ``log_returns`` (..., bets): log of what each bet makes of 1."""
    payouts = purses.copy()
    payouts[..., 1:] += log_returns
    pot = log_e(payouts) + np.log(SHARE / payouts.shape[-1])
    result: Array = np.logaddexp(payouts + np.log1p(-SHARE), pot[..., np.newaxis])
    return result


def log_e(purses: Array) -> Array:
    """Log of the e-value: of all purses together."""
    top = purses.max(axis=-1, keepdims=True)
    total: Array = top[..., 0] + np.log(np.exp(purses - top).sum(axis=-1))
    return total
