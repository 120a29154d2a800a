"""Random schedules on a simulated fleet: whatever happens in whichever order, what must never happen does not."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.conftest import RUN_ALL
from workers.simulator.schedules import CHOICES, PAUSES_S, Run, Step

LENGTH = 200 if RUN_ALL else 60
EXAMPLES = 2000 if RUN_ALL else 120

steps = st.builds(Step, st.sampled_from(PAUSES_S), st.sampled_from(CHOICES))


@pytest.mark.timeout(600)
@settings(
    max_examples=EXAMPLES,
    deadline=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example],
)
@given(seed=st.integers(0, 2**32 - 1), plan=st.lists(steps, min_size=LENGTH, max_size=LENGTH))
def test_no_schedule_makes_happen_what_must_never_happen(seed: int, plan: list[Step]) -> None:
    Run(seed).play(plan)
