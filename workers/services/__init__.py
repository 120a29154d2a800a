"""What is done, in order, with the outside behind ports; what to decide is asked of `workers.domain`."""
