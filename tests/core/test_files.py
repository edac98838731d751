"""What a daemon tells of its files is what it has read."""

from __future__ import annotations

import json

from tnat64d.core import config, settings
from tnat64d.core.files import Files

CONF = """\
local = 10.0.0.0/8
local = 10.0.0.1/255.0.0.255
path {
    subnet = 198.51.100.0:80-443/24
    subnet = 203.0.113.0/24
    nat64_prefix = 64:ff9b:1::/48
}
path {
    subnet = 8.8.8.8/32
    nat64_prefix = 2001:db8:64:0:ff00::
}
"""
SETTINGS = """\
[rules]
address = "192.0.0.3"
mark = 0x1234
[scope]
not_ports = ["25"]
[exec]
users = ["nobody"]
"""


def test_all_of_both_files_comes_back_from_json() -> None:
    for conf in ("", CONF, f"{CONF}nat64_prefix = 2001:db8:64::\n"):
        for toml in ("", SETTINGS):
            files = Files(config.parse(conf, "t.conf"), settings.parse(toml, "t.toml"))
            assert Files.of_json(json.loads(json.dumps(files.as_json()))) == files


def test_a_line_that_has_moved_is_a_difference() -> None:
    here, there = (Files(config.parse(text, "t.conf"), settings.Settings()) for text in (CONF, f"#\n{CONF}"))
    assert here.as_json() != there.as_json()
