"""The rows of the plugin `command`: real processes, on this machine and over SSH."""

from __future__ import annotations

from tests.plugins.resource_rows import Row
from tests.plugins.ssh_server import SshServer
from toolbox.plugins.property_values import UNKNOWN, Properties, Secret

SCRIPTS: Properties = {
    "create": "echo made; echo aside >&2",
    "update": "echo updated",
    "delete": 'echo "gone, was: $PULUMI_COMMAND_STDOUT"',
}
CHANGES: dict[str, Properties] = {
    "create": {"create": "echo remade"},
    "update": {"update": 'echo "was: $PULUMI_COMMAND_STDOUT $PULUMI_COMMAND_STDERR"'},
    "update left out": {"update": None},
    "no script": {"create": None, "update": None},
    "delete": {"delete": "echo away"},
    "delete left out": {"delete": None},
    "environment": {"environment": {"GREETING": "hello"}, "update": 'echo "$GREETING"'},
    "secret in environment": {"environment": {"GREETING": Secret("hello")}},
    "empty environment": {"environment": {}},
    "stdin": {"stdin": "line\n", "update": "cat"},
    "secret stdin": {"stdin": Secret("line\n"), "update": "cat"},
    "empty stdin": {"stdin": ""},
    "secret script": {"update": Secret("echo hidden")},
    "no final newline": {"update": "printf 'a\\n\\nb'"},
    "final newlines": {"update": "printf 'a\\n\\n'"},
    "logging of stdout": {"logging": "stdout", "update": "echo out; echo err >&2"},
    "logging of stderr": {"logging": "stderr", "update": "echo out; echo err >&2"},
    "logging of both": {"logging": "stdoutAndStderr", "update": "echo out; echo err >&2"},
    "no logging": {"logging": "none", "update": "echo out; echo err >&2"},
    "previous output withheld": {
        "addPreviousOutputInEnv": False,
        "update": 'echo "was: $PULUMI_COMMAND_STDOUT"',
    },
    "triggers": {"triggers": ["a", 1, {"b": [True]}]},
    "failure": {"update": 'echo "some \\"output\\""; exit 3'},
    "killed": {"update": "kill -9 $$"},
}
REFUSED: dict[str, Properties] = {
    "unknown argument": {"creat": "x"},
    "script of a wrong type": {"create": 5},
    "environment of a wrong type": {"environment": ["a"]},
    "variable of a wrong type": {"environment": {"A": 1}},
    "switch of a wrong type": {"addPreviousOutputInEnv": "no"},
    "unknown logging": {"logging": "everything"},
    "null script": {"create": None},
    "unknown in triggers": {"triggers": ["a", UNKNOWN]},
    "unknown in environment": {"environment": {"A": UNKNOWN}},
    "secret in triggers": {"triggers": [Secret("a")]},
}
UNKNOWNS = ("create", "update", "triggers", "stdin", "environment")


def local_rows() -> list[Row]:
    """Commands on this machine."""
    return [
        Row(
            "command:local:Command",
            SCRIPTS,
            changes={
                **CHANGES,
                "dir": {"dir": "/", "update": "pwd"},
                "interpreter": {"interpreter": ["/bin/sh", "-ec"], "update": "false; echo x"},
                "no such interpreter": {"interpreter": ["/no/such/shell"]},
                "no such dir": {"dir": "/no/such/dir"},
            },
            unknowns=UNKNOWNS,
            refused={
                **REFUSED,
                "interpreter of a wrong type": {"interpreter": "sh"},
                "assetPaths": {"assetPaths": ["*"]},
                "archivePaths": {"archivePaths": ["*"]},
                "connection": {"connection": {"host": "x"}},
            },
            imports=("some-id",),
            failing={"failure": (lambda: None, {"create": "echo tried; exit 7"})},
        ),
        Row(
            "command:local:Command",
            {**SCRIPTS, "triggers": ["a", {"b": 1}], "environment": {"A": "1", "B.C": "2"}},
            label="with triggers",
            changes={
                "another trigger": {"triggers": ["z", {"b": 1}]},
                "a trigger's part": {"triggers": ["a", {"b": 2}]},
                "one trigger more": {"triggers": ["a", {"b": 1}, "c"]},
                "one trigger less": {"triggers": ["a"]},
                "no triggers": {"triggers": []},
                "triggers left out": {"triggers": None},
                "secret trigger": {"triggers": [Secret("a"), {"b": 1}]},
                "one variable changed": {"environment": {"A": "x", "B.C": "2"}},
                "one variable more": {"environment": {"A": "1", "B.C": "2", "D": "3"}},
                "one variable less": {"environment": {"A": "1"}},
            },
            unknowns=("triggers",),
            imports=("some-id",),
        ),
    ]


