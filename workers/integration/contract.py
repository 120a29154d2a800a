"""What every provider of a registry must do, as a suite that its author runs: a subclass and two fixtures.

class TestOurProvider(ProviderContract):
    @pytest.fixture
    def provider(self) -> VmProvider: ...      # where at least one VM is listed

    @pytest.fixture
    def failing_provider(self) -> VmProvider: ...      # the same, where what it reads cannot be read
"""

from collections import Counter
from collections.abc import Mapping

import pytest

from workers.integration.registry import Listing, ListingFailed, VmProvider
from workers.specs import VmSpec, as_spec


class ProviderContract:
    timeout_s = 10.0

    @pytest.fixture
    def provider(self) -> VmProvider:
        raise NotImplementedError("give a provider that lists at least one VM")

    @pytest.fixture
    def failing_provider(self) -> VmProvider:
        raise NotImplementedError("give a provider whose source cannot be read, or skip with the reason")

    @pytest.fixture
    def specs(self, provider: VmProvider) -> list[VmSpec]:
        return [as_spec(each) for each in Listing(lambda: provider, timeout_s=self.timeout_s).entries()]

    def test_it_lists_specs_or_mappings_of_specs(self, specs: list[VmSpec]) -> None:
        assert specs

    def test_it_lists_each_vm_once(self, specs: list[VmSpec]) -> None:
        assert not [vm_id for vm_id, number in Counter(spec.id for spec in specs).items() if number > 1]

    def test_it_says_the_same_twice_and_is_not_used_up(self, provider: VmProvider, specs: list[VmSpec]) -> None:
        again = [as_spec(dict(each) if isinstance(each, Mapping) else each) for each in provider.list_vms()]
        assert {spec.id: spec for spec in again} == {spec.id: spec for spec in specs}

    def test_what_it_cannot_read_is_an_error_and_never_an_empty_list(self, failing_provider: VmProvider) -> None:
        with pytest.raises(ListingFailed):
            Listing(lambda: failing_provider, timeout_s=self.timeout_s).entries()
