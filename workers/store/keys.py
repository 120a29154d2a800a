"""Every key in Redis: name, type, lifetime, who writes and who reads it. `P` is the prefix of the settings.

P:vm:<id>        hash    until forgotten   the record: v rev host state doc spec chk (last check, ms)      write / all
                                           lo lu lt   lease: owner, end (ms), token                write, renew / all
                                           ln cl      place it waits for, until when a slot is kept for it
                                           br         what its attempt counts for (JSON), while it runs
P:vms            set     for ever          ids of all records                                      write / all
P:in:<state>     set     for ever          ids by state                                            write / status
P:of:<host>      set     for ever          ids by host                                             write / sweeps
P:forgotten      zset    30 days each      ids that were forgotten -> when (ms)                    write / reconcile
P:due            zset    for ever          next check (ms) by id; sweeps as @<kind>:<host>         write, claim / beats
P:slots:<place>  zset    for ever          who has a slot of `fleet` or `host:<h>` -> until (ms)   write, renew, tend
P:line:<place>   zset    for ever          who waits there, or for `breaker:<scope>` -> rank       write, tend
P:storm:<place>  hash    the storm         kind since limit back                                   write, tend / status
P:losses:<kind>:<place> zset the window    VMs lost there -> when                                  write, tend
P:breaker:<scope> hash   1 h after closing state generation opened cooldown successes offered      write, tend / status
 …:probes        zset    half-open         who probes -> end of the probe                          write, renew, tend
 …:ok:<n> :ko:<n> zset   the window        children by last result -> when                         write
P:breakers       set     for ever          scopes that are not closed                              write, tend / status
P:server         hash    for ever          run id of the server, end of the quarantine             write, tend
P:modes          hash    for ever          scope (fleet, host:<h>, vm:<id>) -> holds, switches (JSON)  modes / all
P:epoch          hash    for ever          id of this life of the data                             epoch
P:epochs         zset    for ever          earlier epochs, confirmed by an operator                epoch
P:halted         hash    while halted      hosts that recover nothing now (frozen data, kill switch) -> why (JSON)
P:counts         hash    for ever          counters: refused_writes ignored_messages               write / status
P:budget:<host>  zset    1 h               destructive actions of the last hour                    sweeps
P:events         stream  bounded           the audit, one JSON field `e`                           write / events
P:host:<host>    string  lease             JSON of the worker that serves the host                 host_lease / beats
P:hosts          zset    for ever          host -> last seen (ms)                                  host_lease / status
P:strays:<host>  string  3 sweeps          JSON of VMMs nobody registered                          sweeps / status
P:registry:<host> string 3 sweeps          JSON of what the registry does not list, its trouble    sweeps / status
P:unreadable:<host> string 3 sweeps        JSON of records that cannot be read -> why              sweeps / status
"""

from dataclasses import dataclass


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

    def slots(self, place: str) -> str:
        return f"{self.prefix}:slots:{place}"

    def line(self, place: str) -> str:
        return f"{self.prefix}:line:{place}"

    def storm(self, place: str) -> str:
        return f"{self.prefix}:storm:{place}"

    def breaker(self, scope: str) -> str:
        return f"{self.prefix}:breaker:{scope}"

    def unreadable(self, host: str) -> str:
        return f"{self.prefix}:unreadable:{host}"

    def budget(self, host: str) -> str:
        return f"{self.prefix}:budget:{host}"

    def registry(self, host: str) -> str:
        return f"{self.prefix}:registry:{host}"

    @property
    def forgotten(self) -> str:
        return f"{self.prefix}:forgotten"

    @property
    def breakers(self) -> str:
        return f"{self.prefix}:breakers"

    @property
    def halted(self) -> str:
        return f"{self.prefix}:halted"

    @property
    def server(self) -> str:
        return f"{self.prefix}:server"

    @property
    def modes(self) -> str:
        return f"{self.prefix}:modes"

    @property
    def epoch(self) -> str:
        return f"{self.prefix}:epoch"

    @property
    def counts(self) -> str:
        return f"{self.prefix}:counts"

    @property
    def events(self) -> str:
        return f"{self.prefix}:events"

    @property
    def hosts(self) -> str:
        return f"{self.prefix}:hosts"
