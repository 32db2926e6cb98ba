"""Constants of the generator and of the elementary functions, shared by every implementation of the directions.

Philox4x32-10 of Salmon et al. (SC 2011). The polynomials for the logarithm near 1 and for sine and cosine up
to pi / 4 are those of the Cephes library, single precision (Moshier 1989), to 1 unit in the last place.
"""

from __future__ import annotations

import math

M0, M1 = 0xD2511F53, 0xCD9E8D57
W0, W1 = 0x9E3779B9, 0xBB67AE85

SQRT_HALF = 0x3F3504F3  # bits of the float32 nearest to sqrt(1/2)
LN2_HIGH, LN2_LOW = 0.693359375, -2.12194440e-4
LOG = (
    7.0376836292e-2,
    -1.1514610310e-1,
    1.1676998740e-1,
    -1.2420140846e-1,
    1.4249322787e-1,
    -1.6668057665e-1,
    2.0000714765e-1,
    -2.4999993993e-1,
    3.3333331174e-1,
)
SINE = (-1.9515295891e-4, 8.3321608736e-3, -1.6666654611e-1)
COSINE = (2.443315711809948e-5, -1.388731625493765e-3, 4.166664568298827e-2)
ANGLE = math.pi * 2.0**-31  # of a signed 30-bit number, up to pi / 4
