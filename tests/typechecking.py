"""What checks the types and shapes of every call in the tests."""

from beartype import BeartypeConf, beartype

# As type checkers do, it takes an int where a float is asked for.
check = beartype(conf=BeartypeConf(is_pep484_tower=True))
