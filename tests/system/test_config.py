"""What a configuration gives an agent: variables, secrets, paths, and the needs that loosen a default."""

import os
import pathlib

from harness import *

SECRETS = pathlib.Path("/etc/flock/secrets")


def output(agent, script):
    start(agent)
    return inside(agent, f"exec 2>&1\n{script}\ntrue")["output"]


def test_variables_secrets_and_paths():
    SECRETS.mkdir(mode=0o700, exist_ok=True)
    for name, text in (("key", "s3cret"), ("env", "FROM_FILE=red\nAGENT_ID=somebody-else\n")):
        (SECRETS / name).write_text(text)
        os.chmod(SECRETS / name, 0o600)
    for path in ("/srv/model", "/srv/data"):
        pathlib.Path(path).mkdir(exist_ok=True)
        os.chmod(path, 0o777)
    pathlib.Path("/srv/model/weights").write_text("weights")
    with agents(f"""
[agents.rich]
environment = {{ COLOR = "blue" }}
environment-files = ["{SECRETS}/env"]
secret-files = {{ key = "{SECRETS}/key" }}
read-only-paths = ["/srv/model"]
read-write-paths = ["/srv/data"]
"""):
        said = output("rich", """
echo "$COLOR $FROM_FILE $AGENT_ID"
cat /etc/secrets/key; echo; ls -ln /etc/secrets
cat /srv/model/weights; echo x > /srv/model/y; echo model $?
echo x > /srv/data/y; echo data $?
chmod 644 /etc/secrets/key; echo chmod $?
""")
        assert "blue red rich" in said, said
        assert "s3cret" in said and "-r--------" in said, said
        assert "weights" in said and "model 0" not in said and "data 0" in said, said
        assert "chmod 0" not in said, said
        assert "/srv/data" in run("flockctl", "status", "rich").out
        # Nobody else: not another agent, not a local user, not in a property.
        assert "s3cret" not in output("agent-1", "cat /etc/secrets/key")
        copy = "/var/lib/flock/roots/rich/etc/secrets/key"
        fails("cat", copy, user="flock-agent-1")
        assert "s3cret" not in ok("systemctl", "show", unit("rich")) + ok("flockctl", "plan", "rich")


def test_a_secret_that_everybody_can_read_is_refused():
    SECRETS.mkdir(mode=0o700, exist_ok=True)
    (SECRETS / "open").write_text("x")
    os.chmod(SECRETS / "open", 0o644)
    with agents(f'[agents.rich]\nsecret-files = {{ key = "{SECRETS}/open" }}\n'):
        fails("systemctl", "start", "flock@rich")
        wait("the reason in the journal", lambda: "every user" in journal("-u", "flock@rich"))


def test_a_just_in_time_compiler_needs_to_be_named():
    code = "python3 -c \"import mmap; mmap.mmap(-1, 4096, prot=7); print('G' + 'OT')\""
    assert "GOT" in ok("sh", "-c", code), "void"
    assert "GOT" not in output("agent-1", code)
    with agents('[agents.compiler]\nneeds = ["jit"]\n'):
        assert "GOT" in output("compiler", code)
        assert "jit" in run("flockctl", "status", "compiler").out


def test_a_missing_path_is_an_error_that_names_it():
    with agents('[agents.rich]\nread-only-paths = ["/srv/no-such-path"]\n'):
        fails("systemctl", "start", "flock@rich")
        told = lambda: journal("-u", "flock@rich") + run("flockctl", "status", "rich").out
        wait("its name", lambda: "/srv/no-such-path" in told())
        assert_nothing_left("rich")
