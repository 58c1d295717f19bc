"""An agent under attack from its neighbour, in the virtual machine. The figures are tests/bench/neighbours'."""

import neighbour
import neighbours
from test_quota import on
from harness import *

# Of two processors half of what the host's services get goes to all agents (flock-agents.slice), a third of that to
# each of three: 0.22. Its limit is 0.5.
SHARE = 0.2


def test_neighbours_answer_and_work_while_one_agent_takes_all_it_can():
    with on("usrquota"):
        found = neighbours.measure([attack.__name__ for attack in neighbour.ATTACKS], 1, 3)
    for attack, [(quiet, attacked)] in found.items():
        assert attacked.share > SHARE, f"{attack}: {attacked.share:.2f} of a core, {quiet.share:.2f} before"
