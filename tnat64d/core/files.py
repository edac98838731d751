"""What both files say together, in values that JSON has, too: how a running daemon tells what it goes by.

Owns the form. Refuses to own the grammars (`core.config`, `core.settings`) and reading. Lines of tnat64.conf go
with it: a file whose lines have moved is another file.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from tnat64d.core.config import Config, Local, Network, Path, Subnet
from tnat64d.core.rfc6052 import Prefix
from tnat64d.core.settings import Settings, as_tables, of_tables


@dataclass(frozen=True, slots=True)
class Files:
    """`config`: tnat64.conf, `settings`: tnat64d.toml."""

    config: Config
    settings: Settings

    def as_json(self) -> dict[str, Any]:
        """What `of_json` makes them of."""
        config = self.config
        return {
            "conf": {
                "local": [asdict(local) for local in config.local],
                "paths": [
                    {
                        "subnets": [asdict(subnet) for subnet in path.subnets],
                        "prefix": str(path.prefix),
                        "line": path.line,
                    }
                    for path in config.paths
                ],
                "default_prefix": None if config.default_prefix is None else str(config.default_prefix),
                "default_prefix_line": config.default_prefix_line,
            },
            "settings": as_tables(self.settings),
        }

    @classmethod
    def of_json(cls, body: dict[str, Any]) -> Files:
        """Raises ConfigurationError where another version of tnat64d had other settings."""
        conf = body["conf"]
        default_prefix = conf["default_prefix"]
        config = Config(
            local=tuple(Local(Network(**local["network"]), local["line"]) for local in conf["local"]),
            paths=tuple(
                Path(tuple(map(_subnet, path["subnets"])), Prefix(path["prefix"], strict=False), path["line"])
                for path in conf["paths"]
            ),
            default_prefix=None if default_prefix is None else Prefix(default_prefix, strict=False),
            default_prefix_line=conf["default_prefix_line"],
        )
        return cls(config, of_tables(body["settings"], "the running daemon"))


def _subnet(body: dict[str, Any]) -> Subnet:
    return Subnet(**(body | {"network": Network(**body["network"])}))
