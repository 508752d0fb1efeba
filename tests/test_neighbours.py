"""Which networks decide who is masqueraded."""

import pytest

from redirector.model import Ruleset, Target
from redirector.neighbours import network_of, resolved, targets
from tests.strategies import mapping, rebuilt

NETWORKS = ("10.88.0.0/16", "10.0.0.0/8", "192.0.2.0/24", "fd00:88::/64")
V4, V6 = Target(80, 80, ("10.88.0.5",)), Target(80, 80, ("fd00:88::5",))


@pytest.mark.parametrize(
    ("address", "network"),
    [
        ("10.88.0.5", "10.88.0.0/16"),  # the narrowest
        ("10.1.0.5", "10.0.0.0/8"),
        ("198.51.100.1", "198.51.100.1/32"),  # none: the target alone
        ("fd00:88::5", "fd00:88::/64"),
        ("fd00:89::5", "fd00:89::5/128"),
    ],
)
def test_the_network_of_a_target(address: str, network: str) -> None:
    assert network_of(address, NETWORKS) == network
    assert network_of(address, NETWORKS[::-1]) == network


def test_only_networks_that_matter_are_recorded() -> None:
    web, six = rebuilt(mapping("web"), to=V4), rebuilt(mapping("six", "81"), to=V6)
    off = rebuilt(mapping("off", "82"), to=Target(80, 80, ("192.0.2.9",)), enabled=False)
    plain = mapping("plain", "83")
    assert resolved(Ruleset((web, off, plain)), NETWORKS).networks == ("10.88.0.0/16",)
    both = resolved(Ruleset((web, six)), (*NETWORKS, *NETWORKS))
    assert both.networks == ("10.88.0.0/16", "fd00:88::/64")
    assert both.written == Ruleset((web, six))
    assert resolved(Ruleset((plain,)), NETWORKS) == Ruleset((plain,))
    assert targets(Ruleset((web, six, off))) == {"10.88.0.5", "fd00:88::5"}


def test_a_network_of_everything_makes_nobody_a_neighbour() -> None:
    web = rebuilt(mapping("web"), to=V4)
    assert resolved(Ruleset((web,)), ("0.0.0.0/0",)).networks == ()
