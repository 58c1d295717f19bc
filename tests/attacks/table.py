"""The table of attacks: a row is a small function with what is known about it.

    @row("KN-01", "a user namespace of its own", layers=["RestrictNamespaces"], zero="works")
    def _(at):
        return call("unshare", 0x10000000)

The function is the attack program. It is run by `inside.py` in a process of its own, as any user, in
any sandbox, and returns GOT and what it got, or the name of the error that stopped it. The rest
is for the side that looks on (`lab.py`): what must stop it, and how success shows from outside.
"""

ROWS = {}


class Row:
    def __init__(self, ident, title, program, layers, zero, one, says, seen, before, base, heavy, needs):
        self.id, self.title, self.program = ident, title, program
        # Each of these stops the attack when it is the only one that is left.
        self.layers = layers
        # At level 0 and 1: "blocked", "works" when flock does not promise anything else, or "either"
        # when it hangs on the kernel's settings.
        self.zero, self.one = zero, one
        # What the program says when it is stopped at level 1: one of these words.
        self.says = says.split()
        # seen(lab, tag, said): whether it succeeded, as seen from outside. `tag` is what the
        # run left its marks with. Without it, what the program says counts.
        self.seen = seen
        # before(lab): what has to stand there for it.
        self.before = before
        # Who can do it where nothing protects: "plain", "root", or "agent" (the agent's own user,
        # without its unit). A kernel may keep it from a plain user; root is the control then.
        self.base = base
        # Costs much, so it runs only where it has to.
        self.heavy = heavy
        # needs(): what this kernel lacks, so that there is nothing to attack; else nothing.
        self.needs = needs


def row(ident, title, layers=(), zero="blocked", one="blocked", says="EPERM", seen=None, before=None,
        base="plain", heavy=False, needs=None):
    def add(program):
        assert ident not in ROWS, ident
        assert {zero, one} <= {"blocked", "works", "either"}, ident
        assert one == "works" or layers, f"{ident}: nothing stops it"
        ROWS[ident] = Row(ident, title, program, list(layers), zero, one, says, seen, before, base, heavy, needs)
        return program
    return add
