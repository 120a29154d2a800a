"""Redis behind the ports: the records, their schedule, leases, events and hosts."""
