"""The way of a connection: listener → dialer → relay, on one reactor."""
