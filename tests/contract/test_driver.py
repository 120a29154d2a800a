"""Our own drivers under the suite that authors of others run: Firecracker's with the stand-in, QEMU's with a guest.

And the example of a driver of another package.
"""

from pathlib import Path

import pytest

from tests.support.acme.driver import Acme, AcmeSpec
from tests.support.guests import guest_spec, require_guest_image
from workers.specs import FirecrackerSpec, VmSpec
from workers.vmm.contained import Contained
from workers.vmm.contract import DriverContract
from workers.vmm.driver import Driver
from workers.vmm.firecracker import FirecrackerDriver
from workers.vmm.qemu import QemuDriver


class TestFirecracker(DriverContract):
    @pytest.fixture
    def driver(self) -> Driver:
        return FirecrackerDriver("standin", {})

    @pytest.fixture
    def spec(self, tmp_path: Path) -> VmSpec:
        kernel = tmp_path / "vmlinux"
        kernel.write_bytes(b"kernel")
        return FirecrackerSpec(id="contract-1", kernel=kernel)


class TestAcme(DriverContract):
    """One of another package, as it is used: contained."""

    @pytest.fixture
    def driver(self) -> Driver:
        return Contained(Acme.make({}))

    @pytest.fixture
    def spec(self, tmp_path: Path) -> VmSpec:
        kernel = tmp_path / "kernel"
        kernel.write_bytes(b"kernel")
        return AcmeSpec(id="contract-1", kernel=kernel, colour="blue")


@pytest.mark.full
class TestQemu(DriverContract):
    @pytest.fixture
    def driver(self) -> Driver:
        return QemuDriver("qemu-system-x86_64", "tcg", {})

    @pytest.fixture
    def spec(self) -> VmSpec:
        return guest_spec(require_guest_image(), "contract-1")
