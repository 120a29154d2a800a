"""Every key in Redis: name, type, lifetime, who writes and who reads it. `P` is the prefix of the settings.

P:vm:<id>        hash    until forgotten   v rev host state doc spec chk lo lu: the record (doc, JSON), guarded by rev;
                                           chk last check (ms), lo/lu lease owner and end (ms)    write / all
P:vms            set     for ever          ids of all records                                      write / all
P:in:<state>     set     for ever          ids by state                                            write / status
P:of:<host>      set     for ever          ids by host                                             write / sweeps
P:due            zset    for ever          next check (ms) by id; sweeps as @<kind>:<host>         write, claim / beats
P:slots          zset    for ever          fleet slots: vm id -> end of lease (ms)                 write, renew
P:slots:<host>   zset    for ever          host slots, the same
P:line           zset    for ever          who waits for a slot: by priority, then age             write.lua
P:line:<host>    zset    for ever          the same, of one host
P:events         stream  bounded           the audit, one JSON field `e`                           write / events
P:host:<host>    string  lease             JSON of the worker that serves the host                 host_lease / beats
P:hosts          zset    for ever          host -> last seen (ms)                                  host_lease / status
P:strays:<host>  string  2 sweeps          JSON of VMMs nobody registered                          sweeps / status
"""

from dataclasses import dataclass

SCHEMA_VERSION = 1


@dataclass(frozen=True, slots=True)
class Keys:
    prefix: str

    def vm(self, vm_id: str) -> str:
        return f"{self.prefix}:vm:{vm_id}"

    def in_state(self, state: str) -> str:
        return f"{self.prefix}:in:{state}"

    def of_host(self, host: str) -> str:
        return f"{self.prefix}:of:{host}"

    def host(self, host: str) -> str:
        return f"{self.prefix}:host:{host}"

    def strays(self, host: str) -> str:
        return f"{self.prefix}:strays:{host}"

    @property
    def vms(self) -> str:
        return f"{self.prefix}:vms"

    @property
    def due(self) -> str:
        return f"{self.prefix}:due"

    @property
    def slots(self) -> str:
        return f"{self.prefix}:slots"

    @property
    def line(self) -> str:
        return f"{self.prefix}:line"

    @property
    def events(self) -> str:
        return f"{self.prefix}:events"

    @property
    def hosts(self) -> str:
        return f"{self.prefix}:hosts"