def remote_rows(server: SshServer) -> list[Row]:
    """Commands on `server`."""
    good = server.connection()
    bare = {name: good[name] for name in ("host", "port", "hostKey", "dialErrorLimit")}
    return [
        Row(
            "command:remote:Command",
            {**SCRIPTS, "connection": good},
            changes={
                **CHANGES,
                "another connection": {"connection": {**good, "perDialTimeout": 7}},
                "password": {"connection": {**bare, "password": server.password}},
                "host key unchecked": {
                    "connection": {key: good[key] for key in good if key != "hostKey"}
                },
                "jump host": {"connection": {**good, "proxy": good}},
            },
            unknowns=(*UNKNOWNS, "connection"),
            refused={
                **REFUSED,
                "interpreter": {"interpreter": ["sh"]},
                "no connection": {"connection": None},
                "defaults": {"connection": {"host": "builder"}},
                "secret connection": {"connection": Secret({"host": "builder"})},
                "passwords": {
                    "connection": {
                        "host": "builder",
                        "password": "p",
                        "privateKey": "k",
                        "privateKeyPassword": "q",
                        "proxy": {"host": "jump", "password": "p"},
                    }
                },
                "no host": {"connection": {"user": "x"}},
                "unknown argument of the connection": {"connection": {**good, "hostname": "x"}},
                "port of a wrong type": {"connection": {**good, "port": "22"}},
                "unknown host": {"connection": {**good, "host": UNKNOWN}},
                "no host of the jump host": {"connection": {**good, "proxy": {}}},
                "jump host of a jump host": {
                    "connection": {**good, "proxy": {**good, "proxy": good}}
                },
                "connection of a wrong type": {"connection": "builder"},
            },
            imports=("some-id",),
            failing={
                "failure": (lambda: None, {"create": "echo tried; exit 7"}),
                "wrong key": (lambda: None, {"connection": bare}),
                "wrong password": (lambda: None, {"connection": {**bare, "password": "wrong"}}),
                "wrong host key": (
                    lambda: None,
                    {"connection": {**good, "hostKey": _another_host_key()}},
                ),
                "host key that is none": (lambda: None, {"connection": {**good, "hostKey": "x"}}),
                "private key that is none": (
                    lambda: None,
                    {"connection": {**good, "privateKey": "x"}},
                ),
                "unreachable": (lambda: None, {"connection": {**good, "port": 1}}),
                "unreachable, tried again": (
                    lambda: None,
                    {"connection": {**good, "port": 1, "dialErrorLimit": 2}},
                ),
                "unreachable jump host": (
                    lambda: None,
                    {"connection": {**good, "proxy": {**good, "port": 1}}},
                ),
                "unreachable behind the jump host": (
                    lambda: None,
                    {"connection": {**good, "port": 1, "proxy": good}},
                ),
                "no agent": (
                    lambda: None,
                    {"connection": {**good, "agentSocketPath": "/no/such/agent"}},
                ),
            },
        )
    ]


def _another_host_key() -> str:
    return SshServer().host_key
