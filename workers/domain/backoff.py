"""How long to wait before an attempt."""


def delay_ms(attempt: int, *, base_ms: int, factor: float, cap_ms: int, jitter: float = 0.0) -> int:
    """Return the wait before attempt number `attempt` (from 1): none, base, base·factor, … at most `cap_ms`.

    `jitter` in [0, 1) only ever adds, up to a tenth of the wait, also at the cap, so that capped waits do not align.
    """
    if attempt <= 1:
        return 0
    # The exponent is bounded so that a huge attempt number cannot overflow a float.
    plain = min(float(cap_ms), base_ms * factor ** min(attempt - 2, 64))
    return int(plain * (1 + jitter / 10))
